"""A user's own files as a task: what the label is follows from the training file, and is noted for the user."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from microbert_cli.data.examples import Examples, from_table, without_empty_rows
from microbert_cli.data.held_out import HELD_OUT, MOST_HELD_OUT, split_by_hash
from microbert_cli.data.labels import (
    MOST_NUMBERED_CLASSES,
    and_more,
    check_one_label_a_row,
    class_order,
    has_labels,
    label_names,
    missing_labels,
    plain,
    score_or_classes,
)
from microbert_cli.data.soft_labels import SoftColumns
from microbert_cli.data.tables import AS_SHOWN, Table, read_table
from microbert_cli.data.tables.stored import StoredRows
from microbert_cli.data.words.sentences import tags_of_table
from microbert_cli.errors import MbertError
from microbert_cli.recipe.task import CLASSES, LABELS, Label, Task, load_task
from microbert_cli.recipe.task_kinds import KindName, too_few_classes
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import atomic
from microbert_cli.table_format import TABLE_FILES, TableFormat, format_option, name_of_files
from microbert_cli.text import is_valid_text


def own_task(
    train_file: str | Path | None = None,
    dev_file: str | Path | None = None,
    test_file: str | Path | None = None,
    *,
    text: Sequence[str] = ("text",),
    label: str = "label",
    labels: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    kind: KindName | None = None,
    name: str | None = None,
    form: TableFormat = AS_SHOWN,
    soft: SoftColumns | None = None,
    reporter: Reporter = SILENT,
) -> Task:
    """Makes a task from files and column names alone.

    labels  the classes in the order of the model's outputs; None: the training file shows them
    columns  of 0 and 1, one for each label of rows that may have several
    kind    "score" for regression, "classes", "labels" for several a row; None: likewise
    form    what is said of the files' format
    soft    columns of soft labels: the training file then need not have the label's, and another file shows the classes
    Raises M253 for a column that is not there, M252 for a file, M030 for what makes no task, M358 for a single class.
    """
    named = {"train": train_file, "dev": dev_file, "test": test_file}
    files = {split: str(path) for split, path in named.items() if path is not None}
    values = {
        "name": name or name_of_files(next(iter(files.values()), "task")),
        "files": {**files, **form.model_dump(exclude_defaults=True)},
        "text": (text,) if isinstance(text, str) else tuple(text),
        "label": {"column": label, "columns": columns, "names": tuple(labels) if labels else None, "kind": kind},
    }
    return complete(load_task(values), reporter, soft)


def complete(task: Task, reporter: Reporter = SILENT, soft: SoftColumns | None = None) -> Task:
    """Returns the task with its label inferred from the training file: sorted names, whole numbers in order, or a score.

    What numbers are, `score_or_classes` says; a file of named classes says so itself. A complete task comes back as it is.
    """
    if task.kind.is_complete or task.files is None:
        return task
    table = _labelled_table(task, reporter, soft)
    if task.kind.of_words:
        kind, names, hint = task.kind.name, tags_of_table(table, task, repair=task.files.repair_tags), ""
    else:
        kind, names, hint = _infer_kind(table, task)
    conclusion = f"has the {'tags' if task.kind.of_words else kind} {', '.join(names)}" if names else "is a score"
    reporter.note(f'task {task.name}: column "{task.label.column}" {conclusion}{hint}')
    label = Label(column=task.label.column, names=names or None, kind=kind, range=task.label.range)
    return load_task({**task.model_dump(exclude={"label"}, exclude_unset=True), "label": label.model_dump()})


def own_rows(task: Task, split: str, reporter: Reporter = SILENT, soft: SoftColumns | None = None) -> Examples:
    """Reads a split of a user's own files. Without a dev file part of train is held out, chosen by the hash of the text."""
    assert task.files is not None
    path = task.files.path(split)
    source = path or (task.files.train if split == "dev" else None)
    if source is None:
        raise _no_file(task, split)
    rows = _whole(task, source, split if path else "train", reporter, soft)
    if path is None:
        if rows.labels is None:
            raise _no_dev_labels(source, task)
        return rows.take(np.flatnonzero(_dev_rows(rows, source, task)[0]))
    if split == "train":
        if task.files.dev is None:
            is_dev, by_class = _dev_rows(rows, source, task)
            kept = "; every class keeps at least one row in train" if by_class else ""
            size = f", {MOST_HELD_OUT:,} rows instead of a tenth" if len(rows) > MOST_HELD_OUT / HELD_OUT else ""
            rows = rows.take(np.flatnonzero(~is_dev))
            reporter.note(
                f"task {task.name}: no dev file, so a part of {source.name} is held out{size}: {len(rows)} rows remain{kept}"
            )
        if rows.labels is not None:
            task.kind.check_training_labels(rows.labels, str(source))
    return rows


_read: dict[str, tuple[Examples, list[tuple[np.ndarray, bool]]]] = {}  # the last large table, whose texts lie on the disk


def _whole(task: Task, source: Path, split: str, reporter: Reporter, soft: SoftColumns | None) -> Examples:
    """Reads all rows of a file; a large one that is asked for again, as train and as dev, is read once."""
    assert task.files is not None
    form = task.files.format
    key = ""
    with suppress(OSError, ValueError):  # the reader says what is wrong with the name
        facts = [str(source), atomic.file_stamp(source), split, form.model_dump(), task.text, task.allow_empty, repr(soft)]
        key = atomic.digest([*facts, task.label.model_dump(mode="json")])
    if key in _read:
        return _read[key][0]
    table = read_table(source, form, reporter=reporter)
    rows = from_table(
        table, task, split, soft=soft, skip_empty=form.skip_empty, repair_tags=form.repair_tags, reporter=reporter
    )
    if key and isinstance(rows.texts, StoredRows):
        _read.clear()
        _read[key] = rows, []
    return rows


