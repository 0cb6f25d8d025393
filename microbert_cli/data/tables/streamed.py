"""Large tables of text: read a row at a time into columns on the disk, which the cache keeps.

Only a table that is whole is read so. Where anything is wrong with it, or of another form, it is read whole, in memory, which
says what is wrong and in which line: there is one place for errors.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from microbert_cli.data.tables.content import check_format, utf16_without_mark
from microbert_cli.data.tables.delimited import Row, delimited_rows, head_of, rectangular
from microbert_cli.data.tables.lines import file_lines
from microbert_cli.data.tables.objects import whole_objects
from microbert_cli.data.tables.stored import ROWS_AT_ONCE, ColumnWriter, StoredColumn, mapped, store
from microbert_cli.data.tables.table import Table
from microbert_cli.errors import MbertError
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import atomic, cache
from microbert_cli.table_format import TableFormat

KIND = "tables"
LARGE_BYTES = 2**24  # from here on a file goes to the disk in columns; smaller ones are as quick, and small, in memory
CACHE_BYTES = 2**34  # of all tables in the cache
FORMAT = 1  # of the files in an entry
DELIMITED, OBJECTS = (".csv", ".tsv", ".tab"), (".jsonl", ".ndjson", ".json")
UTF8 = ("utf-8", "utf8", "utf-8-sig")


def read_large(path: Path, form: TableFormat, *, skip_broken_rows: int = 0, reporter: Reporter = SILENT) -> Table | None:
    """Returns a large CSV, TSV or JSONL file as a table whose texts are on the disk; None for one that has to be read whole."""
    encoding = (form.encoding or UTF8[0]).lower().replace("_", "-")
    with suppress(OSError):
        if path.suffix.lower() in DELIMITED + OBJECTS and encoding in UTF8 and _size(path) >= LARGE_BYTES:
            return _from_cache(path, form, skip_broken_rows, reporter)
    return None


def _size(path: Path) -> int:
    """Returns the bytes of a file; 0 where there is none, of which the other reader says why."""
    with suppress(OSError, ValueError):
        return path.stat().st_size
    return 0


def stored_column(path: Path, name: str, blocks: Callable[[], Iterator[list[Any]]]) -> StoredColumn | None:
    """Returns a column of texts of a file of columns, on the disk; None where a value is no text, or it cannot be kept."""
    with suppress(OSError, ValueError, MbertError):  # read whole, it is an error that names the row
        if cache.is_writable() and cache.free_bytes() >= 3 * path.stat().st_size:
            key = atomic.digest({"format": FORMAT, "column": name, "sha256": cache.remembered_digest(path)})
            with cache.entry(KIND, key) as (folder, ready):
                if not ready:
                    store(map(_texts, blocks()), folder, "0")
                cache.evict(KIND, CACHE_BYTES, keep=key)
                return StoredColumn(folder, "0")
    return None


def _texts(values: list[Any]) -> list[str]:
    if not all(isinstance(value, str) for value in values):
        raise ValueError("not a column of texts alone")
    return values


def _from_cache(path: Path, form: TableFormat, skip_broken_rows: int, reporter: Reporter) -> Table | None:
    if not cache.is_writable() or cache.free_bytes() < 3 * path.stat().st_size:
        return None
    facts = {"format": FORMAT, "path": str(path), "form": form.model_dump(), "skip": skip_broken_rows}
    key = atomic.digest({**facts, "sha256": cache.remembered_digest(path)})
    try:
        with cache.entry(KIND, key, reporter=reporter) as (folder, ready):
            if not ready:
                _write(path, form, skip_broken_rows, folder)
            cache.evict(KIND, CACHE_BYTES, keep=key)
            return _open(path, folder, reporter)
    except (MbertError, ValueError, RecursionError, csv.Error):  # a UnicodeError is a ValueError
        return None  # read whole, it is an error that names the line


def _write(path: Path, form: TableFormat, skip_broken_rows: int, folder: Path) -> None:
    with path.open("rb") as data:
        start = data.read(4096)
        check_format(start, path)
    if utf16_without_mark(start):
        raise UnicodeError("not plain UTF-8")
    of_objects = path.suffix.lower() in OBJECTS
    if of_objects and not start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        raise ValueError("not an object a line")  # an array may be one line of any length
    facts = _write_objects(path, folder) if of_objects else _write_delimited(path, form, skip_broken_rows, folder)
    atomic.write_text(folder / "table.json", json.dumps(facts))


def _write_delimited(path: Path, form: TableFormat, skip_broken_rows: int, folder: Path) -> dict[str, Any]:
    notes = _Notes()
    head = head_of(_lines(path, "\n"))
    if head.startswith("\ufeff"):
        raise UnicodeError("not plain UTF-8")
    rows = delimited_rows(path, lambda newline: _lines(path, newline), head, path.suffix.lower(), form, reporter=notes)
    body = _StoredBody(folder)
    table = rectangular(path, rows.rows, form.header, skip_broken_rows, rows.delimiter, notes, body)
    return {"names": table.names, "header_line": table.header_line, "notes": notes.notes}


def _write_objects(path: Path, folder: Path) -> dict[str, Any]:
    """Writes the rows of a JSONL file, all of which have the same keys; values of a key are texts, or none of them is."""
    names: dict[str, bool] = {}  # with whether its values are anything but texts
    body = _StoredBody(folder)
    for line, row in whole_objects(path, file_lines(path)):
        if not row:
            raise ValueError("an object without keys")
        if not names:
            names = {name: not isinstance(value, str) for name, value in row.items()}
            body.begin(len(names))
        if row.keys() != names.keys():
            raise ValueError("rows have different keys")
        body.add(line, [_cell(row[name], is_json) for name, is_json in names.items()])
    body.finish()
    if body.count < 2:
        raise ValueError("one object is an error, or a table of columns")
    not_texts = [name for name, is_json in names.items() if is_json]
    return {"names": list(names), "header_line": None, "notes": [], "not_texts": not_texts}


def _cell(value: Any, is_json: bool) -> str:
    if is_json == isinstance(value, str):
        raise ValueError("a column of texts and of other values")
    return json.dumps(value) if is_json else value


def _open(path: Path, folder: Path, reporter: Reporter) -> Table:
    facts = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    for once, text in facts["notes"]:
        (reporter.note_once if once else reporter.warn)(text)
    names, lines = tuple(facts["names"]), mapped(folder / "lines", "<i8")
    if len(lines) and int(lines[-1]) - int(lines[0]) == len(lines) - 1:  # they only ever grow
        lines = range(int(lines[0]), int(lines[-1]) + 1)  # type: ignore[assignment]
    positions = {name: number for number, name in enumerate(names)}
    columns: dict[str, Sequence[Any]] = {}

    def read(name: str) -> Sequence[Any]:
        if name not in columns:
            column = StoredColumn(folder, str(positions[name]))
            columns[name] = list(map(json.loads, column)) if name in facts.get("not_texts", ()) else column
        return columns[name]

    return Table(str(path), names, lines, read, header_line=facts["header_line"])  # type: ignore[arg-type]


def _lines(path: Path, newline: str) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline=newline) as file:
        yield from file


class _StoredBody:
    """Receives the rows of a table, and writes them as columns."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._block: list[Row] = []
        self._columns: list[ColumnWriter] = []
        self._numbers = (folder / "lines").open("wb")
        self.count = 0

    def begin(self, width: int) -> None:
        """Opens the columns."""
        self._columns = [ColumnWriter(self._folder, str(number)) for number in range(width)]

    def add(self, line: int, cells: list[str]) -> None:
        """Adds a row, whose cells beyond the columns are dropped, and whose missing ones are empty."""
        self._block.append((line, cells))
        self.count += 1
        if len(self._block) == ROWS_AT_ONCE:
            self._flush()

    def finish(self) -> tuple[Sequence[int], Callable[[int], Sequence[str]]]:
        """Closes the files."""
        self._flush()
        for column in self._columns:
            column.close()
        self._numbers.close()
        return range(self.count), lambda _: ()

    def _flush(self) -> None:
        self._numbers.write(np.fromiter((line for line, _ in self._block), "<i8", len(self._block)).tobytes())
        for number, column in enumerate(self._columns):
            column.write([cells[number] if number < len(cells) else "" for _, cells in self._block])
        self._block = []


class _Notes(Reporter):
    """Keeps what is noted of a table, to be said again each time that it is read."""

    def __init__(self) -> None:
        self.notes: list[tuple[bool, str]] = []

    def note_once(self, text: str) -> None:
        self.notes.append((True, text))

    def warn(self, text: str) -> None:
        self.notes.append((False, text))
