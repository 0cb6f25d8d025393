"""Recipes of several tasks: what their keys may hold, and the teachers of each task.

tasks = ["sst2", "mrpc", "mine/reviews.toml"]    names of the catalogue, or task files; a file's stem is its name
teacher = "runs/teacher-{task}"                  one pattern for all of them; or
teachers = { sst2 = "a", mrpc = ["b", "c"] }     by name, several = an ensemble; a task that is left out has none
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microbert_cli.errors import MbertError, nearest
from microbert_cli.recipe.registry import Catalog

if TYPE_CHECKING:
    from microbert_cli.recipe.schema import Recipe


TASK_PLACEHOLDER = "{task}"
TASK_NAME = re.compile(r"[A-Za-z0-9][\w-]{0,99}")  # heads and folders are called so
OWN_FILES = ("train_file", "dev_file", "test_file")


def task_name(reference: str) -> str:
    """Returns the name of one of several tasks: its own, or the stem of its file."""
    return Path(reference).stem if reference.endswith(".toml") else reference


def ambiguous_task(tasks: Sequence[str], where: str) -> MbertError:
    """Makes the error for a model of several tasks where none is named."""
    return MbertError(
        "M265",
        f"this model answers {len(tasks)} tasks, and it is not said which: {', '.join(tasks)}",
        where=where,
        allowed="One of its tasks by --task where the command has that option, or the plain model of one.",
        fix="Take each task's plain model out: mbert extract DIR -o OUT",
    )


def teachers_of(recipe: "Recipe") -> dict[str, list[str]]:
    """Returns the teachers of each task by name; an empty list for a task that learns from labels alone."""
    pattern = recipe.teacher.models or ([recipe.teacher.model] if recipe.teacher.model else [])
    names = [task_name(task) for task in recipe.tasks]
    if recipe.teachers:
        return {name: as_list(recipe.teachers.get(name, [])) for name in names}
    return {name: [location.replace(TASK_PLACEHOLDER, name) for location in pattern] for name in names}


def untaught_tasks(recipe: "Recipe") -> list[str]:
    """Returns the names of those of several tasks that have no teacher."""
    return [task for task, teachers in teachers_of(recipe).items() if not teachers]


def untaught_note(recipe: "Recipe", catalog: Catalog) -> str | None:
    """Returns a note on tasks without a teacher, and on what they learn from; None where each of them has one."""
    if not (tasks := untaught_tasks(recipe)):
        return None
    terms = (name for phase in recipe.run_phases.values() for name, term in phase.losses.items() if term.weight)
    losses = [name for name in dict.fromkeys(terms) if not catalog.loss_asks_teacher(name)]
    left_out = ", on its original rows: nobody could label augmented ones" if recipe.augmented else ""
    have, learn = ("has", "is learnt") if len(tasks) == 1 else ("have", "are learnt")
    return f"{', '.join(tasks)} {have} no teacher and {learn} from labels alone ({', '.join(losses)}){left_out}"


def augmented_of(recipe: "Recipe") -> dict[str, str]:
    """Returns the augmented data of each task by name: `augmented` with the task's name in it."""
    pattern = recipe.augmented or ""
    return {task_name(task): pattern.replace(TASK_PLACEHOLDER, task_name(task)) for task in recipe.tasks if pattern}


def transfer_of(recipe: "Recipe") -> str | None:
    """Returns the file of a task's transfer set, with the task's name in place of `{task}`."""
    pattern = recipe.data.transfer_file
    return pattern.replace(TASK_PLACEHOLDER, task_name(recipe.task)) if pattern and recipe.task else pattern


def recipe_of_task(recipe: "Recipe", task: str) -> "Recipe":
    """Returns the recipe for one of its tasks alone."""
    return recipe.model_copy(update={"task": task, "tasks": []})


def single_teacher(recipe: "Recipe", task: str) -> str | None:
    """Returns the one teacher of one of several tasks; None where it has none, or an ensemble, which is no single model."""
    teachers = teachers_of(recipe)[task_name(task)]
    return teachers[0] if len(teachers) == 1 else None


