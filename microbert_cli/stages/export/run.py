"""A directory to ship: safetensors, ONNX fp32 and int8, also fused, checked for parity and measured, with a model card."""

from pathlib import Path
from typing import Any

from microbert_cli.data.task_data import TaskData, load_task_data
from microbert_cli.evaluation import scoring
from microbert_cli.evaluation.alternatives.gather import training_rows
from microbert_cli.evaluation.compare_speed import BenchmarkModel, benchmark_models
from microbert_cli.evaluation.label_order import check_order
from microbert_cli.exporting.card_facts import Facts, card
from microbert_cli.exporting.directory import export_model, parity_rows
from microbert_cli.exporting.model_card import model_card
from microbert_cli.models import factory
from microbert_cli.models.exits.answers import chosen_speed
from microbert_cli.models.exits.build import has_exits
from microbert_cli.models.exported.files import EXPORTED_FILES, export_parts, require_openvino
from microbert_cli.models.find import is_cascade
from microbert_cli.models.labels import match_labels, names_settle_order
from microbert_cli.models.load import LoadedModel, load_model
from microbert_cli.models.moe.extract import is_routed, no_plain_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import manifest
from microbert_cli.runs.output_dir import stage_output
from microbert_cli.runs.stage_result import StageResult, place_seen_from, up_to_date, write_results
from microbert_cli.stages.export import STAGE
from microbert_cli.stages.export.alternatives import beside
from microbert_cli.stages.export.cascade import export_cascade


def run(
    recipe: Recipe,
    out: Path,
    *,
    catalog: Catalog,
    model: str,
    teacher: str | None = None,
    force: bool = False,
    resume: bool = True,
    renew: bool = False,
    reporter: Reporter = SILENT,
) -> StageResult:
    """Exports `model`; nothing is called done before its files gave the model's own logits on padded dev rows.

    A cascade of two models is copied and compared instead (`cascade.py`).

    teacher  measured beside it in one interleaved run, if named
    metrics.json: per file size, largest difference of logits, dev scores, fused operators; speed; retention.
    """
    if is_cascade(Path(model)):
        return export_cascade(
            recipe, out, catalog=catalog, model=model, force=force, resume=resume, renew=renew, reporter=reporter
        )
    data = load_task_data(recipe, catalog, splits=STAGE.splits_of(recipe, catalog), reporter=reporter)
    identity: dict[str, Any] = {
        "recipe": recipe.identity(*STAGE.keys),
        "model": manifest.identify(model),
        "teacher": manifest.identify(teacher),
        "data": data.fingerprints(),
    }
    order = recipe.teacher.label_order if teacher else None
    if order:
        identity["label_order"] = order
    with stage_output(
        out, stage=STAGE.name, identity=identity, force=force, resume=resume, renew=renew, reporter=reporter
    ) as work:
        if work.done:
            return up_to_date(STAGE.name, out)
        parts = export_parts(recipe.export)
        if parts["openvino"]:
            require_openvino()
        loaded = load_model(model, "classifier", where="export.model", task=data.task.name)
        if is_routed(loaded.model.config):
            raise no_plain_model(data.task.name)
        columns = match_labels(loaded.model.config, data.task, where="export.model", source=model)
        if not names_settle_order(loaded.model.config, data.task):
            dev_logits = scoring.predict_logits(data, "dev", loaded.model, loaded)
            dev_logits, dev_labels = dev_logits[..., columns] if columns else dev_logits, data.rows["dev"].labels or []
            check_order(data.task, dev_logits, dev_labels, columns=columns, where=f"export.model {model}", reporter=reporter)
        speed = chosen_speed(loaded.model.config, recipe.export.speed, where=f"export.model {model}")
        if has_exits(loaded.model.config):
            loaded.model.config.speed = speed
        measured = export_model(
            loaded.model,
            loaded.tokenizer,
            work.path,
            parity_rows(data.encode("dev", loaded, where="export.model")),
            score=_scorer(data, loaded, columns),
            primary=data.task.primary,
            **parts,
            embeddings=recipe.export.embeddings,
            calibration=_calibration(recipe, catalog, data, loaded) if parts["onnx"] and parts["int8"] else (),
            tolerance=recipe.export.tolerance,
            max_length=data.length_for(loaded.model.config, where="export.model"),
            reporter=reporter,
        )
        others = beside(recipe, catalog, data, model, teacher, _taught_by(model, identity["teacher"]), reporter)
        entrants = _models_to_measure(work.path, model, teacher, order, measured, speed) + others.alternatives.entrants()
        speeds = benchmark_models(entrants, data, linear=others.alternatives.linear_models(), reporter=reporter)
        metrics: dict[str, Any] = {"task": data.task.name, "primary": data.task.primary, **measured}
        metrics |= {"dev": measured["files"]["safetensors"]["scores"], "speed": speeds, "model": place_seen_from(out, model)}
        metrics |= others.rows(measured["files"], speeds)
        facts = Facts(recipe, data, loaded, Path(model), teacher, metrics)
        (work.path / "README.md").write_text(model_card(card(facts)), encoding="utf-8")
        return write_results(
            work,
            stage=STAGE.name,
            recipe=recipe.keys(*STAGE.keys),
            metrics=metrics,
            inputs={"model": identity["model"], "teacher": identity["teacher"]},
            sources={"model": model, "teacher": teacher},
            data=data.facts(),
        )


def _calibration(recipe: Recipe, catalog: Catalog, data: TaskData, loaded: LoadedModel) -> list[dict[str, list[int]]]:
    """Returns the rows that set the scales of the int8 files: training rows where they can be read, else dev's."""
    return data.calibration_rows(loaded, where="export.model", train=training_rows(recipe, catalog)[0])


def _taught_by(model: str, teacher: str | None) -> bool:
    """Whether a model's manifest says that it was distilled from this teacher alone."""
    inputs = manifest.read(Path(model)).get("inputs", {}) if (Path(model) / manifest.FILE).is_file() else {}
    return teacher is not None and inputs.get("teacher") == teacher


def _scorer(data: TaskData, loaded: LoadedModel, columns: list[int] | None) -> Any:
    """Returns the function that scores logits on dev; `columns` is the model's output for each label of the task."""
    encoded, pad_id = data.encode("dev", loaded, where="export.model"), loaded.tokenizer.pad_token_id
    kind = data.task.kind.answered_by(loaded.model.config, columns)

    def score(logits_of_batch: Any) -> dict[str, float]:
        dev_logits = scoring.logits_of(factory.FunctionModel(logits_of_batch), encoded, pad_id=pad_id)
        dev_logits = dev_logits[..., columns] if columns else dev_logits
        return scoring.score(data.task, dev_logits, data.rows["dev"], kind=kind)

    return score


def _models_to_measure(
    path: Path, model: str, teacher: str | None, order: list[str] | None, measured: dict[str, Any], speed: float
) -> list[BenchmarkModel]:
    files = measured["files"]
    entrants = [BenchmarkModel("teacher", teacher, "torch", order, where="teacher.model")] if teacher else []
    entrants.append(BenchmarkModel("torch", model, "torch", speed=speed))
    if "exits" in measured and speed > 0:
        entrants.append(BenchmarkModel("exits", str(path), speed=speed, in_the_making=True))
    return entrants + [BenchmarkModel(name, str(path), name, in_the_making=True) for name in files if name in EXPORTED_FILES]
