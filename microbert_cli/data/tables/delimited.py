"""CSV and TSV: which character ends a cell, whether quotation marks enclose one, and rows as wide as their header."""

import csv
import io
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Protocol

from microbert_cli.data.tables.table import Table, column_names, empty, rows_location
from microbert_cli.errors import MbertError
from microbert_cli.reporter import Reporter
from microbert_cli.table_format import TableFormat, format_option

Row = tuple[int, list[str]]  # the line it starts in, its cells
Lines = Callable[[str], Iterable[str]]  # opens the lines of a file, which end at a line feed ("\n") or at every line end ("")

MAX_CELL = 2**31 - 1
DELIMITERS = (",", "\t", ";", "|")
SAMPLE_LINES = 50
SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)  # Excel writes and reads it as the first line
QUOTED_CELL = re.compile(r'"(?:[^"]|"")*"')


@dataclass(frozen=True)
class Rows:
    """The rows of a file as they are read, and what ends a cell of them."""

    rows: Iterator[Row]
    delimiter: str


class Body(Protocol):
    """Receives the rows of a table below its header."""

    count: int

    def begin(self, width: int) -> None: ...

    def add(self, line: int, cells: list[str]) -> None: ...

    def finish(self) -> tuple[Sequence[int], Callable[[int], Sequence[str]]]: ...


def read_delimited(
    path: Path, text: str, suffix: str, form: TableFormat, *, skip_broken_rows: int, reporter: Reporter
) -> Table:
    """The rows of a CSV or TSV file as a table. Raises M350 (width of a row), M354 (quotes), M357."""
    rows = delimited_rows(
        path, lambda newline: io.StringIO(text, newline=newline), head_of(io.StringIO(text, newline="\n")), suffix, form,
        reporter=reporter,
    )  # fmt: skip
    return rectangular(path, rows.rows, form.header, skip_broken_rows, rows.delimiter, reporter, _ListedBody())


def head_of(file: Iterable[str]) -> str:
    """The beginning of a file's text: the lines by which its form is told, and one more."""
    return "".join(islice(file, SAMPLE_LINES + 2))


def delimited_rows(path: Path, lines: Lines, head: str, suffix: str, form: TableFormat, *, reporter: Reporter) -> Rows:
    """The rows of a CSV or TSV file one by one, header included; its lines may be read more than once.

    lines   opens the file's lines; they end at a line feed alone ("\n"), or at every line end ("")
    head    the beginning of its text
    Raises M354 (quotes).
    """
    skipped = 0
    separator = SEPARATOR_LINE.match(head)
    if separator and form.delimiter is None:
        form = form.model_copy(update={"delimiter": separator[1]})
        skipped, head = 1, head[separator.end() :]
    usual = "," if suffix == ".csv" else "\t"
    delimiter = form.delimiter or _detect_delimiter(head, usual)
    if delimiter != usual and form.delimiter is None:
        shown = "a tab" if delimiter == "\t" else f'"{delimiter}"'
        reporter.note_once(
            f"{path}: its cells end with {shown}, as its first row shows; otherwise: "
            f"{format_option('delimiter', _spoken(usual))}"
        )

    def lines_after(newline: str) -> Iterator[str]:
        return islice(lines(newline), skipped, None)

    literal = not form.quoting if form.quoting is not None else suffix != ".csv" and _quotes_are_literal(lines_after, delimiter)
    if literal and form.quoting is None:
        reporter.note_once(
            f"{path}: quotation marks are read as characters, as some are not closed in their line; "
            f"otherwise: {format_option('quoting', 'true')}"
        )
    if literal:
        rows = _unquoted(lines_after("\n"), delimiter, skipped + 1, skip_blank=form.quoting is None)
    else:
        rows = _quoted(path, lines_after, delimiter, skipped + 1)
    return Rows(rows, delimiter)


