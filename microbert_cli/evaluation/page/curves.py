"""Loss and dev score over the steps of a training, read from `log.jsonl`: one line a seed, phase after phase."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from microbert_cli.runs.trials import trial_name

LOG = "log.jsonl"
POINTS = 120  # of a loss curve: the mean of each stretch of steps
Points = list[tuple[float, float]]


@dataclass
class TrainingCurves:
    """The curves of one stage.

    loss, dev   seed ("" for a single one) -> (step, value), steps counted over all phases
    measure     what the dev score is
    starts      (phase, step before its first one), in order
    """

    loss: dict[str, Points] = field(default_factory=dict)
    dev: dict[str, Points] = field(default_factory=dict)
    measure: str = ""
    starts: list[tuple[str, int]] = field(default_factory=list)


def read_curves(out: Path, metrics: Mapping[str, Any]) -> TrainingCurves | None:
    """Returns the curves of a stage's output; None where it has no log with steps in it.

    A step that was repeated after a stop counts as it ran last. Learning rates that were tried and not kept are left out.
    """
    logs = {"": out / LOG} if (out / LOG).is_file() else {}
    logs |= {path.parent.name.removeprefix("seed-"): path for path in sorted(out.glob(f"seed-*/{LOG}"))}
    curves = TrainingCurves()
    for seed, path in logs.items():
        _add_seed(curves, seed, list(_lines(path)), metrics)
    return curves if curves.loss else None


def _add_seed(curves: TrainingCurves, seed: str, lines: list[dict[str, Any]], metrics: Mapping[str, Any]) -> None:
    kept = _kept_phases(lines, metrics)
    loss: dict[tuple[str, int], float] = {}
    dev: dict[tuple[str, int], float] = {}
    for line in lines:
        key = (line["phase"], line["step"])
        if line["phase"] not in kept:
            continue
        if isinstance(line.get("loss"), int | float):
            loss[key] = float(line["loss"])
        if isinstance(line.get("dev"), dict) and (measure := curves.measure or _measure(line["dev"], metrics)):
            curves.measure = measure
            if isinstance(line["dev"].get(measure), int | float):
                dev[key] = float(line["dev"][measure])
    if not loss:
        return
    starts, before = {}, 0
    for phase in kept:
        starts[phase] = before
        before += max((step for name, step in loss if name == phase), default=0)
    curves.starts = curves.starts or list(starts.items())
    curves.loss[seed] = _thinned(sorted((starts[phase] + step, value) for (phase, step), value in loss.items()))
    curves.dev[seed] = sorted((starts[phase] + step, value) for (phase, step), value in dev.items())


def _kept_phases(lines: list[dict[str, Any]], metrics: Mapping[str, Any]) -> list[str]:
    """Returns the phases of a log in their order, without the learning rates that were tried and not kept."""
    logged = list(dict.fromkeys(line["phase"] for line in lines))
    phases = metrics.get("phases")
    if not isinstance(phases, dict):
        return logged
    kept = {*phases, *(trial_name(name, rate) for name, phase in phases.items() if (rate := phase.get("learning_rate")))}
    return [phase for phase in logged if phase in kept] or logged


def _measure(dev: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    primary = metrics.get("primary")
    return str(primary) if primary in dev else next(iter(dev), "")


def _thinned(points: Points) -> Points:
    if len(points) <= POINTS:
        return points
    ends = [round(number * len(points) / POINTS) for number in range(POINTS + 1)]
    stretches = [points[start:end] for start, end in pairwise(ends)]
    return [(stretch[-1][0], sum(value for _, value in stretch) / len(stretch)) for stretch in stretches]


def _lines(log: Path) -> Iterator[dict[str, Any]]:
    for text in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # the last line of a run that was killed
            continue
        if isinstance(line, dict) and isinstance(line.get("phase"), str) and isinstance(line.get("step"), int):
            yield line
