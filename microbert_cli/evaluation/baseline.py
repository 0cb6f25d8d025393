"""The linear baseline: logistic or ridge regression on TF-IDF of words and word pairs."""

import numpy as np

from microbert_cli.data.examples import Examples
from microbert_cli.evaluation import metrics
from microbert_cli.recipe.task import Task


def linear_baseline(task: Task, train: Examples, dev: Examples, *, seed: int = 0) -> dict[str, float]:
    """Returns the task's metrics of a linear model on TF-IDF features; the texts of a pair are joined by a bar.

    Features that fewer than two training rows have are dropped; regularisation is scikit-learn's default.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    fitted = make_pipeline(words, task.kind.linear_model(seed)).fit(_joined(train), np.asarray(train.labels))
    return metrics.compute(task.metrics, fitted.predict(_joined(dev)), list(dev.labels or []))


def _joined(rows: Examples) -> list[str]:
    return [" | ".join(texts) for texts in rows.texts]
