"""A user's own files as a task: what the label is follows from the training file, and is noted for the user."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from microbert_cli.data.examples import Examples, from_table, plain
from microbert_cli.data.tables import Table, read_table
from microbert_cli.errors import MbertError
from microbert_cli.recipe.task import CLASSES, Label, Task, load_task
from microbert_cli.recipe.task_kinds import KindName, too_few_classes
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.text import is_valid_text, natural_key

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
WHOLE = re.compile(r"[+-]?\d{1,18}")
MOST_NUMBERED_CLASSES = 20
HELD_OUT, FEWEST_HELD_OUT, LARGEST_SHARE = 0.1, 50, 1 / 3


def own_task(
    train_file: str | Path | None = None,
    dev_file: str | Path | None = None,
    test_file: str | Path | None = None,
    *,
    text: Sequence[str] = ("text",),
    label: str = "label",
    labels: Sequence[str] | None = None,
    kind: KindName | None = None,
    name: str | None = None,
    reporter: Reporter = SILENT,
) -> Task:
    """Makes a task from files and column names alone.

    labels  the classes in the order of the model's outputs; None: the training file shows them
    kind    "score" for regression, "classes"; None: likewise
    Raises M253 for a column that is not there, M252 for a file, M030 for what makes no task, M358 for a single class.
    """
    named = {"train": train_file, "dev": dev_file, "test": test_file}
    files = {split: str(path) for split, path in named.items() if path is not None}
    stem = Path(next(iter(files.values()), "task")).name.split(".")[0]
    values = {
        "name": name or re.sub(r"^[^A-Za-z0-9]+|[^\w.-]+", "-", stem).strip("-") or "task",
        "files": files,
        "text": (text,) if isinstance(text, str) else tuple(text),
        "label": {"column": label, "names": tuple(labels) if labels else None, "kind": kind},
    }
    return complete(load_task(values), reporter)


def complete(task: Task, reporter: Reporter = SILENT) -> Task:
    """Returns the task with its label inferred from the training file: sorted names, whole numbers in order, or a score.

    Numbers with fractions, or more than 20 different ones, are a score. A task that is complete comes back as it is.
    """
    if task.kind.is_complete or task.files is None:
        return task
    table = _labelled_table(task)
    kind, names = _infer_kind(table, task)
    conclusion = f"has the classes {', '.join(names)}" if names else "is a score"
    reporter.note(f'task {task.name}: column "{task.label.column}" {conclusion}')
    label = Label(column=task.label.column, names=names or None, kind=kind, range=task.label.range)
    return load_task({**task.model_dump(exclude={"label"}, exclude_unset=True), "label": label.model_dump()})


def own_rows(task: Task, split: str, reporter: Reporter = SILENT) -> Examples:
    """Reads a split of a user's own files. Without a dev file part of train is held out, chosen by the hash of the text."""
    assert task.files is not None
    if path := task.files.path(split):
        rows = from_table(read_table(path), task, split, reporter=reporter)
        if split == "train" and task.files.dev is None:
            rows = rows.take(_train_and_dev(rows, path)[0])
            reporter.note(f"task {task.name}: no dev file, so a part of {path.name} is held out: {len(rows)} rows remain")
    elif split == "dev" and (path := task.files.train):
        everything = from_table(read_table(path), task, "train", reporter=reporter)
        rows = everything.take(_train_and_dev(everything, path)[1])
    else:
        raise _no_file(task, split)
    if split == "train" and rows.labels is not None:
        task.kind.check_training_labels(rows.labels, str(path))
    return rows


def _train_and_dev(rows: Examples, path: Path) -> tuple[list[int], list[int]]:
    train, dev = held_out(rows.texts)
    if not train or not dev:
        raise MbertError(
            "M366",
            f"{len(rows)} rows of {len(set(rows.texts))} different texts are too few to hold some out as dev",
            where=str(path),
            allowed="At least three different texts; far more for a score that means something.",
            fix="Add rows, or name a dev file: --dev-file FILE.",
        )
    return train, dev


