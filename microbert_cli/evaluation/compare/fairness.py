"""How much rows differ, and remarks on whether they can be compared at all."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from statistics import mean, stdev
from typing import Any

from microbert_cli.runs.atomic import digest
from microbert_cli.text import counted

Row = Mapping[str, Any]
FEW_SEEDS = 3


def differences(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Compares each row with the first, and each ablation with the row that it is an ablation of.

    difference   of the means, in the metric's own unit
    paired       {"mean", "spread", "seeds"} of the differences seed by seed, over the seeds that both have
    beyond_spread   whether the difference is larger than either row's standard deviation over seeds; None with a single seed
    """
    by_name = {row["row"]: row for row in rows}
    pairs = [(row, rows[0]) for row in rows[1:]]
    pairs += [(row, by_name[row["of"]]) for row in rows if row.get("of") in by_name and row["of"] != rows[0]["row"]]
    return [_difference(row, other) for row, other in pairs]


def _difference(row: Row, other: Row) -> dict[str, Any]:
    difference = row["score"] - other["score"]
    seeds = [seed for seed in row["by_seed"] if seed in other["by_seed"]]
    differences = [row["by_seed"][seed] - other["by_seed"][seed] for seed in seeds]
    spreads = [side["spread"] for side in (row, other) if side["spread"] is not None]
    paired = {"mean": mean(differences), "spread": None, "seeds": len(differences)} if differences else None
    if paired and len(differences) > 1:
        paired["spread"] = stdev(differences)
    beyond_spread = abs(difference) > max(spreads) if len(spreads) == 2 else None
    return {
        "row": row["row"],
        "against": other["row"],
        "difference": difference,
        "paired": paired,
        "beyond_spread": beyond_spread,
    }


def verdict(difference: Mapping[str, Any]) -> str:
    """Returns a difference in words."""
    if difference["beyond_spread"] is None:
        return "one seed: cannot be told from chance"
    return "larger than the spread" if difference["beyond_spread"] else "within the spread: no difference is shown"


def remarks(
    rows: Sequence[Row], *, majority: float, machine: Mapping[str, Any] | None = None, floor: str = "commonest class"
) -> list[str]:
    """Returns what a reader must know before comparing these rows, a line each; `floor` has the score `majority`."""
    return [
        *_below_majority(rows, majority, floor),
        *_group_by("Training or dev rows differ", rows, "data"),
        *_group_by("Augmentation differs", rows, "augmented", lambda row: "with" if row["about"]["augmented"] else "without"),
        *_group_by("Transfer sets differ", rows, "transfer", _transfer_rows),
        *_group_by("Teachers differ", [row for row in rows if row["about"]["teacher"]], "teacher"),
        *_group_by("Student shapes differ", rows, "shape", lambda row: f"{row['parameters']:,} parameters"),
        *_group_by("Students start from different weights", rows, "start", lambda row: row["about"]["from"]),
        *_budgets(rows),
        *_seeds(rows),
        *_teacher_outputs(rows),
        *_timing(rows, machine),
        "Scores are those of the dev rows on which checkpoints, learning rates and grids were chosen; test rows were not read.",
    ]


def _below_majority(rows: Sequence[Row], majority: float, floor: str = "commonest class") -> Iterator[str]:
    if poor := [row for row in rows if row["score"] <= majority]:
        yield f"No better than the {floor}: {_names(poor)}. They learnt nothing; differences from them show nothing."


def _group_by(topic: str, rows: Sequence[Row], key: str, describe: Callable[[Row], str] | None = None) -> Iterator[str]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(digest(row["about"][key]), []).append(row)
    if len(groups) > 1:
        parts = [f"{_names(group)}{f' ({describe(group[0])})' if describe else ''}" for group in groups.values()]
        yield f"{topic}: {'; '.join(parts)}."


def _transfer_rows(row: Row) -> str:
    transfer = row["about"]["transfer"]
    return f"{transfer['rows']:,} texts" if transfer else "none"


def _names(rows: Sequence[Row]) -> str:
    return ", ".join(str(row["row"]) for row in rows)


def _budgets(rows: Sequence[Row]) -> Iterator[str]:
    """Yields a line where rows differ in steps, in rows seen, or in how many values were tried."""
    for key, topic in (
        ("steps", "Budgets differ, optimiser steps of a seed"),
        ("rows_seen", "Budgets differ, rows seen by a seed"),
        ("rates_tried", "Learning rates tried differ"),
        ("grid_tried", "Values of the grid tried differ"),
    ):
        groups: dict[Any, list[Row]] = {}
        for row in rows:
            groups.setdefault(row[key], []).append(row)
        parts = [f"{_names(group)} {'not counted' if v is None else format(v, ',')}" for v, group in groups.items()]
        if len(groups) > 1:
            yield f"{topic}: {'; '.join(parts)}."


def _seeds(rows: Sequence[Row]) -> Iterator[str]:
    fewest = min(len(row["by_seed"]) for row in rows)
    if fewest < FEW_SEEDS:
        short = [row for row in rows if len(row["by_seed"]) < FEW_SEEDS]
        yield f"Fewer than {FEW_SEEDS} seeds ({_names(short)}): the spread says little, and small differences nothing."
    if any(set(a["by_seed"]) != set(b["by_seed"]) for a, b in combinations(rows, 2)):
        parts = [f"{row['row']} {', '.join(row['by_seed'])}" for row in rows]
        yield f"Seeds differ: {'; '.join(parts)}."


def _teacher_outputs(rows: Sequence[Row]) -> Iterator[str]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("teacher_answers"):
            groups.setdefault(row["teacher_answers"], []).append(row)
    descriptions = {
        "cache": "from the cache (no time of it in the table)",
        "asked first": "asked before training (teacher s)",
        "batch by batch": "asked batch by batch (in train s)",
    }
    parts = [
        f"{_names(group)}: {' and '.join(descriptions[source] for source in answers.split(', '))}"
        for answers, group in groups.items()
    ]
    if parts:
        yield f"The teacher's answers: {'; '.join(parts)}."


def _timing(rows: Sequence[Row], machine: Mapping[str, Any] | None) -> Iterator[str]:
    if machine:
        yield (
            "Latency (one row) and rows/s: one interleaved run of one model of each shape, the best seed of its first row; "
            f"{counted(machine['threads'], 'thread')}, load {machine['load_before']} before. "
            "Rows of one shape share the numbers."
        )
    if slowed := [row for row in rows if row["gradient_norms"]]:
        yield f"Seconds of {_names(slowed)} hold the measuring of gradient norms."
    yield "Seconds of training are of a seed, on this machine and beside whatever else it ran; evaluations on dev are in them."
