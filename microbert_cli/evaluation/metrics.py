"""The metrics of GLUE and of a user's own tasks, each a few lines of arithmetic.

Source: Wang et al. 2019 (GLUE) for which metric belongs to which task. The definitions are those of scikit-learn and
scipy, with 0 where a metric is undefined: Matthews, Pearson and Spearman of constant answers, F1 of a class that is
neither answered nor there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from microbert_cli.errors import MbertError, nearest
from microbert_cli.reporter import SILENT, Reporter

GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
MISMATCHED = "mnli_mismatched"


def compute(
    names: Sequence[str],
    predictions: Sequence[Any] | np.ndarray,
    labels: Sequence[Any] | np.ndarray | None,
    num_labels: int,
    *,
    reporter: Reporter = SILENT,
) -> dict[str, float]:
    """The named metrics of n predictions; higher is better in all of them.

    names        accuracy, f1 (of class 1), macro_f1, matthews, pearson, spearman; mean = the mean of the others
    predictions  class ids, or scores where num_labels is 1;  labels  the same
    Raises M260 where labels are hidden, M410 for answers that are no numbers, M033 for a name that is no metric.
    """
    if labels is None:
        raise _hidden()
    if len(predictions) != len(labels) or not len(labels):
        raise ValueError(f"{len(predictions)} predictions for {len(labels)} labels")
    given, wanted = np.asarray(predictions, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if not np.isfinite(given).all():
        raise _not_finite(int((~np.isfinite(given)).sum()), len(given))
    if set(names) & {"pearson", "spearman"} and (np.ptp(given) == 0 or np.ptp(wanted) == 0):
        reporter.warn("all answers or all labels are equal: their correlation is undefined and reported as 0")
    single = [name for name in names if name != "mean"]
    if unknown := [name for name in single if name not in METRICS]:
        raise _unknown(unknown[0])
    counts = None if num_labels == 1 else confusion(given, wanted, num_labels)
    scores = {name: METRICS[name](given, wanted, counts) for name in single}
    if "mean" in names:
        scores["mean"] = sum(scores.values()) / len(scores)
    return {name: scores[name] for name in names}


def confusion(predictions: Any, labels: Any, num_labels: int) -> np.ndarray:
    """Counts [C, C] of rows with the row's label and the column's prediction; hidden labels (-1) raise M260."""
    given, wanted = np.asarray(predictions).astype(np.int64), np.asarray(labels).astype(np.int64)
    if (wanted < 0).any():
        raise _hidden()
    return np.bincount(wanted * num_labels + given, minlength=num_labels**2).reshape(num_labels, num_labels)


def report(predictions: Any, labels: Any, names: Sequence[str]) -> dict[str, Any]:
    """The confusion matrix (rows: labels, columns: predictions); precision, recall, F1 and support of every class."""
    counts = confusion(predictions, labels, len(names))
    precision, recall, f1 = per_class(counts)
    return {
        "labels": list(names),
        "confusion": counts.tolist(),
        "classes": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(counts[i].sum()),
            }
            for i, name in enumerate(names)
        },
    }


def per_class(counts_CC: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 [C] of a confusion matrix.

    P = hits / answered,  R = hits / there,  F1 = 2 hits / (answered + there);  0 where a denominator is 0
    """
    hits, there, answered = counts_CC.diagonal(), counts_CC.sum(1), counts_CC.sum(0)
    return _over(hits, answered), _over(hits, there), _over(2 * hits, answered + there)


def glue_score(scores: Mapping[str, float]) -> float | None:
    """GLUE's one number: the mean over its nine tasks of the task's primary metric; None while one is missing.

    scores  primary metric by task name; "mnli" is the matched half, "mnli_mismatched" the other; their mean counts once
    """
    wanted = {*GLUE, MISMATCHED}
    if not wanted <= scores.keys():
        return None
    halves = {"mnli": (scores["mnli"] + scores[MISMATCHED]) / 2}
    return sum(halves.get(name, scores[name]) for name in GLUE) / len(GLUE)


def _accuracy(given: np.ndarray, wanted: np.ndarray, counts: np.ndarray | None) -> float:
    return float((given == wanted).mean())


def _f1(given: np.ndarray, wanted: np.ndarray, counts: np.ndarray | None) -> float:
    return float(per_class(_classes(counts))[2][1])


def _macro_f1(given: np.ndarray, wanted: np.ndarray, counts: np.ndarray | None) -> float:
    """The mean of the F1 of every class that is answered or there."""
    table = _classes(counts)
    return float(per_class(table)[2][(table.sum(0) + table.sum(1)) > 0].mean())


def _matthews(given: np.ndarray, wanted: np.ndarray, counts: np.ndarray | None) -> float:
    """Matthews' correlation of any number of classes.

    (n hits - sum_c there_c answered_c) / sqrt((n^2 - sum_c answered_c^2) (n^2 - sum_c there_c^2))
    """
    table = _classes(counts).astype(np.float64)
    n, there, answered = table.sum(), table.sum(1), table.sum(0)
    above = n * table.trace() - there @ answered
    below = np.sqrt((n**2 - answered @ answered) * (n**2 - there @ there))
    return float(above / below) if below else 0.0


def _pearson(given: np.ndarray, wanted: np.ndarray, counts: np.ndarray | None = None) -> float:
    """cov(x, y) / (sd(x) sd(y)); 0 if either is constant."""
    if np.ptp(given) == 0 or np.ptp(wanted) == 0:
        return 0.0
    x, y = given - given.mean(), wanted - wanted.mean()
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    return float(np.clip(x @ y, -1.0, 1.0))


def _spearman(given: np.ndarray, wanted: np.ndarray, counts: np.ndarray | None = None) -> float:
    """Pearson's correlation of the ranks; equal values share the mean of their ranks."""
    return _pearson(_ranks(given), _ranks(wanted))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


METRICS = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}


def _classes(counts: np.ndarray | None) -> np.ndarray:
    if counts is None:
        raise ValueError("this metric needs classes, and the task has a score")
    return counts


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)


def _hidden() -> MbertError:
    return MbertError(
        "M260",
        "the labels of this split are hidden, so nothing can be scored",
        where="metrics",
        allowed="A split with labels, such as dev.",
        fix="Predict it for a submission instead: mbert evaluate --task TASK --submission",
    )


def _not_finite(count: int, of: int) -> MbertError:
    return MbertError(
        "M410",
        f"{count} of {of} answers are no finite numbers",
        where="predictions",
        allowed="A model whose weights and outputs are finite.",
        fix="Train it again with a smaller learning rate: --set finetune.learning_rate=1e-5",
    )


def _unknown(name: str) -> MbertError:
    return MbertError(
        "M033",
        f'there is no metric "{name}"',
        where="metrics",
        allowed=f"Known: {nearest(name, [*METRICS, 'mean'])}",
        fix="Correct the name in the task's TOML.",
    )
