"""A directory to ship: safetensors, ONNX fp32 and int8, also fused, checked for parity and measured, with a model card."""

from pathlib import Path
from typing import Any

from microbert_cli import exporting, extraction, lineage, manifest, models, places, scoring
from microbert_cli.catalog import Catalog
from microbert_cli.model_card import model_card
from microbert_cli.onnx_model import FILES
from microbert_cli.output import working
from microbert_cli.racing import Entrant, race_models
from microbert_cli.recipe import Recipe
from microbert_cli.stage import StageResult, sign, up_to_date
from microbert_cli.task_rows import TaskRows, open_task
from microbert_cli.teacher import match_labels
from microbert_cli.tracking import SILENT, Talk

NAME = "export"
KEYS = ("task", "data", "export")
PARITY_ROWS = 256


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
    talk: Talk = SILENT,
) -> StageResult:
    """Exports `model`; nothing is called done before its files gave the model's own logits on padded dev rows.

    teacher  measured beside it in one interleaved run, if named
    metrics.json: per file size, largest difference of logits, dev scores, fused operators; speed; retention.
    """
    data = open_task(recipe, catalog, splits=("dev",), talk=talk)
    identity = {
        "recipe": recipe.identity(*KEYS),
        "model": manifest.identify(model),
        "teacher": manifest.identify(teacher),
        "data": data.fingerprints(),
    }
    with working(out, stage=NAME, identity=identity, force=force, resume=resume, renew=renew, talk=talk) as work:
        if work.done:
            return up_to_date(NAME, out)
        loaded = models.load(model, "classifier", where="export.model", task=data.task.name)
        if extraction.is_routed(loaded.model.config):
            raise extraction.no_plain_one(data.task.name)
        match_labels(loaded, data.task, None, where=f"export.model {model}")
        encoded = data.encode("dev", loaded, where="export.model")
        measured = exporting.export_model(
            loaded.model,
            loaded.tokenizer,
            work.path,
            [encoded.row(i) for i in range(min(len(encoded), PARITY_ROWS))],
            score=_scorer(data, loaded),
            primary=data.task.primary,
            onnx=recipe.export.onnx,
            int8=recipe.export.int8,
            optimize=recipe.export.optimize,
            tolerance=recipe.export.tolerance,
            talk=talk,
        )
        entrants = _entrants(work.path, model, teacher, measured["files"])
        speeds = race_models(entrants, data, talk=talk)
        metrics: dict[str, Any] = {"task": data.task.name, "primary": data.task.primary, **measured}
        metrics |= {"dev": measured["files"]["safetensors"]["scores"], "speed": speeds, "model": model}
        facts = lineage.Facts(recipe, data, loaded, Path(model), teacher, metrics)
        (work.path / "README.md").write_text(model_card(lineage.card(facts)), encoding="utf-8")
        made_from = {
            "inputs": {"model": identity["model"], "teacher": identity["teacher"]},
            "sources": {"model": model, "teacher": teacher},
        }
        return sign(work, stage=NAME, recipe=recipe.keys(*KEYS), metrics=metrics, data=data.facts(), **made_from)


def _scorer(data: TaskRows, loaded: models.Loaded) -> Any:
    encoded, pad_id = data.encode("dev", loaded, where="export.model"), loaded.tokenizer.pad_token_id

    def score(logits: Any) -> dict[str, float]:
        found = scoring.logits_of(places.Answering(logits), encoded, pad_id=pad_id)
        return scoring.score(data.task, found, data.rows["dev"])

    return score


def _entrants(path: Path, model: str, teacher: str | None, files: dict[str, Any]) -> list[Entrant]:
    entrants = [Entrant("teacher", teacher, "torch")] if teacher else []
    entrants.append(Entrant("torch", model, "torch"))
    return entrants + [Entrant(name, str(path), name) for name in files if name in FILES]
