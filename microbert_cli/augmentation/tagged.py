"""Words with labels: which of them may be replaced, so that every word keeps its tag.

A copy has as many words as its row, each with the tag of the word in its place. A word of an entity is left alone, since
another one in its place may be none; so is a word that the augmenters' tokenizer would cut at a mark, such as "U.S.".
"""

from collections.abc import Iterator, Sequence

from microbert_cli.augmentation.words import Splitter
from microbert_cli.models.words.tags import OUTSIDE, scheme_of
from microbert_cli.models.words.text import split_text


def words_and_free(
    text: str, label: Sequence[int] | None, names: Sequence[str], splitter: Splitter
) -> tuple[list[str], set[int]]:
    """Returns a row's words, and the positions of those that may be replaced; names: those of the tags."""
    words = split_text(text)
    return words, set(_free(words, label, names, splitter))


def _free(words: Sequence[str], label: Sequence[int] | None, names: Sequence[str], splitter: Splitter) -> Iterator[int]:
    of_entities = scheme_of(names) != "plain"
    for position, word in enumerate(words):
        is_entity = of_entities and (label is None or names[label[position]] != OUTSIDE)
        if not is_entity and len(splitter.split(word)) == 1:
            yield position
