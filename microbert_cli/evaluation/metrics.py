"""The metrics of GLUE and of a user's own tasks, as scikit-learn and scipy compute them.

Where a metric is undefined it is 0: Matthews, Pearson and Spearman of constant predictions, F1 of a class that is neither
predicted nor there. Source: Wang et al. 2019 (GLUE) for which metric belongs to which task.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from microbert_cli.errors import MbertError, nearest
from microbert_cli.evaluation.generation.text_metrics import TEXT_METRICS, text_scores
from microbert_cli.recipe.task_kinds import MEAN
from microbert_cli.reporter import SILENT, Reporter

GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
MISMATCHED = "mnli_mismatched"
Metric = Callable[[np.ndarray, np.ndarray], float]


def compute(
    names: Sequence[str],
    predictions: Sequence[Any] | np.ndarray,
    labels: Sequence[Any] | np.ndarray | None,
    *,
    reporter: Reporter = SILENT,
) -> dict[str, float]:
    """Returns the named metrics of n predictions; higher is better in all of them.

    names        accuracy, f1 (of class 1), macro_f1, matthews, pearson, spearman; of several labels a row micro_f1, macro_f1,
                 mean_average_precision, subset_accuracy; mean = the mean of the others
    predictions  class ids, or scores;  labels  the same; of several labels a row margins [n, C], above 0 where a row has the
                 label, and labels [n, C] of 0 and 1
    Raises M260 where labels are hidden, M410 for answers that are no numbers, M033 for a name that is no metric.
    """
    if labels is None:
        raise _hidden()
    if len(predictions) != len(labels) or not len(labels):
        raise ValueError(f"{len(predictions)} predictions for {len(labels)} labels")
    if set(names) & {*TEXT_METRICS}:
        return text_scores(names, [*map(str, predictions)], [*map(str, labels)])
    predicted, expected = np.asarray(predictions, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if not np.isfinite(predicted).all():
        raise _not_finite(int((~np.isfinite(predicted)).sum()), len(predicted))
    if set(names) & CORRELATIONS.keys() and _is_constant(predicted, expected):
        reporter.warn("all answers or all labels are equal: their correlation is undefined and reported as 0")
    named = [name for name in names if name != MEAN]
    if unknown := [name for name in named if name not in (OF_LABELS if expected.ndim > 1 else METRICS)]:
        raise unknown_metric(unknown[0], METRICS)
    scores = {name: (OF_LABELS if expected.ndim > 1 else METRICS)[name](predicted, expected) for name in named}
    if MEAN in names:
        scores[MEAN] = sum(scores.values()) / len(scores)
    return {name: scores[name] for name in names}


def glue_score(scores: Mapping[str, float]) -> float | None:
    """Returns the GLUE score: the mean over its nine tasks of the task's primary metric; None while one is missing.

    scores  primary metric by task name; "mnli" is the matched half, "mnli_mismatched" the other; their mean counts once
    """
    wanted = {*GLUE, MISMATCHED}
    if not wanted <= scores.keys():
        return None
    halves = {"mnli": (scores["mnli"] + scores[MISMATCHED]) / 2}
    return sum(halves.get(name, scores[name]) for name in GLUE) / len(GLUE)


def _of_classes(name: str, **options: Any) -> Metric:
    """Returns scikit-learn's metric of that name for predictions and labels that are class ids."""

    def metric(predictions: np.ndarray, labels: np.ndarray) -> float:
        import sklearn.metrics  # a second of start-up that commands without scores do without

        if (labels < 0).any():
            raise _hidden()
        return float(getattr(sklearn.metrics, name)(labels.astype(int), predictions.astype(int), **options))

    return metric


def _pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import pearsonr

    # scipy gives NaN for constant input, by which no checkpoint could be chosen.
    return 0.0 if _is_constant(predictions, labels) else float(pearsonr(predictions, labels).statistic)


def _spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return 0.0 if _is_constant(predictions, labels) else float(spearmanr(predictions, labels).statistic)


def _is_constant(predictions: np.ndarray, labels: np.ndarray) -> bool:
    return bool(np.ptp(predictions) == 0 or np.ptp(labels) == 0)


CORRELATIONS: dict[str, Metric] = {"pearson": _pearson, "spearman": _spearman}
METRICS: dict[str, Metric] = {
    "accuracy": _of_classes("accuracy_score"),
    # of class 1 alone, also where neither labels nor predictions have it
    "f1": _of_classes("f1_score", labels=[1], average="macro", zero_division=0),
    "macro_f1": _of_classes("f1_score", average="macro", zero_division=0),
    "matthews": _of_classes("matthews_corrcoef"),
    **CORRELATIONS,
}


def _of_several(name: str, **options: Any) -> Metric:
    """Returns scikit-learn's metric of that name for the labels that rows have, and those that they are given."""

    def metric(margins: np.ndarray, labels: np.ndarray) -> float:
        import sklearn.metrics

        return float(getattr(sklearn.metrics, name)(labels.astype(int), (margins > 0).astype(int), **options))

    return metric


def _mean_average_precision(margins: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean of the average precision over the labels that any row has; 0 where no row has any."""
    from sklearn.metrics import average_precision_score

    present = labels.any(0)
    if not present.any():
        return 0.0
    return float(average_precision_score(labels[:, present].astype(int), margins[:, present], average="macro"))


OF_LABELS: dict[str, Metric] = {  # several a row
    "micro_f1": _of_several("f1_score", average="micro", zero_division=0),
    "macro_f1": _of_several("f1_score", average="macro", zero_division=0),
    "mean_average_precision": _mean_average_precision,
    "subset_accuracy": _of_several("accuracy_score"),
}


def _hidden() -> MbertError:
    return MbertError(
        "M260",
        "the labels of this split are hidden, so nothing can be scored",
        where="metrics",
        allowed="A split with labels, such as dev.",
        fix="Predict it for a submission instead: mbert evaluate MODEL --task TASK --submission",
    )


def _not_finite(count: int, of: int) -> MbertError:
    return MbertError(
        "M410",
        f"{count} of {of} answers are no finite numbers",
        where="predictions",
        allowed="A model whose weights and outputs are finite.",
        fix="Train it again with a smaller learning rate: --set finetune.learning_rate=1e-5",
    )


def unknown_metric(name: str, metrics: Iterable[str]) -> MbertError:
    """Returns the error for a metric that is none of these."""
    return MbertError(
        "M033",
        f'there is no metric "{name}"',
        where="metrics",
        allowed=f"Known: {nearest(name, [*metrics, MEAN])}",
        fix="Correct the name in the task's TOML.",
    )
