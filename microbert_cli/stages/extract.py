"""The plain BERT of each task out of a model for several: a directory that transformers alone can load."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from microbert_cli import checkpoint, exporting, extraction, manifest, models, sources
from microbert_cli.catalog import Catalog
from microbert_cli.errors import MbertError
from microbert_cli.models import Loaded
from microbert_cli.onnx_model import torch_logits
from microbert_cli.output import working
from microbert_cli.recipe import Recipe
from microbert_cli.stage import StageResult, sign, up_to_date
from microbert_cli.task_rows import TaskRows, find_task, open_task
from microbert_cli.teacher import match_labels
from microbert_cli.tracking import SILENT, Talk

NAME = "extract"
KEYS = ("task", "data")
ROWS = 256
SAME = 1e-6  # of logits up to 1; of larger ones in proportion


def run(
    recipe: Recipe,
    out: Path,
    *,
    catalog: Catalog,
    model: str,
    force: bool = False,
    resume: bool = True,
    renew: bool = False,
    talk: Talk = SILENT,
) -> StageResult:
    """Extracts the recipe's task into OUT; where none is named every task of `model` into OUT/TASK, or its only one into OUT.

    A directory is done when transformers alone, reading it, gave the routed model's logits to 1e-6 on padded dev rows of the
    task. metrics.json: largest difference, dev scores, experts of every layer, parameters before and after.
    Raises M127 for a model that is not routed by task, M128 for one that is plain already, M266 for a task it does not know.
    """
    path = sources.find(model, where="MODEL")
    config = models.read_config(path, where="MODEL")
    if not extraction.is_routed(config):
        raise _is_plain(model)
    routed = models.load_routed(path, config, where="MODEL").eval()
    if config.moe_layers and config.routing != "task":
        raise extraction.no_plain_one(next(iter(routed.tasks)))
    whole = Loaded(routed, models.load_tokenizer(path, config, where="MODEL"), model, [])
    made, alone = {}, _names_one(recipe) or len(routed.tasks) == 1
    for one in _each_task(recipe, routed.tasks):
        name = extraction.known_task(routed, find_task(one, catalog, talk=talk).name, where=f"MODEL {model}")
        data = open_task(one, catalog, splits=("dev",), talk=talk)
        place = out if alone else out / name
        identity = {"recipe": one.identity(*KEYS), "model": manifest.identify(model), "data": data.fingerprints()}
        with working(place, stage=NAME, identity=identity, force=force, resume=resume, renew=renew, talk=talk) as work:
            if work.done:
                made[name] = up_to_date(NAME, place)
                continue
            metrics = _extract(whole, name, data, work.path, talk)
            made[name] = sign(
                work,
                stage=NAME,
                recipe=one.keys(*KEYS),
                metrics=metrics,
                inputs={"model": identity["model"]},
                sources={"model": model},
                data=data.facts(),
            )
    if alone:
        return replace(next(iter(made.values())), out=out)  # as it was named
    metrics = {"tasks": {name: result.metrics for name, result in made.items()}}
    return StageResult(NAME, out, metrics, up_to_date=all(result.up_to_date for result in made.values()))


def _names_one(recipe: Recipe) -> bool:
    return recipe.task is not None or recipe.data.train_file is not None


def _each_task(recipe: Recipe, known: Sequence[str]) -> list[Recipe]:
    """The recipe of every task that is asked for: the recipe's own, else all that the model knows."""
    if _names_one(recipe):
        return [recipe]
    files = {Path(task).stem: task for task in getattr(recipe, "tasks", ())}
    return [recipe.model_copy(update={"task": files.get(name, name), "tasks": []}) for name in known]


def _extract(whole: Loaded, name: str, data: TaskRows, place: Path, talk: Talk) -> dict[str, Any]:
    """Writes one task's plain model, reads it back, compares, and returns what was measured."""
    routed, tokenizer = whole.model, whole.tokenizer
    plain = extraction.dense(routed, name)
    checkpoint.save_model(plain, tokenizer, place)
    read = Loaded(exporting.read_back(place), tokenizer, str(place), [])
    encoded = data.encode("dev", read, where="MODEL")
    rows = [encoded.row(i) for i in range(min(len(encoded), ROWS))]
    longest = min(plain.config.max_position_embeddings, tokenizer.model_max_length)
    batches = list(exporting.parity_batches(rows, tokenizer.pad_token_id or 0, longest=longest))
    with routed.answering(name):
        expected = [torch_logits(routed)(batch) for batch in batches]
    found = exporting.compare(torch_logits(read.model), batches, expected, regression=plain.config.num_labels == 1)
    largest = max(1.0, float(np.max([np.abs(logits).max() for logits in expected])))
    exporting.refuse_difference(place / "model.safetensors", found["max_difference"], SAME * largest)
    match_labels(read, data.task, None, where=f"MODEL {whole.source}")
    sizes = {"before": models.parameters(routed), "after": models.parameters(plain)}
    talk.note(f"{name}: {sizes['before']:,} -> {sizes['after']:,} parameters, logits differ by {found['max_difference']:.1e}")
    return {
        "task": name,
        "primary": data.task.primary,
        "dev": data.score("dev", read.model, read),
        "parity": {**found, "rows": len(rows), "shapes": [list(batch["input_ids"].shape) for batch in batches]},
        "parameters": sizes,
        "experts": {str(layer): [int(e) for e in chosen] for layer, chosen in routed.chosen()[name].items()},
        "ffn_width": plain.config.intermediate_size,
    }


def _is_plain(model: str) -> MbertError:
    return MbertError(
        "M128",
        "there is nothing to extract: this is a plain model already",
        where=f"MODEL {model}",
        allowed="A model that was trained on several tasks, or with moe.side = student.",
        fix=f"Use it as it is: mbert evaluate {model} --task TASK",
    )
