"""Builds new models from descriptions: a student of the catalogue, or a user's TOML."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import architecture_of, model_shape, model_type_of, positions_of, wasted_positions
from microbert_cli.models.capture import show_scores
from microbert_cli.models.config import NO_CODE, register_model_type, without_code
from microbert_cli.models.find import writes_no_classes
from microbert_cli.models.load import (
    LoadedModel,
    check_forward,
    class_of,
    count_all_parameters,
    load_model,
    load_multitask,
    load_vocabulary,
)
from microbert_cli.models.moe.bert import RoutedBertForSequenceClassification
from microbert_cli.models.size import check_memory
from microbert_cli.models.tokenizers import pad_right, rows_needed, separator_id
from microbert_cli.models.words.head import name_class, set_answers
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.student_shapes import read_student
from microbert_cli.recipe.task import Task
from microbert_cli.recipe.task_kinds import TaskKind
from microbert_cli.runs import manifest

MAX_LENGTH = 512  # positions of a new student whose teacher has no limit


TEACHER = "teacher"  # in a description: the teacher's value, perhaps times or divided by whole numbers: "teacher * 2 / 3"


def build_model(
    student: dict[str, Any], *, kind: str, tokenizer: Any, seed: int, like: Any = None, head: TaskKind | None = None,
    texts: int = 1, where: str = "student",
) -> Any:  # fmt: skip
    """Builds a model from a student description (its TOML with numbers filled in), initialised from `seed`.

    like   the teacher's configuration: what the description says relative to the teacher, positions and padding
    texts  of a row: a recurrent network reads those of a pair apart, unless its description says otherwise
    Raises M042 for what is no description, M376 for one that writes, M011 for heads that do not divide the width, M223 for what
    no memory holds, M327 for a type that is no masked-LM where one is wanted.
    """
    if "decoder_layers" in student:
        raise writes_no_classes(where)
    is_of_teachers_type = student.get("model_type") == TEACHER
    student = _relative_to_teacher(student, like, where)
    fields = {key: value for key, value in student.items() if key not in ("title", "model_type")}
    fields |= {"vocab_size": rows_needed(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    architecture = architecture_of(student.get("model_type", ""))
    if like is not None and architecture.positions and "max_position_embeddings" not in student:
        wasted = wasted_positions(student.get("model_type", ""), tokenizer.pad_token_id)
        fields["max_position_embeddings"] = (positions_of(like) or MAX_LENGTH) + wasted
    try:
        if architecture.recurrent and head is not None:
            fields.setdefault("siamese", texts == 2)
        if not architecture.recurrent:
            fields["num_attention_heads"] = _heads(fields, like)
        if architecture.reads_apart or fields.get("siamese"):
            fields["separator_token_id"] = separator_id(tokenizer, where=where)
        register_model_type(student)
        config = without_code(_config(student["model_type"], fields, like if is_of_teachers_type else None))
    except MbertError:
        raise
    except Exception as error:  # a description fails in as many ways as transformers has configurations
        raise _no_student(where, error) from error
    if head is not None:
        set_answers(config, head, where=where)
    shape = model_shape(config)
    if shape.heads and shape.width % shape.heads:
        raise MbertError(
            "M011",
            f"{shape.heads} heads do not divide a width of {shape.width}",
            where=where,
            allowed="A width that is a multiple of the number of heads.",
            fix="Choose another student: mbert list students",
        )
    if architecture.recurrent and kind == "masked-lm":
        raise _no_masked_lm(where, student["model_type"])
    try:
        if torch.get_default_device().type != "meta":  # on which nothing is allocated
            check_memory(student_parameters(config, kind), where=where, fix="Choose a smaller student: mbert list students")
        torch.manual_seed(seed)
        model = class_of(kind, config).from_config(copy.deepcopy(config), dtype=torch.float32, **NO_CODE)
    except ValueError as error:  # a word that is none of an architecture's own
        raise _no_student(where, error) from error
    name_class(model)
    show_scores(model)
    return model


def _relative_to_teacher(student: dict[str, Any], like: Any, where: str) -> dict[str, Any]:
    """Returns a description with the teacher's sizes filled in, but for heads, which `_heads` knows how to fit.

    model_type = "teacher" is BERT where the teacher's weights have no place in another depth and width of its own type.
    """
    relative = [key for key, value in student.items() if isinstance(value, str) and value.split()[:1] == [TEACHER]]
    if set(relative) <= {"num_attention_heads"}:
        return student
    if like is None:
        raise missing_vocabulary("student that is relative to its teacher", where)
    shape = model_shape(like)
    sizes = {
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.width,
        "intermediate_size": shape.inner or 4 * shape.width,
        "embedding_size": shape.embedding,
    }
    filled = {key: _multiplied(sizes[key], student[key]) for key in relative if key in sizes}
    same_type = architecture_of(like).layer_weights is not None and shape.embedding == shape.width
    model_type = {"model_type": model_type_of(like) if same_type else "bert"} if "model_type" in relative else {}
    return {**student, **filled, **model_type}


def _multiplied(size: int, expression: str) -> int:
    """Returns `size` by an expression such as "teacher * 2 / 3", at least 1."""
    value, words = float(size), expression.split()[1:]
    for operator, number in zip(words[::2], words[1::2], strict=True):
        value = value * int(number) if operator == "*" else value / int(number)
    return max(1, round(value))


def _config(model_type: str, fields: Mapping[str, Any], like: Any) -> Any:
    """Returns a configuration; of the teacher's type, all else is as in the teacher's: activation, epsilon, segments."""
    if like is None or model_type != model_type_of(like):
        return AutoConfig.for_model(model_type, **fields)
    config = copy.deepcopy(like)
    for name, value in fields.items():
        setattr(config, architecture_of(like).inner if name == "intermediate_size" else name, value)
    return config


def student_parameters(config: Any, kind: str) -> int:
    """Counts the parameters of a configuration from those of one layer and of two, which is as fast at any depth."""
    depth = model_shape(config).layers
    if depth < 3:
        return config_parameters(config, kind)
    of_one_layer, of_two_layers = (config_parameters(_of_depth(config, layers), kind) for layers in (1, 2))
    return of_one_layer + (depth - 1) * (of_two_layers - of_one_layer)


def config_parameters(config: Any, kind: str) -> int:
    """Counts the parameters of a configuration; nothing is allocated."""
    return count_all_parameters(meta_model(config, kind))


def meta_model(config: Any, kind: str) -> Any:
    """Returns a model of a configuration whose tensors have shapes and no values."""
    with torch.device("meta"):
        return class_of(kind, config).from_config(copy.deepcopy(config), **NO_CODE)


def _of_depth(config: Any, layers: int) -> Any:
    other = copy.deepcopy(config)
    other.num_hidden_layers = layers
    return other


def _no_student(where: str, error: Exception) -> MbertError:
    return MbertError(
        "M042",
        f"this description makes no model: {type(error).__name__}: {str(error)[:200]}",
        where=where,
        allowed="The keys of a configuration of transformers: model_type, num_hidden_layers, num_attention_heads ...",
        fix="Start from one: mbert copy students tinybert-4l-312",
    )


def _no_masked_lm(where: str, model_type: str) -> MbertError:
    return MbertError(
        "M327",
        f'"{model_type}" has no masked-LM head, and this stage predicts hidden words',
        where=where,
        allowed="Transformers; a recurrent student learns a task: it begins with its teacher's word embeddings.",
        fix="Choose another student (mbert list students), or leave the stage out: --stages finetune,task-distill,evaluate",
    )


def _heads(fields: dict[str, Any], like: Any) -> int:
    heads = fields["num_attention_heads"]
    if heads != "teacher":
        return int(heads)
    width: int = fields["hidden_size"]
    if like is not None and (of_teacher := model_shape(like).heads) and width % of_teacher == 0:
        return of_teacher
    return next(heads for heads in (12, 8, 6, 4, 3, 2, 1) if width % heads == 0)


def described_config(name: str, catalog: Catalog, *, tokenizer: Any, like: Any, where: str = "student") -> Any:
    """Returns the configuration of a student of the catalogue with this vocabulary; its weights are not allocated."""
    # fork_rng: building draws random numbers, and looking at a student must not change those that are drawn after it.
    with torch.device("meta"), torch.random.fork_rng():
        model = build_model(read_student(name, catalog), kind="encoder", tokenizer=tokenizer, seed=0, like=like, where=where)
    return model.config


def student_config(name: str, catalog: Catalog, teacher: LoadedModel) -> Any:
    """Returns the configuration of a new student of this teacher."""
    return described_config(name, catalog, tokenizer=pad_right(teacher.tokenizer), like=teacher.model.config)


Initializer = Callable[[Any], dict[str, torch.Tensor] | None]  # changes a new model's weights: distillation/start/initialise.py


def is_description(name: str, catalog: Catalog) -> bool:
    """Whether this is a student of the catalogue (or a student TOML), not a checkpoint."""
    return not Path(name).is_dir() and not list(catalog.check("students", name, ""))


def identify(name: str | None, catalog: Catalog) -> Any:
    """Returns what identifies a model: its description, or the hashes of its files."""
    if name is not None and is_description(name, catalog):
        return read_student(name, catalog)
    return manifest.identify(name)


def classifier(
    name: str, catalog: Catalog, *, task: Task, seed: int, tokenizer: str | None, where: str, like: Any = None,
    start: Initializer | None = None, label_order: Sequence[str] | None = None,
) -> LoadedModel:  # fmt: skip
    """Returns a classifier for the task: a checkpoint (its head kept where the labels fit, else new), or a new student.

    New weights depend on `seed` alone, those of a new student also on `start`. A checkpoint's outputs are put into the task's
    order, by its own names of them or by `label_order`.
    """
    if not is_description(name, catalog):
        torch.manual_seed(seed)
        loaded = load_model(
            name, "classifier", where=where, new_head=True, head=task.kind, seed=seed, task=task.name, label_order=label_order
        )
        check_forward(loaded.model, where=f"{where} {name}", training=True)
        return loaded
    if tokenizer is None:
        raise missing_vocabulary(name, where)
    tokens, config = load_vocabulary(tokenizer, where="tokenizer")
    description, tokens = read_student(name, catalog), pad_right(tokens)
    model = build_model(
        description,
        kind="classifier",
        tokenizer=tokens,
        seed=seed,
        like=like or config,
        head=task.kind,
        texts=len(task.text),
        where=where,
    )
    return LoadedModel(model, tokens, name, [], start(model) if start else None)


def multitask_classifier(
    name: str, catalog: Catalog, *, tasks: Sequence[Task], seed: int, tokenizer: str | None, where: str, like: Any = None,
    start: Initializer | None = None, label_order: Sequence[str] | None = None,
) -> LoadedModel:  # fmt: skip
    """Returns a BERT with a head per task: made of a checkpoint's or a new student's encoder, or a checkpoint that is one.

    The heads depend on `seed` alone; a single task's is the checkpoint's where that has one. Raises M088 where the model is no
    BERT, M089 where it has heads for other tasks.
    """
    by_name = sorted(tasks, key=lambda task: task.name)  # config.json is written with sorted keys, and numbers tasks by them
    heads = {task.name: {"labels": list(task.kind.names) or None, "num_labels": task.kind.num_outputs} for task in by_name}
    if not is_description(name, catalog) and (loaded := load_multitask(name, where=where)):
        if loaded.model.config.tasks != heads:
            raise _other_tasks(f"{where} {name}", list(loaded.model.config.tasks), list(heads))
        return loaded
    dense = classifier(
        name,
        catalog,
        task=tasks[0],
        seed=seed,
        tokenizer=tokenizer,
        where=where,
        like=like,
        start=start,
        label_order=label_order,
    )
    if architecture_of(dense.model.config).experts != "convertible":
        raise _no_bert(f"{where} {name}", model_type_of(dense.model.config))
    trained = {tasks[0].name: dense.model.classifier} if len(tasks) == 1 else None
    model = RoutedBertForSequenceClassification.from_dense(dense.model, tasks=heads, seed=seed, heads=trained)
    show_scores(model)
    return replace(dense, model=model)


def encoder(
    name: str,
    catalog: Catalog,
    *,
    seed: int,
    teacher: LoadedModel,
    where: str,
    start: Initializer | None = None,
    head: str = "encoder",
    tokenizer: Any = None,
) -> LoadedModel:
    """Returns an encoder, or a masked-LM: a checkpoint, or a new student, with the teacher's vocabulary or one of its own."""
    if not is_description(name, catalog):
        return load_model(name, head, where=where, new_head=True, seed=seed)
    description, tokens = read_student(name, catalog), pad_right(tokenizer or teacher.tokenizer)
    like = teacher.model.config
    model = build_model(description, kind=head, tokenizer=tokens, seed=seed, like=like, where=where)
    return LoadedModel(model, tokens, name, [], start(model) if start else None)


