"""Word-vector candidates: the K words whose vectors are nearest to a word's own, by cosine.

    candidates(w) = the K words v /= w with the largest  e_w . e_v / (|e_w| |e_v|)

e_w is the vector of word w. An unknown word has no candidates, and stays. It serves every word; behind the masked
language model in the recipe's list it gets those that model does not serve: words of several pieces.

Source: TinyBERT, Algorithm 1 (GloVe, for multi-piece words).
"""

from collections.abc import Sequence

from microbert_cli.augmentation.interface import Slot, Tools

title = "Nearest words by word vectors"
needs = {"vectors"}


class Augmenter:
    """Looks each word up in the table once."""

    def __init__(self, tools: Tools):
        assert tools.vectors is not None
        self._table, self._count = tools.vectors, tools.candidates_per_word
        self._found: dict[str, list[str]] = {}

    def serves(self, word: str) -> bool:
        """Whether the word is served: any is; one that the table lacks has no candidates."""
        return True

    def candidates(self, slots: Sequence[Slot]) -> list[list[str]]:
        """Returns the neighbours of the word at each slot, nearest first; its sentence does not matter."""
        new = sorted({slot.word for slot in slots} - self._found.keys())
        self._found.update(zip(new, self._table.neighbours(new, self._count), strict=True))
        return [self._found[slot.word] for slot in slots]
