"""New rows: what augmenters make of a training set as a whole, for a teacher to label.

Each row of the training set gets at most N_a new rows of each augmenter, in the recipe's order. A new row that is a row of the
training set, or that was made for the row before, is dropped. No label is copied: nobody but a teacher knows it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from random import Random

from microbert_cli.augmentation.interface import MakesRows, Phrase, Texts
from microbert_cli.data.examples import Examples


class NewRows:
    """The augmenters that make rows, by name, over one training set."""

    def __init__(self, rows: Examples, makers: Mapping[str, MakesRows], seed: int):
        self._rows, self._makers, self._seed = rows, makers, seed
        self._present = {_plain(texts) for texts in rows.texts} if makers else set()

    def of(self, indices: Sequence[int]) -> dict[int, list[Texts]]:
        """Returns the new rows of each of these rows; empty without augmenters that make rows."""
        rows: dict[int, dict[Texts, Texts]] = {i: {} for i in indices} if self._makers else {}
        for name, maker in self._makers.items():
            randoms = [seeded_random(f"{self._seed}\0{row_id(self._rows, i)}\0{name}") for i in indices]
            for i, new in zip(indices, maker.new_rows(list(indices), randoms), strict=True):
                for texts in new:
                    if (plain := _plain(texts)) not in self._present and all(plain):
                        rows[i].setdefault(plain, texts)
        return {i: list(new.values()) for i, new in rows.items()}


def _plain(texts: Texts) -> Texts:
    """Returns texts with single spaces, by which rows are compared."""
    return tuple(" ".join(text.split()) for text in texts)


def lengths_of(rows: Examples) -> list[int]:
    """Returns the number of words of every text."""
    return [len(Phrase.of(text)) for texts in rows.texts for text in texts]


def row_id(rows: Examples, row: int) -> str:
    """Returns a row's name in its file, or its position."""
    return str(row) if rows.ids is None else rows.ids[row]


def seeded_random(key: str) -> Random:
    """Returns a generator that depends on `key` alone."""
    return Random(int.from_bytes(hashlib.sha256(key.encode()).digest()))
