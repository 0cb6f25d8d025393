"""What the library reports without printing: notes, progress, and `log.jsonl`."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

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

    @contextmanager
    def working(self, stage: str) -> Iterator[None]:
        """Reports for the block that a stage is at work, also where no steps are counted."""
        yield


SILENT = Reporter()


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
