"""Whether rows can be compared, and by how much they differ: said in words beside the numbers, never left to the reader."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from statistics import mean, stdev
from typing import Any

from microbert_cli.runs.atomic import digest

Row = Mapping[str, Any]
FEW_SEEDS = 3


def differences(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each row against the first, and each ablation against the row it is one of.

    difference   of the means, in the metric's own unit
    paired       {"mean", "spread", "seeds"} of the differences seed by seed, over the seeds that both have
    beyond_spread   whether the difference is larger than either row's standard deviation over seeds; None with a single seed
    """
    by_name = {row["row"]: row for row in rows}
    pairs = [(row, rows[0]) for row in rows[1:]]
    pairs += [(row, by_name[row["of"]]) for row in rows if row.get("of") in by_name and row["of"] != rows[0]["row"]]
    return [_difference(row, other) for row, other in pairs]


def _difference(row: Row, other: Row) -> dict[str, Any]:
    apart = row["score"] - other["score"]
    both = [seed for seed in row["by_seed"] if seed in other["by_seed"]]
    each = [row["by_seed"][seed] - other["by_seed"][seed] for seed in both]
    spreads = [one["spread"] for one in (row, other) if one["spread"] is not None]
    paired = {"mean": mean(each), "spread": stdev(each) if len(each) > 1 else None, "seeds": len(each)} if each else None
    beyond = abs(apart) > max(spreads) if len(spreads) == 2 else None
    return {"row": row["row"], "against": other["row"], "difference": apart, "paired": paired, "beyond_spread": beyond}


def verdict(found: Mapping[str, Any]) -> str:
    """A difference in words."""
    if found["beyond_spread"] is None:
        return "one seed: cannot be told from chance"
    return "larger than the spread" if found["beyond_spread"] else "within the spread: no difference is shown"


def remarks(rows: Sequence[Row], *, majority: float, machine: Mapping[str, Any] | None = None) -> list[str]:
    """What a reader must know about the fairness of these rows, a line each."""
    return [
        *_untaught(rows, majority),
        *_same("Training or dev rows differ", rows, "data"),
        *_same("Augmentation differs", rows, "augmented", lambda row: "with" if row["about"]["augmented"] else "without"),
        *_same("Transfer sets differ", rows, "transfer", _texts),
        *_same("Teachers differ", [row for row in rows if row["about"]["teacher"]], "teacher"),
        *_same("Student shapes differ", rows, "shape", lambda row: f"{row['parameters']:,} parameters"),
        *_same("Students start from different weights", rows, "start", lambda row: row["about"]["from"]),
        *_budgets(rows),
        *_seeds(rows),
        *_teachers_answers(rows),
        *_speeds(rows, machine),
        "Scores are those of the dev rows on which checkpoints, learning rates and grids were chosen; test rows were not read.",
    ]


def _untaught(rows: Sequence[Row], majority: float) -> Iterator[str]:
    if poor := [row for row in rows if row["score"] <= majority]:
        yield f"No better than the commonest class: {_names(poor)}. They learnt nothing; differences from them show nothing."


def _same(what: str, rows: Sequence[Row], key: str, shown: Callable[[Row], str] | None = None) -> Iterator[str]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(digest(row["about"][key]), []).append(row)
    if len(groups) > 1:
        told = [f"{_names(group)}{f' ({shown(group[0])})' if shown else ''}" for group in groups.values()]
        yield f"{what}: {'; '.join(told)}."


def _texts(row: Row) -> str:
    found = row["about"]["transfer"]
    return f"{found['rows']:,} texts" if found else "none"


def _names(rows: Sequence[Row]) -> str:
    return ", ".join(str(row["row"]) for row in rows)


def _budgets(rows: Sequence[Row]) -> Iterator[str]:
    """Steps and rows a seed saw, and how many choices were tried for it."""
    for key, what in (
        ("steps", "Budgets differ, optimiser steps of a seed"),
        ("rows_seen", "Budgets differ, rows seen by a seed"),
        ("rates_tried", "Learning rates tried differ"),
        ("grid_tried", "Values of the grid tried differ"),
    ):
        groups: dict[Any, list[Row]] = {}
        for row in rows:
            groups.setdefault(row[key], []).append(row)
        told = [f"{_names(group)} {'not counted' if v is None else format(v, ',')}" for v, group in groups.items()]
        if len(groups) > 1:
            yield f"{what}: {'; '.join(told)}."


def _seeds(rows: Sequence[Row]) -> Iterator[str]:
    fewest = min(len(row["by_seed"]) for row in rows)
    if fewest < FEW_SEEDS:
        few = [row for row in rows if len(row["by_seed"]) < FEW_SEEDS]
        yield f"Fewer than {FEW_SEEDS} seeds ({_names(few)}): the spread says little, and small differences nothing."
    if any(set(a["by_seed"]) != set(b["by_seed"]) for a, b in combinations(rows, 2)):
        told = [f"{row['row']} {', '.join(row['by_seed'])}" for row in rows]
        yield f"Seeds differ: {'; '.join(told)}."


def _teachers_answers(rows: Sequence[Row]) -> Iterator[str]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("teacher_answers"):
            groups.setdefault(row["teacher_answers"], []).append(row)
    ways = {
        "cache": "from the cache (no time of it in the table)",
        "asked first": "asked before training (teacher s)",
        "batch by batch": "asked batch by batch (in train s)",
    }
    told = [f"{_names(group)}: {' and '.join(ways[way] for way in how.split(', '))}" for how, group in groups.items()]
    if told:
        yield f"The teacher's answers: {'; '.join(told)}."


def _speeds(rows: Sequence[Row], machine: Mapping[str, Any] | None) -> Iterator[str]:
    if machine:
        yield (
            "Latency (one row) and rows/s: one interleaved run of one model of each shape, the best seed of its first row; "
            f"{machine['threads']} threads, load {machine['load_before']} before. Rows of one shape share the numbers."
        )
    if slowed := [row for row in rows if row["gradient_norms"]]:
        yield f"Seconds of {_names(slowed)} hold the measuring of gradient norms."
    yield "Seconds of training are of a seed, on this machine and beside whatever else it ran; evaluations on dev are in them."
