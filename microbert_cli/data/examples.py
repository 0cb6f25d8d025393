"""Examples of a task, with one or two texts and a label or none, and how they are read from a table."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from microbert_cli.data.labels import and_more, has_labels, label_values, missing_labels, plain, read_labels
from microbert_cli.data.limits import MAX_TEXT_LENGTH, check_text
from microbert_cli.data.tables import Table
from microbert_cli.data.tables.stored import RowNumbers, StoredColumn, StoredRows, taken
from microbert_cli.data.tables.table import empty
from microbert_cli.data.words.sentences import as_sentences, with_aliases
from microbert_cli.errors import MbertError
from microbert_cli.recipe.task import ColumnName, Task
from microbert_cli.recipe.task_kinds import Labels
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.table_format import format_option
from microbert_cli.text import is_valid_text

if TYPE_CHECKING:
    from microbert_cli.data.soft_labels import SoftColumns, SoftLabels


@dataclass(frozen=True)
class Examples:
    """The rows that a model is trained or scored on.

    texts        one or two strings a row; of a large table they lie on the disk (`tables/stored.py`)
    labels       class ids, scores, or tuples of class ids (several labels a row, or one a word); None = hidden; of one
                 augmented row None = only a teacher can label it
    ids          the row's name in its file; without them its position
    augmented    which rows were made by varying others; None = all are original
    source       of augmented data: the position of the original among the original rows
    soft         what a table says a teacher said of each row (`soft_labels.py`); None = nothing
    fingerprint  sha256 over texts, labels and flags
    """

    texts: Sequence[tuple[str, ...]]
    labels: Labels | None = None
    ids: Sequence[str] | None = None
    augmented: list[bool] | None = None
    source: list[int] | None = None
    fingerprint: str = ""
    soft: "SoftLabels | None" = None

    def __post_init__(self) -> None:
        if self.ids is None:
            numbers = np.arange(len(self.texts))
            ids = RowNumbers(numbers) if isinstance(self.texts, StoredRows) else list(map(str, numbers.tolist()))
            object.__setattr__(self, "ids", ids)
        columns = (self.labels, self.ids, self.augmented, self.source, self.soft)
        assert all(column is None or len(column) == len(self.texts) for column in columns)
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", _fingerprint(self))

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> "Examples":
        """Returns the rows at these positions, in this order."""
        order = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices), dtype=np.int64)
        columns = (self.texts, self.labels, self.ids, self.augmented, self.source, self.soft)
        texts, labels, ids, augmented, source, soft = (taken(column, order) for column in columns)
        return Examples(texts, labels, ids, augmented, source, soft=soft)

    def limit(self, count: int | None, seed: int = 0) -> "Examples":
        """Returns at most `count` rows, drawn by the seed, in the order of the file; all rows for None."""
        if count is None or count >= len(self):
            return self
        return self.take(sorted(np.random.default_rng(seed).permutation(len(self))[:count]))


def _fingerprint(rows: Examples) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(rows.texts), 4096):
        block = rows.texts[start : start + 4096]
        digest.update("".join("\x1f".join(texts) + "\x1e" for texts in block).encode("utf-8", "surrogatepass"))
    for column in (rows.labels, rows.augmented):
        digest.update(repr(column).encode())
    if rows.soft is not None:
        digest.update(repr(rows.soft).encode())
    return digest.hexdigest()


def from_table(
    table: Table,
    task: Task,
    split: str,
    *,
    columns: Mapping[str, ColumnName] | None = None,
    row_id: Sequence[str] = (),
    soft: "SoftColumns | None" = None,
    skip_empty: bool = False,
    repair_tags: bool = False,
    reporter: Reporter = SILENT,
) -> Examples:
    """Reads a table as rows of the task.

    columns     logical name -> name or position in the table, where they differ
    row_id      the column that names a row: the first of these that is there
    skip_empty  passes over rows without a text or label, and says how many
    soft        the columns of soft labels; rows that have them need no label to be trained on
    The label column may be missing in test splits, and beside soft labels in train.

    Raises M253 (no such column), M351 (label), M352 (text), M359, M373,
    M378 (several labels a row).
    """
    column_names: dict[str, ColumnName] = {name: name for name in (*task.text, task.label.column)} | dict(columns or {})
    if task.kind.of_words:
        column_names = with_aliases(column_names)
    taught = split == "train" and soft is not None and soft.are_in(table)
    label_column = column_names[task.label.column]
    labelled = has_labels(table, task, label_column) or not (split.startswith("test") or taught)
    if task.kind.of_words:
        table = as_sentences(table, task, column_names, labelled=labelled, repair=repair_tags, keep_empty=skip_empty)
    if skip_empty:
        table = without_empty_rows(table, task, column_names, labelled and not task.kind.of_words, reporter)
    texts = _texts(table, task, column_names, reporter)
    labels = read_labels(label_values(table, task, label_column), task, table) if labelled else None
    if labels is None and split == "train" and not taught:
        raise _no_labels(table)
    ids = table.find(row_id)
    soft_labels = soft.read(table, task) if soft is not None else None
    return Examples(texts, labels, [str(value) for value in table.read(ids)] if ids else None, soft=soft_labels)


def unlabelled(
    table: Table,
    task: Task,
    reporter: Reporter = SILENT,
    *,
    soft: "SoftColumns | None" = None,
    skip_empty: bool = False,
) -> Examples:
    """Reads a table's texts as rows of the task, without labels but for soft ones. Raises M253, M352, M373, M385, M386."""
    column_names: dict[str, ColumnName] = {name: name for name in task.text}
    if task.kind.of_words:
        column_names = with_aliases(column_names)
        table = as_sentences(table, task, column_names, labelled=False, keep_empty=skip_empty)
    if skip_empty:
        table = without_empty_rows(table, task, column_names, False, reporter)
    return Examples(_texts(table, task, column_names, reporter), soft=soft.read(table, task) if soft is not None else None)


