"""Rows of a task: one or two texts, a label or none, where they came from. And the one way a table becomes rows."""

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from microbert_cli.data.limits import MAX_TEXT_LENGTH, check_text
from microbert_cli.data.tables import Table
from microbert_cli.errors import MbertError, nearest
from microbert_cli.recipe.task import ColumnName, Task
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.text import is_valid_text

Labels = list[int] | list[float]
Where = Callable[[int], str]
WHOLE_NUMBER = re.compile(r"[+-]?\d+(\.0*)?")


@dataclass(frozen=True)
class Examples:
    """What a model is trained and measured on.

    texts        one or two strings a row
    labels       class ids, or scores; None = hidden
    ids          the row's name in its file; without them its position
    augmented    which rows were made by varying others; None = all are original
    source       of augmented data: the position of the original among the original rows
    fingerprint  sha256 over texts, labels and flags
    """

    texts: list[tuple[str, ...]]
    labels: Labels | None = None
    ids: list[str] | None = None
    augmented: list[bool] | None = None
    source: list[int] | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if self.ids is None:
            object.__setattr__(self, "ids", [str(i) for i in range(len(self.texts))])
        columns = (self.labels, self.ids, self.augmented, self.source)
        assert all(column is None or len(column) == len(self.texts) for column in columns)
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", _fingerprint(self))

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> "Examples":
        """The rows at these positions, in this order."""
        order = [int(i) for i in indices]

        def pick(column: Any) -> Any:
            return None if column is None else [column[i] for i in order]

        return Examples(pick(self.texts), pick(self.labels), pick(self.ids), pick(self.augmented), pick(self.source))

    def limit(self, count: int | None, seed: int = 0) -> "Examples":
        """At most `count` rows, drawn by the seed, in the order of the file; all rows for None."""
        if count is None or count >= len(self):
            return self
        import numpy as np

        return self.take(sorted(np.random.default_rng(seed).permutation(len(self))[:count]))


def _fingerprint(rows: Examples) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(rows.texts), 4096):
        block = rows.texts[start : start + 4096]
        digest.update("".join("\x1f".join(texts) + "\x1e" for texts in block).encode("utf-8", "surrogatepass"))
    for column in (rows.labels, rows.augmented):
        digest.update(repr(column).encode())
    return digest.hexdigest()


def from_table(
    table: Table,
    task: Task,
    split: str,
    *,
    columns: Mapping[str, ColumnName] | None = None,
    row_id: Sequence[str] = (),
    reporter: Reporter = SILENT,
) -> Examples:
    """A table as rows of the task.

    columns  logical name -> name or position in the table, where they differ
    row_id   the column that names a row: the first of these that is there
    The label column may be missing in test splits alone. Raises M253 (no such column), M351 (label), M352 (text), M359, M373.
    """
    real = {name: name for name in (*task.text, task.label.column)} | dict(columns or {})
    texts = _texts(table, task, real, reporter)
    labels = None
    if table.find(real[task.label.column]) is not None or not split.startswith("test"):
        labels = read_labels(table.column(real[task.label.column]), task, table.where)
    if labels is None and split == "train":
        raise _no_labels(table)
    ids = table.find(row_id)
    return Examples(texts, labels, [str(value) for value in table.read(ids)] if ids else None)


def unlabelled(table: Table, task: Task, reporter: Reporter = SILENT) -> Examples:
    """A table's texts as rows of the task; its labels, if it has any, are not looked at. Raises M253, M352, M373."""
    return Examples(_texts(table, task, {name: name for name in task.text}, reporter))


def _texts(table: Table, task: Task, real: Mapping[str, ColumnName], reporter: Reporter) -> list[tuple[str, ...]]:
    columns = [table.column(real[name]) for name in task.text]
    empty = 0
    for name, column in zip(task.text, columns, strict=True):
        for row, text in enumerate(column):
            if not isinstance(text, str):
                raise _bad_text(f'the text in column "{name}" is {_kind(text)}', table.where(row))
            if len(text) > MAX_TEXT_LENGTH:
                check_text(text, table.where(row))
            if not text or text.isspace():
                if not task.allow_empty:
                    raise _bad_text(f'the text in column "{name}" is empty', table.where(row))
                empty += 1
            elif not text.isascii() and not is_valid_text(text):
                raise _bad_text(f'the text in column "{name}" holds half a character (a lone surrogate)', table.where(row))
    if empty:
        reporter.warn(f"{table.place}: {empty} empty texts, as the official files have them")
    return list(zip(*columns, strict=True))


def read_labels(values: Sequence[Any], task: Task, where: Where) -> Labels | None:
    """Class ids by name or by id, or scores; None if the labels of all rows are hidden (empty, or -1 as on the Hub).

    An id is accepted only where no name of the task is itself a whole number, so that nothing is ambiguous.
    """
    texts = [plain(value) for value in values]
    if _all_hidden(texts, task):
        return None
    if task.is_regression:
        return [_score(text, task, where, row) for row, text in enumerate(texts)]
    known = known_labels(task)
    for row, text in enumerate(texts):
        if text not in known:
            raise _outside(f'the label "{text}" is none of the task\'s', nearest(text, task.label.names or ()), where(row))
    return [known[text] for text in texts]


def known_labels(task: Task) -> dict[str, int]:
    """Every text that stands for a class -> its id."""
    names = list(task.label.names or ())
    by_name = {name: i for i, name in enumerate(names)}
    if any(WHOLE_NUMBER.fullmatch(name) for name in names):
        return by_name
    return {str(i): i for i in range(len(names))} | by_name


def plain(value: Any) -> str:
    """A label as text: 1.0 is "1", true is "true", what is not there is empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value).strip()
    return text.split(".")[0] if "." in text and WHOLE_NUMBER.fullmatch(text) else text


def _all_hidden(texts: list[str], task: Task) -> bool:
    hidden = {""}
    if "-1" not in (task.label.names or ()) and (not task.is_regression or task.label.range is not None):
        hidden.add("-1")
    return bool(texts) and set(texts) <= hidden


def _score(text: str, task: Task, where: Where, row: int) -> float:
    low, high = task.label.range or (-math.inf, math.inf)
    try:
        score = float(text)
    except ValueError:
        raise _outside(f'the label "{text}" is no number', "A number.", where(row)) from None
    if not (math.isfinite(score) and low <= score <= high):
        raise _outside(f'the score "{text}" is outside the range', f"{low} to {high}.", where(row))
    return score


def label_text(task: Task, label: int | float) -> str | float:
    """A label as it is written to files: a class's name, or the score."""
    return float(label) if task.is_regression else cast(tuple[str, ...], task.label.names)[int(label)]


def _kind(value: Any) -> str:
    return "missing" if value is None else f"no text but {type(value).__name__}"


def _bad_text(what: str, where: str) -> MbertError:
    return MbertError(
        "M352",
        what,
        where=where,
        allowed="A text with at least one character that is no space, in every row.",
        fix="Mend or delete that row, or name another column: --text COLUMN.",
    )


def _outside(what: str, allowed: str, where: str) -> MbertError:
    return MbertError(
        "M351",
        what,
        where=where,
        allowed=allowed,
        fix="Correct the row, or name the labels: label.names in the task's TOML, or --set data.labels=[...].",
    )


def _no_labels(table: Table) -> MbertError:
    return MbertError(
        "M359",
        "the labels of all rows are hidden, and training needs them",
        where=table.place,
        allowed="A training file with a label in every row.",
        fix="Name the file and column that have the labels: --train-file FILE --label COLUMN.",
    )
