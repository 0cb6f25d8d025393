"""The table at the end of a run: what each way of making a student came to, beside the teacher and a linear model."""

from typing import Any

from microbert_cli.recipe.phase_data import SELECTED_BY, TRAIN
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.runs.stage_inputs import EarlierOutputs
from microbert_cli.runs.stage_registry import Stage, all_stages


def inputs(recipe: Recipe, earlier: EarlierOutputs, catalog: Catalog) -> dict[str, Any]:
    """Returns the classifiers of this run by the stages that made them, and the export."""
    compared = {stage.name for stage in all_stages() if stage.compared}
    kinds = {name: recipe.variant.get(name, {}).get("stage", name) for name in earlier.planned}
    models = {name: earlier.directory(name) for name, kind in kinds.items() if kind in compared}
    return {"models": models, "exported": earlier.directory("export")}


STAGE = Stage("report", inputs, input_keys={}, keys=("task", "data"), splits=(TRAIN, SELECTED_BY))
