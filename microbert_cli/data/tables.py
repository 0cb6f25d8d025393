"""Reads tables strictly: CSV, TSV, JSONL and Parquet become named columns that know the line of each row.

Nothing is guessed and nothing replaced: a byte that is not UTF-8, a quotation mark that is never closed, or a row with
too few columns is an error that names its line. A byte-order mark is accepted and dropped. `.gz` is unpacked.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microbert_cli.data.limits import open_gzip
from microbert_cli.errors import MbertError, nearest
from microbert_cli.reporter import SILENT, Reporter

MAX_CELL = 2**31 - 1
CELL_END = {delimiter: re.compile(f"[{delimiter}\n\r]") for delimiter in ",\t"}
NAME_COLUMNS = "Name its columns: --text COLUMN --label COLUMN, or text and label.column in the task's TOML."


@dataclass(frozen=True)
class Table:
    """Named columns of one file. Row i is line `lines[i]`, or of Parquet row `lines[i]`, counted from 1."""

    place: str
    names: tuple[str, ...]
    lines: Sequence[int]
    read: Callable[[str], list[Any]]
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """Returns the location of a row: `file, line 12`."""
        return f"{self.place}, {self.unit} {self.lines[row]}"

    def find(self, column: str | int | Sequence[str]) -> str | None:
        """Returns the name of a column, given a name, a position, or several names of which the first existing one counts."""
        if isinstance(column, int):
            return self.names[column] if 0 <= column < len(self.names) else None
        candidates = [column] if isinstance(column, str) else column
        return next((name for name in candidates if name in self.names), None)

    def column(self, column: str | int | Sequence[str]) -> list[Any]:
        """Returns the values of a column; raises M253 with the columns that exist."""
        return self.read(self.check_column(column, fix=NAME_COLUMNS))

    def check_column(self, column: str | int | Sequence[str], *, fix: str) -> str:
        """Returns the name of a column; raises M253, with `fix` as what mends it, where it is not there."""
        if (name := self.find(column)) is None:
            raise self._missing(column, fix)
        return name

    def _missing(self, column: str | int | Sequence[str], fix: str) -> MbertError:
        if isinstance(column, int):
            what, columns = f"it has no column {column + 1}", f"{len(self.names)}."
        else:
            wanted = column if isinstance(column, str) else column[0]
            what, columns = f'it has no column "{wanted}"', nearest(wanted, self.names)
        return MbertError(
            "M253",
            what,
            where=self.place,
            allowed=f"Its columns: {columns}",
            fix=fix,
        )


def read_table(
    path: Path, *, quoting: bool = True, header: bool = True, skip_broken_rows: int = 0, reporter: Reporter = SILENT
) -> Table:
    """Reads a file by its suffix.

    quoting           of CSV and TSV: whether "..." encloses a cell
    header            whether the first row names the columns; without, they are named 0, 1, ...
    skip_broken_rows  how many rows with a wrong number of columns are passed over, with one warning
    Raises M252 (not there), M350 (width of a row), M353 (not UTF-8), M354 (quotes), M355 (JSON), M356 (damaged), M357, M371.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix == ".parquet":
        return _parquet(path)
    text = _decode(_bytes(path), path)
    if suffix in (".jsonl", ".ndjson"):
        return _jsonl(path, text)
    delimiter = "," if suffix == ".csv" else "\t"
    rows = _quoted(path, text, delimiter) if quoting else _unquoted(text, delimiter)
    return _rectangular(path, list(rows), header, skip_broken_rows, reporter)


def read_lines(path: Path, name: str) -> Table:
    """Reads a plain text file as a table with one column, `name`: a text a line, blank lines skipped.

    Only a line feed ends a line. Raises M252, M353, M356, M357.
    """
    lines = [(number, line.removesuffix("\r")) for number, line in enumerate(_decode(_bytes(path), path).split("\n"), 1)]
    texts = [(number, line) for number, line in lines if line and not line.isspace()]
    if not texts:
        raise _empty(path, "At least one line of text.")
    return Table(str(path), (name,), [number for number, _ in texts], lambda _: [line for _, line in texts])


