"""Recombined pairs: a text of a row beside another row's text, found by similarity or drawn at random.

For a row (a, b), up to N_a times:

    keep a or b, each with probability 1/2
    with probability `similar`   the new partner is one of the `neighbours` texts of the other column that are most similar to
                                 the kept one, drawn uniformly;  else any text of that column

    similarity(s, t) = cosine of TF-IDF vectors of words, lower case, (1 + log tf) * (log((1 + n) / (1 + df)) + 1)

A text keeps its column: a question stays a question. Similar texts are looked for among at most `pool` texts a column, evenly
spread over the training set. Ties go by position. A row's own pair and a text beside itself are left out.

Random pairs of sentences are nearly all unlike each other, so that a student would see one answer alone; pairs that words make
similar are the doubtful ones. Which of the two are taken decides what the rows are worth.

Source: Thakur et al. 2021 (Augmented SBERT), where a cross-encoder labels such pairs for a bi-encoder; they look for similar
ones with BM25 or sentence vectors. The share and the number of neighbours are ours.
"""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import numpy as np

from microbert_cli.augmentation.interface import Phrase, Texts, Tools

title = "Texts of the training set paired anew, by similarity and at random"
needs: set[str] = set()
makes = "rows"
texts = {2}
bounds = {"similar": (0, 1), "neighbours": (1, 1000), "pool": (2, None)}
TRIES = 4  # draws for each pair that is wanted; draws that repeat one are lost
ROWS_AT_ONCE = 256


class Augmenter:
    """Finds the neighbours of a batch of texts at once."""

    def __init__(self, tools: Tools, *, similar: float = 0.8, neighbours: int = 20, pool: int = 50_000):
        self._rows, self._copies = tools.rows, tools.copies
        self._similar, self._neighbours = similar, neighbours
        self._columns = [list(dict.fromkeys(column)) for column in zip(*tools.rows, strict=True)]
        if similar:
            self._pools = [column[:: -(-len(column) // pool)] for column in self._columns]
            self._vectorizer = _vectorizer().fit(text for column in self._pools for text in column)
            self._vectors = [self._vectorizer.transform(texts_of_pool) for texts_of_pool in self._pools]

    def new_rows(self, rows: Sequence[int], randoms: Sequence[Random]) -> list[list[Texts]]:
        """Returns up to N_a pairs of each row."""
        partners = [partner for start in range(0, len(rows), ROWS_AT_ONCE)
                    for partner in self._partners(rows[start : start + ROWS_AT_ONCE])]  # fmt: skip
        return [self._pairs(self._rows[row], similar, random)
                for row, similar, random in zip(rows, partners, randoms, strict=True)]  # fmt: skip

    def _partners(self, rows: Sequence[int]) -> Iterator[tuple[list[str], list[str]]]:
        """Yields for each row the texts of column 2 similar to its first text, and those of column 1 similar to its second."""
        if not self._similar:
            yield from (([], []) for _ in rows)
            return
        sides = [self._similar_texts([self._rows[row][side] for row in rows], 1 - side) for side in (0, 1)]
        yield from zip(*sides, strict=True)

    def _similar_texts(self, queries: Sequence[str], column: int) -> list[list[str]]:
        similarities = (self._vectorizer.transform(queries) @ self._vectors[column].T).tocsr()
        nearest = (nearest_of(row.data, row.indices, self._neighbours + 2) for row in similarities)  # two may be left out
        return [[self._pools[column][i] for i in positions] for positions in nearest]

    def _pairs(self, pair: Texts, similar: tuple[list[str], list[str]], random: Random) -> list[Texts]:
        partners = [[text for text in texts_of_side if text not in pair][: self._neighbours] for texts_of_side in similar]
        pairs: dict[Texts, None] = {}
        for _ in range(TRIES * self._copies):
            if len(pairs) == self._copies:
                break
            kept = random.randrange(2)
            is_similar = random.random() < self._similar and partners[kept]
            other = random.choice(partners[kept] if is_similar else self._columns[1 - kept])
            if other not in pair:
                pairs[(pair[0], other) if kept == 0 else (other, pair[1])] = None
        return list(pairs)


def nearest_of(similarities: np.ndarray, positions: np.ndarray, count: int) -> np.ndarray:
    """Returns the positions of the `count` largest similarities, largest first; equal ones by position."""
    if len(similarities) > count:
        enough = similarities >= np.partition(similarities, -count)[-count]
        similarities, positions = similarities[enough], positions[enough]
    nearest: np.ndarray = positions[np.lexsort((positions, -similarities))][:count]
    return nearest


def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer=_terms, sublinear_tf=True)


def _terms(text: str) -> list[str]:
    """Returns a text's words in lower case, without punctuation marks unless it has nothing else."""
    words = [word.lower() for word in Phrase.of(text).words]
    return [word for word in words if any(map(str.isalnum, word))] or words
