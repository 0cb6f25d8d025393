"""Where words begin among the tokens of a text: a word is answered for at its first token."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from microbert_cli.errors import MbertError
from microbert_cli.models.words.text import word_spans

NO_WORD = -1
NO_LABEL = -100  # what torch's cross-entropy ignores


def tokens_with_words(texts: Sequence[str], tokenizer: Any) -> tuple[list[list[int]], list[list[int]]]:
    """Returns the token ids of each text, without special tokens, and for each token the number of the word that it begins.

    -1 for the further tokens of a word. A word of which a tokenizer makes no token (control characters) has none.
    Raises M435 for a tokenizer that does not say where its tokens stand.
    """
    if not getattr(tokenizer, "is_fast", True):
        raise _no_places(tokenizer)
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        truncation=False,
        padding=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    ids: list[list[int]] = [list(row) for row in encoded["input_ids"]]
    return ids, [_first_tokens(text, spans) for text, spans in zip(texts, encoded["offset_mapping"], strict=True)]


def _first_tokens(text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    words = word_spans(text)
    ends = [end for _, end in words]
    numbers, begun, current = [], NO_WORD, 0
    for start, end in spans:
        # By a token's last character: some tokenizers count the space before a word as its token's first.
        while current < len(ends) and end > ends[current]:
            current += 1
        inside = current < len(words) and end > max(start, words[current][0])
        numbers.append(current if inside and current > begun else NO_WORD)
        begun = max(begun, current) if inside else begun
    return numbers


def flat_words(columns: Sequence[list[list[int]]], words: Sequence[list[int]], frame: Sequence[tuple[list[int], int]]) -> Any:
    """Returns the word that each token begins, of whole rows one behind the other, as int32.

    columns  the token ids of the rows' texts after they were cut;  words  as `tokens_with_words` gives them
    frame    the special tokens around a text
    """
    before, after = (np.full(len(special), NO_WORD, np.int32) for special, _ in (frame[0], frame[-1]))
    rows: list[np.ndarray] = []
    for ids, numbers in zip(columns[0], words, strict=True):
        rows += [before, np.asarray(numbers[: len(ids)], np.int32), after]
    return np.concatenate(rows) if rows else np.empty(0, np.int32)


def token_labels(words: np.ndarray, offsets: np.ndarray, labels: Sequence[Sequence[int] | None]) -> np.ndarray:
    """Returns the label of the word that each token begins, else -100, as int64; words [N], offsets [n + 1]."""
    flat = np.full(len(words), NO_LABEL, np.int64)
    first_label = np.concatenate([[0], np.cumsum([len(row or ()) for row in labels])])
    every = np.asarray([label for row in labels for label in row or ()], np.int64)
    rows = np.repeat(np.arange(len(labels)), np.diff(offsets))
    has_label = (words != NO_WORD) & np.asarray([row is not None for row in labels], bool)[rows]
    flat[has_label] = every[first_label[rows[has_label]] + words[has_label]]
    return flat


def unread_words(texts: Sequence[tuple[str, ...]], words: np.ndarray) -> tuple[int, int]:
    """Returns how many words of rows have no token that a model reads, and how many words there are; words [N]."""
    total = sum(len(word_spans(text)) for row in texts for text in row)
    return total - int((words != NO_WORD).sum()), total


def _no_places(tokenizer: Any) -> MbertError:
    return MbertError(
        "M435",
        f"{type(tokenizer).__name__} does not say where its tokens stand in a text, and words are answered for at their first",
        where="tokenizer",
        allowed="A tokenizer with a tokenizer.json: BERT, RoBERTa, DistilBERT, ELECTRA, XLM-R, DeBERTa, ModernBERT.",
        fix="Take another model: --model bert-base-cased",
    )
