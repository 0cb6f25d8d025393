"""The cost of a row, read from its logs: steps, rows and seconds of training, and the teacher's seconds.

Seconds come from `log.jsonl`, in which every step counts once: one that was lost when a run was stopped, and repeated, counts
as it ran last. They include evaluations on dev and the writing of resume states. They do not include waiting between two runs,
reading data, scoring the teacher, and teacher outputs computed before training.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from microbert_cli.recipe.phase_data import choose_split
from microbert_cli.runs.trials import trial_name

TRAINING_LOG, TEACHER_LOG = "log.jsonl", "teacher.jsonl"


def seconds_by_phase(log: Path) -> dict[str, float]:
    """Returns the seconds of every phase of one seed; a phase with several learning rates has one entry for each."""
    durations: dict[tuple[str, int, bool], float] = {}
    previous, phase = 0.0, None
    for line in _lines(log):
        now = float(line["seconds"])
        is_continued = line["phase"] == phase and now >= previous  # a resumed run starts its clock at 0
        durations[line["phase"], line["step"], "dev" in line] = now - previous if is_continued else now
        previous, phase = now, line["phase"]
    sums: dict[str, float] = defaultdict(float)
    for (phase, _, _), seconds in durations.items():
        sums[phase] += seconds
    return dict(sums)


def steps_by_phase(log: Path) -> dict[str, int]:
    """Returns the optimiser steps of every phase of one seed."""
    steps: dict[str, int] = {}
    for line in _lines(log):
        steps[line["phase"]] = max(steps.get(line["phase"], 0), line["step"])
    return steps


def costs(
    out: Path, manifest: Mapping[str, Any], phases: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]
) -> dict[str, Any]:
    """Returns the cost of a finished row.

    phases  name -> {"steps", "learning_rate"} as the row's metrics have them
    steps, rows_seen        of one seed, from its start to its weights; other learning rates that were tried left out
    gradient_norms          whether the norms of each loss's gradient were measured on the way, which takes time of its own
    seconds                 of one seed, as a mean over the seeds; they depend on the machine and its load
    steps_in_all, seconds_in_all   of all seeds and all learning rates
    """
    logs = [log for seed in seeds if (log := _log_path(out, seed, len(seeds))).is_file()]
    seconds = [seconds_by_phase(log) for log in logs]
    kept_seconds = [sum(_kept_seconds(by_phase, phases)) for by_phase in seconds]
    return {
        "steps": sum(phase["steps"] for phase in phases.values()),
        "rows_seen": _rows_seen(manifest, phases),
        "rates_tried": max((len(phase.get("tried", ())) or 1 for phase in phases.values()), default=1),
        "gradient_norms": any(_spec(manifest, name, phase).get("gradient_norms") for name, phase in phases.items()),
        "seconds": sum(kept_seconds) / len(kept_seconds) if kept_seconds else None,
        "steps_in_all": sum(sum(steps_by_phase(log).values()) for log in logs) if logs else None,
        "seconds_in_all": sum(sum(by_phase.values()) for by_phase in seconds) if logs else None,
        **_teacher_costs(out),
    }


def _kept_seconds(seconds: Mapping[str, float], phases: Mapping[str, Mapping[str, Any]]) -> Iterator[float]:
    for name, phase in phases.items():
        yield seconds.get(name, seconds.get(trial_name(name, phase["learning_rate"]), 0.0))


def _phase_specs(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the hyperparameters of each phase, from a manifest."""
    recipe = manifest.get("recipe", {})
    return recipe.get("phases") or {"finetune": recipe.get("finetune", {})}


def _spec(manifest: Mapping[str, Any], name: str, phase: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the hyperparameters of a phase; those of a stage are its phase's."""
    spec: Mapping[str, Any] = _phase_specs(manifest).get(phase.get("stage_of", name), {})
    return spec


def _rows_seen(manifest: Mapping[str, Any], phases: Mapping[str, Mapping[str, Any]]) -> int | None:
    """Returns how many rows one seed was trained on; None where batches are filled by tokens, so that their sizes vary."""
    data = manifest.get("data", {})
    seen = 0.0
    for name, phase in phases.items():
        spec = _spec(manifest, name, phase)
        split = phase.get("split") or choose_split(
            spec.get("data", "auto"), needs_labels=True, available=data
        )  # older ones do not say
        rows, size = data.get(split, {}).get("rows"), spec.get("batch_size")
        if not rows or not size or spec.get("batch_tokens"):
            return None
        seen += phase["steps"] * spec.get("accumulate", 1) * rows / math.ceil(rows / size)
    return round(seen)


def _teacher_costs(out: Path) -> dict[str, Any]:
    """Returns where the teacher's outputs came from (cache, before training, batch by batch), and the seconds that took."""
    lines = list(_lines(out / TEACHER_LOG))
    if not lines:
        return {"teacher_answers": None, "teacher_seconds": None}
    ways = ["batch by batch" if not line["kept"] else "asked first" if line["asked"] else "cache" for line in lines]
    return {
        "teacher_answers": ", ".join(dict.fromkeys(ways)),
        "teacher_asked": sum(line["asked"] for line in lines),
        "teacher_seconds": round(sum(line["took"] for line in lines), 3),
    }


def _log_path(out: Path, seed: int, seeds: int) -> Path:
    return out / f"seed-{seed}" / TRAINING_LOG if seeds > 1 else out / TRAINING_LOG


def _lines(log: Path) -> Iterator[dict[str, Any]]:
    if not log.is_file():
        return
    for text in log.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if "phase" in line:
            yield line
