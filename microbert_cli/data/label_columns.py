"""Labels of rows that may have several: in one column as lists or `a|b`, or in columns of 0 and 1, one for each label."""

from typing import Any

from microbert_cli.data.labels import and_more, class_order, plain
from microbert_cli.data.tables import Table
from microbert_cli.errors import MbertError
from microbert_cli.recipe.task import ColumnName, Task
from microbert_cli.recipe.task_kinds import too_few_classes

YES_OR_NO = {"1": True, "true": True, "0": False, "false": False}
NOT_GIVEN = {"", "-1"}  # -1 as in test files whose labels are kept secret


def has_labels(table: Table, task: Task, column: ColumnName) -> bool:
    """Whether a table has the task's label column, or any of its label columns."""
    columns = task.label.columns or (column,)
    return any(table.find(name) is not None for name in columns)


def label_values(table: Table, task: Task, column: ColumnName) -> list[Any]:
    """Returns the values of the label column; of several columns of 0 and 1 each row's labels as a list.

    All are None where every cell of these columns is empty or -1: hidden. Raises M253 for a column that is not there, M485 for
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


def label_names(table: Table, task: Task) -> tuple[tuple[str, ...], str]:
    """Returns the labels that a table's rows name, sorted, and a word on what is doubtful; raises M358 for fewer than two."""
    cells = task.kind.cells(table.column(task.label.column)) or []
    counts = task.kind.names_in(cells, table.where_all)
    if len(counts) < 2:
        raise too_few_classes(table.place, set(counts), "the rows name fewer than two different labels")
    several = any(len(names) > 1 for cell in set(cells) if (names := task.kind.names_in([cell], table.where_all)))
    hint = "" if several else '; no row has more than one: the labels of a row are a list, or parted by "|"'
    return tuple(class_order(list(counts))), hint


def _neither(table: Table, wrong: dict[int, str]) -> MbertError:
    rows = sorted(wrong)
    return MbertError(
        "M485",
        wrong[rows[0]] + and_more(len(rows)),
        where=table.where_all(rows),
        allowed="0 or 1, or false or true, in each label column of each row; in a file without labels all empty, or all -1.",
        fix=f"Correct or delete {'the row' if len(rows) == 1 else 'these rows'}, or name other columns: data.label_columns.",
    )
