"""`mbert general-distill`."""

from typing import Annotated

import typer

from microbert_cli.cli import options
from microbert_cli.cli.execute import run_stage, show_result
from microbert_cli.cli.options import Common, with_options

EPILOG = """Examples:

mbert general-distill --teacher google-bert/bert-base-uncased --student tinybert-4l-312 --corpus text.txt.gz --dry-run"""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("general-distill", epilog=EPILOG)(general_distill)


@with_options
def general_distill(
    recipe_name: Annotated[str | None, typer.Argument(metavar="RECIPE", help="A recipe; default: mbert.toml.")] = None,
    teacher: options.Teacher = None,
    student: options.Student = None,
    corpus: options.CorpusName = None,
    *,
    common: Common,
) -> None:
    """Stage one: distils a pre-trained teacher into a small student on plain text."""
    common.recipe = recipe_name or common.recipe
    resolved = common.resolve(
        base=teacher,
        student=student,
        corpus__source=corpus,
    )
    show_result(run_stage("general-distill", common, resolved), common)