def _spoken(delimiter: str) -> str:
    return {",": "comma", "\t": "tab", ";": "semicolon", "|": "pipe"}.get(delimiter, delimiter)


def _detect_delimiter(text: str, usual: str) -> str:
    """The character between cells: the usual one, unless it divides no header and another one does.

    A header that the usual one divides too, as in `name;size, in cm`, is decided by the rows: all of one width.
    """
    header = text.split("\n", 1)[0]
    widths = {delimiter: _widths(text, delimiter) for delimiter in DELIMITERS if delimiter in header or delimiter == usual}
    even = [delimiter for delimiter, counts in widths.items() if counts[0] > 1 and len(set(counts)) == 1]
    if usual in even or not even and widths[usual][0] > 1:
        return usual
    candidates = even or [delimiter for delimiter, counts in widths.items() if counts[0] > 1]
    return max(candidates, key=lambda delimiter: widths[delimiter][0], default=usual)


def _widths(text: str, delimiter: str) -> list[int]:
    """The numbers of cells in the first rows; the last row of the sample may be cut within quotes and is left out."""
    lines = text.split("\n", SAMPLE_LINES)
    csv.field_size_limit(MAX_CELL)
    sample = io.StringIO("\n".join(lines[:SAMPLE_LINES]), newline="")
    try:
        counts = [len(cells) for cells in csv.reader(sample, delimiter=delimiter) if cells]
    except csv.Error:
        counts = []
    if len(lines) > SAMPLE_LINES and len(counts) > 1:
        counts.pop()
    return counts or [1]


def _quotes_are_literal(lines: Lines, delimiter: str) -> bool:
    """Whether the quotation marks of a TSV are characters: every line is a whole row, and one of its cells opens in vain.

    Many TSV files are written without quoting. Read with it, a quotation mark that opens a text would swallow rows up to the
    next one, silently where that one happens to end a cell.
    """
    width, opens_in_vain = 0, False
    if not any('"' in line for line in lines("\n")):
        return False
    for line in lines("\n"):
        row = line.removesuffix("\n")
        if not row.strip("\r"):
            continue
        cells = row.removesuffix("\r").split(delimiter)
        if not width:
            width = len(cells)
            # Who encloses the header encloses all cells, and a cell may then hold a line end and a delimiter.
            if all(map(QUOTED_CELL.fullmatch, cells)):
                return False
        if len(cells) != width:
            return False
        opens_in_vain = opens_in_vain or any(cell.startswith('"') and not QUOTED_CELL.fullmatch(cell) for cell in cells)
    return opens_in_vain


def _unquoted(lines: Iterable[str], delimiter: str, first_line: int, *, skip_blank: bool) -> Iterator[Row]:
    """Every line is a row, every delimiter ends a cell. Only a line feed ends a line: texts hold other separators."""
    blank: list[Row] = []  # those at the end of a file are no rows
    for number, line in enumerate(lines, first_line):
        row = line.removesuffix("\n")
        cells = row.removesuffix("\r").split(delimiter)
        if not row.strip("\r"):
            if not skip_blank:
                blank.append((number, cells))
            continue
        yield from blank
        blank = []
        yield number, cells


def _quoted(path: Path, lines: Lines, delimiter: str, first_line: int) -> Iterator[Row]:
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(lines(""), delimiter=delimiter, strict=True)
    start = 1
    try:
        for cells in reader:
            if cells:
                yield start + first_line - 1, cells
            start = reader.line_num + 1
    except csv.Error as error:
        line = _quote_opened_at("".join(lines("")), delimiter, start) + first_line - 1
        raise MbertError(
            "M354",
            f"a quotation mark opens here and is not closed as it should be ({error})",
            where=f"{path}, line {line}",
            allowed='A cell in quotes ends with a quote before a delimiter or line end; one inside it is doubled: "".',
            fix=f"Close or double the quotation mark in line {line}; where quotation marks are characters: "
            f"{format_option('quoting', 'false')}",
        ) from None


