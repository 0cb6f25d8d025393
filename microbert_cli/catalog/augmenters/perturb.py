"""Perturbed rows: a text with words left out, swapped, replaced by words as common, or masked.

N_a times one text of the row is drawn, and each of its words in turn

    is left out                                                      with probability `dropout`
    changes places with the next one, which is then done             with probability `swap`
    becomes a word of the training set of about the same frequency   with probability `replace`
    becomes `mask_token`                                             with probability `mask`

and stays as it is else. With probability `ngram` a window of 1 to 5 words of the result is kept. A word's frequency is its
number of occurrences in the training set; it is replaced by one of the `nearby` words before and after it in the order of
frequency, case and all; a punctuation mark stays.
The other text of a pair stays as it is.

A teacher says what the row has become: where the order of words decides (CoLA), most rows change their class.

Source: Tang et al. 2019 (arXiv 1903.12136, section 3.3): masking and replacement with 0.1 each, n-grams of 1 to 5 words with
0.25, 20 rows of each; they replace a word by one of its part of speech, for which frequency stands here.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from random import Random

from microbert_cli.augmentation.interface import Phrase, Texts, Tools

title = "Words left out, swapped, replaced by words as common, or masked"
needs: set[str] = set()
makes = "rows"
bounds = {"dropout": (0, 1), "swap": (0, 1), "replace": (0, 1), "mask": (0, 1), "ngram": (0, 1), "nearby": (1, 100_000)}


class Augmenter:
    """Changes words by the counts of the training set."""

    def __init__(
        self,
        tools: Tools,
        *,
        dropout: float = 0.1,
        swap: float = 0.1,
        replace: float = 0.1,
        mask: float = 0.0,
        mask_token: str = "[MASK]",
        ngram: float = 0.0,
        nearby: int = 50,
    ):
        self._rows, self._copies = tools.rows, tools.copies
        self._dropout, self._swap, self._replace, self._mask = dropout, swap, replace, mask
        self._mask_token, self._ngram, self._nearby = mask_token, ngram, nearby
        counts = Counter(word for texts in tools.rows for text in texts for word in Phrase.of(text).words if _is_word(word))
        self._order = sorted((-count, word) for word, count in counts.items())
        self._counts = counts

    def new_rows(self, rows: Sequence[int], randoms: Sequence[Random]) -> list[list[Texts]]:
        """Returns N_a rows of each row."""
        return [[self._row(self._rows[row], random) for _ in range(self._copies)]
                for row, random in zip(rows, randoms, strict=True)]  # fmt: skip

    def _row(self, row: Texts, random: Random) -> Texts:
        side = random.randrange(len(row))
        return (*row[:side], str(self._changed(Phrase.of(row[side]), random)), *row[side + 1 :])

    def _changed(self, phrase: Phrase, random: Random) -> Phrase:
        words: list[str] = []
        spaces: list[bool] = []
        position = 0
        while position < len(phrase):
            chance, step = random.random(), 1
            new = [phrase.words[position]]
            if chance < self._dropout:
                new = []
            elif (chance := chance - self._dropout) < self._swap:
                new = list(phrase.words[position : position + 2][::-1])
                step = len(new)
            elif (chance := chance - self._swap) < self._replace:
                new = [self._as_common(phrase.words[position], random)]
            elif chance - self._replace < self._mask:
                new = [self._mask_token]
            words += new
            spaces += phrase.spaces[position : position + step][: len(new)]
            position += step
        return Phrase(tuple(words), tuple(spaces)).n_gram(self._ngram, random)

    def _as_common(self, word: str, random: Random) -> str:
        """Returns another word of about the same frequency; a punctuation mark stays."""
        if word not in self._counts or len(self._order) < 2:
            return word
        rank = bisect_left(self._order, (-self._counts[word], word))
        others = [*range(max(0, rank - self._nearby), rank), *range(rank + 1, min(len(self._order), rank + 1 + self._nearby))]
        return self._order[random.choice(others)][1]


def _is_word(word: str) -> bool:
    return any(map(str.isalnum, word))
