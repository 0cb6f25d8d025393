"""The cells of a label column: as texts, as labels of a task, and what they show of the kind of task."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from microbert_cli.data.limits import check_text
from microbert_cli.errors import MbertError
from microbert_cli.recipe.task import CLASSES, Task
from microbert_cli.recipe.task_kinds import WHOLE_NUMBER, Labels
from microbert_cli.text import natural_key

if TYPE_CHECKING:
    from microbert_cli.data.tables import Table

SCORE = "score"
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
            allowed="One label a row, a text or a number; several labels a row are not learnt.",
            fix="Write one label into a column of its own and name that: --label COLUMN. Of an object take one of its keys; "
            "for several labels a row make one table a label, with yes and no.",
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
