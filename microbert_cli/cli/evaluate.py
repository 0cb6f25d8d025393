"""`mbert evaluate`: the GLUE evaluator, for own tasks too."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from microbert_cli.cli import options
from microbert_cli.cli.console import show_note, show_table
from microbert_cli.cli.execute import resolve_for_model, run_stage, shown_before_checks
from microbert_cli.cli.options import CommonOptions, TaskOptions, with_options
from microbert_cli.errors import MbertError
from microbert_cli.recipe.labels.submission import check_submitted

EPILOG = """Examples:

mbert evaluate runs/sst2/task-distill --task sst2 --min-score accuracy=0.90 --dry-run

mbert evaluate DIR --task mnli --teacher TEACHER --submission --dry-run"""

BESIDE_METRICS = {"calibration_error": "calibration error", "sent": "sent to the big model", "perplexity": "perplexity"}
FORESIGHT = "teacher_sees_the_future"  # of a task of texts


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("evaluate", epilog=EPILOG)(evaluate)


@with_options
def evaluate(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Directory, export directory or Hub id.")] = None,
    teacher: options.Teacher = None,
    submission: Annotated[bool, typer.Option("--submission", help="Predict the test splits; write files and zip.")] = False,
    min_score: Annotated[list[str] | None, typer.Option(metavar="[SPLIT.]NAME=VALUE", help="Exit 1 below this score.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="A metrics.json; exit 1 if scores fell below it.")] = None,
    tolerance: Annotated[float, typer.Option(help="How far below the baseline is still fine.")] = 0.0,
    speed: options.Speed = None,
    *,
    about: TaskOptions,
    common: CommonOptions,
) -> None:
    """Official metrics, predictions per example, agreement with a teacher, submission files."""
    from microbert_cli.evaluation.gates import Gates

    minimum = {name: value for name, value in map(_parse_minimum, min_score or [])}
    gates = Gates(minimum, _read_baseline(baseline), tolerance)
    resolved = resolve_for_model(model, about, common, evaluate__model=model, teacher__model=teacher, evaluate__speed=speed)
    if submission:
        check_submitted(resolved.recipe, common.catalog())
    result = run_stage("evaluate", common, resolved, gates=gates, **({"submit": True} if submission else {}))
    if result is None:
        return
    with shown_before_checks(result, common):
        if not (common.as_json or common.quiet):
            _show_scores(result.metrics)
        gates.check(result.metrics)


def _show_scores(metrics: dict[str, Any]) -> None:
    rows = []
    for split, scores in metrics["splits"].items():
        rows += [[split, name, f"{value:.4f}"] for name, value in scores["metrics"].items()]
        rows += [[split, title, f"{scores[name]:.4f}"] for name, title in BESIDE_METRICS.items() if name in scores]
        rows += [[split, name, f"{value:.4f}"] for name, value in scores.get("teacher", {}).items()]
        rows += [
            [split, f"teacher's {name}, no upper bound", f"{value:.4f}"] for name, value in scores.get(FORESIGHT, {}).items()
        ]
    show_table("", ["split", "metric", "value"], rows, err=True)
    signed = [pair for scores in metrics["splits"].values() for pair in scores.get("signatures", {}).items()]
    for name, signature in dict.fromkeys(signed):
        show_note(f"{name}: {signature}")


def _parse_minimum(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise MbertError(
            "M105",
            f'"{text}" is not of the form name=value',
            where="--min-score",
            allowed="A metric of the task, an equals sign, a number.",
            fix="For instance: --min-score accuracy=0.90",
        ) from None


def _read_baseline(path: Path | None) -> Mapping[str, Mapping[str, float]] | None:
    from microbert_cli.evaluation.gates import baseline_scores

    if path is None:
        return None
    try:
        return baseline_scores(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise MbertError(
            "M205",
            f"this baseline cannot be read: {type(error).__name__}: {error}",
            where=f"--baseline {path}",
            allowed="A metrics.json that `mbert evaluate` wrote.",
            fix="mbert evaluate OLD_MODEL -o old; then --baseline old/metrics.json",
        ) from None
