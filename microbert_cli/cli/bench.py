"""`mbert bench`: models side by side, in one interleaved run."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from microbert_cli import distributed
from microbert_cli.cli.console import show, show_json, show_note, show_table
from microbert_cli.cli.execute import explain, resolve_for_model
from microbert_cli.cli.options import CommonOptions, TaskOptions, with_options
from microbert_cli.evaluation.report_table import remarks
from microbert_cli.reporter import Reporter
from microbert_cli.runs.stage_inputs import default_root
from microbert_cli.text import NOT_COUNTED, counted, format_cells

EPILOG = """Example:

mbert bench runs/sst2/finetune runs/sst2/task-distill runs/sst2/export --task sst2 --dry-run"""
NUMBERS = {
    "parameters": ("parameters", ","),
    "MB": ("bytes", ".1f"),
    "MFLOPs/row": ("flops", ".1f"),
    "ms/row": ("latency_ms", ".2f"),
    "mean": ("latency_mean_ms", ".2f"),
    "p90": ("latency_p90_ms", ".2f"),
    "rows/s": ("throughput", ",.0f"),
}

FLOPS = list(NUMBERS).index("MFLOPs/row")
SCORES = {"score": ".4f", "spread": ".4f", "retention": ".1%", "above_floor": ".1%"}


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
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines/--no-baselines",
            help="Scores on dev, and rows of a linear model, the teacher (by manifests), int8 files; without, speed alone.",
        ),
    ] = True,
    speed: Annotated[
        str | None, typer.Option(metavar="SPEED,...", help="Models with exits at these speeds, 0 to 1, and a plot of them.")
    ] = None,
    *,
    about: TaskOptions,
    common: CommonOptions,
) -> None:
    """Parameters, size, FLOPs, latency (batch 1) and throughput; an export directory enters with all its files.

    Beside the models stands what a user could take instead: the commonest class, a linear model, the teacher, its int8 file.
    They take some seconds more, and all scores that no metrics.json has are computed on the whole of dev.
    """
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
    from microbert_cli.evaluation.alternatives.bench_rows import bench_beside_alternatives
    from microbert_cli.evaluation.compare_speed import benchmark_models
    from microbert_cli.models.find import directory_writes, writes_no_classes

    if writing := [model for model in models if directory_writes(model)]:
        raise writes_no_classes(f"MODEL {writing[0]}", "Leave it out: what it writes is scored by mbert evaluate.")
    reporter = common.reporter()
    entrants = _benchmark_models(models, speed)
    data = load_task_data(resolved.recipe, common.catalog(), splits=("dev",), reporter=reporter)
    sizes: dict[str, Any] = {"rows": rows, "batch_size": batch_size, "rounds": rounds, "passes": passes}
    try:
        if baselines:
            recipe, catalog = resolved.recipe, common.catalog()
            measured = bench_beside_alternatives(entrants, recipe, catalog, data, reporter=reporter, **sizes)
        else:
            measured = benchmark_models(entrants, data, reporter=reporter, **sizes)
        if speed is not None:
            root = default_root(resolved, explicit=common.recipe is not None)
            measured |= _curves(entrants, measured, data, common.out or root / "bench", reporter)
    finally:
        reporter.close()
    if common.as_json:
        show_json(measured)
        return
    _show(measured)


def _curves(entrants: list[Any], measured: dict[str, Any], data: Any, out: Path, reporter: Reporter) -> dict[str, Any]:
    """Returns what was measured at each speed; with scores it is drawn too, where matplotlib is installed."""
    from microbert_cli.evaluation.speed_curve import PLOT, draw, points

    curves = points(entrants, measured)
    if "rows" not in measured:
        reporter.note("no plot: there are no scores without baselines")
    elif find_spec("matplotlib") is None:
        reporter.warn('no plot: matplotlib is not installed; pip install "microbert-cli[plot]", then the same command again')
    else:
        draw(curves, out / PLOT, score=f"{data.task.primary} on dev")
        reporter.note(f"plot: {out / PLOT}")
        return {"speeds": curves, "plot": str(out / PLOT)}
    return {"speeds": curves, "plot": None}


def _benchmark_models(models: list[str], speed: str | None = None) -> list[Any]:
    from microbert_cli.evaluation.compare_speed import BenchmarkModel
    from microbert_cli.models.exported.files import can_answer_here, precisions

    entrants = []
    for model in models:
        forms = [form for form in precisions(Path(model)) if can_answer_here(form)] if Path(model).is_dir() else []
        entrants += [BenchmarkModel(f"{model} ({form})", model, form) for form in forms] or [BenchmarkModel(model, model)]
    if speed is None:
        return entrants
    from microbert_cli.evaluation.speed_curve import at_speeds
    from microbert_cli.models.exits.speed import parse_speeds

    return at_speeds(entrants, parse_speeds(speed))


def _show(results: dict[str, Any]) -> None:
    conditions = results["conditions"]
    sizes = f"{counted(conditions['rows'], 'row')}, {counted(conditions['threads'], 'thread')}"
    title = f"{sizes}, load {conditions['load_before']} before"
    if "rows" not in results:
        show_table(title, ["model", *NUMBERS], [[name, *_numbers(result)] for name, result in results["models"].items()])
        return
    lines = [
        [row["model"], *format_cells(row, SCORES), *_numbers(results["models"].get(row["model"]))] for row in results["rows"]
    ]
    show_table(title, ["model", *SCORES, *NUMBERS], lines)
    for line in remarks(results["rows"], results["verdict"]):
        show_note(line)


def _numbers(result: dict[str, Any] | None) -> list[str]:
    """Returns size and speed of a model as text; empty cells for a row that is no model, or was not timed."""
    if result is None:
        return [""] * len(NUMBERS)
    millions = {key: None if result[key] is None else result[key] / 1e6 for key in ("bytes", "flops")}
    cells = format_cells({**result, **millions}, {key: form for key, form in NUMBERS.values()})
    if not cells[FLOPS] and "length" in result:
        cells[FLOPS] = NOT_COUNTED
    return cells
