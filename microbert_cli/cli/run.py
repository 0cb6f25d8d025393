"""`mbert run`: a recipe's stages, one after the other."""

from pathlib import Path
from typing import Annotated, Any

import typer

from microbert_cli.cli.bench import show_report
from microbert_cli.cli.console import show, show_json, show_note
from microbert_cli.cli.execute import recipe_steps
from microbert_cli.cli.options import CommonOptions, RecipeName, TaskOptions, with_options
from microbert_cli.runs import run_record
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.runs.stage_result import read_metrics

EPILOG = """Examples:

mbert run quickstart --dry-run

mbert run recipes/quickstart.toml -o runs/quickstart --set seed=7 --dry-run

mbert run own-data --train-file reviews.csv --base google-bert/bert-base-uncased --dry-run"""

Base = Annotated[str | None, typer.Option("--base", help="The pre-trained model that it all begins with: directory or Hub id.")]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("run", epilog=EPILOG)(run)


@with_options
def run(
    recipe_name: RecipeName = None,
    base: Base = None,
    *,
    about: TaskOptions,
    common: CommonOptions,
) -> None:
    """Runs all stages of a recipe; skips what is up to date and says why it runs the rest."""
    common.recipe = recipe_name or common.recipe
    resolved = common.resolve(base=base, **about.keys())
    if (planned_steps := recipe_steps(common, resolved, will_run=True)) is None:
        return
    planned, root = planned_steps
    if not (common.force or common.include) and run_record.is_unchanged(root, resolved.name, planned):
        _show(common, root, [read_metrics(step.out) for step in planned], planned, unchanged=True)
        return
    from microbert_cli.plan.doctor.preflight import check_before_start

    check_before_start(planned, root, common.catalog())
    run_record.claim(root, resolved.name, force=common.force)
    _run(common, planned, root)
    run_record.write(root, resolved.name, planned)


def _run(common: CommonOptions, planned: list[Step], root: Path) -> None:
    from microbert_cli.runs.pipeline import run_steps

    reporter = common.reporter()
    results = []
    try:
        for result in run_steps(planned, catalog=common.catalog(), reporter=reporter, force=common.force, resume=common.resume):
            results.append(result)
            reporter.note(f"{result.out.name}: {'up to date' if result.up_to_date else 'done'}")
    finally:
        reporter.close()
    unchanged = all(result.up_to_date for result in results)
    _show(common, root, [result.metrics for result in results], planned, unchanged=unchanged)


def _show_results(metrics: list[dict[str, Any]], planned: list[Step]) -> None:
    """Shows the table of the last report; without one the verdict of the last export, if there is one."""
    by_kind = {step.kind: values for step, values in zip(planned, metrics, strict=True)}
    if "report" in by_kind:
        show_report(by_kind["report"], err=True)
    elif verdict := by_kind.get("export", {}).get("verdict"):
        show_note(verdict["sentence"])


def _show(common: CommonOptions, root: Path, metrics: list[dict[str, Any]], planned: list[Step], *, unchanged: bool) -> None:
    if common.as_json:
        show_json({step.name: {**values, "out": str(step.out)} for step, values in zip(planned, metrics, strict=True)})
        return
    if unchanged:
        common.reporter().note(f"everything up to date ({len(planned)} stages)")
    if not common.quiet:
        _show_results(metrics, planned)
    show(str(root))
