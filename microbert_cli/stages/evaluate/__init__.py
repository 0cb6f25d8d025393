"""The GLUE evaluator, for own tasks too: official metrics, predictions per example, agreement with a teacher, submissions."""

from typing import Any

from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.task import writes_text
from microbert_cli.runs.stage_inputs import EarlierOutputs, required_input, student_output, teacher_input
from microbert_cli.runs.stage_registry import Stage


def inputs(recipe: Recipe, earlier: EarlierOutputs, catalog: Catalog) -> dict[str, Any]:
    """Returns the model to score, and the teacher it is compared with."""
    model = earlier.resolve(recipe.evaluate.model) or student_output(earlier) or earlier.directory("finetune")
    return {
        "model": required_input(model, "evaluate.model", "the model to evaluate", "mbert evaluate DIR"),
        "teacher": teacher_input(recipe, earlier),
    }


def splits(recipe: Recipe, catalog: Catalog) -> tuple[str, ...]:
    """Returns the splits to score: those of the recipe, else all whose labels the task shows."""
    from microbert_cli.data.load import default_splits
    from microbert_cli.data.task_data import find_task

    return tuple(recipe.evaluate.splits or default_splits(find_task(recipe, catalog)))


STAGE = Stage(
    "evaluate",
    inputs,
    input_keys={"model": ("evaluate.model",), "teacher": ("teacher.model",)},
    cascades=("model", "teacher"),
    by_task=True,
    heads=lambda recipe: {} if writes_text(recipe) else {"model": "classifier", "teacher": "classifier"},
    keys=("task", "data", "evaluate"),
    splits=splits,
    extras=lambda recipe: ("text",) if writes_text(recipe) else (),
    distributed=True,
)
