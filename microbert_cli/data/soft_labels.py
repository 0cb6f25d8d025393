"""Soft labels in a table: what a teacher that is not here - a large language model, a service, people - said of each row.

    label_probabilities = ["p_no", "p_yes"]   a column of numbers for each class, in the order of the task's labels
    label_probabilities = "answers"           one column of JSON: [0.1, 0.9], or {"no": 0.1, "yes": 0.9}
    label_score = "grade"                     a column of numbers: the scores of a task of scores

Probabilities of a row lie in [0, 1] and sum to 1 within 1e-3; those of several labels a row have no sum. As a teacher's outputs
they are

    logits = log max(p, 1e-6)                 whose softmax is p, but for the floor; a score is its own output
    logits = log(p / (1 - p))                 of several labels a row, p within [1e-6, 1 - 1e-6]: their sigmoid is p
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from microbert_cli.data.labels import and_more, plain
from microbert_cli.data.tables import Table
from microbert_cli.errors import MbertError, nearest
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.task import Task

if TYPE_CHECKING:
    import numpy as np

FLOOR = 1e-6
SUM_TOLERANCE = 1e-3
SoftLabels = list[tuple[float, ...]]


class WrongValueError(ValueError):
    """What is wrong with a row's soft label, in a few words."""


@dataclass(frozen=True)
class SoftColumns:
    """The columns of soft labels: one for each output, or a single one of JSON; `key` names them in the recipe."""

    key: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, recipe: Recipe) -> "SoftColumns | None":
        """Returns the columns that a recipe names; None where it names none."""
        data = recipe.data
        if data.label_probabilities is not None:
            named = data.label_probabilities
            return cls("data.label_probabilities", (named,) if isinstance(named, str) else tuple(named))
        return cls("data.label_score", (data.label_score,)) if data.label_score is not None else None

    def are_in(self, table: Table) -> bool:
        """Whether any of the columns is in the table."""
        return any(table.find(name) is not None for name in self.names)

    def read(self, table: Table, task: Task) -> SoftLabels | None:
        """Returns each row's probabilities, or its score, as a tuple; None for a table without any of the columns.

        Raises M253 for some of the columns that is not there, M386 where they are not those of the task's outputs, M385 for
        values that are no probabilities.
        """
        if not self.are_in(table):
            return None
        self._check_number(task, table)
        fix = f"Name the columns as the file does: {self.key}."
        columns = [table.read(table.check_column(name, fix=fix)) for name in self.names]
        wrong: dict[int, str] = {}
        rows: SoftLabels = []
        for row, cells in enumerate(zip(*columns, strict=True)):
            try:
                rows.append(self._row(cells, task))
            except WrongValueError as error:
                wrong[row] = str(error)
        if wrong:
            raise self._wrong_values(table, wrong, task)
        return rows

    def _check_number(self, task: Task, table: Table) -> None:
        is_score = not task.kind.is_named
        outputs, count = task.kind.num_outputs, len(self.names)
        if is_score != self.key.endswith("score") or count not in (1, outputs):
            raise self._not_of_task(task, table)

    def _row(self, cells: Sequence[Any], task: Task) -> tuple[float, ...]:
        if not task.kind.is_named:
            return (_number(cells[0]),)
        values = [_number(cell) for cell in cells] if len(cells) > 1 else list(_from_json(cells[0], task.kind.names))
        if outside := [value for value in values if not 0 <= value <= 1]:
            raise WrongValueError(f"{outside[0]:g} is no probability")
        if task.kind.exclusive and abs(sum(values) - 1) > SUM_TOLERANCE:
            raise WrongValueError(f"the probabilities sum to {sum(values):.6g}")
        return tuple(values)

    def _wrong_values(self, table: Table, wrong: dict[int, str], task: Task) -> MbertError:
        rows = sorted(wrong)
        classes = f"A probability in [0, 1] of each of {', '.join(task.kind.names)}"
        classes += f", that sum to 1 within {SUM_TOLERANCE:g}" if task.kind.exclusive else ""
        return MbertError(
            "M385",
            f"{wrong[rows[0]]} (column{'s' * (len(self.names) > 1)} {', '.join(self.names)}){and_more(len(rows))}",
            where=table.where_all(rows),
            allowed=f"{classes}; in one column a JSON list or object." if task.kind.is_named else "A finite number.",
            fix=f"Mend or delete {'that row' if len(rows) == 1 else 'these rows'}, or name other columns: {self.key}.",
        )

    def _not_of_task(self, task: Task, table: Table) -> MbertError:
        count = len(self.names)
        if task.kind.is_named:
            names = task.kind.names
            allowed = f"data.label_probabilities: {len(names)} columns, of {', '.join(names)} in this order; or one of JSON."
            fix = f"--set 'data.label_probabilities={json.dumps(['COLUMN'] * len(names))}'"
        else:
            allowed, fix = "data.label_score: the column of the teacher's scores.", "--set data.label_score=COLUMN"
        return MbertError(
            "M386",
            f"{self.key} names {count} column{'s' * (count > 1)}, and the task {task.name} asks for {task.kind.describe()}",
            where=table.place,
            allowed=allowed,
            fix=fix,
        )


def soft_logits(soft: SoftLabels, *, are_scores: bool, independent: bool = False) -> "np.ndarray":
    """Returns soft labels as a teacher's outputs [n, C] float32; see the module's formulas."""
    import numpy as np

    values = np.asarray(soft, dtype=np.float64)
    if independent:
        values = values.clip(FLOOR, 1 - FLOOR)
        return np.log(values / (1 - values)).astype(np.float32)
    return (values if are_scores else np.log(np.maximum(values, FLOOR))).astype(np.float32)


def _number(cell: Any) -> float:
    text = plain(cell)
    if not text:
        raise WrongValueError("there is no value")
    try:
        value = float(cell) if isinstance(cell, int | float) and not isinstance(cell, bool) else float(str(cell).strip())
    except ValueError:
        raise WrongValueError(f'"{text[:80]}" is no number') from None
    if isinstance(cell, bool) or not math.isfinite(value):
        raise WrongValueError(f"{text} is no finite number")
    return value


def _from_json(cell: Any, names: Sequence[str]) -> Iterator[float]:
    """Yields the probabilities of a list, or of an object by class; of a text, those that its JSON holds."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            raise WrongValueError(f'"{cell[:80]}" is no JSON') from None
    if isinstance(cell, dict):
        if unknown := sorted(map(str, cell.keys() - set(names))):
            raise WrongValueError(f'"{unknown[0]}" is no class of the task; known: {nearest(unknown[0], names)}')
        if missing := [name for name in names if cell.get(name) is None]:
            raise WrongValueError(f'there is no probability of "{missing[0]}"')
        cell = [cell[name] for name in names]
    if not isinstance(cell, list | tuple):
        raise WrongValueError(f"{str(cell)[:80] or 'an empty cell'} is neither a list nor an object")
    if len(cell) != len(names):
        raise WrongValueError(f"there are {len(cell)} probabilities for {len(names)} classes")
    yield from map(_number, cell)
