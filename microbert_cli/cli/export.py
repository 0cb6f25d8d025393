"""`mbert export`: a directory to ship."""

from typing import Annotated

import typer

from microbert_cli.cli import options
from microbert_cli.cli.execute import resolve_for, run_stage, show_result
from microbert_cli.cli.options import About, Common, with_options

EPILOG = """Example:

mbert export runs/sst2/task-distill -o shipped --task sst2 --dry-run"""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("export", epilog=EPILOG)(export)


@with_options
def export(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="A classifier: directory or Hub id.")] = None,
    teacher: options.Teacher = None,
    *,
    about: About,
    common: Common,
) -> None:
    """Safetensors, ONNX fp32 and int8, the same with fused operators, parity checked on real rows, a model card."""
    resolved = resolve_for(model, about, common, export__model=model, teacher__model=teacher)
    show_result(run_stage("export", common, resolved), common)