def held_out(texts: Sequence[tuple[str, ...]]) -> tuple[list[int], list[int]]:
    """Returns the positions of train and dev rows: a tenth is dev, or 50 rows if that is more and no more than a third.

    Rows of equal text (but for case and space) stay together. The split depends on the texts alone, not on their order.
    """
    hashes = [_text_hash(row) for row in texts]
    sizes = Counter(hashes)
    wanted_size = max(round(HELD_OUT * len(texts)), min(FEWEST_HELD_OUT, int(LARGEST_SHARE * len(texts))))
    dev: set[bytes] = set()
    size = 0
    for key in sorted(sizes):
        if size >= wanted_size:
            break
        dev.add(key)
        size += sizes[key]
    train = [i for i, key in enumerate(hashes) if key not in dev]
    return train, [i for i, key in enumerate(hashes) if key in dev]


def _text_hash(texts: tuple[str, ...]) -> bytes:
    same = "\x1f".join(" ".join(text.split()).casefold() for text in texts)
    return hashlib.sha256(same.encode()).digest()


def _labelled_table(task: Task) -> Table:
    assert task.files is not None
    path = task.files.train or task.files.dev or task.files.test
    if path is None:
        raise _no_file(task, "train")
    return read_table(path)


def _infer_kind(table: Table, task: Task) -> tuple[KindName, tuple[str, ...]]:
    for name in task.text:
        table.column(name)
    values = [plain(value) for value in table.column(task.label.column)]
    if "" in values:
        raise _no_label(table, values.index(""), task.label.column)
    for row, value in enumerate(values):
        if not value.isprintable() and len(value.splitlines()) > 1 or not is_valid_text(value):
            raise _no_line(table, row, value)
    distinct = set(values)
    if task.label.kind is None and _is_score(distinct):
        return "score", ()
    if len(distinct) < 2:
        raise too_few_classes(table.place, distinct, f'all {len(values)} rows have the label "{values[0]}"')
    if len(distinct) > MOST_NUMBERED_CLASSES and 2 * len(distinct) > len(values):
        raise _too_many_classes(table.place, task.label.column, len(distinct), len(values))
    return CLASSES, tuple(sorted(distinct, key=_order(distinct)))


def _is_score(distinct: set[str]) -> bool:
    if not all(NUMBER.fullmatch(value) for value in distinct):
        return False
    return len(distinct) > MOST_NUMBERED_CLASSES or not all(WHOLE.fullmatch(value) for value in distinct)


def _order(distinct: set[str]) -> Any:
    """Returns the key by which classes are sorted: numbers by size, names with numbers by these, else as texts."""
    if all(NUMBER.fullmatch(value) for value in distinct):
        return lambda value: (float(value), value)
    return natural_key


def _too_many_classes(place: str, column: str, distinct: int, rows: int) -> MbertError:
    return MbertError(
        "M363",
        f'column "{column}" has {distinct} different values in {rows} rows, so it is hardly a label',
        where=place,
        allowed="A column with few different texts or whole numbers, or a numeric score.",
        fix="Name the label's column: --label COLUMN; for a score say --set data.kind=score.",
    )


def _no_label(table: Table, row: int, column: str) -> MbertError:
    return MbertError(
        "M365",
        f'there is no label in column "{column}"',
        where=table.where(row),
        allowed="A label in every row of a training file.",
        fix="Label the row or delete it.",
    )


def _no_line(table: Table, row: int, value: str) -> MbertError:
    return MbertError(
        "M380",
        f"the label {value[:80]!r} is no line of text",
        where=table.where(row),
        allowed="Labels of one line each, in whole characters.",
        fix="Correct the row, or name the label's column: --label COLUMN.",
    )


def _no_file(task: Task, split: str) -> MbertError:
    return MbertError(
        "M256",
        f"no file is named for {split}",
        where=f"task {task.name}",
        allowed="A CSV, TSV, JSONL or Parquet file.",
        fix=f"--{split}-file FILE, or files.{split} in the task's TOML.",
    )
