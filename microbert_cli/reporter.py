"""How the library speaks without printing: notes, progress, and `log.jsonl`."""

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from microbert_cli import distributed


class Reporter:
    """Where a stage says what it does. Silent by default; the shell shows it, tests collect it."""

    def note(self, text: str) -> None:
        """One line worth a reader's attention."""

    def warn(self, text: str) -> None:
        """Something the user should look at, though the work goes on."""

    def progress(self, stage: str, step: int, total: int, **numbers: float) -> None:
        """Step `step` of `total`, with the numbers of this moment."""


SILENT = Reporter()


class Log:
    """`log.jsonl`: one JSON object a line, flushed at once, so a killed run keeps what it said; the main process writes it."""

    def __init__(self, path: Path):
        if distributed.is_main():
            _end_with_a_whole_line(path)
        self._file = (path if distributed.is_main() else Path(os.devnull)).open("a", encoding="utf-8")
        self._start = time.monotonic()

    def write(self, **record: Any) -> None:
        record["seconds"] = round(time.monotonic() - self._start, 3)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()


def _end_with_a_whole_line(path: Path) -> None:
    """Cuts off the half line that a killed run may have left."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
