"""A table: named columns of one file, each row of which knows the line it came from."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from microbert_cli.errors import MbertError, nearest
from microbert_cli.table_format import format_option

MOST_NAMED_ROWS = 10
MOST_NAME_LENGTH = 40
NAME_COLUMNS = "Name its columns: --text COLUMN --label COLUMN, or text and label.column in the task's TOML."


@dataclass(frozen=True)
class Table:
    """Named columns of one file. Row i stands in line `lines[i]`, or for Parquet is row `lines[i]`, counted from 1.

    classes      of columns whose numbers stand for classes by the file's own word: their names; `read` gives names already
    header_line  where the names stand, if a line of text holds them
    """

    place: str
    names: tuple[str, ...]
    lines: Sequence[int]
    read: Callable[[str], Sequence[Any]]
    unit: str = "line"
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    header_line: int | None = None

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """`file, line 12`."""
        return f"{self.place}, {self.unit} {self.lines[row]}"

    def where_all(self, rows: Sequence[int]) -> str:
        """`file, line 3`, or `file, line 3 (also 7, 12)`: the first ten of several rows, and how many there are."""
        return rows_location(self.place, self.unit, [self.lines[row] for row in rows])

    def take(self, rows: Sequence[int]) -> "Table":
        """The table of these rows alone."""
        from microbert_cli.data.tables.stored import taken  # loads numpy

        return replace(self, lines=[self.lines[row] for row in rows], read=lambda name: taken(self.read(name), rows))

    def find(self, column: str | int | Sequence[str]) -> str | None:
        """The name of a column given by name, by position, or by several names, the first that is there; else None."""
        if isinstance(column, int):
            return self.names[column] if 0 <= column < len(self.names) else None
        candidates = [column] if isinstance(column, str) else column
        return next((name for name in candidates if name in self.names), None)

    def column(self, column: str | int | Sequence[str]) -> Sequence[Any]:
        """The values of a column; raises M253 with the columns that there are, M356 where two of them have that name."""
        return self.read(self.check_column(column, fix=NAME_COLUMNS))

    def check_column(self, column: str | int | Sequence[str], *, fix: str) -> str:
        """Returns the name of a column; raises M253 with `fix` where it is not there, M356 where it is twice."""
        name = self.find(column)
        if name is None:
            raise self._missing(column, fix)
        if not isinstance(column, int) and self.names.count(name) > 1:
            what = f'two columns have the name "{name}", so it is not said which one is meant'
            raise damaged(Path(self.place), what, line=self.header_line, fix=f'Rename one of the columns "{name}" in the file.')
        return name

    def _missing(self, column: str | int | Sequence[str], fix: str) -> MbertError:
        if isinstance(column, int):
            what, columns = f"it has no column {column + 1}", f"{len(self.names)}."
        else:
            wanted = column if isinstance(column, str) else column[0]
            what, columns = f'it has no column "{wanted}"', nearest(wanted, map(short_name, self.names))
        if self._first_row_is_data():
            what += ", and its first row may be one of data, not the names of columns"
            fix = f"{self._headerless_advice()} {fix}"
        return MbertError("M253", what, where=self.place, allowed=f"Its columns: {columns}", fix=fix)

    def _first_row_is_data(self) -> bool:
        """Whether a "name" is longer than names are, a number, or a value of its own column."""
        if self.header_line is None or not len(self):
            return False
        named = [name for name in self.names if name.strip()]
        if any(len(name) > MOST_NAME_LENGTH or _is_number(name) for name in named):
            return True
        return any(self.names.count(name) == 1 and name in self.read(name) for name in named)

    def _headerless_advice(self) -> str:
        """How the file is read without a header: the longest column as text, the one of fewest values as label."""
        columns = [[str(cell) for cell in self.read(name)] if self.names.count(name) == 1 else [] for name in self.names]
        text = max(range(len(columns)), key=lambda i: sum(map(len, columns[i])))
        others = [i for i, cells in enumerate(columns) if i != text and cells and any(cells)]
        label = f" --label {min(others, key=lambda i: len(set(columns[i])))}" if others else ""
        return f"If it has no header: {format_option('header', 'false')} --text {text}{label}."


def rows_location(place: str, unit: str, lines: Sequence[int]) -> str:
    """`file, line 3`; of several `file, line 3 (also 7, 12)`; of more than ten the first ten and the number of them all."""
    if len(lines) == 1:
        return f"{place}, {unit} {lines[0]}"
    rest = f", ...; {len(lines):,} in all" if len(lines) > MOST_NAMED_ROWS else ""
    return f"{place}, {unit} {lines[0]} (also {', '.join(map(str, lines[1:MOST_NAMED_ROWS]))}{rest})"


def short_name(name: str) -> str:
    """The name of a column, cut where it is no name but a text."""
    return name if len(name) <= MOST_NAME_LENGTH else f"{name[: MOST_NAME_LENGTH - 3]}..."


def column_names(names: Sequence[str]) -> str:
    """The names of columns for an error: each cut, those without a name counted."""
    named = [short_name(name) for name in names if name]
    return ", ".join([*named[:20], *(["..."] if len(named) > 20 else [])])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "." in text or len(text) > 3  # columns may well be called 0, 1, 2


def unreadable(path: Path, error: OSError | ValueError) -> MbertError:
    """The error for a file that is not there or cannot be opened."""
    neighbours = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    missing = isinstance(error, FileNotFoundError)
    return MbertError(
        "M252",
        "there is no such file" if missing else f"it cannot be read: {getattr(error, 'strerror', None) or error}",
        where=str(path),
        allowed=f"In {path.parent} there are: {nearest(path.name, neighbours[:40])}"
        if neighbours
        else f"There is no {path.parent}.",
        fix="Check the path; a path in a task's TOML is relative to that TOML.",
    )


def not_one_table(path: Path, what: str, *, allowed: str, fix: str) -> MbertError:
    """The error for a folder or an archive that is not one table."""
    return MbertError("M268", what, where=str(path), allowed=allowed, fix=fix)


def damaged(path: Path, what: str, *, line: int | None = None, fix: str = "Make or fetch the file again.") -> MbertError:
    """The error for a file that is not whole."""
    return MbertError(
        "M356",
        what,
        where=f"{path}, line {line}" if line else str(path),
        allowed="A whole file of the format that its name says; each column that is read has a name of its own.",
        fix=fix,
    )


def empty(path: Path, allowed: str = "A header and at least one row.") -> MbertError:
    """The error for a file without rows."""
    return MbertError(
        "M357",
        "there are no rows in this file",
        where=str(path),
        allowed=allowed,
        fix=f"Look at it: head {shlex.quote(str(path))}",
    )
