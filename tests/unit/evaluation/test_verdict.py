"""Whether a student is worth it: against a linear model with the spread, against the teacher's int8 file with its speed."""

import math

import pytest

from microbert_cli.evaluation.alternatives import kinds
from microbert_cli.evaluation.alternatives.rows import table_row, verdict_on
from microbert_cli.evaluation.alternatives.verdict import Figures, above_floor, retention, verdict

TEACHER, TEACHER_INT8 = Figures(0.90, latency_ms=14.3), Figures(0.899, latency_ms=3.11)
LINEAR = Figures(0.8280, latency_ms=0.4)
GOOD = Figures(0.8853, spread=0.002, latency_ms=2.2)
BESIDE = {"teacher": TEACHER, "teacher_int8": TEACHER_INT8, "linear": LINEAR, "floor": 0.5092}


def test_a_student_above_everything_is_worth_it() -> None:
    result = verdict(GOOD, int8=Figures(0.8819, latency_ms=1.1), **BESIDE)
    assert result["worth_it"] is True and result["reasons"] == []
    assert result["retention"] == pytest.approx(0.8853 / 0.90) and result["speedup"] == pytest.approx(13)
    assert result["int8_speedup"] == pytest.approx(3.11 / 1.1)
    assert result["above_floor"] == pytest.approx((0.8853 - 0.5092) / (0.90 - 0.5092))
    assert result["sentence"] == (
        "98.4 % of the teacher at 13 times its speed, 2.8 times that of the teacher's int8 file; a linear TF-IDF model has "
        "0.8280 on dev, the student 0.8853 ± 0.0020."
    )


def test_worse_than_the_linear_model() -> None:
    result = verdict(Figures(0.8268, latency_ms=1.0), **BESIDE)
    assert result["worth_it"] is False and result["reasons"] == ["linear"]
    assert result["sentence"] == "Not worth it here: a linear TF-IDF model has 0.8280 on dev, the student 0.8268."


@pytest.mark.parametrize(
    ("score", "spread", "reasons"),
    [
        (0.8280, None, ["linear"]),  # a tie: the linear model is cheaper
        (0.8280, 0.01, ["linear"]),
        (0.8300, None, []),  # one seed: nothing but the score is known
        (0.8300, 0.0019, []),
        (0.8300, 0.0020, ["linear-within-spread"]),
        (0.8300, 0.0500, ["linear-within-spread"]),
        (0.8300, math.nan, []),
        (0.8100, 0.0500, ["linear"]),  # the mean decides
    ],
)
def test_a_difference_counts_beyond_the_spread(score: float, spread: float | None, reasons: list[str]) -> None:
    result = verdict(Figures(score, spread=spread, latency_ms=1.0), **BESIDE)
    assert result["reasons"] == reasons and result["worth_it"] is (not reasons)


@pytest.mark.parametrize(
    ("score", "latency", "flagged"),
    [
        (0.89, 3.11, True),
        (0.89, 4.0, True),
        (0.89, 3.0, True),  # within five in a hundred: as fast
        (0.89, 2.9, False),
        (0.899, 3.11, True),  # the same score
        (0.90, 3.11, False),  # better than the int8 teacher, so worth its time
        (0.89, None, False),
        (0.89, math.inf, False),
    ],
)
def test_an_int8_teacher_that_is_as_fast(score: float, latency: float | None, flagged: bool) -> None:
    result = verdict(Figures(score, latency_ms=latency), **BESIDE)
    assert ("int8-teacher" in result["reasons"]) is flagged and result["worth_it"] is not flagged


def test_the_students_fastest_file_is_compared() -> None:
    slow = Figures(0.89, latency_ms=9.0)
    assert verdict(slow, **BESIDE)["reasons"] == ["int8-teacher"]
    assert verdict(slow, int8=Figures(0.88, latency_ms=1.0), **BESIDE)["reasons"] == []
    sentence = verdict(slow, **BESIDE)["sentence"]
    assert sentence == (
        "Not worth it here: the teacher's int8 file has 0.8990 on dev, the student 0.8900, at 3.11 ms a row, the student's "
        "fastest at 9.00 ms."
    )


def test_all_reasons_are_given() -> None:
    result = verdict(Figures(0.5, latency_ms=5.0), **BESIDE)
    assert result["reasons"] == ["majority", "linear", "int8-teacher"]
    assert result["sentence"].count("the student 0.5000") == 1 and "0.5092" in result["sentence"]


@pytest.mark.parametrize("score", [None, math.nan, math.inf])
def test_a_student_without_a_score_is_not_worth_it(score: float | None) -> None:
    result = verdict(Figures(score), **BESIDE)
    assert result["worth_it"] is False and result["reasons"] == ["no-score"] and result["retention"] is None


def test_missing_rows_are_left_out() -> None:
    alone = verdict(Figures(0.7))
    assert alone["worth_it"] is None and alone["sentence"] == "0.7000 on dev; no linear model was measured."
    without_linear = verdict(GOOD, teacher=TEACHER, teacher_int8=TEACHER_INT8)
    assert without_linear["worth_it"] is True and without_linear["above_floor"] is None
    assert without_linear["sentence"].endswith("no linear model was measured.")
    without_speed = verdict(Figures(0.88), teacher=Figures(0.9), linear=LINEAR)
    assert without_speed["worth_it"] is True and without_speed["speedup"] is None
    assert without_speed["sentence"].startswith("97.8 % of the teacher; a linear")
    assert verdict(GOOD, linear=Figures(math.nan))["worth_it"] is None


def test_shares_mean_nothing_of_a_teacher_that_is_not_above_the_floor() -> None:
    assert retention(0.3, 0.0) is None and retention(0.3, -0.1) is None and retention(0.3, 0.6) == 0.5
    assert above_floor(0.7, 0.5, 0.5) is None and above_floor(0.7, 0.4, 0.5) is None
    assert above_floor(0.3, 0.6, 0.0) == 0.5 and above_floor(0.4, 0.9, 0.5) == pytest.approx(-0.25)
    result = verdict(Figures(0.1, latency_ms=1.0), teacher=Figures(-0.2, latency_ms=5.0), linear=Figures(0.05), floor=0.0)
    assert result["retention"] is None and result["sentence"].startswith("0.1000 on dev, 5.0 times the teacher's speed")


def test_speeds_of_a_busy_machine_are_said_to_be_so() -> None:
    assert verdict(GOOD, **BESIDE, load=7.75)["sentence"].endswith(
        "the student 0.8853 ± 0.0020. Speeds were measured on a busy machine (load 7.8): mbert bench measures them again."
    )
    assert verdict(Figures(0.88), linear=LINEAR, load=7.75)["sentence"].endswith("on dev."), "no speed is in it"


@pytest.mark.parametrize(("load", "is_busy"), [(7.7, True), (3.1, True), (3.0, False), (1.0, False), (None, False)])
def test_a_machine_is_busy_where_others_than_the_run_load_it(load: float | None, is_busy: bool) -> None:
    student = table_row("s", kinds.STUDENT, 0.88, teacher=0.9, floor=0.5, speed={"latency_ms": 1.0})
    teacher = table_row("t", kinds.TEACHER, 0.9, teacher=0.9, floor=0.5, speed={"latency_ms": 9.0})
    sentence = verdict_on(student, [student, teacher], conditions={"load_before": load, "cores": 2})["sentence"]
    assert ("busy" in sentence) is is_busy
    assert "busy" not in verdict_on(student, [student, teacher])["sentence"]
