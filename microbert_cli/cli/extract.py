"""`mbert extract`: the plain BERT of each task out of a model for several."""

from typing import Annotated, Any

import typer

from microbert_cli import distributed
from microbert_cli.cli.console import show, show_json
from microbert_cli.cli.execute import data_folder_layer, explain, recipe_of_model, show_result, task_flags
from microbert_cli.cli.options import CommonOptions, TaskOptions, with_options
from microbert_cli.recipe.layers import Layer
from microbert_cli.runs.stage_inputs import default_root

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
    about: TaskOptions,
    common: CommonOptions,
) -> None:
    """The plain BERT of one task, or without --task of each: its experts and head alone, logits equal to 1e-6."""
    layer = recipe_of_model(model)
    resolved = common.resolve(beneath=data_folder_layer(layer), **_model_flags(model, layer, about))
    if common.explain:
        explain(resolved, as_json=common.as_json)
        return
    out = common.out or default_root(resolved, explicit=common.recipe is not None) / "extract"
    if common.dry_run:
        _dry_run({"stage": "extract", "model": model, "task": resolved.recipe.task, "out": str(out)}, common)
        return
    distributed.require_single_process("mbert extract")
    from microbert_cli.stages.extract import run

    reporter = common.reporter()
    controls: dict[str, Any] = {"force": common.force, "resume": common.resume, "reporter": reporter}
    try:
        result = run(resolved.recipe, out, catalog=common.catalog(), model=model, **controls)
    finally:
        reporter.close()
    show_result(result, common)


def _model_flags(model: str, layer: Layer, about: TaskOptions) -> dict[str, Any]:
    """Returns the flags of the tasks: as typed, else those that the model was made with; texts are as long as in training."""
    length = {"data__max_length": layer.values.get("data", {}).get("max_length")}
    return length | task_flags(model, about) | ({} if about.task else {"tasks": layer.values.get("tasks")})


def _dry_run(facts: dict[str, Any], common: CommonOptions) -> None:
    if common.as_json:
        show_json(facts)
    else:
        show(f"extract          {facts['model']} -> {facts['out']}   task={facts['task'] or 'every one'}")