def named_inputs(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yields (name, path) of every path in an input: a path, a list of paths, or a table of either."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        yield from (pair for key, inner in value.items() for pair in named_inputs(f"{name} {key}", inner))
    elif isinstance(value, list):
        names = [name] if len(value) == 1 else [f"{name} {number}" for number in range(1, len(value) + 1)]
        yield from zip(names, value, strict=True)


def check_tasks(values: Mapping[str, Any], catalog: Catalog, origin: Mapping[str, str]) -> Iterable[MbertError]:
    """Checks the keys of several tasks, on raw values: M005, M080, M081, M082, M084, M483."""
    task_list = values.get("tasks")
    tasks = [task_entry for task_entry in task_list if isinstance(task_entry, str)] if isinstance(task_list, list) else []
    where = f"{origin.get('tasks', 'recipe')}, tasks"
    if tasks:
        yield from _check_task_names(tasks, where)
        yield from _check_single_task_keys(values, where)
        yield from (error for task in tasks for error in catalog.check("tasks", task, where))
    teachers = values.get("teachers", {})
    for name in teachers if isinstance(teachers, Mapping) else ():
        if name not in (names := [task_name(task) for task in tasks]):
            yield _unknown_taught_task(name, names, f"{origin.get(f'teachers.{name}', 'recipe')}, teachers.{name}")


def _check_task_names(tasks: Sequence[str], where: str) -> Iterable[MbertError]:
    names = [task_name(task) for task in tasks]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield _duplicate_task_name(name, [task for task in tasks if task_name(task) == name], where)
    for name in (name for name in names if not TASK_NAME.fullmatch(name)):
        yield _invalid_task_name(name, where)


def _check_single_task_keys(values: Mapping[str, Any], where: str) -> Iterable[MbertError]:
    data = values.get("data", {})
    file_keys = [key for key in OWN_FILES if data.get(key)] if isinstance(data, Mapping) else []
    if values.get("task") or file_keys:
        yield _both_single_and_multitask("task" if values.get("task") else f"data.{file_keys[0]}", where)
    if isinstance(data, Mapping):
        for key in (key for key in ("windows", "transfer_windows") if data.get(key) not in (None, False, "none")):
            yield _windows_of_one_task(key, where)


def as_list(teachers: str | Sequence[str]) -> list[str]:
    """Returns one path or several as a list."""
    return [teachers] if isinstance(teachers, str) else list(teachers)


def _duplicate_task_name(name: str, tasks: Sequence[str], where: str) -> MbertError:
    return MbertError(
        "M080",
        f'{len(tasks)} tasks are called "{name}": {", ".join(tasks)}',
        where=where,
        allowed="Tasks of different names, each once: heads, scores and folders are called by them.",
        fix="Leave one out, or rename its file: a task file is called by its stem.",
    )


def _both_single_and_multitask(other: str, where: str) -> MbertError:
    return MbertError(
        "M081",
        f'a run is of one task or of several, and "{other}" is named beside "tasks"',
        where=where,
        allowed="Either tasks, or task, or files of your own; own files among several tasks are described by a task TOML.",
        fix=f"Take one away, such as: --set {other}=''" if other == "task" else "Start from one: mbert copy tasks rte",
    )


def _windows_of_one_task(key: str, where: str) -> MbertError:
    return MbertError(
        "M483",
        "long texts are read in windows in a run of one task, and this one has several",
        where=f"{where}, data.{key}",
        allowed="One task, of which long texts are read in windows; or several, of which their beginning is read.",
        fix=f"--set data.{key}={'none' if key == 'windows' else 'false'}",
    )


def _unknown_taught_task(name: str, names: Sequence[str], where: str) -> MbertError:
    return MbertError(
        "M082",
        f'a teacher is named for "{name}", and that is none of the tasks',
        where=where,
        allowed=f"The names in tasks: {nearest(name, names)}",
        fix=f"Add it to tasks, or leave out teachers.{name}; the teacher of a single task is teacher.model.",
    )


def _invalid_task_name(name: str, where: str) -> MbertError:
    return MbertError(
        "M084",
        f'"{name}" cannot be the name of one of several tasks',
        where=where,
        allowed="Up to 100 letters, digits, _ and -, of which the first is a letter or digit.",
        fix="Rename the task's file: it is called by its stem.",
    )


def check_several_labels(recipe: "Recipe") -> None:
    """Raises M446 where rows may have several labels and the recipe puts experts, exits or several tasks into the student."""
    keys = {
        "early_exit.branch": recipe.early_exit.branch != "none",
        "moe.side": recipe.moe.side != "none",
        "tasks": len(recipe.tasks) > 1,
    }
    if wrong := [key for key, is_set in keys.items() if is_set]:
        reasons = {
            "early_exit.branch": "a row leaves early where one class is sure, and here any number of labels may be right",
            "moe.side": "a mixture of experts keeps its heads without thresholds",
            "tasks": "a student of several tasks keeps its heads without thresholds",
        }
        raise MbertError(
            "M446",
            f"the rows of this task may have several labels: {reasons[wrong[0]]}",
            where=wrong[0],
            allowed="A student of one task, without exits and experts; all losses of answers and of layers.",
            fix="Leave it out, or take one task: --task TASK"
            if wrong[0] == "tasks"
            else f"--set {wrong[0]}=none; of a method that is about them take another: --set method=compact",
        )
