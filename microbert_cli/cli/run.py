"""`mbert run`: a recipe's stages, one after the other."""

from pathlib import Path
from typing import Annotated

import typer

from microbert_cli.cli.console import show, show_json
from microbert_cli.cli.options import Common, DataDir, TaskName, with_common
from microbert_cli.cli.running import dry_run, explain
from microbert_cli.errors import MbertError
from microbert_cli.wiring import RUNS, steps

EPILOG = """Examples:

mbert run quickstart --dry-run

mbert run recipes/quickstart.toml -o runs/quickstart --set seed=7 --dry-run"""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("run", epilog=EPILOG)(run)


@with_common
def run(
    recipe_name: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="A recipe; default: mbert.toml.")] = None,
    task: TaskName = None,
    data: DataDir = None,
    *,
    common: Common,
) -> None:
    """Runs all stages of a recipe; skips what is up to date and says why it runs the rest."""
    common.recipe = recipe_name or common.recipe
    resolved = common.resolve(task=task, data__folder=data)
    if common.explain:
        explain(resolved)
        return
    if not resolved.recipe.stages:
        raise MbertError(
            "M023",
            "this recipe names no stages",
            where="stages",
            allowed='For instance stages = ["finetune", "general-distill", "augment", "task-distill", "evaluate"].',
            fix="Add the line, or run a single stage: mbert task-distill",
        )
    catalog = common.catalog()
    root = common.out or RUNS / resolved.name
    planned = steps(resolved, root, catalog)
    if common.dry_run:
        dry_run(planned, common)
        return
    _run(common, planned, root)


def _run(common: Common, planned: list, root: Path) -> None:
    from microbert_cli.pipeline import run_steps

    talk = common.talk()
    results = []
    try:
        for result in run_steps(planned, catalog=common.catalog(), talk=talk, force=common.force, resume=common.resume):
            results.append(result)
            talk.note(f"{result.out.name}: {'up to date' if result.up_to_date else 'done'}")
    finally:
        talk.close()
    if common.as_json:
        show_json({result.out.name: result.metrics for result in results})
    elif all(result.up_to_date for result in results):
        show(f"everything up to date ({len(results)} stages)")
    else:
        show(str(root))
    if not common.as_json and results and "table" in results[-1].metrics:
        from microbert_cli.cli.bench import show_report

        show_report(results[-1].metrics)
