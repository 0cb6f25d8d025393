"""The table at the end of a run: what each way of making a student came to, beside what a user would take instead."""

from typing import Any

from microbert_cli.recipe.phase_data import SELECTED_BY, TRAIN
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.runs.stage_inputs import EarlierOutputs, teacher_input
from microbert_cli.runs.stage_registry import Stage, all_stages


def inputs(recipe: Recipe, earlier: EarlierOutputs, catalog: Catalog) -> dict[str, Any]:
    """Returns the classifiers of this run by the stages that made them, the export, and the one teacher if there is one."""
    compared = {stage.name for stage in all_stages() if stage.compared}
    kinds = {name: recipe.variant.get(name, {}).get("stage", name) for name in earlier.planned}
    models = {name: earlier.directory(name) for name, kind in kinds.items() if kind in compared}
    teacher = None if recipe.teacher.models or recipe.teachers else teacher_input(recipe, earlier)
    return {"models": models, "exported": earlier.directory("export"), "teacher": teacher}


STAGE = Stage("report", inputs, input_keys={"teacher": ("teacher.model",)}, keys=("task", "data"), splits=(TRAIN, SELECTED_BY))
