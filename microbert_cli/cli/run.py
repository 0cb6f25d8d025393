"""`mbert run`: a recipe's stages, one after the other."""

from pathlib import Path
from typing import Annotated, Any

import typer

from microbert_cli.cli.console import show, show_json, show_note, show_table
from microbert_cli.cli.execute import recipe_steps
from microbert_cli.cli.options import CommonOptions, RecipeName, TaskOptions, with_options
from microbert_cli.evaluation import summary
from microbert_cli.recipe.resolve import Resolved
from microbert_cli.runs import run_record
from microbert_cli.runs.manifest import PAGE
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.runs.stage_result import StageResult, read_metrics

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
    run_recipe(common, common.resolve(base=base, **about.keys()))


def run_recipe(common: CommonOptions, resolved: Resolved) -> None:
    """Runs the stages of a resolved recipe and shows what came out."""
    if (planned_steps := recipe_steps(common, resolved, will_run=True)) is None:
        return
    planned, root = planned_steps
    if not (common.force or common.include) and run_record.is_unchanged(root, resolved.name, planned):
        _show(common, root, [read_metrics(step.out) for step in planned], planned, unchanged=True)
        return
    _check(common, planned, root)
    run_record.claim(root, resolved.name, force=common.force)
    _run(common, planned, root)
    run_record.write(root, resolved.name, planned)


def _check(common: CommonOptions, planned: list[Step], root: Path) -> None:
    """Makes the checks that come before the first stage; loading torch for them takes seconds."""
    reporter = common.reporter()
    with reporter.working("checks before the start"):
        from microbert_cli.plan.doctor.preflight import check_before_start

        check_before_start(planned, root, common.catalog())
    reporter.close()


def _run(common: CommonOptions, planned: list[Step], root: Path) -> None:
    from microbert_cli.runs.pipeline import run_steps

    reporter = common.reporter()
    results = []
    try:
        done = run_steps(planned, catalog=common.catalog(), reporter=reporter, force=common.force, resume=common.resume)
        for step, result in zip(planned, done, strict=True):
            results.append(result)
            reporter.note(f"{result.out.name}: {_state(step, result)}")
    finally:
        reporter.close()
    unchanged = all(result.up_to_date for result in results)
    _show(common, root, [result.metrics for result in results], planned, unchanged=unchanged)


def _state(step: Step, result: StageResult) -> str:
    """Returns that a stage is done, and what it came to."""
    line = summary.result_line(step.kind, result.metrics)
    return ("up to date" if result.up_to_date else "done") + (f", {line}" if line else "")


def _show_summary(sections: list[dict[str, Any]]) -> None:
    """Shows what the run came to: a table for each task, and below it the verdict on the student."""
    for section in sections:
        table = [summary.cells(row) for row in section["table"]]
        show_table(f"{section['task']}, {section['primary']} on dev", list(summary.COLUMNS), table, err=True)
        for line in summary.remarks(section):
            show_note(line)


def _show(common: CommonOptions, root: Path, metrics: list[dict[str, Any]], planned: list[Step], *, unchanged: bool) -> None:
    sections = summary.run_summary([(step.name, step.kind, values) for step, values in zip(planned, metrics, strict=True)])
    if common.as_json:
        stages = {step.name: {**values, "out": str(step.out)} for step, values in zip(planned, metrics, strict=True)}
        show_json({**stages, **({} if "summary" in stages else {"summary": {"tasks": sections, "out": str(root)}})})
        return
    if unchanged:
        common.reporter().note(f"everything up to date ({len(planned)} stages)")
    if not common.quiet:
        _show_summary(sections)
        if page := next((step.out / PAGE for step in planned if (step.out / PAGE).is_file()), None):
            show_note(f"page: {page}")
    show(str(root))
