"""The table at the end of a run: what each way of making a student came to, beside what a user would take instead."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from microbert_cli.recipe.multitask import recipe_of_task, task_name, teachers_of
from microbert_cli.recipe.phase_data import SELECTED_BY, TRAIN
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.runs.stage_inputs import EarlierOutputs, Step, teacher_input
from microbert_cli.runs.stage_registry import Stage, all_stages, method_stage


def inputs(recipe: Recipe, earlier: EarlierOutputs, catalog: Catalog) -> dict[str, Any]:
    """Returns the classifiers of this run by the stages that made them, the export, and the teacher, or each task's."""
    compared = {stage.name for stage in all_stages() if stage.compared}
    kinds = {name: recipe.variant.get(name, {}).get("stage", name) for name in earlier.planned}
    models = {name: earlier.directory(name) for name, kind in kinds.items() if kind in compared}
    return {"models": models, "exported": _exported(recipe, earlier), "teacher": _teachers(recipe, earlier, kinds.values())}


def _exported(recipe: Recipe, earlier: EarlierOutputs) -> str | dict[str, str] | None:
    """Returns what was exported in this run or an earlier one: for several tasks each one's by its name."""
    if not recipe.tasks:
        return earlier.directory("export")
    names = [task_name(task) for task in recipe.tasks]
    exported = {name: earlier.directory(f"export-{name}") for name in names}
    return {name: place for name, place in exported.items() if place} or None


def _teachers(recipe: Recipe, earlier: EarlierOutputs, kinds: Iterable[str]) -> str | dict[str, str] | None:
    """Returns the teacher of a run's task, or of each of its tasks; an ensemble is no single model that could be measured.

    A run that distils nothing has the model that it fine-tuned itself: one that lies around may be of another task.
    """
    if recipe.tasks:
        single = {task: names[0] for task, names in teachers_of(recipe).items() if len(names) == 1}
        return {task: str(earlier.resolve(name)) for task, name in single.items()} or None
    if recipe.teacher.models:
        return None
    return teacher_input(recipe, earlier) if method_stage().name in kinds else earlier.directory_of_this_run("finetune")


def split_tasks(step: Step) -> list[Step]:
    """Splits the report on several tasks into one for each."""
    recipe, teachers, exported = step.resolved.recipe, step.inputs["teacher"] or {}, step.inputs["exported"] or {}
    if not recipe.tasks:
        return [step]
    return [
        replace(
            step,
            name=f"{step.name} {task_name(task)}",
            resolved=replace(step.resolved, recipe=recipe_of_task(recipe, task)),
            inputs={
                **step.inputs,
                "teacher": teachers.get(task_name(task)),
                "exported": exported.get(task_name(task)),
            },
        )
        for task in recipe.tasks
    ]


STAGE = Stage(
    "report",
    inputs,
    input_keys={"teacher": ("teacher.model",)},
    keys=("task", "data"),
    splits=(TRAIN, SELECTED_BY),
    no_texts="it weighs a classifier against linear models and int8 files",
    split_tasks=split_tasks,
)
