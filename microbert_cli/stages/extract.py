"""The plain BERT of each task out of a model for several, or of a bi-encoder: a directory that transformers alone can load."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from microbert_cli.data.task_data import TaskData, find_task, load_task_data
from microbert_cli.errors import MbertError
from microbert_cli.evaluation.scoring import predict_logits, score
from microbert_cli.exporting.directory import compare, comparison_batches, parity_rows, read_back, refuse_difference
from microbert_cli.exporting.encoder import write_encoder
from microbert_cli.models.architectures import architecture_of, model_shape
from microbert_cli.models.config import read_config
from microbert_cli.models.find import find_model
from microbert_cli.models.labels import match_labels
from microbert_cli.models.load import LoadedModel, count_all_parameters, load_model, load_routed
from microbert_cli.models.moe.extract import default_task, dense_model, is_routed, no_plain_model
from microbert_cli.models.onnx import torch_logits
from microbert_cli.models.save import save_model
from microbert_cli.models.tokenizers import load_tokenizer
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import manifest
from microbert_cli.runs.output_dir import stage_output
from microbert_cli.runs.stage_result import StageResult, up_to_date, write_results

NAME = "extract"
KEYS = ("task", "data")
TOLERANCE = 1e-6  # of logits up to 1; of larger ones in proportion


def run(
    recipe: Recipe,
    out: Path,
    *,
    catalog: Catalog,
    model: str,
    force: bool = False,
    resume: bool = True,
    renew: bool = False,
    reporter: Reporter = SILENT,
) -> StageResult:
    """Extracts the recipe's task into OUT; where none is named every task of `model` into OUT/TASK, or its only one into OUT.

    A directory is done when transformers alone, reading it, gave the routed model's logits to 1e-6 on padded dev rows of the
    task. metrics.json: largest difference, dev scores, experts of every layer, parameters before and after.
    Of a model that reads the texts of a pair apart it is the encoder that makes their vectors (`exporting/encoder.py`).
    Raises M127 for a model that is not routed by task, M128 for one that is plain already, M266 for a task it does not know.
    """
    path = find_model(model, where="MODEL")
    config = read_config(path, where="MODEL")
    if architecture_of(config).reads_apart:
        return _extract_encoder(path, out, model, {"force": force, "resume": resume, "renew": renew, "reporter": reporter})
    if not is_routed(config):
        raise _nothing_to_extract(model)
    routed = load_routed(path, config, where="MODEL").eval()
    if config.moe_layers and config.routing != "task":
        raise no_plain_model(next(iter(routed.tasks)))
    loaded = LoadedModel(routed, load_tokenizer(path, config, where="MODEL"), model, [])
    results, alone = {}, _names_one_task(recipe) or len(routed.tasks) == 1
    for task_recipe in _recipe_of_each_task(recipe, routed.tasks):
        name = default_task(routed, find_task(task_recipe, catalog, reporter=reporter).name, where=f"MODEL {model}")
        data = load_task_data(task_recipe, catalog, splits=("dev",), reporter=reporter)
        directory = out if alone else out / name
        identity = {"recipe": task_recipe.identity(*KEYS), "model": manifest.identify(model), "data": data.fingerprints()}
        with stage_output(
            directory, stage=NAME, identity=identity, force=force, resume=resume, renew=renew, reporter=reporter
        ) as work:
            if work.done:
                results[name] = up_to_date(NAME, directory)
                continue
            metrics = _extract_task(loaded, name, data, work.path, reporter)
            results[name] = write_results(
                work,
                stage=NAME,
                recipe=task_recipe.keys(*KEYS),
                metrics=metrics,
                inputs={"model": identity["model"]},
                sources={"model": model},
                data=data.facts(),
            )
    if alone:
        return replace(next(iter(results.values())), out=out)  # as it was named
    metrics = {"tasks": {name: result.metrics for name, result in results.items()}}
    return StageResult(NAME, out, metrics, up_to_date=all(result.up_to_date for result in results.values()))


def _extract_encoder(path: Path, out: Path, source: str, controls: Mapping[str, Any]) -> StageResult:
    identity = {"model": manifest.identify(str(path)), "part": "encoder"}
    with stage_output(out, stage=NAME, identity=identity, **controls) as work:
        if work.done:
            return up_to_date(NAME, out)
        metrics = write_encoder(load_model(path, "classifier", where="MODEL"), work.path)
        inputs = {"model": identity["model"]}
        return write_results(work, stage=NAME, recipe={}, metrics=metrics, inputs=inputs, sources={"model": source})


def _names_one_task(recipe: Recipe) -> bool:
    return recipe.task is not None or recipe.data.train_file is not None


def _recipe_of_each_task(recipe: Recipe, task_names: Sequence[str]) -> list[Recipe]:
    """Returns the recipe of every task to extract: of the one that the recipe names, else of all that the model knows."""
    if _names_one_task(recipe):
        return [recipe]
    files = {Path(task).stem: task for task in getattr(recipe, "tasks", ())}
    return [recipe.model_copy(update={"task": files.get(name, name), "tasks": []}) for name in task_names]


def _extract_task(loaded: LoadedModel, name: str, data: TaskData, directory: Path, reporter: Reporter) -> dict[str, Any]:
    """Writes one task's plain model, reads it back, compares, and returns what was measured."""
    routed, tokenizer = loaded.model, loaded.tokenizer
    plain = dense_model(routed, name)
    save_model(plain, tokenizer, directory)
    reread = LoadedModel(read_back(directory), tokenizer, str(directory), [])
    rows = parity_rows(data.encode("dev", reread, where="MODEL"))
    batches = comparison_batches(rows, tokenizer, plain)
    with routed.answering(name):
        expected = [torch_logits(routed)(batch) for batch in batches]
    parity = compare(torch_logits(reread.model), batches, expected, data.task.kind)
    largest = max(1.0, float(np.max([np.abs(logits).max() for logits in expected])))
    refuse_difference(directory / "model.safetensors", parity["max_difference"], TOLERANCE * largest)
    columns = match_labels(reread.model.config, data.task, where="MODEL", source=loaded.source)
    dev_logits = predict_logits(data, "dev", reread.model, reread)
    sizes = {"before": count_all_parameters(routed), "after": count_all_parameters(plain)}
    reporter.note(
        f"{name}: {sizes['before']:,} -> {sizes['after']:,} parameters, logits differ by {parity['max_difference']:.1e}"
    )
    return {
        "task": name,
        "primary": data.task.primary,
        "dev": score(data.task, dev_logits[:, columns] if columns else dev_logits, data.rows["dev"]),
        "parity": {**parity, "rows": len(rows), "shapes": [list(batch["input_ids"].shape) for batch in batches]},
        "parameters": sizes,
        "experts": {str(layer): [int(e) for e in chosen] for layer, chosen in routed.chosen_experts()[name].items()},
        "ffn_width": model_shape(plain.config).inner,
    }


def _nothing_to_extract(model: str) -> MbertError:
    return MbertError(
        "M128",
        "there is nothing to extract: this is a plain model already",
        where=f"MODEL {model}",
        allowed="A model that was trained on several tasks, with moe.side = student, or that reads the texts of a pair apart.",
        fix=f"Use it as it is: mbert evaluate {model} --task TASK",
    )
