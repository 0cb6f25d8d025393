"""What a run came to: one task's scores beside its teacher's, or several tasks' side by side.

Of several tasks every one has its scores in the model that is kept, and the step at which the model was best for it alone;
those weights are a checkpoint of their own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from microbert_cli.distillation.task_set import MEAN_SCORE, TaskSet
from microbert_cli.distillation.taught_task import TaughtTask
from microbert_cli.evaluation.scoring import majority_of_split
from microbert_cli.models.load import LoadedModel
from microbert_cli.models.save import save_model
from microbert_cli.reporter import Reporter
from microbert_cli.training import checkpoint
from microbert_cli.training.best_weights import BestWeights

Numbers = dict[str, Any]
Scores = dict[str, float]
BEST = "best"


def save_best_weights(bests: BestWeights, course: TaskSet, model: Any, loaded: LoadedModel, place: Path) -> Numbers:
    """Writes `best/TASK/` with the weights that were best for it; returns step and scores. The model stays as it is."""
    now = {name: value.clone() for name, value in model.state_dict().items()}
    told: Numbers = {}
    for task, metric in course.primaries.items():
        if metric in bests.kept:
            kept = bests.kept[metric]
            model.load_state_dict(kept["weights"])
            save_model(model, loaded.tokenizer, place / BEST / task)
            told[task] = {"step": kept["step"], "dev": scores_of_task(kept["scores"], task)}
    model.load_state_dict(now)
    return told


def expert_usage(model: Any) -> dict[str, dict[str, list[int]]]:
    """The experts of every task by layer, counted from 1; empty where tasks are not routed to experts."""
    config = model.config
    if not getattr(config, "moe_layers", None) or config.routing != "task":
        return {}
    return {task: {str(layer): list(chosen) for layer, chosen in layers.items()} for task, layers in model.chosen().items()}


def routing_failed(experts: Mapping[str, Mapping[str, Sequence[int]]]) -> bool:
    """Whether all tasks of several take the same experts in every layer, so that nothing is routed."""
    tables = [{layer: sorted(chosen) for layer, chosen in layers.items()} for layers in experts.values()]
    return len(tables) > 1 and all(table == tables[0] for table in tables)


def scores_of_task(scores: Mapping[str, float], task: str) -> dict[str, float]:
    """One task's metrics among the scores of several."""
    start = f"{task}."
    return {name.removeprefix(start): value for name, value in scores.items() if name.startswith(start)}


def results(
    course: TaskSet, metrics: Numbers, taught: Sequence[dict[str, float] | None], directory: Path, reporter: Reporter
) -> Numbers:
    """What goes into metrics.json beside the scores over seeds, which are in `metrics` already."""
    if not course.several:
        return _beside(course.lessons[0], metrics, taught[0], course.primary) | {"task": course.lessons[0].name}
    tasks: dict[str, Numbers] = {}
    for lesson, scores in zip(course.lessons, taught, strict=True):
        name = course.primaries[lesson.name]
        own = {"dev": scores_of_task(metrics["dev"], lesson.name), "rows": len(lesson.data.rows["train"])}
        tasks[lesson.name] = {**own, **_beside(lesson, metrics, scores, name), **_best(course, lesson.name, directory)}
    told: Numbers = {"primary": MEAN_SCORE, "tasks": tasks, "majority": mean(one["majority"] for one in tasks.values())}
    if all(taught):
        teacher = mean(float(one["teacher"][one["primary"]]) for one in tasks.values())
        told |= {"teacher": {MEAN_SCORE: teacher}, "retention": _share(_student(metrics, MEAN_SCORE), teacher)}
    return told | _routing(metrics.get("experts", {}), reporter)


def _beside(lesson: TaughtTask, metrics: Numbers, teacher: dict[str, float] | None, name: str) -> Numbers:
    """A task's primary metric, and what its student's score, called `name`, is to be compared with."""
    primary = lesson.data.task.primary
    kept = _share(_student(metrics, name), teacher[primary]) if teacher else None
    return {"primary": primary, "teacher": teacher, "majority": majority_of_split(lesson.data, "dev"), "retention": kept}


def _student(metrics: Numbers, name: str) -> float:
    """The student's score; with several seeds, their mean."""
    return float((metrics.get("mean") or metrics["dev"])[name])


def _share(student: float, teacher: float) -> float | None:
    return student / teacher if teacher > 0 else None


def _best(course: TaskSet, task: str, directory: Path) -> Numbers:
    """The weights that were best for this task, of all seeds: where they are, the step and the scores."""
    metric = course.primaries[task].removeprefix(f"{task}.")
    found = {place: checkpoint.read_scores(place) for place in (directory, *sorted(directory.glob("seed-*")))}
    bests = {place: scores["best"][task] for place, scores in found.items() if scores and task in scores.get("best", {})}
    if not bests:
        return {}
    place = max(bests, key=lambda one: bests[one]["dev"][metric])
    return {"best": {"directory": (place / BEST / task).relative_to(directory).as_posix(), **bests[place]}}


def _routing(experts: Mapping[str, Mapping[str, Sequence[int]]], reporter: Reporter) -> Numbers:
    if not experts:
        return {}
    if failed := routing_failed(experts):
        reporter.warn("routing failed: all tasks take the same experts in every layer, so this is a run without routing")
    return {"routing_failed": failed}
