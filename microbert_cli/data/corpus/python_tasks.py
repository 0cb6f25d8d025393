"""Two more tasks of the prose in every CPython, so that several tasks can be learnt together without a download.

python-shuffled   are the words of a sentence in the order in which they were written?      classes ordered, shuffled
python-areas      what is a sentence about?                                                 classes: `AREAS`

Texts are sentences of 6 to 24 words in lower case, without their last punctuation mark, of the same splits as the rows of
`python_docs.python_task_rows`. Rows come in the order of their hashes, so that the first n are a fair sample.
"""

from collections.abc import Iterator
from random import Random

from microbert_cli.data.corpus.python_docs import MAX_ROW_WORDS, MIN_ROW_WORDS, Passage, passages, stable_hash

ORDERS = ("ordered", "shuffled")
AREAS = {
    "language": {"topics"},
    "windows": {"tkinter", "idlelib", "turtle", "turtledemo"},
    "network": {
        "cgi", "email", "ftplib", "html", "http", "imaplib", "ipaddress", "mailbox", "nntplib", "poplib", "smtplib", "socket",
        "socketserver", "ssl", "telnetlib", "urllib", "wsgiref", "xmlrpc",
    },
    "concurrency": {"asyncio", "concurrent", "multiprocessing", "queue", "sched", "selectors", "subprocess", "threading"},
}  # fmt: skip
AREA_OF = {package: area for area, packages in AREAS.items() for package in packages}


def shuffled_rows(split: str) -> tuple[list[str], list[str]]:
    """Returns texts and labels of `python-shuffled`: the words of half of the sentences, chosen by hash, in a random order."""
    rows = sorted(_shuffled(words) for _, words in _sentences(split))
    return [text for _, text, _ in rows], [ORDERS[is_shuffled] for _, _, is_shuffled in rows]


def area_rows(split: str) -> tuple[list[str], list[str]]:
    """Returns texts and labels of `python-areas`: the part of the documentation by the package of a sentence's docstring."""
    rows = sorted(
        (stable_hash(f"area: {' '.join(words)}"), " ".join(words), AREA_OF[package])
        for passage, words in _sentences(split)
        if (package := passage.module.partition(".")[0]) in AREA_OF
    )
    return [text for _, text, _ in rows], [area for _, _, area in rows]


def _sentences(split: str) -> Iterator[tuple[Passage, list[str]]]:
    """Yields the sentences of a split that are neither too short nor too long, as words, each with its passage."""
    for passage in passages():
        if passage.split == split:
            for sentence in passage.sentences:
                if MIN_ROW_WORDS <= len(words := sentence.lower().rstrip(".:;,!?").split()) <= MAX_ROW_WORDS:
                    yield passage, words


def _shuffled(words: list[str]) -> tuple[int, str, int]:
    """Returns the row's hash, its text, and 1 where its words are in an order drawn by the hash."""
    row_hash = stable_hash(f"shuffled: {' '.join(words)}")
    if is_shuffled := row_hash % 2:
        words = Random(row_hash).sample(words, len(words))
    return row_hash, " ".join(words), is_shuffled