def _no_bert(where: str, model_type: str) -> MbertError:
    return MbertError(
        "M088",
        f'a student of several tasks is a BERT with a head for each, and this is "{model_type}"',
        where=where,
        allowed="A BERT: a checkpoint, or a student of the catalogue of that model_type.",
        fix="Choose another student (mbert list students), or a run for each task: --task TASK",
    )


def _other_tasks(where: str, tasks_of_model: list[str], wanted: list[str]) -> MbertError:
    return MbertError(
        "M089",
        f"this model has heads for {', '.join(tasks_of_model)}, and the run is of {', '.join(wanted)}",
        where=where,
        allowed="The same tasks with the same labels; or a model of one task or none.",
        fix=f"--tasks {','.join(tasks_of_model)}, or take one task's model out of it: mbert extract DIR -o OUT",
    )


def missing_vocabulary(name: str, where: str) -> MbertError:
    """Returns the error for a new model that no vocabulary is named for."""
    return MbertError(
        "M021",
        f'a new "{name}" needs a vocabulary, and no model to take it from is named',
        where=where,
        allowed="A model whose tokenizer it shares, or a vocabulary trained on the corpus.",
        fix="--set base=DIR" + (", or train one: --set vocabulary.size=8000" if where.startswith("pretrain") else ""),
    )


class FunctionModel:
    """A function from batch to logits with the interface of a predictor's model."""

    def __init__(self, logits: Any):
        self.logits = logits
