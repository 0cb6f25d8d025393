"""The interface of augmenters, one a file, found by file name.

Each module says
    title      one line, for lists
    needs      what of `Tools` it cannot do without: "masked_lm", "vectors", "dev_lengths", or nothing
    makes      "rows" where it makes whole new rows (`MakesRows`); without a word it varies the words of copies
    texts      of one that makes rows: how many texts a task's rows must have, {1}, {2}, or without a word either
and has one class, `Augmenter(tools, **options)`, made once per run. Its options are keyword parameters with defaults, which are
recipe keys: `augment.options.NAME.OPTION`. `bounds = {"option": (low, high)}` gives their bounds. A function `check(options)`,
if there is one, raises what an augmenter of these options would lack, before a run begins.
It has the methods of `Chooses`, of `Rewrites`, or both, or that of `MakesRows`:

    serves(word)               whether it has candidates for such a word at all
    candidates(slots)          for each slot the words that may stand there; an empty list keeps the word
    rewrite(words, random)     a whole copy changed after its words were chosen: an n-gram of it, words masked
    new_rows(rows, randoms)    for each row new ones, whose label nobody knows: only a teacher can label them

Of several augmenters the first, in the recipe's order, that serves a word is asked for it; all rewrites are applied,
in that order. What an augmenter answers for a slot must depend on that slot alone, never on the batch it came in or
on what was asked before: the driver owns all chance, with a seed per row, and so batch size, order and worker count
change nothing. New rows depend on the row they are made for and on the training set as a whole, likewise.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from microbert_cli.augmentation.words import Spelling, Splitter, join_words

if TYPE_CHECKING:
    from torch import Tensor


Texts = tuple[str, ...]
LONGEST_NGRAM = 5
_AS_WRITTEN = Splitter(lowercase=False, strip_accents=False)


@dataclass(frozen=True)
class Phrase:
    """Words of a text, case and accents as they were, and which of them have white space before them."""

    words: tuple[str, ...]
    spaces: tuple[bool, ...]

    @classmethod
    def of(cls, text: str) -> "Phrase":
        """Cuts a text as BERT's basic tokenizer does: punctuation marks and CJK characters are words of their own."""
        words = tuple(_AS_WRITTEN.split(text))
        spaces = _AS_WRITTEN.spaces(text)
        return cls(words, spaces if len(spaces) == len(words) else (True,) * len(words))

    def __len__(self) -> int:
        return len(self.words)

    def __str__(self) -> str:
        return join_words(self.words, self.spaces)

    def __add__(self, other: "Phrase") -> "Phrase":
        """Joins two phrases with a space between them."""
        return Phrase(self.words + other.words, self.spaces + (True,) * bool(len(other)) + other.spaces[1:])

    def window(self, start: int, length: int) -> "Phrase":
        """Returns `length` words from `start` on."""
        return Phrase(self.words[start : start + length], self.spaces[start : start + length])

    def n_gram(self, probability: float, random: Random) -> "Phrase":
        """Returns, with this probability, 1 to 5 words in a row; else all of them."""
        if not probability or random.random() >= probability or not len(self):
            return self
        length = random.randint(1, min(LONGEST_NGRAM, len(self)))
        return self.window(random.randint(0, len(self) - length), length)


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
    rows                 the texts of every row of the training set
    copies               the most new rows for a row
    dev_lengths          the number of words of every text of dev, and nothing else of it; None where no augmenter needs it
    """

    spelling: Spelling
    masked_lm: "Callable[[Mapping[str, Tensor]], Tensor] | None" = None
    max_positions: int = 512
    vectors: HasNeighbours | None = None
    candidates_per_word: int = 15
    query: str = "with-original"
    batch_size: int = 64
    sentences: Callable[[], Iterator[list[str]]] = lambda: iter(())
    rows: Sequence[Texts] = ()
    copies: int = 1
    dev_lengths: Sequence[int] | None = None

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


@runtime_checkable
class MakesRows(Protocol):
    """An augmenter that makes whole rows."""

    def new_rows(self, rows: Sequence[int], randoms: Sequence[Random]) -> list[list[Texts]]:
        """Returns new rows for each of these rows of the training set, given by position: at most `tools.copies` each.

        randoms  a generator for each row, the only source of randomness
        """