def _quote_opened_at(text: str, delimiter: str, start: int) -> int:
    """The line of the quote that makes the record from line `start` on unreadable."""
    cell_end = re.compile(f"[{re.escape(delimiter)}\n\r]")
    lines = io.StringIO(text, newline="").readlines()[start - 1 :]
    record = "".join(lines)
    opened, position = 0, 0
    while position < len(record):
        if record[position] != '"':
            following = cell_end.search(record, position)
            position = following.end() if following else len(record) + 1
            continue
        opened, end = position, record.find('"', position + 1)
        while end >= 0 and record[end + 1 : end + 2] == '"':
            end = record.find('"', end + 2)
        if end < 0 or record[end + 1 : end + 2] not in (delimiter, "\n", "\r", ""):
            break
        position = end + 2
    before = record[:opened]
    return start + before.count("\n") + before.replace("\r\n", "").count("\r")


def rectangular(
    path: Path, rows: Iterator[Row], header: bool, allowed: int, delimiter: str, reporter: Reporter, body: Body
) -> Table:
    """Every row as wide as the header, or as the first row; cells beyond its named columns may be missing, or empty.

    Raises M350 where more rows than `allowed` are not, M357 where there are none.
    """
    top = next(rows, None)
    if top is None:
        raise empty(path)
    first = [name.strip() for name in top[1]] if header else [str(i) for i in range(len(top[1]))]
    exact = top[1] if header else first
    # `text, label` has the space before its second name by the way people write; unless that makes two names one
    names = tuple(first if len(set(first)) == len(set(exact)) else exact)
    width, named = len(names), max((i + 1 for i, name in enumerate(names) if name), default=0)
    body.begin(width)
    broken: list[tuple[int, int]] = []
    for line, cells in rows if header else chain([top], rows):
        if len(cells) != width and (len(cells) < named or any(cells[width:])):
            broken.append((line, len(cells)))
        else:
            body.add(line, cells)
    lines, column = body.finish()
    if len(broken) > allowed:
        raise _wrong_width(path, broken, names, delimiter)
    if broken:
        reporter.warn(
            f"{path}: {len(broken)} rows with a wrong number of columns are left out (the first is line {broken[0][0]})"
        )
    if not body.count:
        raise empty(path)
    position = {name: i for i, name in enumerate(names)}
    return Table(str(path), names, lines, lambda name: column(position[name]), header_line=top[0] if header else None)


class _ListedBody:
    """Keeps rows in memory."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self.count = 0

    def begin(self, width: int) -> None:
        """Has nothing to prepare."""

    def add(self, line: int, cells: list[str]) -> None:
        """Adds a row."""
        self._rows.append((line, cells))
        self.count += 1

    def finish(self) -> tuple[Sequence[int], Callable[[int], Sequence[str]]]:
        """Returns the rows' lines, and a function that returns a column, whose missing cells are empty."""
        rows = self._rows
        return [line for line, _ in rows], lambda column: [row[column] if column < len(row) else "" for _, row in rows]


def _wrong_width(path: Path, broken: Sequence[tuple[int, int]], names: Sequence[str], delimiter: str) -> MbertError:
    line, width = broken[0]
    few = "few" if width < len(names) else "many"
    more = f", and {len(broken) - 1:,} more rows are not of that width" if len(broken) > 1 else ""
    return MbertError(
        "M350",
        f"this row has too {few} columns: {width}, not {len(names)}{more}",
        where=rows_location(str(path), "line", [line for line, _ in broken]),
        allowed=f"One cell for each of: {column_names(names)}.",
        fix=f"Look at it: sed -n {line}p {shlex.quote(str(path))}; "
        "a delimiter inside a text needs quotes around the text in CSV; another "
        f"delimiter than {_spoken(delimiter)}: {format_option('delimiter', 'semicolon')}",
    )
