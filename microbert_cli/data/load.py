"""Loads the rows of a task's split: built in, a user's own files, a GLUE folder, or the Hub.

Task data is looked for in this order: the folder that is named, `MBERT_DATA`, the local cache of Hugging Face data
sets, and the task's Hub id, which is said aloud and refused under `HF_HUB_OFFLINE`.
"""

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from microbert_cli.data.augmented_files import load_augmented, write_augmented
from microbert_cli.data.examples import Examples, from_table
from microbert_cli.data.labels import read_labels
from microbert_cli.data.own_files import complete, own_rows, own_task
from microbert_cli.data.soft_labels import SoftColumns
from microbert_cli.data.tables import Table, read_table
from microbert_cli.data.tables.arrow import named_classes
from microbert_cli.data.transfer_set import load_transfer
from microbert_cli.errors import MbertError, RowsMissingError, nearest
from microbert_cli.hub import NAMES, ask_hub, cached_dataset, dataset_cache, hub_advice, is_offline
from microbert_cli.recipe.task import FolderSource, HubSource, Task
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.table_format import TableFormat

__all__ = ["Examples", "complete", "load_augmented", "load_split", "load_transfer", "own_task", "write_augmented"]

DATA = "MBERT_DATA"


def load_split(
    task: Task,
    split: str,
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
    soft: SoftColumns | None = None,
    reporter: Reporter = SILENT,
) -> Examples:
    """Loads one split: train, dev, test, or a further one of the task, such as dev_mismatched.

    data_dir  a GLUE folder, or the task's own folder in it;  limit  at most so many rows, always the same ones
    soft      the columns of soft labels in files of the user's own
    Raises M251 where the task has no such split, M256 where no file is named for it, M250 where its rows are nowhere, and
    what readers and rows raise.
    """
    if split not in task.splits:
        raise _no_split(task, split)
    if task.builtin:
        rows = _built_in(task, split)
    elif task.files:
        rows = own_rows(task, split, reporter, soft)
    else:
        rows = _benchmark(task, split, data_dir, reporter)
    if split.startswith("dev") and rows.labels and len(set(rows.labels)) == 1:
        label = task.kind.label_text(rows.labels[0])
        reporter.warn_once(
            f"task {task.name}: all {len(rows)} rows of {split} have the label {label}; its scores cannot tell models apart"
        )
    return rows.limit(limit)


Rows = tuple[list[tuple[str, ...]], list[Any]]


def _from_corpus(module: str, function: str) -> Callable[[str], Rows]:
    """Returns what reads a split of an embedded task: its module of data/corpus/ is loaded when a split is asked for."""

    def rows(split: str) -> Rows:
        texts, labels = getattr(import_module(f"microbert_cli.data.corpus.{module}"), function)(split)
        return [(text,) for text in texts], labels

    return rows


BUILT_IN_TASKS: dict[str, Callable[[str], Rows]] = {
    "python-docs": _from_corpus("python_docs", "python_task_rows"),
    "python-shuffled": _from_corpus("python_tasks", "shuffled_rows"),
    "python-areas": _from_corpus("python_tasks", "area_rows"),
    "python-gaps": _from_corpus("python_gaps", "python_gap_rows"),
    "python-raises": _from_corpus("python_functions", "raises_rows"),
    "python-topics": _from_corpus("python_topics", "topic_rows"),
    "python-roles": _from_corpus("python_roles", "python_role_rows"),
}


def _built_in(task: Task, split: str) -> Examples:
    if task.builtin not in BUILT_IN_TASKS:
        raise MbertError(
            "M032",
            f'there is no built-in source "{task.builtin}"',
            where=f"task {task.name}, builtin",
            allowed=nearest(str(task.builtin), BUILT_IN_TASKS),
            fix="Correct the name, or give the task a [folder], [hub] or [files].",
        )
    texts, labels = BUILT_IN_TASKS[task.builtin](split)
    table = Table(f"{task.builtin} {split}", (task.label.column,), range(1, len(labels) + 1), lambda _: labels, unit="row")
    return Examples(texts, read_labels(labels, task, table))


def _benchmark(task: Task, split: str, data_dir: Path | None, reporter: Reporter) -> Examples:
    searched: list[str] = []
    folders = [data_dir] if data_dir else [Path(os.environ[DATA])] if os.environ.get(DATA) else []
    if task.folder and split in task.folder.splits:
        for folder in folders:
            if path := _find(task.folder, split, folder, searched):
                return _folder_rows(task, task.folder, split, path, reporter)
    if data_dir is None and task.hub and split in task.hub.splits:
        if table := _cached(task.hub, split, searched):
            return _hub_rows(task, task.hub, split, table, reporter)
        if not is_offline():
            return _hub_rows(task, task.hub, split, _download(task.hub, split, searched, reporter), reporter)
    raise _rows_missing(task, split, searched, folder_given=data_dir is not None)


def check_rows_present(task: Task, split: str, *, data_dir: Path | None = None) -> None:
    """Raises M250 where the rows of a benchmark's split are nowhere; reads none, and asks no network."""
    if task.builtin or task.files or split not in task.splits:
        return
    searched: list[str] = []
    folders = [data_dir] if data_dir else [Path(os.environ[DATA])] if os.environ.get(DATA) else []
    if task.folder and split in task.folder.splits and any(_find(task.folder, split, each, searched) for each in folders):
        return
    if data_dir is None and task.hub and split in task.hub.splits:
        if not is_offline() or _cached(task.hub, split, searched) is not None:
            return
    raise _rows_missing(task, split, searched, folder_given=data_dir is not None)


