"""Batches of rows of similar length: shuffled, sorted inside large pools, seeded, and the same after a resume.

A pool is `POOL` batches of randomly chosen rows; sorted by length it is cut into batches, and those are shuffled again. Padding
shrinks from two thirds of all tokens to a few per cent, while every epoch still sees another order.

A batch is `batch_size` rows, or, where `tokens` is given, as many as fit into that many tokens once they are padded: then
every batch costs about the same, whatever its rows' lengths.
"""

from collections.abc import Iterator, Sequence

import numpy as np

POOL_BATCHES = 50
TOKENS_PER_ROW = 16  # tokens a row, by which batch_size rows become a budget of tokens: 64 x 16 is what a CPU does best at once


def epoch_batches(
    lengths: Sequence[int] | np.ndarray,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    drop_last: bool = False,
    tokens: int | None = None,
) -> list[np.ndarray]:
    """Returns the row indices of every batch of one epoch; a pure function of its arguments."""
    lengths = np.asarray(lengths)
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths))
    size = POOL_BATCHES * (_rows_per_budget(lengths, tokens) if tokens else batch_size)
    batches: list[np.ndarray] = []
    for start in range(0, len(order), size):
        pool = order[start : start + size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += token_budget_batches(lengths, pool, tokens) if tokens else fixed_size_batches(pool, batch_size)
    if drop_last and not tokens:
        batches = [batch for batch in batches if len(batch) == batch_size] or batches
    return [batches[i] for i in random.permutation(len(batches))]


def fixed_size_batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Splits the rows into batches of `batch_size`."""
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def token_budget_batches(lengths: np.ndarray, order: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Splits the rows into batches of at most `tokens` tokens with padding; a longer row is a batch alone."""
    groups: list[np.ndarray] = []
    start, widest = 0, 0
    for end, length in enumerate(lengths[order].tolist()):
        if end > start and max(widest, length) * (end + 1 - start) > tokens:
            groups.append(order[start:end])
            start, widest = end, 0
        widest = max(widest, length)
    return [*groups, order[start:]] if len(order) else groups


def non_padding_share(lengths: Sequence[int] | np.ndarray, batches: Sequence[np.ndarray]) -> float:
    """Returns real tokens as a share of all that are computed, padding included."""
    lengths = np.asarray(lengths)
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    return float(sum(int(lengths[batch].sum()) for batch in batches) / max(1, padded))


def steps_per_epoch(
    lengths: Sequence[int] | np.ndarray, batch_size: int, *, drop_last: bool = False, tokens: int | None = None, seed: int = 0
) -> int:
    """Returns the batches of one epoch, at least one; with a budget of tokens, of the first (later ones differ by a few)."""
    rows = len(lengths)
    if tokens:
        return max(1, len(epoch_batches(lengths, batch_size=batch_size, seed=seed, epoch=0, tokens=tokens)))
    return max(1, rows // batch_size if drop_last else -(-rows // batch_size))


def endless_batches(
    lengths: Sequence[int] | np.ndarray,
    *,
    batch_size: int,
    seed: int,
    skip: int = 0,
    drop_last: bool = False,
    tokens: int | None = None,
) -> Iterator[np.ndarray]:
    """Yields batches of epoch after epoch; `skip` passes over those that a resumed run has seen, without loading rows."""
    epoch = 0
    while True:
        batches = epoch_batches(lengths, batch_size=batch_size, seed=seed, epoch=epoch, drop_last=drop_last, tokens=tokens)
        yield from batches[skip:]
        skip = max(0, skip - len(batches))
        epoch += 1


def evenly_spaced_chunks(rows: int, most: int | None) -> list[np.ndarray]:
    """Returns the numbers of all rows in as few chunks of at most `most` as will do, each evenly spaced over the rows."""
    count = -(-rows // most) if most else 1
    return [np.arange(rows)[first :: max(1, count)] for first in range(max(1, count))]


def batches_by_length(lengths: Sequence[int] | np.ndarray, *, batch_size: int) -> list[np.ndarray]:
    """Returns all rows once, longest first, in batches of at most `batch_size` x `TOKENS_PER_ROW` tokens."""
    lengths = np.asarray(lengths)
    return token_budget_batches(lengths, np.argsort(-lengths, kind="stable"), batch_size * TOKENS_PER_ROW)


def _rows_per_budget(lengths: np.ndarray, tokens: int) -> int:
    """Returns how many rows of mean length fit into `tokens` tokens."""
    return max(1, int(tokens / max(1.0, float(lengths.mean())))) if len(lengths) else 1
