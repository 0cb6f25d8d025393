"""`mbert distill`: from a table to a student, its export and a table of what it is worth, in one command."""

from pathlib import Path
from typing import Annotated

import typer

from microbert_cli.cli.options import CommonOptions, TaskOptions, with_options
from microbert_cli.cli.run import Base, run_recipe
from microbert_cli.errors import MbertError
from microbert_cli.runs.stage_inputs import RUNS
from microbert_cli.table_format import name_of_files

RECIPE = "own-data"
EPILOG = """Examples:

mbert distill reviews.csv --label stars --base google-bert/bert-base-uncased --budget 30m --dry-run

mbert distill reviews.csv --label stars --teacher FINE_TUNED -o runs/reviews --dry-run"""

Table = Annotated[Path, typer.Argument(metavar="TABLE", help="Training rows: CSV, TSV, JSON, JSONL, Parquet, Arrow.")]
FineTuned = Annotated[str | None, typer.Option("--teacher", help="A fine-tuned classifier, instead of fine-tuning --base.")]
Budget = Annotated[
    str | None, typer.Option("--budget", help="The longest that the student may train, such as 30m; default 1h.")
]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("distill", epilog=EPILOG)(distill)


@with_options
def distill(
    table: Table,
    base: Base = None,
    teacher: FineTuned = None,
    budget: Budget = None,
    *,
    about: TaskOptions,
    common: CommonOptions,
) -> None:
    """From a table to a small fast classifier: teacher, student, export, and a table of what it is worth (recipe own-data)."""
    if about.train_file or about.task:
        raise _two_sources(table, about)
    common.recipe = common.recipe or RECIPE
    about.train_file = str(table)
    resolved = common.resolve(base=base, teacher__model=teacher, budget=budget, **about.keys())
    if teacher and "finetune" in resolved.recipe.stages:
        stages = [stage for stage in resolved.recipe.stages if stage != "finetune"]
        resolved = common.resolve(base=base, teacher__model=teacher, budget=budget, stages=stages, **about.keys())
    common.out = common.out or RUNS / name_of_files(str(table))
    run_recipe(common, resolved)


def _two_sources(table: Path, about: TaskOptions) -> MbertError:
    option = "--train-file" if about.train_file else "--task"
    return MbertError(
        "M174",
        f"the rows of {table} are what is learned from, and {option} names others",
        where=option,
        allowed="One table; or for a task of the catalogue the recipe that this command runs.",
        fix=f"mbert distill {table}" if about.train_file else f"mbert run {RECIPE} --task {about.task}",
    )