def _find(source: FolderSource, split: str, folder: Path, searched: list[str]) -> Path | None:
    for candidate_dir in (folder / source.name, folder):
        for name in source.splits[split].files:
            searched.append(str(candidate_dir / name))
            if os.path.isfile(candidate_dir / name):  # False, not an error, where a name is longer than a name can be
                return candidate_dir / name
    return None


def _folder_rows(task: Task, source: FolderSource, split: str, path: Path, reporter: Reporter) -> Examples:
    file = source.splits[split]
    skip = source.skip_broken_rows
    form = TableFormat(delimiter="\t", quoting=source.quoting, header=file.header)
    table = read_table(path, form, skip_broken_rows=skip, reporter=reporter)
    columns = {**source.columns, **file.columns}
    return from_table(table, task, split, columns=columns, row_id=source.row_id if file.header else (), reporter=reporter)


def _cached(source: HubSource, split: str, searched: list[str]) -> Table | None:
    """Reads the split from the `datasets` cache of an earlier download, without asking the network."""
    searched.append(f"{dataset_cache(source.id)} (cache of Hugging Face data sets)")
    dataset = cached_dataset(source.id, source.config, source.splits[split])
    return None if dataset is None else hub_table(dataset, source, split)


def _download(source: HubSource, split: str, searched: list[str], reporter: Reporter) -> Table:
    import datasets

    dataset_name = " ".join(part for part in (source.id, source.config) if part)
    reporter.note(f"{dataset_name}: {source.splits[split]} comes from the Hugging Face Hub")
    datasets.disable_progress_bars()
    try:
        ask_hub(source.id, "dataset")
        dataset = datasets.load_dataset(source.id, source.config, split=source.splits[split])
    except Exception as error:  # the network and the libraries below fail in more ways than can be listed
        raise _hub_failed(dataset_name, searched, error) from error
    return hub_table(dataset, source, split)


def hub_table(dataset: Any, source: HubSource, split: str) -> Table:
    """Makes a table of a `datasets.Dataset`; class labels become their names, hidden ones stay -1.

    Scores kept in 32 bits become the decimals they stand for, so that 3.8 is the same here and in the folder's file.
    """

    def read(name: str) -> list[Any]:
        values, kind = list(dataset[name]), dataset.features[name]
        if classes := getattr(kind, "names", None):
            return [classes[value] if value is not None and value >= 0 else value for value in values]
        if classes := getattr(getattr(kind, "feature", None), "names", None):  # a list of them: labels of words
            return [named_classes(list(value), tuple(classes)) if value is not None else None for value in values]
        return [str(np.float32(value)) for value in values] if getattr(kind, "dtype", "") == "float32" else values

    location = f"{source.id}, {source.config or 'default'}, {source.splits[split]}"
    return Table(location, tuple(dataset.column_names), range(1, len(dataset) + 1), read, unit="row")


def _hub_rows(task: Task, source: HubSource, split: str, table: Table, reporter: Reporter) -> Examples:
    return from_table(table, task, split, columns=source.columns, row_id=(source.row_id,), reporter=reporter)


def _no_split(task: Task, split: str) -> MbertError:
    return MbertError(
        "M251",
        f'it has no split "{split}"',
        where=f"task {task.name}",
        allowed=f"Its splits: {nearest(split, task.splits)}",
        fix=f"Name one of them, or add it: mbert copy tasks {task.name}",
    )


def _rows_missing(task: Task, split: str, searched: list[str], *, folder_given: bool) -> MbertError:
    searched_text = "; ".join(searched) or "nowhere: no folder is named"
    hub = f"{task.hub.id} on the Hub" if task.hub and split in task.hub.splits else None
    offline = f" ({hub} was not asked: {' or '.join(NAMES)} is set)" if hub and not folder_given else ""
    folder = task.folder.name if task.folder else task.name
    return RowsMissingError(
        f"the rows of {task.name} {split} are not to be found",
        where="--data" if folder_given else f"task {task.name}",
        allowed=f"Looked for: {searched_text}{offline}.",
        fix=f"Name the folder that holds {folder}/: --data DIR, or {DATA}=DIR; or allow the Hub: HF_HUB_OFFLINE=0.",
    )


def _hub_failed(dataset_name: str, searched: list[str], error: Exception) -> MbertError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return MbertError(
        "M254",
        f"the Hub did not give {dataset_name}: {reason}",
        where="Hugging Face Hub",
        allowed=f"Looked for before: {'; '.join(searched)}.",
        fix=hub_advice(error, f"name a folder that has the files: --data DIR, or {DATA}=DIR"),
    )


def default_splits(task: Task, submit: bool = False) -> list[str]:
    """Returns the splits whose labels are known: dev and its variants; of a user's own files those that exist."""
    if task.files is not None:
        has_dev = task.files.dev or task.files.train or not task.files.test  # without a dev file part of train is held out
        return [split for split in ("dev", "test") if (has_dev if split == "dev" else task.files.path(split))]
    splits = [split for split in task.splits if split.startswith("dev")]
    if not splits and not submit:
        raise MbertError(
            "M261",
            f"{task.name} has no labelled split to score",
            where=f"task {task.name}",
            allowed="A task with a dev split. AX is predicted with an MNLI model, for a submission.",
            fix=f"mbert evaluate MODEL {task.options} --submission",
        )
    return splits
