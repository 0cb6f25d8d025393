"""`mbert finetune`."""

from typing import Annotated

import typer

from microbert_cli.cli import options
from microbert_cli.cli.options import Common, with_common
from microbert_cli.cli.running import run_stage, show_result

EPILOG = """Examples:

mbert finetune --model google-bert/bert-base-uncased --task sst2 --dry-run

mbert finetune --model DIR --train-file reviews.csv --text text --label stars --seeds 1,2,3 --dry-run"""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("finetune", epilog=EPILOG)(finetune)


@with_common
def finetune(
    recipe_name: Annotated[str | None, typer.Argument(metavar="RECIPE", help="A recipe; default: mbert.toml.")] = None,
    model: Annotated[str | None, typer.Option(help="Directory, Hub id, or a student (random weights).")] = None,
    task: options.TaskName = None,
    data: options.DataDir = None,
    train_file: options.TrainFile = None,
    dev_file: options.DevFile = None,
    test_file: options.TestFile = None,
    text: options.TextColumns = None,
    label: options.LabelColumn = None,
    seeds: options.Seeds = None,
    *,
    common: Common,
) -> None:
    """Fine-tunes an encoder on a task; the best checkpoint on dev is kept."""
    common.recipe = recipe_name or common.recipe
    resolved = common.resolve(
        finetune__model=model,
        seeds=options.seed_list(seeds),
        task=task,
        data__folder=data,
        **options.own_data(train_file, dev_file, test_file, text, label),
    )
    show_result(run_stage("finetune", common, resolved), common)
