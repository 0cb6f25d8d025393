"""Rows of a table of results, and the verdict on one of them: light, so that a run that is up to date shows them at once."""

from collections.abc import Mapping, Sequence
from typing import Any

from microbert_cli.evaluation.alternatives.kinds import LINEAR, LINEAR_IN_SENTENCES, MAJORITY, TEACHER, TEACHER_INT8
from microbert_cli.evaluation.alternatives.verdict import MISSING, Figures, above_floor, retention, verdict

Row = dict[str, Any]
BUSY = 1.5  # load a core, beyond which other processes than the run were at work: training comes before, and loads each by one


def over_seeds(result: Mapping[str, Any], primary: str) -> dict[str, Any]:
    """Returns score, spread and number of seeds of an output's metrics: of several seeds their mean and standard deviation."""
    return {
        "score": result.get("mean", result["dev"])[primary],
        "spread": result.get("spread", {}).get(primary),
        "seeds": len(result["seeds"]) if "seeds" in result else 1,
    }


def table_row(
    name: str, kind: str, score: float | None, *, teacher: float | None, floor: float | None,
    speed: Mapping[str, Any] | None = None, spread: float | None = None, seeds: int | None = None, note: str | None = None,
) -> Row:  # fmt: skip
    """Returns a row of a table: score, its share of the teacher's, its share above the floor, size and speed.

    speed  what `benchmark_models` says of the model; None where it was not timed
    """
    row: Row = {
        "model": name,
        "kind": kind,
        "score": score,
        "spread": spread,
        "seeds": seeds,
        "retention": retention(score, teacher),
        "above_floor": above_floor(score, teacher, floor),
        **speed_columns(speed or {}),
    }
    return row | ({"note": note} if note else {})


def speed_columns(speed: Mapping[str, Any]) -> Row:
    """Returns what a table says of size and speed."""
    return {
        "parameters": speed.get("parameters"),
        "megabytes": speed["bytes"] / 1e6 if speed.get("bytes") else None,
        "latency_ms": speed.get("latency_ms"),
        "rows_per_second": speed.get("throughput"),
    }


def verdict_on(
    student: Row, rows: Sequence[Row], *, int8: Row | None = None, conditions: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the verdict on one row, beside the table's rows of the other kinds.

    int8        the row of the student's int8 file
    conditions  under which speeds were measured, see `compare_speed.benchmark_models`; None where none were
    """
    by_kind = {row["kind"]: row for row in reversed(rows)}
    judged = verdict(
        _figures(student),
        int8=_figures(int8),
        teacher=_figures(by_kind.get(TEACHER)),
        teacher_int8=_figures(by_kind.get(TEACHER_INT8)),
        linear=_figures(by_kind.get(LINEAR)),
        floor=_figures(by_kind.get(MAJORITY)).score,
        load=_load_of_others(conditions or {}),
    )
    return {"student": student["model"], **judged}


def _figures(row: Row | None) -> Figures:
    if not row:
        return MISSING
    called = LINEAR_IN_SENTENCES.get(row["model"], MISSING.called)
    return Figures(row.get("score"), row.get("spread"), row.get("latency_ms"), called)


def _load_of_others(conditions: Mapping[str, Any]) -> float | None:
    """Returns the load average before the measurement, if it was more than this run alone makes on all its cores; else None."""
    load, cores = conditions.get("load_before"), conditions.get("cores")
    return load if load and cores and load > BUSY * cores else None
