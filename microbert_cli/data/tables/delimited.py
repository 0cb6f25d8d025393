"""CSV and TSV: which character ends a cell, whether quotation marks enclose one, and rows as wide as their header."""

import csv
import io
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from microbert_cli.data.tables.table import Table, column_names, empty, rows_location
from microbert_cli.errors import MbertError
from microbert_cli.reporter import Reporter
from microbert_cli.table_format import TableFormat, format_option

Row = tuple[int, list[str]]  # the line it starts in, its cells

MAX_CELL = 2**31 - 1
DELIMITERS = (",", "\t", ";", "|")
SAMPLE_LINES = 50
SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)  # Excel writes and reads it as the first line
QUOTED_CELL = re.compile(r'"(?:[^"]|"")*"')


def read_delimited(
    path: Path, text: str, suffix: str, form: TableFormat, *, skip_broken_rows: int, reporter: Reporter
) -> Table:
    """The rows of a CSV or TSV file as a table. Raises M350 (width of a row), M354 (quotes), M357."""
    first_line = 1
    separator = SEPARATOR_LINE.match(text)
    if separator and form.delimiter is None:
        form = form.model_copy(update={"delimiter": separator[1]})
        first_line, text = 2, text[separator.end() :]
    usual = "," if suffix == ".csv" else "\t"
    delimiter = form.delimiter or _detect_delimiter(text, usual)
    if delimiter != usual and form.delimiter is None:
        shown = "a tab" if delimiter == "\t" else f'"{delimiter}"'
        reporter.note_once(
            f"{path}: its cells end with {shown}, as its first row shows; otherwise: "
            f"{format_option('delimiter', _spoken(usual))}"
        )
    literal = not form.quoting if form.quoting is not None else suffix != ".csv" and _quotes_are_literal(text, delimiter)
    if literal and form.quoting is None:
        reporter.note_once(
            f"{path}: quotation marks are read as characters, as some are not closed in their line; "
            f"otherwise: {format_option('quoting', 'true')}"
        )
    if literal:
        rows = list(_unquoted(text, delimiter, first_line, skip_blank=form.quoting is None))
    else:
        rows = list(_quoted(path, text, delimiter, first_line))
    return _rectangular(path, rows, form.header, skip_broken_rows, delimiter, reporter)


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


def _quotes_are_literal(text: str, delimiter: str) -> bool:
    """Whether the quotation marks of a TSV are characters: every line is a whole row, and one of its cells opens in vain.

    Many TSV files are written without quoting. Read with it, a quotation mark that opens a text would swallow rows up to the
    next one, silently where that one happens to end a cell.
    """
    if '"' not in text:
        return False
    rows = [line.removesuffix("\r").split(delimiter) for line in text.split("\n") if line.strip("\r")]
    # Who encloses the header encloses all cells, and a cell may then hold a line end and a delimiter.
    if len({len(cells) for cells in rows}) > 1 or all(map(QUOTED_CELL.fullmatch, rows[0])):
        return False
    return any(cell.startswith('"') and not QUOTED_CELL.fullmatch(cell) for cells in rows for cell in cells)


def _unquoted(text: str, delimiter: str, first_line: int, *, skip_blank: bool) -> Iterator[Row]:
    """Every line is a row, every delimiter ends a cell. Only a line feed ends a line: texts hold other separators."""
    lines = text.split("\n")
    while lines and not lines[-1].strip("\r"):
        lines.pop()
    for number, line in enumerate(lines, first_line):
        if line.strip("\r") or not skip_blank:
            yield number, line.removesuffix("\r").split(delimiter)


def _quoted(path: Path, text: str, delimiter: str, first_line: int) -> Iterator[Row]:
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1
    try:
        for cells in reader:
            if cells:
                yield start + first_line - 1, cells
            start = reader.line_num + 1
    except csv.Error as error:
        line = _quote_opened_at(text, delimiter, start) + first_line - 1
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


def _rectangular(path: Path, rows: list[Row], header: bool, allowed: int, delimiter: str, reporter: Reporter) -> Table:
    """Every row as wide as the header, or as the first row; cells beyond its named columns may be missing, or empty."""
    if len(rows) <= header:
        raise empty(path)
    first = [name.strip() for name in rows[0][1]] if header else [str(i) for i in range(len(rows[0][1]))]
    exact = rows[0][1] if header else first
    # `text, label` has the space before its second name by the way people write; unless that makes two names one
    names = tuple(first if len(set(first)) == len(set(exact)) else exact)
    named = max((i + 1 for i, name in enumerate(names) if name), default=0)
    body: list[Row] = []
    broken: list[tuple[int, int]] = []
    for line, cells in rows[1:] if header else rows:
        if len(cells) != len(names) and (len(cells) < named or any(cells[len(names) :])):
            broken.append((line, len(cells)))
        else:
            body.append((line, cells))
    if len(broken) > allowed:
        raise _wrong_width(path, broken, names, delimiter)
    if broken:
        reporter.warn(
            f"{path}: {len(broken)} rows with a wrong number of columns are left out (the first is line {broken[0][0]})"
        )
    if not body:
        raise empty(path)
    position = {name: i for i, name in enumerate(names)}

    def read(name: str) -> list[str]:
        column = position[name]
        return [row[column] if column < len(row) else "" for _, row in body]

    return Table(str(path), names, [line for line, _ in body], read, header_line=rows[0][0] if header else None)


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
