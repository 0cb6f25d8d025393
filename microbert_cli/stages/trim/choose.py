"""Which tokens stay: those that texts use, the commonest of a corpus, and what any other text can be written with."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from microbert_cli.data.corpus.documents import identify_corpus, read_documents
from microbert_cli.data.task_data import TaskData
from microbert_cli.data.tokenized import tokenizer_fingerprint
from microbert_cli.errors import MbertError
from microbert_cli.models.tokenizers import rows_needed
from microbert_cli.models.vocabulary import closure
from microbert_cli.models.vocabulary.tokenizer import Numbers, encode_each, fall_backs, read_rules, renumbered
from microbert_cli.models.vocabulary.weights import named_ids
from microbert_cli.recipe.phase_data import SELECTED_BY
from microbert_cli.recipe.values import Vocabulary
from microbert_cli.reporter import Reporter
from microbert_cli.runs import atomic, cache

COUNTS = "counts.npy"
UNUSED = re.compile(r"\[unused\d+\]")


@dataclass(frozen=True)
class Choice:
    """The tokens that stay: the new id of each, the tokenizer's rules, and how many each reason added, in this order."""

    numbers: Numbers
    rules: dict[str, Any]
    reasons: dict[str, int]


def choose(
    tokenizer: Any, config: Any, vocabulary: Vocabulary, used: np.ndarray, common: np.ndarray | None, *, where: str
) -> Choice:
    """Returns which tokens stay.

    used, common   [rows of the tokenizer]: how often each token stands in the task's texts, and in the corpus
    Raises M345 for a tokenizer that cannot be cut, M093 where `vocabulary.rows` is less than what has to stay.
    """
    rules = read_rules(tokenizer, where=where)
    numbers = set(closure.token_numbers(rules).values())
    if vocabulary.keep == "all":
        return Choice(renumbered(rules, numbers), rules, {"all": len(numbers)})
    # Added tokens are found in a text as they are: they are merged from nothing.
    chosen = _Chosen(rules, vocabulary.rows, closure.added_numbers(rules) | named_ids(config) & numbers)
    chosen.need("fall_backs", fall_backs(tokenizer, rules))
    corpus = np.zeros_like(used) if common is None else common
    if vocabulary.keep == "train":
        chosen.need("texts", map(int, np.flatnonzero(used)))
        chosen.add("corpus", ranked(corpus)[: vocabulary.keep_common])
        chosen.add("first", first_tokens(rules, len(used))[: vocabulary.keep_first])
    else:
        chosen.add("common", ranked(used + corpus))
    return Choice(renumbered(rules, chosen.kept), rules, chosen.reasons)


def ranked(counts: np.ndarray) -> list[int]:
    """Returns the ids of the tokens that occur, the commonest first, of equally common ones the lower id."""
    order = np.argsort(-counts, kind="stable")
    return [int(number) for number in order[: np.count_nonzero(counts)]]


def first_tokens(rules: dict[str, Any], rows: int) -> list[int]:
    """Returns the ids in their order, which stands for how common tokens are where no corpus is at hand.

    Vocabularies of WordPiece are sorted by frequency, those of BPE by when a piece was merged, those of Unigram by score.
    Places that BERT keeps free, "[unused7]", are not among them.
    """
    unused = {number for token, number in closure.token_numbers(rules).items() if UNUSED.fullmatch(token)}
    return [number for number in range(rows) if number not in unused]


class _Chosen:
    """Gathers tokens with the pieces that they are merged from, at most `rows` of them."""

    def __init__(self, rules: dict[str, Any], rows: int | None, added: set[int]):
        self.parts, self.rows = closure.parts_of(rules), rows
        self.kept = added
        self.reasons = {"added": len(added)}

    def need(self, reason: str, numbers: Iterable[int]) -> None:
        """Adds tokens that have to stay; raises M093 where there are too many."""
        before = len(self.kept)
        for number in numbers:
            self.kept |= self.parts(number)
        self.reasons[reason] = len(self.kept) - before
        if self.rows is not None and len(self.kept) > self.rows:
            raise _too_few_rows(self.rows, len(self.kept), reason)

    def add(self, reason: str, numbers: Iterable[int]) -> None:
        """Adds tokens in order as long as there is room."""
        before = len(self.kept)
        for number in numbers:
            together = self.kept | self.parts(number) if number not in self.kept else self.kept
            if self.rows is not None and len(together) > self.rows:
                break
            self.kept = together
        self.reasons[reason] = len(self.kept) - before


def texts_of(data: TaskData) -> list[str]:
    """Returns the texts that training may read: all splits but the one that selects."""
    return [text for split, rows in data.rows.items() if split != SELECTED_BY for texts in rows.texts for text in texts]


def count_tokens(tokenizer: Any, texts: Iterable[str]) -> np.ndarray:
    """Counts every token of texts, special tokens left out: [rows of the tokenizer] int64."""
    counts = np.zeros(rows_needed(tokenizer), np.int64)
    for ids in encode_each(tokenizer, texts):
        np.add.at(counts, ids, 1)
    return counts


def count_corpus(tokenizer: Any, source: str, documents: int | None, reporter: Reporter) -> np.ndarray:
    """Counts the tokens of a corpus, once for each tokenizer: the counts are kept in the cache."""
    key = atomic.digest([identify_corpus(source), documents, tokenizer_fingerprint(tokenizer)])
    with cache.entry("token-counts", key, reporter=reporter) as (directory, ready):
        if not ready:
            reporter.note(f"counting the tokens of {source}")
            sentences = (text for document in read_documents(source, limit=documents, reporter=reporter) for text in document)
            np.save(directory / COUNTS, count_tokens(tokenizer, sentences))
        counts: np.ndarray = np.load(directory / COUNTS, allow_pickle=False)
        return counts


def _too_few_rows(rows: int, needed: int, reason: str) -> MbertError:
    of_texts = reason == "texts"
    what = "the texts use" if of_texts else "any text can be written with"
    return MbertError(
        "M093",
        f"{rows} tokens are too few: special tokens and those that {what} are {needed}",
        where="vocabulary.rows",
        allowed=f"{needed} tokens or more"
        + (', or vocabulary.keep = "common", which leaves rare ones out.' if of_texts else "."),
        fix=f"--set vocabulary.rows={needed}" + (", or --set vocabulary.keep=common" if of_texts else ""),
    )
