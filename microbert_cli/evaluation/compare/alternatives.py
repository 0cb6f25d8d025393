"""The rows of a comparison that nobody trained a student for: what a user would take instead, and each row's int8 file."""

from collections.abc import Mapping, Sequence
from typing import Any

from microbert_cli.data.task_data import TaskData
from microbert_cli.evaluation.alternatives.gather import TEACHER_INT8_NAME, Alternatives, find_alternatives, training_rows
from microbert_cli.evaluation.alternatives.kinds import MAJORITY, STUDENT, STUDENT_INT8, TEACHER, TEACHER_INT8
from microbert_cli.evaluation.alternatives.rows import table_row, verdict_on
from microbert_cli.evaluation.compare_speed import BenchmarkModel
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import Reporter

Row = dict[str, Any]


class ComparedAlternatives:
    """The alternatives on one task of a comparison.

    rows     the comparison's, as dictionaries with "row", "score", "spread" and the digest of their shape
    teacher  the teacher's directory; None without one, or with several
    """

    def __init__(
        self, recipe: Recipe, catalog: Catalog, data: TaskData, rows: Sequence[Row], directories: Mapping[str, str],
        teacher: str | None, reporter: Reporter,
    ):  # fmt: skip
        self.rows, self.teacher = rows, teacher
        self.alternatives: Alternatives = find_alternatives(data, *training_rows(recipe, catalog))
        if teacher:
            order = recipe.teacher.label_order
            self.alternatives.add_int8(TEACHER_INT8_NAME, teacher, label_order=order, reporter=reporter)
        for row in rows:
            self.alternatives.add_int8(_int8(row), directories[row["row"]], reporter=reporter)

    def entrants(self) -> list[BenchmarkModel]:
        """Returns the int8 copies to time: the teacher's, and one of each shape of student."""
        timed = {TEACHER_INT8_NAME, *self._timed().values()}
        return [entrant for entrant in self.alternatives.entrants() if entrant.name in timed]

    def lines(self, teacher_score: float | None, speeds: Mapping[str, Any]) -> list[Row]:
        """Returns the rows: the students' int8 files, the teacher's, the linear model, the answer that looks at no text."""
        majority, linear = self.alternatives.first_rows(teacher_score, speeds)
        timed = self._timed()
        by_name = {_int8(row): speeds.get(timed.get(row["about"]["shape"], ""), {}) for row in self.rows}
        rows = [self.alternatives.int8_row(name, STUDENT_INT8, teacher_score, by_name) for name in by_name]
        if self.teacher:
            rows.append(self.alternatives.int8_row(TEACHER_INT8_NAME, TEACHER_INT8, teacher_score, speeds))
        return [{"row": row.pop("model"), **row} for row in [*rows, linear, majority]]

    def _timed(self) -> dict[str, str]:
        """Returns the int8 copy that is timed for each shape: the first that could be made."""
        timed: dict[str, str] = {}
        for row in self.rows:
            if self.alternatives.copies[_int8(row)].entrant is not None:
                timed.setdefault(row["about"]["shape"], _int8(row))
        return timed


def judge(
    rows: Sequence[Row], lines: Sequence[Row], teacher: Mapping[str, Any], majority: float, conditions: Mapping[str, Any] | None
) -> Row | None:
    """Gives every row its share above the floor and its verdict; returns the verdict on the row with the best mean.

    conditions  under which speeds were measured; None where none were
    """
    score = teacher.get("score")
    others = [{"model": line["row"], **line} for line in lines]
    others.append(table_row("commonest class", MAJORITY, majority, teacher=score, floor=majority))
    if teacher:
        others.append({"model": "teacher", "kind": TEACHER, **teacher})
    for row in rows:
        int8 = next((line for line in others if line["model"] == _int8(row)), None)
        judged = {"model": row["row"], **row, "kind": STUDENT}
        row["above_floor"] = table_row("", STUDENT, row["score"], teacher=score, floor=majority)["above_floor"]
        row["verdict"] = verdict_on(judged, others, int8=int8, conditions=conditions)
    best: Row | None = max(rows, key=lambda row: row["score"], default={}).get("verdict")
    return best


def _int8(row: Row) -> str:
    return f"{row['row']}, int8"
