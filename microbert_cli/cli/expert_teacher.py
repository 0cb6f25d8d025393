"""`mbert expert-teacher`."""

from typing import Annotated

import typer

from microbert_cli.cli import options
from microbert_cli.cli.execute import run_stage, show_result
from microbert_cli.cli.options import About, Common, with_options

EPILOG = """Example:

mbert expert-teacher --teacher runs/sst2/finetune --task sst2 --set moe.teacher_experts=8 -o runs/experts --dry-run"""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("expert-teacher", epilog=EPILOG)(expert_teacher)


@with_options
def expert_teacher(
    recipe_name: Annotated[str | None, typer.Argument(metavar="RECIPE", help="A recipe; default: mbert.toml.")] = None,
    teacher: options.Teacher = None,
    *,
    about: About,
    common: Common,
) -> None:
    """Makes a fine-tuned teacher one of experts, dealt by importance and repaired: what moe.side = "teacher" is taught by."""
    common.recipe = recipe_name or common.recipe
    resolved = common.resolve(teacher__model=teacher, **about.keys())
    show_result(run_stage("expert-teacher", common, resolved), common)
