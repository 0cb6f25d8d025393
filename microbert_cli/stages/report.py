"""The table at the end of a run: what each way of making a student came to, beside the teacher and a linear model."""

from pathlib import Path
from typing import Any

from microbert_cli import baseline, manifest
from microbert_cli.catalog import Catalog
from microbert_cli.onnx_model import FILES
from microbert_cli.output import working
from microbert_cli.racing import Entrant, race_models
from microbert_cli.recipe import Recipe
from microbert_cli.report_table import as_markdown
from microbert_cli.stage import StageResult, read_metrics, sign, up_to_date
from microbert_cli.task_rows import TaskRows, open_task
from microbert_cli.tracking import SILENT, Talk

NAME = "report"
KEYS = ("task", "data")


def run(
    recipe: Recipe,
    out: Path,
    *,
    catalog: Catalog,
    models: dict[str, str],
    exported: str | None = None,
    force: bool = False,
    resume: bool = True,
    renew: bool = False,
    talk: Talk = SILENT,
) -> StageResult:
    """Gathers dev scores of `models` (name -> directory), measures all of them and `exported` in one interleaved run.

    metrics.json and report.md hold the table: a linear baseline first, then each model with mean and spread over its seeds.
    """
    data = open_task(recipe, catalog, splits=("train", "dev"), talk=talk)
    sources = {**models, **({"exported": exported} if exported else {})}
    identity = {
        "recipe": recipe.identity(*KEYS),
        "models": {name: manifest.identify(path) for name, path in sources.items()},
        "data": data.fingerprints(),
    }
    with working(out, stage=NAME, identity=identity, force=force, resume=resume, renew=renew, talk=talk) as work:
        if work.done:
            return up_to_date(NAME, out)
        rows = [_baseline_row(data)] + _model_rows(data, models, exported, talk)
        metrics = {"task": data.task.name, "primary": data.task.primary, "table": rows}
        (work.path / "report.md").write_text(as_markdown(rows), encoding="utf-8")
        return sign(work, stage=NAME, recipe=recipe.keys(*KEYS), metrics=metrics, inputs=identity["models"], sources=sources)


def _baseline_row(data: TaskRows) -> dict[str, Any]:
    scores = baseline.linear_baseline(data.task, data.rows["train"], data.rows["dev"])
    return {"model": "linear, TF-IDF of word pairs", "score": scores[data.task.primary]}


def _model_rows(data: TaskRows, models: dict[str, str], exported: str | None, talk: Talk) -> list[dict[str, Any]]:
    primary = data.task.primary
    files = read_metrics(Path(exported))["files"] if exported else {}
    forms = [form for form in files if form in FILES]
    entrants = [Entrant(name, path, "torch") for name, path in models.items()]
    entrants += [Entrant(f"export, {form}", str(exported), form) for form in forms]
    raced = race_models(entrants, data, talk=talk)["models"]
    measured = {name: read_metrics(Path(path)) for name, path in models.items()}
    teacher = next((m["teacher"][primary] for m in measured.values() if "teacher" in m), None)
    rows = [_row(name, result, raced[name], primary, teacher) for name, result in measured.items()]
    for form in forms:
        rows.append(_row(f"export, {form}", {"dev": files[form]["scores"]}, raced[f"export, {form}"], primary, teacher))
    return rows


def _row(name: str, result: dict[str, Any], speed: dict[str, Any], primary: str, teacher: float | None) -> dict[str, Any]:
    score = result.get("mean", result["dev"])[primary]
    return {
        "model": "teacher" if name == "finetune" else name,
        "score": score,
        "spread": result.get("spread", {}).get(primary),
        "seeds": len(result["seeds"]) if "seeds" in result else 1,
        "retention": score / teacher if teacher else None,
        "parameters": speed.get("parameters"),
        "megabytes": speed["bytes"] / 1e6 if speed.get("bytes") else None,
        "latency_ms": speed["latency_ms"],
        "rows_per_second": speed["throughput"],
    }
