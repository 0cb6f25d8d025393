"""Prints the default method's tables in docs/results.md: python benchmarks/compact_table.py runs/compact-sst2 ...

Each directory is a run of benchmarks/compact.toml. The teacher's score is that of the model that the run was given, and not
that of the one with fewer tokens that taught.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

TITLES = {
    "majority": "commonest class",
    "linear": "linear, TF-IDF",
    "teacher": "teacher",
    "teacher-int8": "teacher, int8",
    "student": "student",
    "student-int8": "student, int8",
}


def read(run: Path) -> dict[str, Any]:
    """Returns a run's scores and sizes by kind of row, and the student's score of every seed."""
    report = json.loads((run / "report/metrics.json").read_text(encoding="utf-8"))
    rows = {row["kind"]: row for row in report["table"] if row["kind"] in TITLES}
    student = json.loads((run / "task-distill/metrics.json").read_text(encoding="utf-8"))
    trim = json.loads((run / "trim/metrics.json").read_text(encoding="utf-8"))
    primary = report["primary"]
    rows["teacher"]["score"] = trim["dev_before"][primary]
    seeds = [metrics[primary] for metrics in student["seeds"].values()] if "seeds" in student else [student["dev"][primary]]
    return {"task": report["task"], "primary": primary, "rows": rows, "seeds": seeds, "tokens": trim["rows"]["after"]}


def retained(score: float, run: dict[str, Any], *, above_floor: bool = False) -> float:
    """Returns score / teacher's, or (score - floor) / (teacher's - floor), in per cent."""
    teacher, floor = run["rows"]["teacher"]["score"], run["rows"]["majority"]["score"] if above_floor else 0.0
    return 100 * (score - floor) / (teacher - floor)


def print_scores(runs: list[dict[str, Any]]) -> None:
    print(
        "| task | commonest class | linear, TF-IDF | teacher | teacher, int8 | student, mean +- spread | its seeds |",
        end=" of the teacher |",
    )
    print(" above the floor | best seed -> its int8 |\n|" + "---|" * 10)
    for run in runs:
        rows, seeds = run["rows"], run["seeds"]
        mean, spread = statistics.mean(seeds), statistics.stdev(seeds) if len(seeds) > 1 else 0.0
        cells = [
            f"{run['task']}, {run['primary']}",
            *(f"{rows[kind]['score']:.4f}" for kind in ("majority", "linear", "teacher", "teacher-int8")),
            f"**{mean:.4f}** +- {spread:.4f}",
            ", ".join(f"{seed:.4f}" for seed in seeds),
            f"{retained(mean, run):.1f} %",
            f"{retained(mean, run, above_floor=True):.0f} %",
            f"{max(seeds):.4f} -> {rows['student-int8']['score']:.4f}",
        ]
        print(f"| {' | '.join(cells)} |")
    means = {
        kind: statistics.mean(run["rows"][kind]["score"] for run in runs)
        for kind in ("majority", "linear", "teacher", "teacher-int8")
    }
    student = statistics.mean(statistics.mean(run["seeds"]) for run in runs)
    cells = [f"{value:.4f}" for value in means.values()]
    print(f"| mean | {' | '.join(cells)} | **{student:.4f}** | | {100 * student / means['teacher']:.1f} % | | |")


def print_sizes(runs: list[dict[str, Any]]) -> None:
    print(
        "\n| task | tokens | "
        + " | ".join(f"{TITLES[kind]}: MB, ms a row" for kind in TITLES if kind != "majority")
        + " |\n|"
        + "---|" * 7
    )
    for run in runs:
        cells = (f"{row['megabytes']:.1f}, {row['latency_ms']:.2f}" for kind, row in run["rows"].items() if kind != "majority")
        print(f"| {run['task']} | {run['tokens']:,} | {' | '.join(cells)} |")


if __name__ == "__main__":
    every = [read(Path(name)) for name in sys.argv[1:]]
    print_scores(every)
    print_sizes(every)
