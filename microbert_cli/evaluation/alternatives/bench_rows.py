"""The table of `mbert bench`: the models that were named, their int8 files and teacher, and what a user would take instead."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from microbert_cli.data.task_data import TaskData
from microbert_cli.evaluation.alternatives.gather import (
    TEACHER_INT8_NAME,
    Alternatives,
    find_alternatives,
    known_result,
    score_of,
    training_rows,
)
from microbert_cli.evaluation.alternatives.kinds import STUDENT, STUDENT_INT8, TEACHER, TEACHER_INT8
from microbert_cli.evaluation.alternatives.rows import Row, over_seeds, table_row, verdict_on
from microbert_cli.evaluation.compare_speed import BenchmarkModel, benchmark_models
from microbert_cli.evaluation.scoring import score_predictor
from microbert_cli.models.exported.files import EXPORTED_FILES
from microbert_cli.models.find import is_cascade
from microbert_cli.models.predictor import open_predictor
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import manifest


def bench_beside_alternatives(
    entrants: Sequence[BenchmarkModel], recipe: Recipe, catalog: Catalog, data: TaskData, *, reporter: Reporter = SILENT,
    **sizes: int,
) -> dict[str, Any]:  # fmt: skip
    """Measures the entrants as `benchmark_models` does, and beside them what a user would take instead.

    The teacher is the one that the manifest of an entrant names; each model without an int8 file gets one, in the cache.
    Returns what `benchmark_models` returns, and "rows" (the table) and "verdict" (on the student with the best score).
    """
    teacher = _teacher_of(entrants)
    named = next((entrant for entrant in entrants if teacher and _is_same(entrant.source, teacher)), None)
    if teacher and named is None:
        named = BenchmarkModel("teacher", teacher, "torch", recipe.teacher.label_order, where="teacher.model")
        entrants = [named, *entrants]
    entrants = [replace(entrant, opened=_open(entrant, data)) for entrant in entrants]
    scores = {entrant.name: _score(entrant, data) for entrant in entrants}
    alternatives = find_alternatives(data, *training_rows(recipe, catalog))
    with_int8 = {str(Path(entrant.source)) for entrant in entrants if entrant.precision == "int8"}
    for entrant in entrants:
        if (
            not entrant.speed
            and entrant.precision not in EXPORTED_FILES
            and not is_cascade(Path(entrant.source))
            and str(Path(entrant.source)) not in with_int8
        ):
            name = _int8_name(entrant, named)
            alternatives.add_int8(name, entrant.source, label_order=entrant.label_order, reporter=reporter)
    timed, linear = [*entrants, *alternatives.entrants()], alternatives.linear_models()
    measured = benchmark_models(timed, data, linear=linear, reporter=reporter, **sizes)
    rows = _rows(entrants, named, scores, alternatives, measured["models"], data)
    students = [row for row in rows if row["kind"] == STUDENT and row["score"] is not None]
    best = max(students, key=lambda row: float(row["score"]), default=None)
    verdict = None
    if best:
        verdict = verdict_on(best, rows, int8=_int8_of(best, rows), conditions=measured["conditions"])
    return {**measured, "rows": rows, "verdict": verdict}


def _rows(
    entrants: Sequence[BenchmarkModel],
    named: BenchmarkModel | None,
    scores: dict[str, dict[str, Any]],
    alternatives: Alternatives,
    speeds: dict[str, Any],
    data: TaskData,
) -> list[Row]:
    teacher = scores[named.name]["score"] if named else None
    rows = alternatives.first_rows(teacher, speeds)
    for entrant in entrants:
        kind = TEACHER if named and entrant.name == named.name else STUDENT_INT8 if entrant.precision == "int8" else STUDENT
        figures = {"teacher": teacher, "floor": alternatives.floor, "speed": speeds[entrant.name]}
        rows.append(table_row(entrant.name, kind, **scores[entrant.name], **figures))
        name = _int8_name(entrant, named)
        if name in alternatives.copies:
            rows.append(alternatives.int8_row(name, TEACHER_INT8 if kind == TEACHER else STUDENT_INT8, teacher, speeds))
    return rows


def _int8_of(student: Row, rows: Sequence[Row]) -> Row | None:
    """Returns the int8 row of a student: its copy, or the int8 file of the same export."""
    directory = student["model"].rpartition(" (")[0] or student["model"]
    names = (f"{student['model']}, int8", f"{directory} (int8)")
    return next((row for row in rows if row["model"] in names), None)


def _int8_name(entrant: BenchmarkModel, named: BenchmarkModel | None) -> str:
    return TEACHER_INT8_NAME if named and entrant.name == named.name else f"{entrant.name}, int8"


def _open(entrant: BenchmarkModel, data: TaskData) -> Any:
    return open_predictor(
        entrant.source,
        data.task,
        precision=entrant.precision,
        where=entrant.where,
        label_order=entrant.label_order,
        speed=entrant.speed,
    )


def _score(entrant: BenchmarkModel, data: TaskData) -> dict[str, Any]:
    """Returns the score on dev, with spread and seeds where the model's own metrics.json has them."""
    primary = data.task.primary
    predictor = entrant.opened
    assert predictor is not None
    if entrant.precision in EXPORTED_FILES or getattr(predictor.answers, "speed", 0.0) > 0:
        return {"score": score_predictor(data, predictor)[primary]}
    if not (result := known_result(entrant.source, data)):
        return {"score": score_of(entrant.source, data, where=entrant.where, label_order=entrant.label_order)}
    return over_seeds(result, primary)


def _teacher_of(entrants: Sequence[BenchmarkModel]) -> str | None:
    """Returns the one teacher that the manifest of an entrant names, if it is still there."""
    for entrant in entrants:
        path = Path(entrant.source)
        home = manifest.model_home(path)
        if not (home / manifest.FILE).is_file():
            continue
        sources = manifest.read(home).get("sources", {})
        place = sources.get("teacher")
        if isinstance(place, str) and (home / place / "config.json").is_file():
            return str(home / place)
    return None


def _is_same(source: str, other: str) -> bool:
    return Path(source).resolve() == Path(other).resolve()
