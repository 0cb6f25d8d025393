"""The verdict on a student: whether it is worth more than what a user could take without training it, in one sentence.

Two alternatives need no distillation: a linear model on counted words, and the teacher's own int8 file. A student is worth it
if its score is above the linear model's by more than the spread over seeds, and if no int8 teacher with at least its score
answers as fast.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from microbert_cli.evaluation.alternatives.kinds import LINEAR_IN_SENTENCES, LINEAR_TEXTS

SAME_SPEED = 0.05  # latencies of one interleaved run that differ by less are equal
ROUNDING = 1e-9  # means of equal scores differ in their last digits
MAJORITY, LINEAR, WITHIN_SPREAD, INT8_TEACHER, NO_SCORE = (
    "majority", "linear", "linear-within-spread", "int8-teacher", "no-score",
)  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """What was measured of one row of a table; None, or a number that is not finite, is not measured.

    score       on dev, the mean over seeds
    spread      the standard deviation over seeds; None for one seed
    latency_ms  time of one sequence, in milliseconds
    called      what sentences call the row, of a linear model
    """

    score: float | None = None
    spread: float | None = None
    latency_ms: float | None = None
    called: str = LINEAR_IN_SENTENCES[LINEAR_TEXTS]

    def __post_init__(self) -> None:
        for name in ("score", "spread", "latency_ms"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                object.__setattr__(self, name, None)


MISSING = Figures()


def verdict(
    student: Figures,
    *,
    int8: Figures = MISSING,
    teacher: Figures = MISSING,
    teacher_int8: Figures = MISSING,
    linear: Figures = MISSING,
    floor: float | None = None,
    load: float | None = None,
) -> dict[str, Any]:
    """Returns {"worth_it", "reasons", "sentence", "retention", "above_floor", "speedup", "int8_speedup"}.

    floor         the score of the commonest class, or of the mean
    load          the load average of a machine that was too busy for latencies to be trusted; None if it was not
    worth_it      None where neither a linear model nor the teacher's int8 file was measured
    reasons       why it is not: "no-score", "majority", "linear", "linear-within-spread" (above the linear model by no
                  more than the spread over seeds), "int8-teacher" (as fast as the student's fastest file, with at least its
                  score)
    retention     student / teacher;  above_floor  (student - floor) / (teacher - floor); None where they mean nothing
    speedup, int8_speedup   latency of the teacher, and of its int8 file, over that of the student's fastest file
    """
    latency = _fastest(student, int8)
    values = {
        "retention": retention(student.score, teacher.score),
        "above_floor": above_floor(student.score, teacher.score, floor),
        "speedup": _ratio(teacher.latency_ms, latency),
        "int8_speedup": _ratio(teacher_int8.latency_ms, latency),
    }
    reasons = [code for code, holds in _doubts(student, latency, teacher_int8, linear, floor) if holds]
    is_compared = linear.score is not None or None not in (teacher_int8.score, teacher_int8.latency_ms, latency)
    worth_it = False if reasons else True if is_compared else None
    figures = _Numbers(student, latency, teacher_int8, linear, floor)
    sentence = _not_worth_it(reasons, figures) if reasons else _worth(values, figures)
    if load is not None and (values["speedup"] or values["int8_speedup"]):
        sentence += f" Speeds were measured on a busy machine (load {load:.1f}): mbert bench measures them again."
    return {"worth_it": worth_it, "reasons": reasons, "sentence": sentence, **values}


def retention(score: float | None, teacher: float | None) -> float | None:
    """Returns the share of the teacher's score; None where there is none, or the teacher's is not above 0."""
    return score / teacher if score is not None and teacher is not None and teacher > 0 else None


def above_floor(score: float | None, teacher: float | None, floor: float | None) -> float | None:
    """Returns (score - floor) / (teacher - floor); None where the teacher is not above the floor."""
    if score is None or teacher is None or floor is None or not teacher > floor:
        return None
    return (score - floor) / (teacher - floor)


@dataclass(frozen=True)
class _Numbers:
    student: Figures
    latency: float | None
    teacher_int8: Figures
    linear: Figures
    floor: float | None


def _fastest(*figures: Figures) -> float | None:
    return min((each.latency_ms for each in figures if each.latency_ms), default=None)


def _ratio(other: float | None, latency: float | None) -> float | None:
    return other / latency if other and latency else None


def _doubts(
    student: Figures, latency: float | None, teacher_int8: Figures, linear: Figures, floor: float | None
) -> Sequence[tuple[str, bool]]:
    if student.score is None:
        return [(NO_SCORE, True)]
    margin = None if linear.score is None else student.score - linear.score
    spread = max(student.spread or 0.0, linear.spread or 0.0)
    as_fast = bool(latency and teacher_int8.latency_ms and teacher_int8.latency_ms <= (1 + SAME_SPEED) * latency)
    as_good = teacher_int8.score is not None and teacher_int8.score >= student.score - ROUNDING
    return [
        (MAJORITY, floor is not None and student.score <= floor + ROUNDING),
        (LINEAR, margin is not None and margin <= ROUNDING),
        (WITHIN_SPREAD, margin is not None and ROUNDING < margin <= spread + ROUNDING),
        (INT8_TEACHER, as_fast and as_good),
    ]


def _not_worth_it(reasons: Sequence[str], numbers: _Numbers) -> str:
    if NO_SCORE in reasons:
        return "Not worth it here: the student has no score on dev."
    student, linear, copy = numbers.student, numbers.linear, numbers.teacher_int8
    texts = {
        MAJORITY: f"the answer that looks at no text has {_number(numbers.floor)} on dev",
        LINEAR: f"{linear.called} has {_number(linear.score)} on dev",
        WITHIN_SPREAD: f"{linear.called} is within the spread over seeds, with {_number(linear.score)} on dev",
        INT8_TEACHER: f"the teacher's int8 file has {_number(copy.score)} on dev",
    }
    first, *others = [texts[reason] for reason in reasons]
    sentence = "; ".join([f"{first}, the student {_score(student)}", *others])
    if INT8_TEACHER in reasons:  # it is the last of them
        sentence += f", at {_number(copy.latency_ms, 2)} ms a row, the student's fastest at {_number(numbers.latency, 2)} ms"
    return f"Not worth it here: {sentence}."


def _worth(values: dict[str, Any], numbers: _Numbers) -> str:
    kept, speedup, int8_speedup = values["retention"], values["speedup"], values["int8_speedup"]
    text = f"{100 * kept:.1f} % of the teacher" if kept is not None else f"{_score(numbers.student)} on dev"
    if speedup is not None:
        text += (
            f" at {_times(speedup)} times its speed" if kept is not None else f", {_times(speedup)} times the teacher's speed"
        )
    if int8_speedup is not None:
        text += f", {_times(int8_speedup)} times that of the teacher's int8 file"
    if numbers.linear.score is None:
        return f"{text}; no linear model was measured."
    score = "" if kept is None else f", the student {_score(numbers.student)}"
    return f"{text}; {numbers.linear.called} has {_number(numbers.linear.score)} on dev{score}."


def _score(figures: Figures) -> str:
    spread = f" ± {figures.spread:.4f}" if figures.spread else ""
    return f"{_number(figures.score)}{spread}"


def _number(value: float | None, digits: int = 4) -> str:
    return "nothing" if value is None else f"{value:.{digits}f}"


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"
