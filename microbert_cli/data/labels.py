"""The cells of a label column, or of one column a label: as texts, as labels of a task, and what they show of its kind."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from microbert_cli.data.limits import check_text
from microbert_cli.errors import MbertError
from microbert_cli.recipe.task import CLASSES, ColumnName, Task
from microbert_cli.recipe.task_kinds import WHOLE_NUMBER, Labels, too_few_classes
from microbert_cli.text import natural_key

if TYPE_CHECKING:
    from microbert_cli.data.tables import Table

SCORE = "score"
YES_OR_NO = {"1": True, "true": True, "0": False, "false": False}
NOT_GIVEN = {"", "-1"}  # -1 as in test files whose labels are kept secret
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
WHOLE = re.compile(r"[+-]?\d{1,18}")
MISSING_WORDS = {"nan", "na", "n/a", "#n/a", "null", "none", "<na>", "-nan", "nat", "?"}
LIST_OF_LABELS = re.compile(r"\s*\[.*\]\s*", re.DOTALL)
MOST_NUMBERED_CLASSES = 20
ROWS_PER_CLASS = 10  # on average; so many rows share a value where it is a class
SPARSE = 3  # of whole numbers from the first to the last, no more than a third is used: codes, not a scale


def read_labels(values: Sequence[Any], task: Task, table: "Table") -> Labels | None:
    """Returns the labels of a column; None where those of all rows are hidden (empty, or -1 as on the Hub)."""
    if task.kind.of_words:  # lists of tags, as `words/sentences.py` gives them
        return None if all(value is None for value in values) else task.kind.read_labels(values, table.where_all)
    if task.kind.writes:  # texts, as they stand
        _check_texts(values, task.label.column, table)
        cells = ["" if _is_missing(value) else str(value) for value in values]
        for row, cell in enumerate(cells):
            check_text(cell, table.where(row))
    elif (several := task.kind.cells(values)) is not None:
        cells = several
    else:
        check_one_label_a_row(values, table, task.label.column)
        cells = [plain(value) for value in values]
    if cells and set(cells) <= task.kind.hidden:
        return None
    return task.kind.read_labels(cells, table.where_all)


def _check_texts(values: Sequence[Any], column: str, table: "Table") -> None:
    """Raises M399 for what is no text to be written: a list, an object, true or false. Numbers are texts."""
    rows = [
        row for row, value in enumerate(values) if isinstance(value, bool) or not isinstance(value, str | int | float | None)
    ]
    if rows:
        raise MbertError(
            "M399",
            f'there is a {type(values[rows[0]]).__name__}, no text, in column "{column}"{and_more(len(rows))}',
            where=table.where_all(rows),
            allowed="One text to be written in every row; a number is a text.",
            fix="Correct these rows, or name the column of the texts to be written: --label COLUMN",
        )


def plain(value: Any) -> str:
    """Returns a cell of a label column as text: 1.0 is "1", true is "true", a missing value is empty."""
    if _is_missing(value):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value).strip()
    return text.split(".")[0] if "." in text and WHOLE_NUMBER.fullmatch(text) else text


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def missing_labels(cells: Sequence[str], names: Sequence[str] = ()) -> set[int]:
    """Returns the rows without a label: an empty cell, or "nan" and its like where all other cells are numbers."""
    empty = {row for row, cell in enumerate(cells) if not cell}
    words = {row for row, cell in enumerate(cells) if cell.lower() in MISSING_WORDS and cell not in names}
    others = [cell for row, cell in enumerate(cells) if row not in empty and row not in words]
    # Beside texts "none" and "NA" may well be classes.
    return empty | words if words and others and all(map(NUMBER.fullmatch, others)) else empty


def check_one_label_a_row(values: Sequence[Any], table: "Table", column: str) -> None:
    """Checks that no label is a list or an object, or the text of a list; raises M378 for those of several labels a row."""
    rows = [row for row, value in enumerate(values) if isinstance(value, list | tuple | dict | set)]
    if not rows and values and all(isinstance(value, str) and LIST_OF_LABELS.fullmatch(value) for value in values):
        # One class may well be called "[x]": only commas or an empty list show that these are lists.
        rows = [row for row, value in enumerate(values) if "," in value or value.strip() == "[]"]
    if rows:
        example = values[rows[0]]
        more = f", as those of {len(rows) - 1:,} more rows" if len(rows) > 1 else ""
        raise MbertError(
            "M378",
            f'the label in column "{column}" is {"an object" if isinstance(example, dict) else "a list"}{more}: '
            f"{str(example)[:80]}",
            where=table.where_all(rows),
            allowed="One label a row, a text or a number; or lists, where the task is one of several labels a row.",
            fix="For several labels a row: --set data.kind=labels. Else write one label into a column of its own and name "
            "that: --label COLUMN; of an object take one of its keys.",
        )


def and_more(count: int) -> str:
    """Returns `, and 4 more rows are wrong`, or nothing for one row."""
    return f", and {count - 1:,} more row{'s are' if count > 2 else ' is'} wrong" if count > 1 else ""


def score_or_classes(counts: Mapping[str, int]) -> tuple[str, str]:
    """Returns the kind of label by how many rows each value has, and how to choose the other kind where that is in doubt.

    Texts are classes, and numbers with fractions a score. Whole numbers are classes up to 20 different ones; beyond, where
    each has many rows and they are either numbered through from 0 or 1, or far apart as codes are. A scale of all numbers up
    to 100 is a score all the same.
    """
    if not all(map(NUMBER.fullmatch, counts)):
        return CLASSES, ""
    if not all(map(WHOLE.fullmatch, counts)):
        return SCORE, ""
    as_score = f"; if it is a score: --set data.kind={SCORE}"
    if len(counts) <= MOST_NUMBERED_CLASSES:
        return CLASSES, as_score
    numbers = sorted({int(value) for value in counts})
    spread = numbers[-1] - numbers[0] + 1
    numbered_through = numbers[0] in (0, 1) and spread == len(numbers) and numbers[-1] != 100
    if sum(counts.values()) >= ROWS_PER_CLASS * len(counts) and (numbered_through or spread >= SPARSE * len(numbers)):
        return CLASSES, as_score
    return SCORE, f"; if it is one of several classes: --set data.kind={CLASSES}"


def class_order(values: Sequence[str]) -> list[str]:
    """Returns the values sorted: numbers by size, names with numbers by these, else as texts."""
    if all(map(NUMBER.fullmatch, values)):
        return sorted(values, key=lambda value: (float(value), value))
    return sorted(values, key=natural_key)


def has_labels(table: "Table", task: Task, column: ColumnName) -> bool:
    """Whether a table has the task's label column, or any of its label columns."""
    columns = task.label.columns or (column,)
    return any(table.find(name) is not None for name in columns)


