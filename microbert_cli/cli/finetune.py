"""`mbert finetune`."""

from typing import Annotated

import typer

from microbert_cli.cli import options
from microbert_cli.cli.execute import run_stage, show_result
from microbert_cli.cli.options import About, Common, with_options

EPILOG = """Examples:

mbert finetune --model google-bert/bert-base-uncased --task sst2 --dry-run

mbert finetune --model DIR --train-file reviews.csv --text text --label stars --seeds 1,2,3 --dry-run"""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("finetune", epilog=EPILOG)(finetune)


@with_options
def finetune(
    recipe_name: Annotated[str | None, typer.Argument(metavar="RECIPE", help="A recipe; default: mbert.toml.")] = None,
    model: Annotated[str | None, typer.Option(help="Directory, Hub id, or a student (random weights).")] = None,
    seeds: options.Seeds = None,
    *,
    about: About,
    common: Common,
) -> None:
    """Fine-tunes an encoder on a task; the best checkpoint on dev is kept."""
    common.recipe = recipe_name or common.recipe
    resolved = common.resolve(
        finetune__model=model,
        seeds=options.seed_list(seeds),
        **about.keys(),
    )
    show_result(run_stage("finetune", common, resolved), common)
