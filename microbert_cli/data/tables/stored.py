"""Columns of texts that lie on the disk: memory does not grow with their rows, but for what the rows' order takes.

COLUMN.txt   the texts as UTF-8, one behind the other, without anything between them
COLUMN.end   int64 [n]: where each ends
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, overload

import numpy as np

ROWS_AT_ONCE = 8192
SHORT_BYTES = 32  # on average: labels and the like, of which many are equal
MOST_SHARED = 10_000  # different short texts of which one copy is kept


class ColumnWriter:
    """Writes a column, some rows at a time."""

    def __init__(self, folder: Path, name: str):
        self._texts: IO[bytes] = (folder / f"{name}.txt").open("wb")
        self._ends: IO[bytes] = (folder / f"{name}.end").open("wb")
        self._end = 0

    def write(self, texts: Sequence[str]) -> None:
        """Adds texts; half characters, which JSON can hold, are kept as they are."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        ends = np.fromiter(map(len, encoded), np.int64, len(encoded)).cumsum() + self._end
        self._texts.write(b"".join(encoded))
        self._ends.write(ends.tobytes())
        self._end = int(ends[-1]) if len(ends) else self._end

    def close(self) -> None:
        """Closes both files."""
        self._texts.close()
        self._ends.close()


class StoredColumn(Sequence[str]):
    """A column on the disk, or some of its rows; read in blocks, never whole."""

    def __init__(self, folder: Path, name: str):
        self._bytes = mapped(folder / f"{name}.txt", np.uint8)
        self._ends = mapped(folder / f"{name}.end", np.int64)
        self._rows: np.ndarray | None = None
        self._shares = len(self._bytes) <= SHORT_BYTES * len(self._ends)

    def __len__(self) -> int:
        return len(self._ends) if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return self._strings(self._numbers(index))
        return self._strings(self._numbers(slice(index, index + 1 or None)))[0] if -len(self) <= index < len(self) else _out()

    def __iter__(self) -> Iterator[str]:
        shared: dict[str, str] = {}
        for start in range(0, len(self), ROWS_AT_ONCE):
            texts = self[start : start + ROWS_AT_ONCE]
            if self._shares and len(shared) < MOST_SHARED:
                texts = [shared.setdefault(text, text) for text in texts]
            yield from texts

    def take(self, rows: Sequence[int] | np.ndarray) -> "StoredColumn":
        """Returns these rows alone, in this order."""
        taken = object.__new__(StoredColumn)
        taken.__dict__ |= self.__dict__
        numbers = np.asarray(rows, dtype=np.int64)
        taken._rows = numbers if self._rows is None else self._rows[numbers]
        return taken

    def _numbers(self, span: slice) -> np.ndarray:
        numbers = np.arange(*span.indices(len(self)))
        return numbers if self._rows is None else self._rows[numbers]

    def _strings(self, rows: np.ndarray) -> list[str]:
        if not len(rows):
            return []
        ends = np.asarray(self._ends[rows])
        starts = np.where(rows > 0, self._ends[np.maximum(rows - 1, 0)], 0)
        first, last = int(starts.min()), int(ends.max())
        if last - first > 4 * int((ends - starts).sum()) + ROWS_AT_ONCE:  # far apart
            spans = zip(starts.tolist(), ends.tolist(), strict=True)
            return [self._bytes[start:end].tobytes().decode("utf-8", "surrogatepass") for start, end in spans]
        data = self._bytes[first:last].tobytes()
        pairs = zip((starts - first).tolist(), (ends - first).tolist(), strict=True)
        if data.isascii():
            text = data.decode("ascii")
            return [text[start:end] for start, end in pairs]
        return [data[start:end].decode("utf-8", "surrogatepass") for start, end in pairs]


class StoredRows(Sequence[tuple[str, ...]]):
    """The texts of rows, of columns that are on the disk."""

    def __init__(self, columns: Sequence[StoredColumn]):
        self.columns = tuple(columns)

    def __len__(self) -> int:
        return len(self.columns[0])

    @overload
    def __getitem__(self, index: int) -> tuple[str, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, ...]]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, ...] | list[tuple[str, ...]]:
        if isinstance(index, slice):
            return list(zip(*(column[index] for column in self.columns), strict=True))
        return tuple(column[index] for column in self.columns)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return zip(*self.columns, strict=True)

    def take(self, rows: Sequence[int] | np.ndarray) -> "StoredRows":
        """Returns these rows alone, in this order."""
        return StoredRows([column.take(rows) for column in self.columns])


class RowNumbers(Sequence[str]):
    """Names of rows that have none: their numbers, as text."""

    def __init__(self, numbers: Sequence[int] | np.ndarray):
        self._numbers = np.asarray(numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return list(map(str, self._numbers[index].tolist())) if isinstance(index, slice) else str(self._numbers[index])

    def __iter__(self) -> Iterator[str]:
        return (name for start in range(0, len(self), ROWS_AT_ONCE) for name in self[start : start + ROWS_AT_ONCE])

    def take(self, rows: Sequence[int] | np.ndarray) -> "RowNumbers":
        """Returns these names alone, in this order."""
        return RowNumbers(self._numbers[np.asarray(rows, dtype=np.int64)])


def mapped(path: Path, dtype: Any) -> np.ndarray:
    """Returns a file of numbers as an array that is read from the disk when it is looked at."""
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def taken(column: Any, rows: Sequence[int] | np.ndarray) -> Any:
    """Returns these rows of a column, on the disk where it is there; None for None."""
    if column is None or isinstance(column, StoredColumn | StoredRows | RowNumbers):
        return column if column is None else column.take(rows)
    return [column[row] for row in (rows.tolist() if isinstance(rows, np.ndarray) else rows)]


def store(column: Iterable[Sequence[str]], folder: Path, name: str) -> None:
    """Writes a column of blocks of texts."""
    writer = ColumnWriter(folder, name)
    try:
        for texts in column:
            writer.write(texts)
    finally:
        writer.close()


def _out() -> Any:
    raise IndexError("there is no such row")