def without_empty_rows(
    table: Table, task: Task, column_names: Mapping[str, ColumnName], labelled: bool, reporter: Reporter = SILENT
) -> Table:
    """Returns the table without rows that lack a text, or a label where others have one; warns how many they are."""
    columns = [table.column(column_names[name]) for name in task.text]
    rows = [i for i, texts in enumerate(zip(*columns, strict=True)) if not any(map(_is_empty, texts))]
    if labelled and task.kind.cells(()) is None:  # of several labels a row there may be none
        cells = [plain(value) for value in table.column(column_names[task.label.column])]
        missing = missing_labels(cells, task.label.names or ())
        if len(missing) < len(cells):
            rows = [i for i in rows if i not in missing]
    if len(rows) == len(table):
        return table
    if not rows:
        raise empty(Path(table.place), "At least one row with a text and a label.")
    reporter.warn_once(
        f"{table.place}: {len(table) - len(rows):,} of {len(table):,} rows lack a text or a label and are passed over"
    )
    return table.take(rows)


def _is_empty(text: Any) -> bool:
    return text is None or isinstance(text, float) and math.isnan(text) or isinstance(text, str) and not text.strip()


def _texts(table: Table, task: Task, column_names: Mapping[str, ColumnName], reporter: Reporter) -> Sequence[tuple[str, ...]]:
    columns = [table.column(column_names[name]) for name in task.text]
    wrong: dict[int, str] = {}
    empty_count = 0
    for name, column in zip(task.text, columns, strict=True):
        for row, text in enumerate(column):
            if not isinstance(text, str):
                wrong.setdefault(row, f'the text in column "{name}" is {_kind(text)}')
                continue
            if len(text) > MAX_TEXT_LENGTH:
                check_text(text, table.where(row))
            if not text or text.isspace():
                empty_count += 1
                if not task.allow_empty:
                    wrong.setdefault(row, f'the text in column "{name}" is empty')
            elif not text.isascii() and not is_valid_text(text):
                wrong.setdefault(row, f'the text in column "{name}" holds half a character (a lone surrogate)')
    if wrong:
        raise _bad_texts(table, wrong)
    if empty_count:
        reporter.warn(f"{table.place}: {empty_count} empty texts, as the official files have them")
    stored = [column for column in columns if isinstance(column, StoredColumn)]
    return StoredRows(stored) if len(stored) == len(columns) else list(zip(*columns, strict=True))


def _kind(value: Any) -> str:
    return "missing" if value is None else f"no text but {type(value).__name__}"


def _bad_texts(table: Table, wrong: Mapping[int, str]) -> MbertError:
    rows = sorted(wrong)
    absent = any(what.endswith(("empty", "missing")) for what in wrong.values())
    return MbertError(
        "M352",
        wrong[rows[0]] + and_more(len(rows)),
        where=table.where_all(rows),
        allowed="A text with at least one character that is no space, in every row.",
        fix=f"Mend or delete {'that row' if len(rows) == 1 else 'these rows'}, or name another column: --text COLUMN"
        + (f"; to pass over rows without text: {format_option('skip_empty', 'true')}" if absent else "."),
    )


def _no_labels(table: Table) -> MbertError:
    return MbertError(
        "M359",
        "the labels of all rows are hidden, and training needs them",
        where=table.place,
        allowed="A training file with a label in every row.",
        fix="Name the file and column that have the labels: --train-file FILE --label COLUMN.",
    )
