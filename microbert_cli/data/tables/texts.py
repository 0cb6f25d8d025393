"""Texts that are given to a command: as arguments, lines, columns of a table, or a stream; and windows of them.

A window is what is answered at once: its texts are sorted by length, and only its texts are in memory.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

from microbert_cli.data.labels import and_more
from microbert_cli.data.limits import MAX_TEXT_LENGTH, check_text
from microbert_cli.data.tables import AS_SHOWN, Table, read_table
from microbert_cli.data.tables.content import decode, read_bytes
from microbert_cli.data.tables.lines import begins_plain, file_lines, first_lines, is_plain, stream_lines
from microbert_cli.errors import MbertError
from microbert_cli.recipe.task_kinds import TaskKind, kind_class
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import manifest
from microbert_cli.table_format import TABLE_SUFFIXES, TableFormat, is_table

Row = tuple[str, ...]
Texts = list[Row]
# How far ahead texts are read: together they are sorted by length, and what is read is in memory.
WINDOW_ROWS = 8192
WINDOW_CHARACTERS = 2**22


@dataclass(frozen=True)
class Inputs:
    """The texts that a command was given, and how many there are; None of a stream that may go on."""

    rows: Iterable[Row]
    count: int | None


def windows_of(rows: Iterable[Row]) -> Iterator[Texts]:
    """Yields the rows in lists of at most WINDOW_ROWS, shorter where their texts are long; reads no row that is not in them."""
    window: Texts = []
    characters = 0
    for row in rows:
        window.append(row)
        characters += sum(map(len, row))
        if len(window) == WINDOW_ROWS or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


def open_inputs(
    texts: Sequence[str],
    file: Path | None,
    stream: IO[bytes] | None,
    *,
    columns: Sequence[str],
    pairs: bool,
    model: str | None = None,
    form: TableFormat = AS_SHOWN,
    reporter: Reporter = SILENT,
) -> Inputs:
    """Texts as given, lines of a file or a stream, or columns of a table; a pair is two texts with a tab between.

    model  whose own training table says which columns a table's texts are in, where none are named
    form   what is said of the file's format
    A plain file is read twice, line by line: whatever is wrong in it is said before the first answer. Of a stream longer than
    a window, an error comes after the answers to the lines before. Other files, packed or in another encoding, are read whole.
    """
    if columns and (file is None or stream is not None):
        raise _no_table()
    if texts and file is not None:
        raise _two_inputs(file)
    if file is not None and stream is None and not columns and is_table(file):
        columns = _trained_columns(model)
        if not columns:
            raise _which_column(file)
    if columns and file is not None:
        table = read_table(file, form, reporter=reporter)
        rows = list(zip(*(_column_texts(table, name) for name in columns), strict=True))
        return _inputs(_check_lengths(rows, table.where))
    if stream is not None:
        return _from_stream(stream, pairs, form, reporter)
    if file is None:
        return _inputs(_rows_of(texts, "TEXTS", pairs))
    with suppress(MbertError, UnicodeDecodeError, OSError):  # what is wrong is said by reading it whole
        if is_plain(file, form.encoding):
            count = sum(1 for _ in _checked_rows(file_lines(file), str(file), pairs))
            return Inputs(_checked_rows(file_lines(file), str(file), pairs), count)
    return _inputs(_rows_of(_decode_lines(_read_bytes(file), str(file), form, reporter), str(file), pairs))


def _inputs(rows: Texts) -> Inputs:
    return Inputs(rows, len(rows))


def _from_stream(stream: IO[bytes], pairs: bool, form: TableFormat, reporter: Reporter) -> Inputs:
    """Returns the lines of stdin; as they come, where there are more than a window of them."""
    begun = first_lines(stream, WINDOW_ROWS)
    if len(begun) < WINDOW_ROWS or not begins_plain(begun, Path("stdin"), form.encoding):
        raw = b"".join(begun) + stream.read()
        return _inputs(_rows_of(_decode_lines(raw, "stdin", form, reporter), "stdin", pairs))
    return Inputs(_checked_rows(_of_stdin(chain(begun, iter(stream.readline, b""))), "stdin", pairs), None)


def _of_stdin(lines: Iterable[bytes]) -> Iterator[str]:
    try:
        yield from stream_lines(lines, "stdin")
    except MbertError as error:
        raise _of_lines(error) from None


def _checked_rows(lines: Iterable[str], place: str, pairs: bool) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        row = _split_pair(line, number) if pairs else (line,)
        for text in row:
            if len(text) > MAX_TEXT_LENGTH:
                check_text(text, f"{place}, line {number}")
        yield row


def _rows_of(lines: Sequence[str], place: str, pairs: bool) -> Texts:
    rows = [_split_pair(line, number) if pairs else (line,) for number, line in enumerate(lines, 1)]
    return _check_lengths(rows, lambda row: f"{place}, line {row + 1}")


def _trained_columns(model: str | None) -> list[str]:
    """Returns the text columns of the user's own table that a model was trained on; none where it was another task."""
    home = manifest.model_home(Path(model or ""))
    if not model or not (home / manifest.FILE).is_file():
        return []
    data = manifest.read(home).get("recipe", {}).get("data", {})
    if not data.get("train_file"):
        return []
    columns = data.get("text") or (kind_class(data["kind"]) if data.get("kind") else TaskKind).columns[0]
    return [columns] if isinstance(columns, str) else [str(column) for column in columns]


