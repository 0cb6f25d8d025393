"""`mbert pretrain`."""

from typing import Annotated

import typer

from microbert_cli.cli import options
from microbert_cli.cli.execute import run_stage, show_result
from microbert_cli.cli.options import Common, with_options

EPILOG = """Examples:

mbert pretrain --model bert-4x128 --corpus python-docs --set vocabulary.size=8000 --dry-run"""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("pretrain", epilog=EPILOG)(pretrain)


@with_options
def pretrain(
    recipe_name: Annotated[str | None, typer.Argument(metavar="RECIPE", help="A recipe; default: mbert.toml.")] = None,
    model: Annotated[str | None, typer.Option(help="Directory, Hub id, or a student (random weights).")] = None,
    corpus: options.CorpusName = None,
    *,
    common: Common,
) -> None:
    """Trains a masked-LM on a corpus, from a model or from a student description."""
    common.recipe = recipe_name or common.recipe
    resolved = common.resolve(
        pretrain__model=model,
        corpus__source=corpus,
    )
    show_result(run_stage("pretrain", common, resolved), common)
