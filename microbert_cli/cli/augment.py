"""`mbert augment`."""

from typing import Annotated

import typer

from microbert_cli.cli.execute import run_stage, show_result
from microbert_cli.cli.options import About, Common, with_options

EPILOG = """Examples:

mbert augment --task sst2 --masked-lm google-bert/bert-base-uncased --vectors glove.6B.300d.txt --dry-run"""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("augment", epilog=EPILOG)(augment)


@with_options
def augment(
    recipe_name: Annotated[str | None, typer.Argument(metavar="RECIPE", help="A recipe; default: mbert.toml.")] = None,
    masked_lm: Annotated[str | None, typer.Option("--masked-lm", help="Proposes words: directory or Hub id.")] = None,
    vectors: Annotated[str | None, typer.Option(help="GloVe text or zip, or a BERT directory.")] = None,
    *,
    about: About,
    common: Common,
) -> None:
    """Varies the training set of a task: masked-LM and word-vector neighbours (TinyBERT, Algorithm 1)."""
    common.recipe = recipe_name or common.recipe
    resolved = common.resolve(
        augment__masked_lm=masked_lm,
        vectors__source=vectors,
        **about.keys(),
    )
    show_result(run_stage("augment", common, resolved), common)