def _column_texts(table: Table, column: str) -> list[str]:
    """Returns the texts of a column; numbers are texts too, but what is missing, NaN, a list or an object is none."""
    values = table.column(column)
    wrong = [row for row, value in enumerate(values) if _is_no_text(value)]
    if wrong:
        value = values[wrong[0]]
        what = (
            "there is no text" if value is None or isinstance(value, float) else f"there is a {type(value).__name__}, no text,"
        )
        raise MbertError(
            "M381",
            f'{what} in column "{column}"{and_more(len(wrong))}',
            where=table.where_all(wrong),
            allowed="A text in every row; an empty one is a text.",
            fix=f"Mend or delete {'that row' if len(wrong) == 1 else 'these rows'}, or name another column: --text COLUMN.",
        )
    return [str(value) for value in values]


def _is_no_text(value: Any) -> bool:
    return not isinstance(value, str | int | float) or isinstance(value, float) and not math.isfinite(value)


def _read_bytes(file: Path) -> bytes:
    try:
        return read_bytes(file)[0] or b""
    except MbertError as error:
        if error.code != "M252":
            raise
        raise MbertError(
            "M206",
            f"this file cannot be read: {error.what}",
            where=f"--file {file}",
            allowed="A text file with one text a line, or a table with --text COLUMN.",
            fix="Check the path.",
        ) from None


def _decode_lines(raw: bytes, name: str, form: TableFormat, reporter: Reporter) -> list[str]:
    try:
        text = decode(raw, Path(name), form.encoding, reporter=reporter)
    except MbertError as error:
        raise _of_lines(error) from None
    lines = text.split("\n")  # only a line feed ends a line, as in tables: texts hold other separators
    return [line.removesuffix("\r") for line in lines[: len(lines) - (not lines[-1])]]


def _of_lines(error: MbertError) -> MbertError:
    """Returns the error of lines that are not of their encoding; any other as it is."""
    if error.code != "M353":
        return error
    return MbertError("M360", error.what, where=error.where, allowed=error.allowed, fix=error.fix)


def _check_lengths(rows: Texts, where: Callable[[int], str]) -> Texts:
    for number, row in enumerate(rows):
        for text in row:
            check_text(text, where(number))
    return rows


def _split_pair(line: str, number: int) -> tuple[str, ...]:
    first, tab, second = line.partition("\t")
    if not tab:
        raise MbertError(
            "M361",
            "this line has no tab, so it is no pair",
            where=f"line {number}",
            allowed="Two texts with one tab between them.",
            fix="Leave out --pairs for single texts.",
        )
    return first, second


def _no_table() -> MbertError:
    return MbertError(
        "M107",
        "a text column is named, but no table",
        where="--text",
        allowed=f"--text goes with --file, and a file that ends in {', '.join(TABLE_SUFFIXES)}.",
        fix="Name the table: --file FILE --text COLUMN, or leave out --text for plain lines.",
    )


def _two_inputs(file: Path) -> MbertError:
    return MbertError(
        "M108",
        "texts are given as arguments, and a file as well",
        where=f"--file {file}",
        allowed="One of the two.",
        fix=f"Leave out the texts: mbert predict MODEL --file {file}",
    )


def _which_column(file: Path) -> MbertError:
    return MbertError(
        "M106",
        "this is a table, and no column is named",
        where=f"--file {file}",
        allowed="--text COLUMN, twice for pairs.",
        fix=f"mbert predict MODEL --file {file} --text text",
    )
