"""`mbert task-distill`."""

from typing import Annotated

import typer

from microbert_cli.cli import options
from microbert_cli.cli.execute import run_stage, show_result
from microbert_cli.cli.options import About, Common, with_options

EPILOG = """Examples:

mbert task-distill --teacher DIR --student runs/sst2/general-distill --task sst2 --seeds 1,2,3 --dry-run

mbert task-distill --teacher DIR --student bert-4x256 --task sst2 --set method=pd --transfer-file texts.txt --dry-run

mbert task-distill --teacher 'runs/{task}/finetune' --student bert-3x312 --tasks sst2,mrpc,rte --dry-run"""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("task-distill", epilog=EPILOG)(task_distill)


@with_options
def task_distill(
    recipe_name: Annotated[str | None, typer.Argument(metavar="RECIPE", help="A recipe; default: mbert.toml.")] = None,
    teacher: options.Teacher = None,
    student: options.Student = None,
    tasks: Annotated[str | None, typer.Option("--tasks", help="Several tasks for one student, such as sst2,mrpc,rte.")] = None,
    augmented: Annotated[str | None, typer.Option(help="A directory made by `mbert augment`.")] = None,
    transfer_file: Annotated[
        str | None,
        typer.Option("--transfer-file", help="Unlabelled texts the teacher answers: a table or .txt."),
    ] = None,
    seeds: options.Seeds = None,
    *,
    about: About,
    common: Common,
) -> None:
    """Stage two: distils a fine-tuned teacher into a student, through all phases of the method."""
    common.recipe = recipe_name or common.recipe
    resolved = common.resolve(
        teacher__model=teacher,
        student=student,
        augmented=augmented,
        data__transfer_file=transfer_file,
        seeds=options.seed_list(seeds),
        tasks=options.name_list(tasks),
        **about.keys(),
    )
    show_result(run_stage("task-distill", common, resolved), common)