def label_values(table: "Table", task: Task, column: ColumnName) -> Sequence[Any]:
    """Returns the values of the label column; of several columns of 0 and 1 each row's labels as a list.

    All are None where every cell of these columns is empty or -1: hidden. Raises M253 for a column that is not there, M445 for
    a cell that is neither 0 nor 1.
    """
    if task.label.columns is None:
        return table.column(column)
    columns = [[plain(value).lower() for value in table.column(name)] for name in task.label.columns]
    if all(set(cells) <= NOT_GIVEN for cells in columns):
        return [None] * len(table)
    wrong = {
        row: f'"{cell}" in column "{name}" is neither 0 nor 1' if cell else f'there is no value in column "{name}"'
        for name, cells in zip(task.label.columns, columns, strict=True)
        for row, cell in enumerate(cells)
        if cell not in YES_OR_NO
    }
    if wrong:
        raise _neither(table, wrong)
    names = task.kind.names
    return [[name for name, cell in zip(names, cells, strict=True) if YES_OR_NO[cell]] for cells in zip(*columns, strict=True)]


def label_names(table: "Table", task: Task) -> tuple[tuple[str, ...], str]:
    """Returns the labels that a table's rows name, sorted, and a word on what is doubtful; raises M358 for fewer than two."""
    cells = task.kind.cells(table.column(task.label.column)) or []
    counts = task.kind.names_in(cells, table.where_all)
    if len(counts) < 2:
        raise too_few_classes(table.place, set(counts), "the rows name fewer than two different labels")
    several = any(len(names) > 1 for cell in set(cells) if (names := task.kind.names_in([cell], table.where_all)))
    hint = "" if several else '; no row has more than one: the labels of a row are a list, or parted by "|"'
    return tuple(class_order(list(counts))), hint


def _neither(table: "Table", wrong: dict[int, str]) -> MbertError:
    rows = sorted(wrong)
    return MbertError(
        "M445",
        wrong[rows[0]] + and_more(len(rows)),
        where=table.where_all(rows),
        allowed="0 or 1, or false or true, in each label column of each row; in a file without labels all empty, or all -1.",
        fix=f"Correct or delete {'the row' if len(rows) == 1 else 'these rows'}, or name other columns: data.label_columns.",
    )
