"""What the library reports without printing: notes, progress, and `log.jsonl`."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from microbert_cli import distributed
from microbert_cli.text import dump_json


class Reporter:
    """Receives what a stage reports: notes, warnings, progress. This one drops it all; the command line shows it."""

    def note(self, text: str) -> None:
        """Reports one line of information."""

    def note_once(self, text: str) -> None:
        """A note about an input, once however often the input is read."""
        if self._is_new("note", text):
            self.note(text)

    def warn(self, text: str) -> None:
        """Reports a problem that does not stop the work."""

    def warn_once(self, text: str) -> None:
        """A warning about an input, once however often the input is read."""
        if self._is_new("warning", text):
            self.warn(text)

    def _is_new(self, kind: str, text: str) -> bool:
        # Kept beside the instance's own fields: a subclass need not call this class's __init__.
        reported: set[tuple[str, str]] = self.__dict__.setdefault("_reported", set())
        is_new = (kind, text) not in reported
        reported.add((kind, text))
        return is_new

    def progress(self, stage: str, step: int, total: int, **numbers: float) -> None:
        """Reports step `step` of `total` with its numbers."""

    def begin(self, stage: str, step: int, total: int) -> None:
        """Reports that the first of `total` steps is about to be taken, or that after `step` ones."""

    def working(self, stage: str) -> AbstractContextManager[None]:
        """Reports for the block that a stage is at work, also where no steps are counted."""
        return nullcontext()


SILENT = Reporter()


class Tracker(Protocol):
    """What numbers of training can be sent to; see `catalog/trackers/`."""

    def log(self, phase: str, step: int, numbers: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TrackedReporter(Reporter):
    """Passes everything on to another reporter, and numbers of steps to trackers too.

    A tracker that fails is told of once and left out: it stops no training. What trackers print goes to stderr.
    """

    def __init__(self, reporter: Reporter, trackers: Mapping[str, Callable[[], Tracker]]):
        self.reporter = reporter
        self._trackers: dict[str, Tracker] = {}
        for name, make in trackers.items():
            self._try(name, partial(self._open, name, make))

    def note(self, text: str) -> None:
        self.reporter.note(text)

    def warn(self, text: str) -> None:
        self.reporter.warn(text)

    def begin(self, stage: str, step: int, total: int) -> None:
        self.reporter.begin(stage, step, total)

    def progress(self, stage: str, step: int, total: int, **numbers: float) -> None:
        self.reporter.progress(stage, step, total, **numbers)
        if numbers:
            for name, tracker in list(self._trackers.items()):
                self._try(name, partial(tracker.log, stage, step, numbers))

    def working(self, stage: str) -> AbstractContextManager[None]:
        return self.reporter.working(stage)

    def close(self) -> None:
        """Ends the trackers; the other reporter goes on."""
        for name, tracker in list(self._trackers.items()):
            self._try(name, tracker.close)

    def _open(self, name: str, make: Callable[[], Tracker]) -> None:
        self._trackers[name] = make()

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            with redirect_stdout(sys.stderr):
                action()
        except Exception as error:
            self._trackers.pop(name, None)
            self.reporter.warn(f"trackers: {name} is left out from here on: {type(error).__name__}: {error}")


class Log:
    """Writes `log.jsonl`: one JSON object a line, flushed at once, so a killed run keeps its log; by the main process alone."""

    def __init__(self, path: Path):
        if distributed.is_main():
            _end_with_a_whole_line(path)
        self._file = (path if distributed.is_main() else Path(os.devnull)).open("a", encoding="utf-8")
        self._start = time.monotonic()

    def write(self, **record: Any) -> None:
        record["seconds"] = round(time.monotonic() - self._start, 3)
        self._file.write(dump_json(record) + "\n")
        self._file.flush()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()


def _end_with_a_whole_line(path: Path) -> None:
    """Cuts off the partial line that a killed run may have left."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
