"""A stage stopped at many points and gone on, beside the same stage that was never stopped."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import pytest
from recording import RecordingReporter

from microbert_cli.reporter import Reporter
from microbert_cli.runs import atomic, manifest
from microbert_cli.runs.stage_result import StageResult
from microbert_cli.signals import Halted, Interrupted

Event = tuple[str, int]
Make = Callable[[Path, Reporter], StageResult]


class StopAt(Reporter):
    """Asks to stop at one event: by a signal in training, which finishes the step, else, or `at_once`, there and then."""

    def __init__(self, event: Event, *, at_once: bool = False):
        self.event, self.at_once = event, at_once

    def progress(self, stage: str, step: int, total: int, **numbers: float) -> None:
        if (stage, step) != self.event:
            return
        self.event = ("", 0)
        if self.at_once or signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # no training loop is listening
            raise Halted(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)


def points(events: list[Event], *, fully: bool = True) -> Iterator[Event]:
    """The first, a middle and the last step of every run of steps; else the middle alone."""
    for _, group in groupby(events, key=lambda event: event[0]):
        steps = list(group)
        middle = steps[len(steps) // 2]
        yield from sorted({steps[0], middle, steps[-1]} if fully else {middle}, key=steps.index)


def files(directory: Path) -> dict[str, str]:
    """The hashes of what the next stage would read, without the seconds that a budget measured."""
    hashes = {name: digest for name, digest in manifest.read(directory)["outputs"].items() if manifest.is_result(name)}
    if (directory / "budget.json").is_file():
        hashes.pop("budget.json", None)
        metrics = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
        metrics["budget"] = {name: metrics["budget"][name] for name in ("budget", "share", "planned_steps", "steps")}
        hashes["metrics.json"] = atomic.digest(metrics)
    return hashes


def stopped_everywhere(make: Make, folder: Path, *, fresh_cache: pytest.MonkeyPatch, fully: bool = True) -> int:
    """Compares a run that was stopped at all points with one that was not; returns how often it was stopped."""
    folder.mkdir()
    fresh_cache.setenv("MBERT_CACHE", str(folder / "cache-whole"))
    whole = make(folder / "whole", reporter := RecordingReporter())
    fresh_cache.setenv("MBERT_CACHE", str(folder / "cache-parts"))
    stops = list(points([(stage, step) for stage, step, _ in reporter.steps], fully=fully))
    assert stops, "nothing was told of, so nothing could be stopped"
    for event in stops:
        with pytest.raises((Interrupted, Halted)):
            make(folder / "parts", StopAt(event))
        assert not (folder / "parts").exists()
    parts = make(folder / "parts", reporter)
    assert files(parts.out) == files(whole.out)
    return len(stops)
