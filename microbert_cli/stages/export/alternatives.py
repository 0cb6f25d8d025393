"""The rows of an export's model card: the model and its int8 file beside what a user would take instead."""

from dataclasses import dataclass
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
from microbert_cli.evaluation.alternatives.rows import Row, table_row, verdict_on
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import Reporter

MODEL = "this model"


@dataclass
class Beside:
    """The alternatives to one exported model; `student` is what the model's own metrics.json says of it, if it has one."""

    data: TaskData
    alternatives: Alternatives
    student: dict[str, Any] | None
    teacher: str | None
    teacher_score: float | None

    def rows(self, files: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
        """Returns the table as "alternatives", and the "verdict" on the model by its mean over seeds."""
        speeds, conditions = measured["models"], measured["conditions"]
        primary, teacher, floor = self.data.task.primary, self.teacher_score, self.alternatives.floor
        rows = self.alternatives.first_rows(teacher, speeds)
        if self.teacher:
            speed = speeds.get("teacher")
            rows.append(table_row("teacher", TEACHER, teacher, teacher=teacher, floor=floor, speed=speed))
            rows.append(self.alternatives.int8_row(TEACHER_INT8_NAME, TEACHER_INT8, teacher, speeds))
        exported = files["safetensors"]["scores"][primary]
        rows.append(table_row(MODEL, STUDENT, exported, teacher=teacher, floor=floor, speed=speeds["torch"]))
        int8 = files.get("int8", {"scores": {}, "note": "not written"})
        name, score = f"{MODEL}, int8", int8["scores"].get(primary)
        note = int8.get("note")
        rows.append(table_row(name, STUDENT_INT8, score, teacher=teacher, floor=floor, speed=speeds.get("int8"), note=note))
        return {
            "alternatives": rows,
            "verdict": verdict_on(self._over_seeds(rows[-2]), rows, int8=rows[-1], conditions=conditions),
        }

    def _over_seeds(self, row: Row) -> Row:
        """Returns the model's row with mean and spread over the seeds that it was chosen from."""
        if not self.student or "mean" not in self.student:
            return row
        primary = self.data.task.primary
        return row | {"score": self.student["mean"][primary], "spread": self.student.get("spread", {}).get(primary)}


def beside(
    recipe: Recipe, catalog: Catalog, data: TaskData, model: str, teacher: str | None, is_teacher: bool, reporter: Reporter
) -> Beside:
    """Fits the linear model, and makes and scores the teacher's int8 file.

    is_teacher  the model was distilled from this teacher, so that its metrics.json has the teacher's score
    """
    alternatives = find_alternatives(data, *training_rows(recipe, catalog))
    student = known_result(model, data)
    if not teacher:
        return Beside(data, alternatives, student, None, None)
    order = recipe.teacher.label_order
    measured = (student or {}).get("teacher") if is_teacher else None
    if measured:
        teacher_score = float(measured[data.task.primary])
    else:
        teacher_score = score_of(teacher, data, where="teacher.model", label_order=order)
    alternatives.add_int8(TEACHER_INT8_NAME, teacher, label_order=order, reporter=reporter)
    return Beside(data, alternatives, student, teacher, teacher_score)
