"""What a name in a recipe stands for: a directory, a Hub id, or a description in the catalogue; and on which device."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from microbert_cli import building, manifest, models, processes
from microbert_cli.capture import show_scores
from microbert_cli.catalog import Catalog
from microbert_cli.errors import MbertError
from microbert_cli.models import Loaded
from microbert_cli.shapes import describe as describe
from microbert_cli.students.routed_bert import RoutedBertForSequenceClassification
from microbert_cli.task import Task

Start = Callable[[Any], dict[str, torch.Tensor] | None]  # of a new model's weights; see `initialising.Start`


def is_description(name: str, catalog: Catalog) -> bool:
    """Whether this is a student of the catalogue (or a student TOML), not a checkpoint."""
    return not Path(name).is_dir() and not list(catalog.check("students", name, ""))


def identify(name: str | None, catalog: Catalog) -> Any:
    """What a model or description is, for identities."""
    if name is not None and is_description(name, catalog):
        return describe(name, catalog)
    return manifest.identify(name)


def classifier(
    name: str, catalog: Catalog, *, task: Task, seed: int, tokenizer: str | None, where: str, like: Any = None,
    start: Start | None = None,
) -> Loaded:  # fmt: skip
    """A classifier for the task: a checkpoint (its head kept where the labels fit, else made anew), or a new student.

    The weights that are made anew depend on `seed`, and of a new student on `start`, alone.
    """
    labels = list(task.label.names) if task.label.names else None
    heads: dict[str, Any] = {"labels": labels, "num_labels": task.num_labels}
    if not is_description(name, catalog):
        torch.manual_seed(seed)
        loaded = models.load(name, "classifier", where=where, new_head=True, seed=seed, task=task.name, **heads)
        return loaded
    if tokenizer is None:
        raise no_vocabulary(name, where)
    tokens, config = models.load_vocabulary(tokenizer, where="tokenizer")
    description = describe(name, catalog)
    model = building.build(
        description, kind="classifier", tokenizer=tokens, seed=seed, like=like or config, where=where, **heads
    )
    return Loaded(model, tokens, name, [], start(model) if start else None)


def several_heads(
    name: str, catalog: Catalog, *, tasks: Sequence[Task], seed: int, tokenizer: str | None, where: str, like: Any = None,
    start: Start | None = None,
) -> Loaded:  # fmt: skip
    """A BERT with a head for each of several tasks: of a checkpoint's or a new student's encoder, or a model that is one.

    The heads depend on `seed` alone; a single task's is the checkpoint's where that has one. Raises M088 where the model is no
    BERT, M089 where it has heads for other tasks.
    """
    named = sorted(tasks, key=lambda task: task.name)  # as config.json keeps them
    wanted = {task.name: {"labels": list(task.label.names or ()) or None, "num_labels": task.num_labels} for task in named}
    if known := None if is_description(name, catalog) else models.load_several(name, where=where):
        if known.model.config.tasks != wanted:
            raise _other_tasks(f"{where} {name}", list(known.model.config.tasks), list(wanted))
        return known
    dense = classifier(name, catalog, task=tasks[0], seed=seed, tokenizer=tokenizer, where=where, like=like, start=start)
    if (kind := dense.model.config.model_type) != "bert":
        raise _no_bert(f"{where} {name}", kind)
    heads = {tasks[0].name: dense.model.classifier} if len(tasks) == 1 else None
    model = RoutedBertForSequenceClassification.from_dense(dense.model, tasks=wanted, seed=seed, heads=heads)
    show_scores(model)
    return replace(dense, model=model)


def encoder(
    name: str, catalog: Catalog, *, seed: int, teacher: Loaded, where: str, start: Start | None = None, head: str = "encoder"
) -> Loaded:
    """A bare encoder, or a "masked-lm": a checkpoint to go on from, or a new student with the teacher's vocabulary."""
    if not is_description(name, catalog):
        return models.load(name, head, where=where, new_head=True, seed=seed)
    description, tokens = describe(name, catalog), teacher.tokenizer
    like = teacher.model.config
    model = building.build(description, kind=head, tokenizer=tokens, seed=seed, like=like, where=where)
    return Loaded(model, tokens, name, [], start(model) if start else None)


def _no_bert(where: str, kind: str) -> MbertError:
    return MbertError(
        "M088",
        f'a student of several tasks is a BERT with a head for each, and this is "{kind}"',
        where=where,
        allowed="A BERT: a checkpoint, or a student of the catalogue of that model_type.",
        fix="Choose another student (mbert list students), or a run for each task: --task",
    )


def _other_tasks(where: str, known: list[str], wanted: list[str]) -> MbertError:
    return MbertError(
        "M089",
        f"this model has heads for {', '.join(known)}, and the run is of {', '.join(wanted)}",
        where=where,
        allowed="The same tasks with the same labels; or a model of one task or none.",
        fix=f"--tasks {','.join(known)}, or take one task's model out of it: mbert extract",
    )


def no_vocabulary(name: str, where: str) -> MbertError:
    """The error for a new model without anything to take its tokens from."""
    return MbertError(
        "M021",
        f'a new "{name}" needs a vocabulary, and no model to take it from is named',
        where=where,
        allowed="A model whose tokenizer it shares, or a vocabulary trained on the corpus.",
        fix="--set base=DIR, --teacher DIR, or for pretrain: --set vocabulary.size=8000",
    )


def device(name: str) -> str:
    """`auto` is a GPU where there is one, of several processes each one's own; raises M109 for a device that is not there."""
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{processes.local_rank()}" if processes.world() > 1 else "cuda"
    if name == "auto":
        return "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise MbertError(
            "M109",
            f'there is no device "{name}" here: {str(error).splitlines()[0][:160]}',
            where="--device, MBERT_DEVICE or the key device",
            allowed=f"auto, cpu{', cuda' if torch.cuda.is_available() else ''}.",
            fix="Leave it out: auto takes a GPU where there is one.",
        ) from None
    return name


def settle(answers: Any, name: str) -> None:
    """Puts a model that answers on the device of that name; ONNX Runtime stays where it is."""
    if isinstance(getattr(answers, "model", None), torch.nn.Module):
        answers.model.to(device(name))


class Answering:
    """A function from batch to logits as something that answers."""

    def __init__(self, logits: Any):
        self.logits = logits
