"""Augmented data on disk as Parquet or quoted TSV: the text columns, label, source, augmented and id.

A row that is flagged as augmented may lack a label: it was made anew, and only a teacher can label it.
"""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from microbert_cli.data.examples import Examples, from_table, unlabelled
from microbert_cli.data.labels import plain
from microbert_cli.data.tables import Table, read_table
from microbert_cli.data.tables.stored import StoredColumn
from microbert_cli.errors import MbertError
from microbert_cli.recipe.task import Task
from microbert_cli.runs import manifest
from microbert_cli.table_format import TableFormat

STEM = "augmented"
RESERVED_COLUMNS = ("source", "augmented", "id")
POSITION = re.compile(r"\d{1,18}")
BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def write_augmented(rows: Examples, path: Path, task: Task, format: Literal["parquet", "tsv"] = "parquet") -> None:
    """Writes examples for `load_augmented`, classes by name; the caller gives a directory of its own."""
    names = (*task.text, task.label.column, *RESERVED_COLUMNS)
    if clash := {*task.text, task.label.column} & set(RESERVED_COLUMNS):
        raise _reserved_name(task, clash.pop())
    labels = None
    if rows.labels is not None:  # a new row has none: only a teacher can label it
        labels = [None if label is None else task.kind.label_text(label) for label in rows.labels]
    columns: list[Any] = [list(column) for column in zip(*rows.texts, strict=True)] or [[] for _ in task.text]
    columns += [labels if labels is not None else [None] * len(rows)]
    columns += [rows.source or list(range(len(rows))), rows.augmented or [False] * len(rows), rows.ids]
    if format == "tsv":
        _write_tsv(path, names, columns)
    else:
        _write_parquet(path, names, columns)


def load_augmented(path: Path, task: Task) -> Examples:
    """Reads the output of `mbert augment`, a directory or the file in it; varied rows keep their labels and are flagged, and
    new rows have the label None.

    Raises M255 where there is no such file or directory, M306 where it is not what was made, M253 for a missing column, M364
    for a flag or source that is none.
    """
    path = Path(path)
    if not path.is_file():
        path = _file_in(path)
    task = task.model_copy(update={"label": task.label.model_copy(update={"columns": None})})  # one column here, of lists
    table = read_table(path, TableFormat(quoting=True))
    flags = [_flag(table, row, value) for row, value in enumerate(table.column("augmented"))]
    rows = _rows(table, task, flags)
    source = [_position(table, row, value) for row, value in enumerate(table.column("source"))]
    ids = table.column("id")
    names = ids if isinstance(ids, StoredColumn) else [str(value) for value in ids]
    return Examples(rows.texts, rows.labels, names, flags, source)


def _rows(table: Table, task: Task, flags: Sequence[bool]) -> Examples:
    cells = table.column(task.label.column)
    labelled = [row for row, cell in enumerate(cells) if plain(cell) or not flags[row]]
    if len(labelled) == len(cells) or not labelled:
        return from_table(table, task, "train")
    labels: list[Any] = [None] * len(cells)
    for row, label in zip(labelled, from_table(table.take(labelled), task, "train").labels or (), strict=True):
        labels[row] = label
    return Examples(unlabelled(table, task).texts, labels)


def _write_tsv(path: Path, names: tuple[str, ...], columns: list[Any]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        # all quoted: a lone carriage return inside a text would end its row
        writer = csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(names)
        writer.writerows([_cell(value) for value in row] for row in zip(*columns, strict=True))


def _cell(value: Any) -> Any:
    return plain(value) if value is None or isinstance(value, bool) else value


def _write_parquet(path: Path, names: tuple[str, ...], columns: list[Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: pa.array(column) for name, column in zip(names, columns, strict=True)})
    pq.write_table(table, path, compression="zstd")


def _file_in(folder: Path) -> Path:
    if (folder / manifest.FILE).is_file():
        manifest.read_verified(folder)
    for suffix in (".parquet", ".tsv"):
        if (folder / f"{STEM}{suffix}").is_file():
            return folder / f"{STEM}{suffix}"
    raise MbertError(
        "M255",
        "there is no augmented data here",
        where=str(folder),
        allowed=f"An output of `mbert augment`: it holds {STEM}.parquet or {STEM}.tsv.",
        fix=f"Make it: mbert augment --task TASK --masked-lm MODEL -o {folder}",
    )


def _flag(table: Table, row: int, value: Any) -> bool:
    text = plain(value).lower()
    if text not in BOOLEANS:
        raise _malformed(table, row, f'"{value}" in column "augmented" is neither true nor false')
    return BOOLEANS[text]


def _position(table: Table, row: int, value: Any) -> int:
    text = plain(value)
    if not POSITION.fullmatch(text):
        raise _malformed(table, row, f'"{value}" in column "source" is no position of a row')
    return int(text)


def _malformed(table: Table, row: int, what: str) -> MbertError:
    return MbertError(
        "M364",
        what,
        where=table.where(row),
        allowed="source: the position of the original row from 0; augmented: true or false.",
        fix="Make the file again: mbert augment --task TASK --masked-lm MODEL",
    )


def _reserved_name(task: Task, name: str) -> MbertError:
    return MbertError(
        "M031",
        f'the column name "{name}" is needed for augmented data itself',
        where=f"task {task.name}",
        allowed=f"Text and label columns with other names than {', '.join(RESERVED_COLUMNS)}.",
        fix="Rename the column in the data file and in the task.",
    )