def _dev_rows(rows: Examples, path: Path, task: Task) -> tuple[np.ndarray, bool]:
    """Returns which rows of a training file are dev, and whether classes had to be given their shares."""
    earlier = next((splits for whole, splits in _read.values() if whole is rows), [])
    if earlier:
        return earlier[0]
    classes = task.kind.strata(rows.labels)
    is_dev, by_class = split_by_hash(rows.texts, classes)
    if is_dev.all() or not is_dev.any():
        distinct = len(set(rows.texts))
        few = f"{len(rows)} rows of {distinct} different texts are too few to hold some out as dev"
        if classes and distinct > 2:
            few += f", as each of the {len(set(classes))} classes must keep one"
        raise MbertError(
            "M366",
            few,
            where=str(path),
            allowed="At least three different texts, and a class with two of them; far more for a score that means something.",
            fix="Add rows, or name a dev file: --dev-file FILE.",
        )
    earlier.append((is_dev, by_class))
    return is_dev, by_class


def _labelled_table(task: Task, reporter: Reporter, soft: SoftColumns | None = None) -> Table:
    assert task.files is not None
    paths = [path for path in (task.files.train, task.files.dev, task.files.test) if path is not None]
    if not paths:
        raise _no_file(task, "train")
    tables = (read_table(path, task.files.format, reporter=reporter) for path in (paths if soft else paths[:1]))
    table = first = next(tables)
    if not has_labels(first, task, task.label.column):
        table = next((other for other in tables if has_labels(other, task, task.label.column)), first)
    if task.files.skip_empty and not task.kind.of_words:
        table = without_empty_rows(table, task, {name: name for name in (*task.text, task.label.column)}, True, reporter)
    return table


def _infer_kind(table: Table, task: Task) -> tuple[KindName, tuple[str, ...], str]:
    """Returns the kind of label, the names of its classes, and a word on the choice for the note."""
    for name in task.text:
        table.column(name)
    if task.kind.independent:
        return (LABELS, *label_names(table, task))
    values = table.column(task.label.column)
    check_one_label_a_row(values, table, task.label.column)
    cells = [plain(value) for value in values]
    if missing := sorted(missing_labels(cells)):
        raise _no_label(table, missing, cells[missing[0]], task.label.column)
    for row, cell in enumerate(cells):
        if not cell.isprintable() and len(cell.splitlines()) > 1 or not is_valid_text(cell):
            raise _no_line(table, row, cell)
    counts = Counter(cells)
    named = table.classes.get(task.label.column, ())
    kind, hint = task.label.kind or CLASSES, ""
    if task.label.kind is None and not named:
        kind, hint = score_or_classes(counts)
    if kind != CLASSES:
        return kind, (), hint
    if len(counts) < 2:
        raise too_few_classes(table.place, set(counts), f'all {len(cells)} rows have the label "{cells[0]}"')
    if set(counts) <= set(named):  # their order in the file is that of the class numbers
        return kind, tuple(name for name in named if name in counts), ", named by the file itself"
    if len(counts) > MOST_NUMBERED_CLASSES and 2 * len(counts) > len(cells):
        raise _too_many_classes(table.place, task.label.column, len(counts), len(cells))
    return kind, tuple(class_order(list(counts))), hint


def _too_many_classes(place: str, column: str, distinct: int, rows: int) -> MbertError:
    return MbertError(
        "M363",
        f'column "{column}" has {distinct} different values in {rows} rows, so it is hardly a label',
        where=place,
        allowed="A column with few different texts or whole numbers, or a numeric score.",
        fix="Name the label's column: --label COLUMN; for a score say --set data.kind=score.",
    )


def _no_label(table: Table, rows: Sequence[int], cell: str, column: str) -> MbertError:
    written = f', only "{cell}" beside numbers' if cell else ""
    return MbertError(
        "M365",
        f'there is no label in column "{column}"{written}{and_more(len(rows))}',
        where=table.where_all(rows),
        allowed="A label in every row of a training file.",
        fix=f"Label or delete {'the row' if len(rows) == 1 else 'these rows'}; to pass over rows without label: "
        f"{format_option('skip_empty', 'true')}",
    )


def _no_line(table: Table, row: int, value: str) -> MbertError:
    return MbertError(
        "M380",
        f"the label {value[:80]!r} is no line of text",
        where=table.where(row),
        allowed="Labels of one line each, in whole characters.",
        fix="Correct the row, or name the label's column: --label COLUMN.",
    )


def _no_dev_labels(train: Path, task: Task) -> MbertError:
    return MbertError(
        "M387",
        f'there is no dev file, and the training file has no label column "{task.label.column}" to score held-out rows by',
        where=str(train),
        allowed="A dev file with true labels: soft labels teach, and do not measure.",
        fix="Name it: --dev-file FILE, or the label's column: --label COLUMN.",
    )


def _no_file(task: Task, split: str) -> MbertError:
    return MbertError(
        "M256",
        f"no file is named for {split}",
        where=f"task {task.name}",
        allowed=f"A file of rows: {TABLE_FILES}.",
        fix=f"--{split}-file FILE, or files.{split} in the task's TOML.",
    )
