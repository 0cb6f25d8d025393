"""The results of a distillation for metrics.json: one task's scores with its teacher's, or those of several tasks.

In a run of several tasks each task has its scores in the chosen model, and a checkpoint of the step that was best for it alone.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from microbert_cli.distillation.task_set import MEAN_SCORE, TaskSet
from microbert_cli.evaluation.scoring import majority_of_split
from microbert_cli.models.capture import OptionalTeacherFunction
from microbert_cli.models.load import LoadedModel
from microbert_cli.models.save import save_model
from microbert_cli.reporter import Log, Reporter
from microbert_cli.training import checkpoint
from microbert_cli.training.checkpoint import BestWeights
from microbert_cli.training.heads.score_units import ScoreUnits

if TYPE_CHECKING:
    from microbert_cli.distillation.taught_task import TaughtTask


Numbers = dict[str, Any]
Scores = dict[str, float]
BEST = "best"
TEACHER_LOG = "teacher.jsonl"  # a line for each phase: what asking the teacher before it took


def save_best_weights(
    best: BestWeights, tasks: TaskSet, model: Any, loaded: LoadedModel, units: ScoreUnits, place: Path
) -> Numbers:
    """Writes the best weights of each task to `best/TASK/`; returns their steps and scores. The model is left as it was.

    units  of the recorded weights' scores; files are in the table's
    """
    # Restored below: the caller still reads the chosen model, for its experts.
    current = {name: value.clone() for name, value in model.state_dict().items()}
    saved: Numbers = {}
    for task, metric in tasks.primaries.items():
        if metric in best.records:
            record = best.records[metric]
            model.load_state_dict(record["weights"])
            with units.plain():
                save_model(model, loaded.tokenizer, place / BEST / task)
            saved[task] = {"step": record["step"], "dev": scores_of_task(record["scores"], task)}
    model.load_state_dict(current)
    return saved


def logged_ask(
    work: Path | None, tasks: TaskSet, phase: str, rows: int, make: Callable[[], OptionalTeacherFunction | None]
) -> OptionalTeacherFunction | None:
    """Makes the function for teacher outputs, and logs in `work` how many rows went through teachers to fill the cache."""
    started, rows_before = time.monotonic(), tasks.rows_asked
    ask = make()
    if work is not None and ask is not None:
        with Log(work / TEACHER_LOG) as log:
            log.write(
                phase=phase,
                kept=tasks.uses_cache,
                rows=rows,
                asked=tasks.rows_asked - rows_before,
                took=round(time.monotonic() - started, 3),
            )
    return ask


def expert_usage(model: Any) -> dict[str, dict[str, list[int]]]:
    """Returns the experts of every task by layer, layers counted from 1; empty where tasks are not routed to experts."""
    config = model.config
    if not getattr(config, "moe_layers", None) or config.routing != "task":
        return {}
    return {
        task: {str(layer): list(chosen) for layer, chosen in layers.items()} for task, layers in model.chosen_experts().items()
    }


def routing_failed(experts: Mapping[str, Mapping[str, Sequence[int]]]) -> bool:
    """Whether all of several tasks use the same experts in every layer."""
    # Sorted, since the order of the chosen experts has no effect on the output.
    tables = [{layer: sorted(chosen) for layer, chosen in layers.items()} for layers in experts.values()]
    return len(tables) > 1 and all(table == tables[0] for table in tables)


def scores_of_task(scores: Mapping[str, float], task: str) -> dict[str, float]:
    """Returns one task's metrics out of the scores of several, where they are called `TASK.METRIC`."""
    prefix = f"{task}."
    return {name.removeprefix(prefix): value for name, value in scores.items() if name.startswith(prefix)}


def summarize(
    tasks: TaskSet,
    metrics: Numbers,
    teacher_scores: Sequence[dict[str, float] | None],
    directory: Path,
    reporter: Reporter,
) -> Numbers:
    """Returns what metrics.json holds beside the scores over seeds, which are in `metrics` already."""
    if not tasks.is_multitask:
        task = tasks.tasks[0]
        return _against_teacher(task, metrics, teacher_scores[0], tasks.primary) | {"task": task.name}
    by_task: dict[str, Numbers] = {}
    for task, scores in zip(tasks.tasks, teacher_scores, strict=True):
        by_task[task.name] = {
            "dev": scores_of_task(metrics["dev"], task.name),
            "rows": len(task.data.rows["train"]),
            **_against_teacher(task, metrics, scores, tasks.primaries[task.name]),
            **_best_checkpoint(tasks, task.name, directory),
        }
    summary: Numbers = {
        "primary": MEAN_SCORE,
        "tasks": by_task,
        "majority": mean(numbers["majority"] for numbers in by_task.values()),
    }
    if all(teacher_scores):  # a mean over some of the tasks only could not be compared with the student's
        teacher = mean(float(numbers["teacher"][numbers["primary"]]) for numbers in by_task.values())
        summary |= {"teacher": {MEAN_SCORE: teacher}, "retention": _retention(_student_score(metrics, MEAN_SCORE), teacher)}
    return summary | _check_routing(metrics.get("experts", {}), reporter)


def _against_teacher(task: "TaughtTask", metrics: Numbers, teacher: dict[str, float] | None, score: str) -> Numbers:
    """Returns a task's primary metric with the teacher's and the commonest class's; `score` is its name in `metrics`."""
    primary = task.data.task.primary
    retention = _retention(_student_score(metrics, score), teacher[primary]) if teacher else None
    return {
        "primary": primary,
        "teacher": teacher,
        "majority": majority_of_split(task.data, "dev"),
        "retention": retention,
    }


def _student_score(metrics: Numbers, score: str) -> float:
    """Returns the student's score; with several seeds, their mean."""
    return float((metrics.get("mean") or metrics["dev"])[score])


def _retention(student: float, teacher: float) -> float | None:
    # A correlation may be 0 or negative, of which no share can be kept.
    return student / teacher if teacher > 0 else None


def _best_checkpoint(tasks: TaskSet, task: str, directory: Path) -> Numbers:
    """Returns the best checkpoint for one task over all seeds: its directory, step and scores."""
    metric = tasks.primaries[task].removeprefix(f"{task}.")
    scores = {place: checkpoint.read_scores(place) for place in (directory, *sorted(directory.glob("seed-*")))}
    candidates = {place: value["best"][task] for place, value in scores.items() if value and task in value.get("best", {})}
    if not candidates:
        return {}
    best = max(candidates, key=lambda place: candidates[place]["dev"][metric])
    return {"best": {"directory": (best / BEST / task).relative_to(directory).as_posix(), **candidates[best]}}


def _check_routing(experts: Mapping[str, Mapping[str, Sequence[int]]], reporter: Reporter) -> Numbers:
    if not experts:
        return {}
    if failed := routing_failed(experts):
        reporter.warn("routing failed: all tasks take the same experts in every layer, so this is a run without routing")
    return {"routing_failed": failed}
