"""Logits of words: of batches of tokens [B, T, C] those at which words begin, by row and word."""

from collections.abc import Iterator, Sequence

import numpy as np

from microbert_cli.data.words.starts import NO_WORD


def rows_of_words(logits_BTC: np.ndarray, words_BT: np.ndarray) -> Iterator[np.ndarray]:
    """Yields each row's logits [W, C], W up to the last word that was read; NaN for a word without a token."""
    for logits, words in zip(logits_BTC, words_BT, strict=True):
        starts = np.flatnonzero(words != NO_WORD)
        row = np.full((int(words[starts[-1]]) + 1 if len(starts) else 0, logits.shape[-1]), np.nan, np.float32)
        row[words[starts]] = logits[starts]
        yield row


def broken_rows(logits_BTC: np.ndarray, words_BT: np.ndarray) -> np.ndarray:
    """Returns whether the logits of all words of a row are finite, as numbers [B, 1] that are finite or not."""
    values = np.where((words_BT != NO_WORD)[..., None], logits_BTC, 0.0)
    return np.where(np.isfinite(values).all((1, 2)), 0.0, np.nan)[:, None]


def stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the rows as one array [n, W, C], W of the longest, NaN behind the others' ends."""
    width, outputs = max((len(row) for row in rows), default=0), rows[0].shape[-1] if len(rows) else 0
    padded = np.full((len(rows), width, outputs), np.nan, np.float32)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return padded
