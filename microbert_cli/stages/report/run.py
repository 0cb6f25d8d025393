"""The table at the end of a run: what each way of making a student came to, beside the teacher and a linear model."""

from pathlib import Path
from typing import Any

from microbert_cli.data.task_data import TaskData, load_task_data
from microbert_cli.evaluation.baseline import linear_baseline
from microbert_cli.evaluation.compare_speed import BenchmarkModel, benchmark_models
from microbert_cli.evaluation.report_table import as_markdown
from microbert_cli.models.onnx import ONNX_FILES
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import manifest
from microbert_cli.runs.output_dir import stage_output
from microbert_cli.runs.stage_result import StageResult, read_metrics, up_to_date, write_results
from microbert_cli.stages.report import STAGE


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
    reporter: Reporter = SILENT,
) -> StageResult:
    """Gathers dev scores of `models` (name -> directory), measures all of them and `exported` in one interleaved run.

    metrics.json and report.md hold the table: a linear baseline first, then each model with mean and spread over its seeds.
    """
    data = load_task_data(recipe, catalog, splits=STAGE.splits_of(recipe, catalog), reporter=reporter)
    sources = {**models, **({"exported": exported} if exported else {})}
    identity = {
        "recipe": recipe.identity(*STAGE.keys),
        "models": {name: manifest.identify(path) for name, path in sources.items()},
        "data": data.fingerprints(),
    }
    with stage_output(
        out, stage=STAGE.name, identity=identity, force=force, resume=resume, renew=renew, reporter=reporter
    ) as work:
        if work.done:
            return up_to_date(STAGE.name, out)
        rows = [_baseline_row(data)] + _model_rows(data, models, exported, reporter)
        metrics = {"task": data.task.name, "primary": data.task.primary, "table": rows}
        (work.path / "report.md").write_text(as_markdown(rows), encoding="utf-8")
        return write_results(
            work, stage=STAGE.name, recipe=recipe.keys(*STAGE.keys), metrics=metrics, inputs=identity["models"], sources=sources
        )


def _baseline_row(data: TaskData) -> dict[str, Any]:
    scores = linear_baseline(data.task, data.rows["train"], data.rows["dev"])
    return {"model": "linear, TF-IDF of word pairs", "score": scores[data.task.primary]}


def _model_rows(data: TaskData, models: dict[str, str], exported: str | None, reporter: Reporter) -> list[dict[str, Any]]:
    primary = data.task.primary
    files = read_metrics(Path(exported))["files"] if exported else {}
    forms = [form for form in files if form in ONNX_FILES]
    entrants = [BenchmarkModel(name, path, "torch") for name, path in models.items()]
    entrants += [BenchmarkModel(f"export, {form}", str(exported), form) for form in forms]
    raced = benchmark_models(entrants, data, reporter=reporter)["models"]
    measured = {name: read_metrics(Path(path)) for name, path in models.items()}
    teacher = next((m["teacher"][primary] for m in measured.values() if "teacher" in m), None)
    rows = [_table_row(name, result, raced[name], primary, teacher) for name, result in measured.items()]
    for form in forms:
        rows.append(_table_row(f"export, {form}", {"dev": files[form]["scores"]}, raced[f"export, {form}"], primary, teacher))
    return rows


def _table_row(name: str, result: dict[str, Any], speed: dict[str, Any], primary: str, teacher: float | None) -> dict[str, Any]:
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
