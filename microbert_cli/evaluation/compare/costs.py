"""What a row's training took, read from what it left: steps, rows, seconds; and what asking its teacher took.

Seconds are those of `log.jsonl`, from which every step is counted once: one that was lost when a run was stopped, and done
again, counts as it was done last. Evaluations on dev and the writing of resume states are in them; waiting between two runs,
reading data, the teacher's examination and its answers asked before training are not.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from microbert_cli.recipe.phase_data import choose_split
from microbert_cli.runs.trials import trial_name

LOG, ASKED = "log.jsonl", "teacher.jsonl"


def seconds_by_phase(log: Path) -> dict[str, float]:
    """Seconds of every phase of one seed; phases of tried learning rates have names of their own."""
    taken: dict[tuple[str, int, bool], float] = {}
    before, phase = 0.0, None
    for line in _lines(log):
        now = float(line["seconds"])
        goes_on = line["phase"] == phase and now >= before  # else the clock was started anew
        taken[line["phase"], line["step"], "dev" in line] = now - before if goes_on else now
        before, phase = now, line["phase"]
    sums: dict[str, float] = defaultdict(float)
    for (phase, _, _), seconds in taken.items():
        sums[phase] += seconds
    return dict(sums)


def steps_by_phase(log: Path) -> dict[str, int]:
    """Optimiser steps of every phase of one seed."""
    steps: dict[str, int] = {}
    for line in _lines(log):
        steps[line["phase"]] = max(steps.get(line["phase"], 0), line["step"])
    return steps


def costs(out: Path, made: Mapping[str, Any], phases: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """What a finished row took.

    made    its manifest;  phases: name -> {"steps", "learning_rate"} as its metrics have them
    steps, rows_seen        of one seed, from its start to its weights; other learning rates that were tried left out
    gradient_norms          whether the norms of each loss's gradient were measured on the way, which takes time of its own
    seconds                 the same as a mean over the seeds, on whatever machine and beside whatever else it ran
    steps_in_all, seconds_in_all   of all seeds and all learning rates
    """
    logs = [found for seed in seeds if (found := _log(out, seed, len(seeds))).is_file()]
    seconds = [seconds_by_phase(log) for log in logs]
    kept = [sum(_kept(one, phases)) for one in seconds]
    return {
        "steps": sum(phase["steps"] for phase in phases.values()),
        "rows_seen": _rows_seen(made, phases),
        "rates_tried": max((len(phase.get("tried", ())) or 1 for phase in phases.values()), default=1),
        "gradient_norms": any(_plans(made).get(name, {}).get("gradient_norms") for name in phases),
        "seconds": sum(kept) / len(kept) if kept else None,
        "steps_in_all": sum(sum(steps_by_phase(log).values()) for log in logs) if logs else None,
        "seconds_in_all": sum(sum(one.values()) for one in seconds) if logs else None,
        **_teacher(out),
    }


def _kept(seconds: Mapping[str, float], phases: Mapping[str, Mapping[str, Any]]) -> Iterator[float]:
    for name, phase in phases.items():
        yield seconds.get(name, seconds.get(trial_name(name, phase["learning_rate"]), 0.0))


def _plans(made: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that each phase was trained with, from a manifest."""
    recipe = made.get("recipe", {})
    return recipe.get("phases") or {"finetune": recipe.get("finetune", {})}


def _rows_seen(made: Mapping[str, Any], phases: Mapping[str, Mapping[str, Any]]) -> int | None:
    """Rows that one seed went through; None where batches are filled by tokens."""
    data, plans = made.get("data", {}), _plans(made)
    seen = 0.0
    for name, phase in phases.items():
        plan = plans.get(name, {})
        split = phase.get("split") or choose_split(
            plan.get("data", "auto"), needs_labels=True, there=data
        )  # older ones do not say
        rows, size = data.get(split, {}).get("rows"), plan.get("batch_size")
        if not rows or not size or plan.get("batch_tokens"):
            return None
        seen += phase["steps"] * plan.get("accumulate", 1) * rows / math.ceil(rows / size)
    return round(seen)


def _teacher(out: Path) -> dict[str, Any]:
    """How the teacher's answers came: from the cache, asked before training, or batch by batch inside it."""
    lines = list(_lines(out / ASKED))
    if not lines:
        return {"teacher_answers": None, "teacher_seconds": None}
    ways = ["batch by batch" if not line["kept"] else "asked first" if line["asked"] else "cache" for line in lines]
    return {
        "teacher_answers": ", ".join(dict.fromkeys(ways)),
        "teacher_asked": sum(line["asked"] for line in lines),
        "teacher_seconds": round(sum(line["took"] for line in lines), 3),
    }


def _log(out: Path, seed: int, seeds: int) -> Path:
    return out / f"seed-{seed}" / LOG if seeds > 1 else out / LOG


def _lines(log: Path) -> Iterator[dict[str, Any]]:
    if not log.is_file():
        return
    for text in log.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if "phase" in line:
            yield line
