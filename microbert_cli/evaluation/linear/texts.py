"""The linear model that a user could train in seconds: logistic or ridge regression on TF-IDF weights of words.

Features of one text are its words and word pairs; those of two texts a, b with weights x_a, x_b (single words):

    |x_a - x_b|,  x_a * x_b,  x_a . x_b        elementwise, sparse; the last is their cosine

Texts of scripts without spaces between words are read as pieces of one to three characters instead.
"""

import pickle
import warnings
from typing import Any

import numpy as np

from microbert_cli.data.examples import Examples
from microbert_cli.evaluation import metrics
from microbert_cli.evaluation.alternatives.kinds import LINEAR_TEXTS
from microbert_cli.evaluation.linear.interface import Linear, Texts
from microbert_cli.recipe.task import Task

LONG_WORDS = 14  # mean characters between spaces, above which spaces do not separate words
SAMPLED = 2000  # texts that are read to tell
MANY_ROWS = 20_000  # from which on words of a single text are dropped: they only make the model larger


class LinearModel(Linear):
    """TF-IDF weights and scikit-learn's linear estimator of the task's kind, fitted on training rows.

    Of many rows, words and pairs that a single training text has are dropped, unless nothing would be left. Where there is
    nothing to learn from (one class, or texts without any character that counts), it always gives the commonest answer.
    """

    row_name = LINEAR_TEXTS

    def __init__(self, task: Task, train: Examples, *, seed: int = 0):
        self.task, self.kind = task, task.kind
        self.constant: Any = None
        self.vectorizer = _vectorizer(train.texts)
        labels = np.asarray(train.labels)
        if self.vectorizer is None or len(np.unique(labels)) < 2:
            self.constant = task.kind.constant(list(train.labels or []))
            self.vectorizer = None
            return
        self.estimator = task.kind.linear_model(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a fit that stops at its last iteration is a baseline all the same
            self.estimator.fit(_features(self.vectorizer, train.texts), labels)

    def predict(self, texts: Texts) -> np.ndarray:
        """Returns the predictions for n rows of one or two texts."""
        if self.vectorizer is None:
            return np.full((len(texts), *np.shape(self.constant)), self.constant)
        if self.kind.independent:
            return self.kind.predictions(self._logits(texts))
        predictions: np.ndarray = self.estimator.predict(_features(self.vectorizer, texts))
        return predictions

    def _logits(self, texts: Texts) -> np.ndarray:
        logits: np.ndarray = self.estimator.decision_function(_features(self.vectorizer, texts))
        return logits

    def choose_thresholds(self, dev: Examples) -> None:
        if self.kind.independent and self.vectorizer is not None:
            self.kind = self.kind.fitted(self._logits(dev.texts), dev.labels or [])

    def score(self, rows: Examples) -> dict[str, float]:
        return metrics.compute(self.task.metrics, self.predict(rows.texts), list(rows.labels or []))

    @property
    def bytes(self) -> int:
        return len(pickle.dumps((self.vectorizer, getattr(self, "estimator", self.constant)), protocol=pickle.HIGHEST_PROTOCOL))


def _vectorizer(texts: Texts) -> Any:
    """Returns the fitted TF-IDF weights; None where the texts hold nothing to count."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    is_pair = len(texts[0]) > 1
    words: dict[str, Any] = {"ngram_range": (1, 1) if is_pair else (1, 2)}
    characters: dict[str, Any] = {"analyzer": "char", "ngram_range": (1, 3)}
    forms = [characters] if _has_no_spaces(texts) else [words, characters]
    single_texts = [text for row in texts for text in row]
    for form in forms:
        for min_df in (2, 1) if len(texts) >= MANY_ROWS else (1,):
            try:
                return TfidfVectorizer(min_df=min_df, sublinear_tf=True, **form).fit(single_texts)
            except ValueError:  # no such feature in the texts
                continue
    return None


def _has_no_spaces(texts: Texts) -> bool:
    pieces = [piece for row in texts[:SAMPLED] for text in row for piece in text.split()]
    return bool(pieces) and sum(map(len, pieces)) / len(pieces) > LONG_WORDS


def _features(vectorizer: Any, texts: Texts) -> Any:
    """Returns the features [n, V] of single texts, or [n, 2 V + 1] of pairs, as a sparse matrix."""
    columns = [vectorizer.transform([row[number] for row in texts]) for number in range(len(texts[0]))]
    if len(columns) == 1:
        return columns[0]
    from scipy.sparse import csr_matrix, hstack

    first, second = columns
    product = first.multiply(second).tocsr()
    return hstack([abs(first - second), product, csr_matrix(product.sum(1))], format="csr")
