"""The interface of augmenters, one a file, found by file name.

Each module says
    title      one line, for lists
    needs      what of `Tools` it cannot do without: "masked_lm", "vectors", or nothing
and has one class, `Augmenter(tools, **options)`, made once per run. Its options are keyword parameters with defaults.
It has the methods of `Chooses`, of `Rewrites`, or both:

    serves(word)               whether it has candidates for such a word at all
    candidates(slots)          for each slot the words that may stand there; an empty list keeps the word
    rewrite(words, random)     a whole copy changed after its words were chosen: an n-gram of it, words masked

Of several augmenters the first, in the recipe's order, that serves a word is asked for it; all rewrites are applied,
in that order. What an augmenter answers for a slot must depend on that slot alone, never on the batch it came in or
on what was asked before: the driver owns all chance, with a seed per row, and so batch size, order and worker count
change nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from microbert_cli.augmentation.words import Spelling

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """A word of a sentence to be replaced. `words` may have replacements already; `original` never has."""

    words: tuple[str, ...]
    position: int
    original: tuple[str, ...]

    @property
    def word(self) -> str:
        return self.words[self.position]


class HasNeighbours(Protocol):
    """A table of word vectors, as augmenters use it."""

    def neighbours(self, words: Sequence[str], count: int) -> list[list[str]]:
        """Returns the nearest words of each word, nearest first; none for an unknown word."""


@dataclass(frozen=True)
class Tools:
    """What augmenters are given to work with.

    spelling             the tokenizer of the masked language model, and how it spells words
    masked_lm            batch (input_ids, attention_mask, token_type_ids [B, T]; token_positions [P], counted in the
                         flattened batch) -> vocabulary logits [P, V]; None where no model was given
    max_positions        longest input of that model, special tokens included
    vectors              word vectors, or None
    candidates_per_word  K
    query                "with-original" or "alone"
    batch_size           queries per forward pass
    sentences            all sentences of the training set as words, for what is counted once
    """

    spelling: Spelling
    masked_lm: "Callable[[Mapping[str, Tensor]], Tensor] | None" = None
    max_positions: int = 512
    vectors: HasNeighbours | None = None
    candidates_per_word: int = 15
    query: str = "with-original"
    batch_size: int = 64
    sentences: Callable[[], Iterator[list[str]]] = lambda: iter(())

    @property
    def tokenizer(self) -> Any:
        """The tokenizer itself."""
        return self.spelling.tokenizer


@runtime_checkable
class Chooses(Protocol):
    """An augmenter that offers replacements for a slot."""

    def serves(self, word: str) -> bool:
        """Whether it has candidates for words like this one."""

    def candidates(self, slots: Sequence[Slot]) -> list[list[str]]:
        """Returns the candidates of each slot, in an order that depends on the slot alone."""


@runtime_checkable
class Rewrites(Protocol):
    """An augmenter that changes a whole copy."""

    def rewrite(self, words: list[str], random: Random) -> list[str]:
        """Returns the copy, changed; all randomness comes from `random`."""
