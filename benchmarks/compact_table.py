"""Prints the default method's tables in docs/results.md: python benchmarks/compact_table.py runs/compact-sst2 ...

Each directory is a run of benchmarks/compact.toml. The teacher's score is that of the model that the run was given, and not
that of the one with fewer tokens that taught.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

INSTEAD = {
    "majority": "commonest class",
    "linear": "linear, TF-IDF",
    "teacher": "teacher",
    "teacher-int8": "teacher, int8",
}
TITLES = INSTEAD | {"student": "student", "student-int8": "student, int8"}
MEASURED = [kind for kind in TITLES if kind != "majority"]


def read(run: Path) -> dict[str, Any]:
    """Returns the rows of a run's report by kind, the student's score of every seed, and the tokens that were kept."""
    report, student, trim = (
        json.loads((run / stage / "metrics.json").read_text(encoding="utf-8")) for stage in ("report", "task-distill", "trim")
    )
    primary = report["primary"]
    rows = {row["kind"]: row for row in report["table"] if row["kind"] in TITLES}
    seeds = [metrics[primary] for metrics in student.get("seeds", {"": student["dev"]}).values()]
    return {"task": report["task"], "primary": primary, "rows": rows, "seeds": seeds, "tokens": trim["rows"]["after"]}


def print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |")


def print_scores(runs: list[dict[str, Any]]) -> None:
    of_student = ("student, mean +- spread", "its seeds", "of the teacher", "above the floor", "best seed -> its int8")
    print_row("task", *INSTEAD.values(), *of_student)
    print("|" + "---|" * 10)
    for run in runs:
        rows, student = run["rows"], run["rows"]["student"]
        print_row(
            f"{run['task']}, {run['primary']}",
            *(f"{rows[kind]['score']:.4f}" for kind in INSTEAD),
            f"**{student['score']:.4f}** +- {student['spread'] or 0:.4f}",
            ", ".join(f"{seed:.4f}" for seed in run["seeds"]),
            f"{student['retention']:.1%}".replace("%", " %"),
            f"{student['above_floor']:.0%}".replace("%", " %"),
            f"{max(run['seeds']):.4f} -> {rows['student-int8']['score']:.4f}",
        )
    means = {kind: statistics.mean(run["rows"][kind]["score"] for run in runs) for kind in (*INSTEAD, "student")}
    kept = f"{means['student'] / means['teacher']:.1%}".replace("%", " %")
    print(f"| mean | {' | '.join(f'{means[kind]:.4f}' for kind in INSTEAD)} | **{means['student']:.4f}** | | {kept} | | |")


def print_sizes(runs: list[dict[str, Any]]) -> None:
    print()
    print_row("task", "tokens", *(f"{TITLES[kind]}: MB, ms a row" for kind in MEASURED))
    print("|" + "---|" * 7)
    for run in runs:
        rows = [run["rows"][kind] for kind in MEASURED]
        print_row(run["task"], f"{run['tokens']:,}", *(f"{row['megabytes']:.1f}, {row['latency_ms']:.2f}" for row in rows))


if __name__ == "__main__":
    every = [read(Path(name)) for name in sys.argv[1:]]
    print_scores(every)
    print_sizes(every)
