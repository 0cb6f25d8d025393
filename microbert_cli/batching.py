"""Batches of rows of like length: shuffled, sorted inside large pools, seeded, and the same after a resume.

A pool is `POOL` batches of randomly chosen rows; sorted by length it is cut into batches, and those are shuffled again. Padding
shrinks from two thirds of all tokens to a few per cent, while every epoch still sees another order.
"""

from collections.abc import Iterator, Sequence

import numpy as np

POOL = 50


def epoch_batches(
    lengths: Sequence[int] | np.ndarray, *, batch_size: int, seed: int, epoch: int, drop_last: bool = False
) -> list[np.ndarray]:
    """The row indices of every batch of one epoch; a pure function of its arguments."""
    lengths = np.asarray(lengths)
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), POOL * batch_size):
        pool = order[start : start + POOL * batch_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    if drop_last:
        batches = [batch for batch in batches if len(batch) == batch_size] or batches
    return [batches[i] for i in random.permutation(len(batches))]


def steps_per_epoch(rows: int, batch_size: int, *, drop_last: bool = False) -> int:
    """Batches in one epoch, at least one."""
    return max(1, rows // batch_size if drop_last else -(-rows // batch_size))


def endless(
    lengths: Sequence[int] | np.ndarray, *, batch_size: int, seed: int, skip: int = 0, drop_last: bool = False
) -> Iterator[np.ndarray]:
    """Batches of epoch after epoch; `skip` passes over those a resumed run has seen, without loading them."""
    epoch = 0
    while True:
        batches = epoch_batches(lengths, batch_size=batch_size, seed=seed, epoch=epoch, drop_last=drop_last)
        yield from batches[skip:]
        skip = max(0, skip - len(batches))
        epoch += 1


def in_order(lengths: Sequence[int] | np.ndarray, *, batch_size: int) -> list[np.ndarray]:
    """All rows once, longest first: for evaluation, where order does not matter."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
