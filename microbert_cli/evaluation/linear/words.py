"""The linear model for labels of words: logistic regression on features of each word and its neighbours.

Each word is one example, whose features are 1 where they hold. Of a word w, lower case, in a row:

    w, its shape, its first and last 1 to 4 letters (where it is longer), the shapes of the words before and behind it,
    the two words before and the two behind it

A shape has X, x and 0 for capitals, small letters and digits, runs of three or more cut to two: "McGill-2019" is XxXxx-00.
Features are hashed to columns, so that no vocabulary is kept. Tags are predicted word by word, without regard to one another;
tags that break their scheme are read as a student's are. Source of such features: Ratinov and Roth 2009.
"""

import pickle
import re
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np

from microbert_cli.data.examples import Examples
from microbert_cli.evaluation.alternatives.kinds import LINEAR_WORDS
from microbert_cli.evaluation.linear.interface import Linear, Texts
from microbert_cli.evaluation.words.word_metrics import word_scores
from microbert_cli.models.words.text import split_text
from microbert_cli.recipe.task import Task

COLUMNS = 2**18  # of hashed features
MOST_WORDS = 300_000  # that are fitted: rows are drawn by the seed where there are more; seconds grow with them
LETTERS = (1, 2, 3, 4)
EDGE = "\n"  # stands before and behind a row: no word holds a line end
LONG_RUN = re.compile(r"(.)\1{2,}")


class LinearWordModel(Linear):
    """Weights [C, COLUMNS] and intercepts [C] of the tags that training rows have; of two tags one row, for the second.

    Where all words have one tag, there are no weights, and it always gives that tag.
    """

    row_name = LINEAR_WORDS

    def __init__(self, task: Task, train: Examples, *, seed: int = 0):
        from sklearn.feature_extraction import FeatureHasher

        self.task = task
        self.hasher = FeatureHasher(COLUMNS, input_type="string", alternate_sign=False)
        train = _at_most(train, MOST_WORDS, seed)
        rows: Sequence[Any] = train.labels or []
        labels = np.fromiter(chain.from_iterable(rows), np.int64)
        self.tags, self.weights = np.unique(labels), None
        if len(self.tags) > 1:
            from scipy.sparse import csr_matrix

            estimator = task.kind.linear_model(seed).fit(self._features(train.texts), labels)
            # Most columns are those of no feature, and the estimator keeps three copies of them.
            self.weights, self.intercepts = csr_matrix(estimator.coef_, dtype=np.float32), estimator.intercept_

    def predict(self, texts: Texts) -> list[tuple[int, ...]]:
        """Returns a tuple of class ids a row, as many as it has words."""
        ends = np.cumsum([0, *(len(split_text(text)) for (text,) in texts)])
        chosen = np.zeros(ends[-1], np.int64)
        if self.weights is not None and ends[-1]:
            values = (self._features(texts) @ self.weights.T).toarray() + self.intercepts
            chosen = values.argmax(1) if values.shape[1] > 1 else (values[:, 0] > 0).astype(np.int64)
        flat = self.tags[chosen].tolist()
        return [tuple(flat[start:end]) for start, end in pairwise(ends)]

    def score(self, rows: Examples) -> dict[str, float]:
        labels: Sequence[Any] = rows.labels or []
        return word_scores(self.task.metrics, self.predict(rows.texts), labels, self.task.kind.names)

    def choose_thresholds(self, dev: Examples) -> None:
        """Nothing: a word has the tag with the highest value."""

    @property
    def bytes(self) -> int:
        fitted = (self.hasher, self.tags, self.weights, getattr(self, "intercepts", None))
        return len(pickle.dumps(fitted, protocol=pickle.HIGHEST_PROTOCOL))

    def _features(self, texts: Texts) -> Any:
        """Returns the features [words, COLUMNS] of all words of these rows, as a sparse matrix."""
        return self.hasher.transform(features for (text,) in texts for features in word_features(split_text(text)))


def word_features(words: Sequence[str]) -> Iterator[list[str]]:
    """Yields the names of the features of each word of a row."""
    lower = [word.lower() for word in words]
    shapes = [EDGE, *map(shape, words), EDGE]
    around = [EDGE, EDGE, *lower, EDGE, EDGE]
    for i, word in enumerate(lower):
        yield [
            "all",
            f"word {word}",
            f"shape {shapes[i + 1]}",
            f"shape-1 {shapes[i]}",
            f"shape+1 {shapes[i + 2]}",
            f"word-2 {around[i]}",
            f"word-1 {around[i + 1]}",
            f"word+1 {around[i + 3]}",
            f"word+2 {around[i + 4]}",
            *(f"begins {word[:n]}" for n in LETTERS if n < len(word)),
            *(f"ends {word[-n:]}" for n in LETTERS if n < len(word)),
        ]


def shape(word: str) -> str:
    """Returns a word's characters as X, x, 0 or themselves, of runs of three or more two."""
    kinds = ("X" if c.isupper() else "x" if c.isalpha() else "0" if c.isdigit() else c for c in word)
    return LONG_RUN.sub(r"\1\1", "".join(kinds))


def _at_most(rows: Examples, words: int, seed: int) -> Examples:
    """Returns rows of about so many words at most, drawn by the seed."""
    labels: Sequence[Any] = rows.labels or []
    count = sum(map(len, labels))
    return rows if count <= words else rows.limit(max(1, len(rows) * words // count), seed)
