"""`mbert extract`: the plain BERT of each task out of a model for several."""

from pathlib import Path
from typing import Annotated, Any

import typer

from microbert_cli import manifest, processes
from microbert_cli.cli.console import show, show_json
from microbert_cli.cli.options import About, Common, with_options
from microbert_cli.cli.running import explain, known_task, show_result
from microbert_cli.wiring import default_root

EPILOG = """Examples:

mbert extract runs/glue/task-distill --task sst2 -o runs/sst2-alone --dry-run

mbert extract runs/glue/task-distill --data GLUE -o runs/alone --dry-run"""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("extract", epilog=EPILOG)(extract)


@with_options
def extract(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model of several tasks, or with experts.")],
    *,
    about: About,
    common: Common,
) -> None:
    """The plain BERT of one task, or without --task of each: its experts and head alone, logits equal to 1e-6."""
    resolved = common.resolve(**known_task(model, about), **_trained_length(model, about))
    if common.explain:
        explain(resolved, as_json=common.as_json)
        return
    out = common.out or default_root(resolved, explicit=common.recipe is not None) / "extract"
    if common.dry_run:
        _dry_run({"stage": "extract", "model": model, "task": resolved.recipe.task, "out": str(out)}, common)
        return
    processes.only_one("mbert extract")
    from microbert_cli.stages.extract import run

    talk = common.talk()
    controls: dict[str, Any] = {"force": common.force, "resume": common.resume, "talk": talk}
    try:
        result = run(resolved.recipe, out, catalog=common.catalog(), model=model, **controls)
    finally:
        talk.close()
    show_result(result, common)


def _trained_length(model: str, about: About) -> dict[str, Any]:
    """Where a task is typed, and so not taken from the model's manifest, its texts are still as long as in training."""
    path = Path(model)
    if not about.task or not (path / manifest.FILE).is_file():
        return {}
    return {"data__max_length": manifest.read(path).get("recipe", {}).get("data", {}).get("max_length")}


def _dry_run(told: dict[str, Any], common: Common) -> None:
    if common.as_json:
        show_json(told)
    else:
        show(f"extract          {told['model']} -> {told['out']}   task={told['task'] or 'every one'}")
