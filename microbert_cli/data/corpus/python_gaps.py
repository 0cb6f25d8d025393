"""The built-in task of texts: which small words were removed from a sentence of Python's documentation?

A sentence of 6 to 24 words, in lower case and without its last punctuation mark; every word of REMOVED is a numbered gap in the
source, and the target is these words, in their order:

    returns 1 list 2 3 keys     ->     a of the

A row has at least two gaps. Splits are those of `python_docs`: by the hash of a passage, so that no sentence of dev is in the
corpus that a teacher is pre-trained on.
"""

from microbert_cli.data.corpus.python_docs import MAX_ROW_WORDS, MIN_ROW_WORDS, passages, stable_hash

MIN_GAPS = 2
REMOVED = frozenset(
    """a an the of to in on at by for from with as into and or but not no if is are was be been it its this that these those
    which when then there can may will must should has have do does""".split()
)


def python_gap_rows(split: str) -> tuple[list[str], list[str]]:
    """Returns sources and targets of the built-in task, in the order of their hashes, so that the first n are a fair sample."""
    rows = [
        (stable_hash(f"gaps: {' '.join(words)}"), *_row(words))
        for passage in passages()
        if passage.split == split
        for sentence in passage.sentences
        if MIN_ROW_WORDS <= len(words := sentence.lower().rstrip(".:;,!?").split()) <= MAX_ROW_WORDS
        and sum(word in REMOVED for word in words) >= MIN_GAPS
    ]
    rows.sort()
    return [source for _, source, _ in rows], [target for _, _, target in rows]


def _row(words: list[str]) -> tuple[str, str]:
    removed = [word for word in words if word in REMOVED]
    numbers = iter(range(1, len(removed) + 1))
    return " ".join(str(next(numbers)) if word in REMOVED else word for word in words), " ".join(removed)