def _bytes(path: Path) -> bytes:
    try:
        if path.suffix == ".gz":
            with open_gzip(path) as file:
                return file.read()
        return path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(path, f"it cannot be unpacked: {error}") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _decode(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        line = data.count(b"\n", 0, start) + 1
        raise MbertError(
            "M353",
            f"this is not UTF-8: byte 0x{data[start]:02x} at offset {start}",
            where=f"{path}, line {line}",
            allowed="UTF-8, with or without a byte-order mark; no byte is guessed or left out.",
            fix=f"If it is Latin-1: iconv -f LATIN1 -t UTF-8 {path.name} > utf8-{path.name}",
        ) from None


def _unquoted(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields every line as a row. Only a line feed ends a line, since texts may hold other separators."""
    lines = text.split("\n")
    while lines and not lines[-1].strip("\r"):
        lines.pop()
    for number, line in enumerate(lines, 1):
        yield number, line.removesuffix("\r").split(delimiter)


def _quoted(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1
    try:
        for cells in reader:
            if cells:
                yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        line = _quote_opened_at(text, delimiter, start)
        raise MbertError(
            "M354",
            f"a quotation mark opens here and is not closed as it should be ({error})",
            where=f"{path}, line {line}",
            allowed='A cell in quotes ends with a quote before a delimiter or line end; one inside it is doubled: "".',
            fix=f"Close or double the quotation mark in line {line}.",
        ) from None


def _quote_opened_at(text: str, delimiter: str, start: int) -> int:
    """Returns the line of the quote that makes the record from line `start` on unreadable."""
    lines = io.StringIO(text, newline="").readlines()[start - 1 :]
    record = "".join(lines)
    opened, position = 0, 0
    while position < len(record):
        if record[position] != '"':
            position = _next_cell(record, position, delimiter)
            continue
        opened, end = position, record.find('"', position + 1)
        while end >= 0 and record[end + 1 : end + 2] == '"':
            end = record.find('"', end + 2)
        if end < 0 or record[end + 1 : end + 2] not in (delimiter, "\n", "\r", ""):
            break
        position = end + 2
    before = record[:opened]
    return start + before.count("\n") + before.replace("\r\n", "").count("\r")


def _next_cell(record: str, position: int, delimiter: str) -> int:
    end = CELL_END[delimiter].search(record, position)
    return end.end() if end else len(record) + 1


def _rectangular(path: Path, rows: list[tuple[int, list[str]]], header: bool, allowed: int, reporter: Reporter) -> Table:
    """Makes a table of rows that are all as wide as the header, or as the first row."""
    if len(rows) <= header:
        raise _empty(path)
    names = tuple(rows[0][1]) if header else tuple(str(i) for i in range(len(rows[0][1])))
    if len(set(names)) < len(names):
        raise _damaged(path, "two columns of the header have the same name", line=rows[0][0])
    body = rows[1:] if header else rows
    broken = [(line, len(cells)) for line, cells in body if len(cells) != len(names)]
    if len(broken) > allowed:
        raise _wrong_width(path, *broken[0], names)
    if broken:
        reporter.warn(
            f"{path}: {len(broken)} rows with a wrong number of columns are left out (the first is line {broken[0][0]})"
        )
        body = [(line, cells) for line, cells in body if len(cells) == len(names)]
    if not body:
        raise _empty(path)
    position = {name: i for i, name in enumerate(names)}
    return Table(str(path), names, [line for line, _ in body], lambda name: [row[position[name]] for _, row in body])


def _jsonl(path: Path, text: str) -> Table:
    lines, objects = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            lines.append(number)
            objects.append(_parse_object(path, number, line))
    if not objects:
        raise _empty(path)
    names = tuple(objects[0])
    for number, row_object in zip(lines, objects, strict=True):
        if missing := [name for name in names if name not in row_object]:
            raise _not_json(path, number, f'this object has no key "{missing[0]}", the first one has')
    return Table(str(path), names, lines, lambda name: [row_object[name] for row_object in objects])


def _parse_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise _not_json(path, number, f"this is not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # too many digits, too many brackets
        raise _not_json(path, number, f"this is not JSON that can be read: {error}") from None
    if not isinstance(value, dict):
        raise _not_json(path, number, "this is JSON, but no object")
    return value


def _parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        count = file.metadata.num_rows
        names = tuple(file.schema_arrow.names)
    except FileNotFoundError as error:
        raise _unreadable(path, error) from None
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise _damaged(path, f"it is no whole Parquet file: {_first_line(error)}") from None
    if not count:
        raise _empty(path)
    if len(set(names)) < len(names):
        raise _damaged(path, "two columns have the same name")

    def read(name: str) -> list[Any]:
        try:
            values: list[Any] = file.read(columns=[name]).column(name).to_pylist()
        except (pa.ArrowException, OSError, ValueError, LookupError, ArithmeticError) as error:
            raise _damaged(path, f'column "{name}" cannot be read: {_first_line(error)}') from None
        if len(values) != count:
            raise _damaged(path, f'column "{name}" has {len(values)} values, not {count}')
        return values

    return Table(str(path), names, range(1, count + 1), read, unit="row")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _error_text(error: OSError | ValueError) -> str:
    return str(getattr(error, "strerror", None) or error)


def _unreadable(path: Path, error: OSError | ValueError) -> MbertError:
    near = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    return MbertError(
        "M252",
        "there is no such file" if isinstance(error, FileNotFoundError) else f"it cannot be read: {_error_text(error)}",
        where=str(path),
        allowed=f"In {path.parent} there are: {nearest(path.name, near[:40])}" if near else f"There is no {path.parent}.",
        fix="Check the path; a path in a task's TOML is relative to that TOML.",
    )


def _wrong_width(path: Path, line: int, width: int, names: Sequence[str]) -> MbertError:
    few = "few" if width < len(names) else "many"
    return MbertError(
        "M350",
        f"this row has too {few} columns: {width}, not {len(names)}",
        where=f"{path}, line {line}",
        allowed=f"One cell for each of: {', '.join(names)}.",
        fix=f"Look at it: sed -n {line}p {path}; a delimiter inside a text needs quotes around the text in CSV.",
    )


def _not_json(path: Path, line: int, what: str) -> MbertError:
    return MbertError(
        "M355",
        what,
        where=f"{path}, line {line}",
        allowed='One JSON object a line, all with the same keys: {"text": "...", "label": "..."}.',
        fix=f"Look at it: sed -n {line}p {path}",
    )


def _empty(path: Path, allowed: str = "A header and at least one row.") -> MbertError:
    return MbertError(
        "M357",
        "there are no rows in this file",
        where=str(path),
        allowed=allowed,
        fix=f"Look at it: head {path}",
    )


def _damaged(path: Path, what: str, *, line: int | None = None) -> MbertError:
    return MbertError(
        "M356",
        what,
        where=f"{path}, line {line}" if line else str(path),
        allowed="A whole file whose columns have different names.",
        fix="Make or fetch the file again.",
    )
