"""Two more tasks of the prose in every CPython, so that several tasks can be learnt together without a download.

python-backwards   were four words of a sentence written backwards?                 one text, classes forward, backwards
python-pairs       does the second sentence follow the first in the same docstring?  a pair, classes other, next

Texts are in lower case and without their last punctuation mark, as those of `python_docs.python_task_rows` are, and of the same
splits. Rows come in the order of their hashes, so that the first n are a fair sample.
"""

from collections.abc import Iterator
from itertools import groupby, pairwise

from microbert_cli.data.corpus.python_docs import MAX_ROW_WORDS, MIN_ROW_WORDS, passages, stable_hash

RUN = 4  # words that are written backwards
DIRECTIONS = ("forward", "backwards")
RELATIONS = ("other", "next")
MIN_PAIR_WORDS, MAX_PAIR_WORDS = 4, 20  # of each of two sentences

Sentence = tuple[str, ...]


def backwards_rows(split: str) -> tuple[list[tuple[str, ...]], list[str]]:
    """Returns texts and labels of `python-backwards`: half of the sentences, chosen by hash, have four words backwards."""
    rows = sorted(_turned(words) for _, words in _sentences(split) if MIN_ROW_WORDS <= len(words) <= MAX_ROW_WORDS)
    return [(text,) for _, text, _ in rows], [DIRECTIONS[is_turned] for _, _, is_turned in rows]


def pair_rows(split: str) -> tuple[list[tuple[str, ...]], list[str]]:
    """Returns pairs and labels of `python-pairs`: the second sentence is the next one, or that of another pair.

    The second sentences of half of the pairs, chosen by hash, move on by one pair, so that every sentence that follows none of
    its own is one that follows some other, and the second sentences alone say nothing.
    """
    ordered = sorted((stable_hash(f"pair: {' '.join(first + second)}"), first, second) for first, second in _neighbours(split))
    moved = [row for row in ordered if row[0] % 2 == 0]
    others = dict(zip([row[0] for row in moved], [row[2] for row in moved[1:] + moved[:1]], strict=True))
    texts = [(" ".join(first), " ".join(others.get(number, second))) for number, first, second in ordered]
    return texts, [RELATIONS[number % 2] for number, _, _ in ordered]


def _sentences(split: str) -> Iterator[tuple[int, Sentence]]:
    """Yields the sentences of a split as words, each with the number of its docstring."""
    for passage in passages():
        if passage.split == split:
            for sentence in passage.sentences:
                yield passage.document, tuple(sentence.lower().rstrip(".:;,!?").split())


def _turned(words: Sentence) -> tuple[int, str, int]:
    """Returns the row's hash, its text, and 1 where four of its words are backwards."""
    row_hash = stable_hash(f"backwards: {' '.join(words)}")
    is_turned = row_hash % 2
    start = row_hash // 2 % (len(words) - RUN + 1)
    run = words[start : start + RUN]
    shown = (*words[:start], *reversed(run), *words[start + RUN :]) if is_turned else words
    return row_hash, " ".join(shown), is_turned


def _neighbours(split: str) -> Iterator[tuple[Sentence, Sentence]]:
    """Yields sentences of a split that stand one after the other in a docstring, both of a length that pairs take."""
    for _, sentences in groupby(_sentences(split), key=lambda row: row[0]):
        for (_, first), (_, second) in pairwise(sentences):
            if all(MIN_PAIR_WORDS <= len(words) <= MAX_PAIR_WORDS for words in (first, second)):
                yield first, second
