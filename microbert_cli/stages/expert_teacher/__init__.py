"""Makes a fine-tuned teacher a mixture of experts: a task distillation whose student begins as the teacher itself."""

from typing import Any

from microbert_cli.errors import MbertError
from microbert_cli.recipe.moe import expert_teacher_values
from microbert_cli.recipe.multitask import task_name
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.runs.stage_inputs import EarlierOutputs, augmented_input, required_input, taught_input
from microbert_cli.runs.stage_registry import Stage


def inputs(recipe: Recipe, earlier: EarlierOutputs, catalog: Catalog) -> dict[str, Any]:
    """Returns the teacher, as the student too, and the augmented rows; raises M129 for several tasks, M132 for an ensemble."""
    if recipe.tasks:
        raise _several_tasks(recipe.tasks)
    teacher = taught_input(recipe, earlier)
    if teacher is None and recipe.teacher.models:
        raise _several_teachers()
    teacher = required_input(teacher, "teacher.model", "a teacher fine-tuned on the task", "--teacher DIR")
    return {"teacher": teacher, "student": teacher, "augmented": augmented_input(recipe, earlier)}


def _several_tasks(tasks: list[str]) -> MbertError:
    return MbertError(
        "M129",
        f"an expert teacher is made of one task's teacher, and this run is of {len(tasks)} tasks",
        where="tasks",
        allowed="One task at a time; a run of several then names each task's in [teachers], or by a pattern with {task}.",
        fix=f"mbert expert-teacher --task {tasks[0]} --teacher DIR -o runs/expert-{task_name(tasks[0])}",
    )


def _several_teachers() -> MbertError:
    return MbertError(
        "M132",
        "an expert teacher is made of one fine-tuned teacher, and several are named here",
        where="stage expert-teacher",
        allowed="One task and one teacher; a recipe of several tasks has a variant for each.",
        fix='--task sst2 --teacher DIR, or a variant of the recipe with stage = "expert-teacher", tasks = [], task = "sst2"',
    )


STAGE = Stage(
    "expert-teacher",
    inputs,
    input_keys={"teacher": ("teacher.model",), "augmented": ("augmented",)},
    no_words="its experts are those of a classifier of texts",
    no_texts="its experts are those of a classifier",
    runs_as="task-distill",
    overrides=expert_teacher_values,
)
