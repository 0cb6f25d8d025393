"""`mbert bench`: models side by side, in one interleaved run."""

from typing import Annotated, Any

import typer

from microbert_cli import distributed
from microbert_cli.cli.console import show, show_json, show_note, show_table
from microbert_cli.cli.execute import explain, resolve_for_model
from microbert_cli.cli.options import CommonOptions, TaskOptions, with_options
from microbert_cli.evaluation.report_table import COLUMNS, cells, remarks
from microbert_cli.text import NOT_COUNTED

EPILOG = """Example:

mbert bench runs/sst2/finetune runs/sst2/task-distill runs/sst2/export --task sst2 --dry-run"""
NUMBERS = {
    "parameters": ("parameters", ","),
    "MB": ("bytes", ".1f"),
    "MFLOPs/row": ("flops", ".1f"),
    "ms/row": ("latency_ms", ".2f"),
    "p90": ("latency_p90_ms", ".2f"),
    "rows/s": ("throughput", ",.0f"),
}


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("bench", epilog=EPILOG)(bench)


@with_options
def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="Directories, export directories, Hub ids.")],
    rows: Annotated[int, typer.Option(min=1, help="Dev rows to answer.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a batch, for throughput.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Single rows each model answers, for latency.")] = 50,
    passes: Annotated[int, typer.Option(min=1, help="Times each model answers all rows.")] = 5,
    *,
    about: TaskOptions,
    common: CommonOptions,
) -> None:
    """Parameters, size, FLOPs, latency (batch 1) and throughput; an export directory enters with all its files."""
    resolved = resolve_for_model(models[0], about, common)
    if common.explain:
        explain(resolved, as_json=common.as_json)
        return
    if common.dry_run:
        if common.as_json:
            show_json({"models": models, "rows": rows})
        else:
            show("\n".join(f"bench            {model}" for model in models))
        return
    distributed.require_single_process("mbert bench")
    from microbert_cli.data.task_data import load_task_data
    from microbert_cli.evaluation.compare_speed import benchmark_models

    reporter = common.reporter()
    data = load_task_data(resolved.recipe, common.catalog(), splits=("dev",), reporter=reporter)
    try:
        measured = benchmark_models(
            _benchmark_models(models),
            data,
            rows=rows,
            batch_size=batch_size,
            rounds=rounds,
            passes=passes,
            reporter=reporter,
        )
    finally:
        reporter.close()
    if common.as_json:
        show_json(measured)
        return
    _show(measured)


def show_report(metrics: dict[str, Any], *, err: bool = False) -> None:
    """Shows the table of the stage `report`, and the verdict below it."""
    title = f"{metrics['task']}, {metrics['primary']} on dev"
    show_table(title, list(COLUMNS), [cells(row) for row in metrics["table"]], err=err)
    for line in remarks(metrics["table"], metrics.get("verdict")):
        show_note(line)


def _benchmark_models(models: list[str]) -> list[Any]:
    from pathlib import Path

    from microbert_cli.evaluation.compare_speed import BenchmarkModel
    from microbert_cli.models.onnx import precisions

    entrants = []
    for model in models:
        forms = precisions(Path(model)) if Path(model).is_dir() else ()
        entrants += [BenchmarkModel(f"{model} ({form})", model, form) for form in forms] or [BenchmarkModel(model, model)]
    return entrants


def _show(results: dict[str, Any]) -> None:
    rows = []
    for name, result in results["models"].items():
        millions = {key: None if result[key] is None else result[key] / 1e6 for key in ("bytes", "flops")}
        values = {**result, **millions}
        cells = {key: "" if values.get(key) is None else format(values[key], form) for key, form in NUMBERS.values()}
        rows.append([name, *(cells | {"flops": cells["flops"] or NOT_COUNTED}).values()])
    conditions = results["conditions"]
    title = f"{conditions['rows']} rows, {conditions['threads']} threads, load {conditions['load_before']} before"
    show_table(title, ["model", *NUMBERS], rows)
