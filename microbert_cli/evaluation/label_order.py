"""Whether a classifier's outputs are in the task's order, judged by its confusion matrix on labelled rows.

Label names settle the order where there are any. Where a checkpoint says only LABEL_k, or a user gave the order, the rows are
asked: the assignment of outputs to labels with the most right answers should be the one that is assumed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from microbert_cli.errors import MbertError
from microbert_cli.models.labels import naming_advice
from microbert_cli.recipe.task import Task
from microbert_cli.reporter import SILENT, Reporter

# Of the rows whose class would move, so many must be right afterwards; and the gain must be so many standard deviations of
# what chance makes. The best of all assignments is better than the given one even for a model that guesses.
LEAST_RIGHT, LEAST_DEVIATIONS = 0.5, 2.0
CLEAR_GAIN = 0.2  # of several labels a row: of the correlation between a label and the logit that answers for it


@dataclass(frozen=True)
class Assignment:
    """The best assignment: label t is answered by column order[t]. `is_clear`: chance does not explain its gain."""

    order: tuple[int, ...]
    accuracy: float
    accuracy_as_is: float
    is_clear: bool


def best_assignment(logits: np.ndarray, labels: Sequence[float]) -> Assignment:
    """Returns the assignment of columns to labels with the highest accuracy; of equal ones the order as it is."""
    from scipy.optimize import linear_sum_assignment

    classes = logits.shape[1]
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (np.asarray(labels, dtype=np.int64), logits.argmax(-1)), 1)
    # Less than a row in all: it decides between equal assignments alone.
    order = linear_sum_assignment(confusion + np.eye(classes) / (2 * classes), maximize=True)[1]
    moved = order != np.arange(classes)
    right, right_as_is = confusion[np.arange(classes), order], confusion.diagonal()
    gained, lost, rows = right[moved].sum(), right_as_is[moved].sum(), confusion[moved].sum()
    is_clear = bool(gained >= LEAST_RIGHT * rows and gained - lost >= LEAST_DEVIATIONS * np.sqrt(gained + lost) > 0)
    total = max(1, len(labels))
    return Assignment(tuple(map(int, order)), float(right.sum() / total), float(right_as_is.sum() / total), is_clear)


def best_assignment_of_labels(logits: np.ndarray, labels: Sequence[Any]) -> Assignment:
    """Returns the assignment of columns to several labels a row with the largest sum of correlations, its mean as "accuracy".

    It is clear where each label that moves gains CLEAR_GAIN of correlation, and more than chance makes of so many rows.
    """
    from scipy.optimize import linear_sum_assignment

    classes = logits.shape[1]
    both = np.concatenate([np.asarray(labels, dtype=np.float64).T, logits.T])
    with np.errstate(invalid="ignore", divide="ignore"):  # a label that no row has, or all have, is like any other
        likeness = np.nan_to_num(np.corrcoef(both))[:classes, classes:]
    order = linear_sum_assignment(likeness + np.eye(classes) / 1e6, maximize=True)[1]
    best, as_is = likeness[np.arange(classes), order], likeness.diagonal()
    moved = order != np.arange(classes)
    least = max(CLEAR_GAIN, 2 * LEAST_DEVIATIONS / np.sqrt(max(1, len(labels))))
    is_clear = bool(moved.any() and (best - as_is)[moved].mean() >= least)
    return Assignment(tuple(map(int, order)), float(best.mean()), float(as_is.mean()), is_clear)


def check_order(
    task: Task,
    logits: np.ndarray,
    labels: Sequence[Any],
    *,
    columns: Sequence[int] | None,
    where: str,
    reporter: Reporter = SILENT,
) -> None:
    """Raises M322 where another order of the outputs is clearly better; warns where it is, but chance may explain it.

    columns  of the model, as `match_labels` gave them; the logits have them already
    """
    if not task.kind.is_named or task.kind.of_words or not len(labels):
        return
    best = (best_assignment_of_labels if task.kind.independent else best_assignment)(logits, labels)
    measure = "correlation with the labels" if task.kind.independent else "accuracy"
    identity = tuple(range(len(best.order)))
    if best.order == identity:
        return
    names, outputs = task.kind.names, columns or identity
    output_of = [outputs[column] for column in best.order]
    best_names = [names[output_of.index(output)] for output in identity]
    what = (
        f"the model's outputs seem to be in another order: {measure} {best.accuracy_as_is:.3f} as they stand, "
        f"{best.accuracy:.3f} as {', '.join(best_names)}"
    )
    if not best.is_clear:
        reporter.warn(f"{where}: {what}; these are too few rows to tell")
        return
    raise MbertError(
        "M322",
        what,
        where=where,
        allowed=f"Outputs in the task's order: {', '.join(names)}.",
        fix=naming_advice(where, best_names),
    )
