"""Batches: every row once an epoch, little padding, a function of seed and epoch, the same after a resume."""

from itertools import islice

import numpy as np
import pytest

from microbert_cli.data.batching import (
    POOL_BATCHES,
    TOKENS_PER_ROW,
    batches_by_length,
    endless_batches,
    epoch_batches,
    non_padding_share,
    steps_per_epoch,
)

LENGTHS = np.random.default_rng(0).integers(4, 120, size=1003)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 1003])
def test_every_row_once_an_epoch(rows):
    batches = epoch_batches(LENGTHS[:rows], batch_size=8, seed=1, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(rows))
    assert len(batches) == steps_per_epoch(LENGTHS[:rows], 8)


@pytest.mark.parametrize("rows", [5, 8, 1003])
def test_a_partial_batch_can_be_left_out(rows):
    batches = epoch_batches(LENGTHS[:rows], batch_size=8, seed=1, epoch=0, drop_last=True)
    assert len(batches) == steps_per_epoch(LENGTHS[:rows], 8, drop_last=True)
    assert {len(batch) for batch in batches} == ({8} if rows >= 8 else {rows})  # too few rows are not dropped altogether


def padding(batches):
    """The share of padding among all tokens."""
    padded = sum(LENGTHS[batch].max() * len(batch) for batch in batches)
    return 1 - LENGTHS[np.concatenate(batches)].sum() / padded


def test_pools_of_like_length_save_padding():
    order = np.random.default_rng(3).permutation(len(LENGTHS))
    plain = [order[i : i + 8] for i in range(0, len(order), 8)]
    assert padding(plain) > 0.4
    assert padding(epoch_batches(LENGTHS, batch_size=8, seed=3, epoch=0)) < 0.05


def test_batches_come_in_random_order_of_length():
    means = [LENGTHS[batch].mean() for batch in epoch_batches(LENGTHS, batch_size=8, seed=3, epoch=0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_seed_and_epoch_decide():
    def rows_of(**which):
        return [batch.tolist() for batch in epoch_batches(LENGTHS, batch_size=8, **which)]

    assert rows_of(seed=1, epoch=0) == rows_of(seed=1, epoch=0)
    assert rows_of(seed=1, epoch=0) != rows_of(seed=1, epoch=1)
    assert rows_of(seed=1, epoch=0) != rows_of(seed=2, epoch=0)


def test_the_company_of_a_row_changes():
    """Rows of equal length meet others in each epoch: pools are drawn anew."""
    first = {tuple(sorted(batch)) for batch in epoch_batches([5] * 64, batch_size=4, seed=0, epoch=0)}
    second = {tuple(sorted(batch)) for batch in epoch_batches([5] * 64, batch_size=4, seed=0, epoch=1)}
    assert len(first & second) < 4


@pytest.mark.parametrize("skip", [0, 1, 125, 126, 127, 300])
def test_skipping_is_the_same_as_running_through(skip):
    whole = list(islice(endless_batches(LENGTHS, batch_size=8, seed=5), skip + 20))
    late = list(islice(endless_batches(LENGTHS, batch_size=8, seed=5, skip=skip), 20))
    assert all(np.array_equal(a, b) for a, b in zip(whole[skip:], late, strict=True))


def test_in_order_is_every_row_longest_first():
    batches = batches_by_length(LENGTHS, batch_size=50)
    lengths = LENGTHS[np.concatenate(batches)]
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(LENGTHS)))
    assert (np.diff(lengths) <= 0).all()


def test_pools_hold_whole_batches():
    """So that leaving out partial batches loses fewer rows than one batch."""
    batches = epoch_batches(list(range(POOL_BATCHES * 4 + 3)), batch_size=4, seed=0, epoch=0)
    assert sorted(len(batch) for batch in batches)[:2] == [3, 4]


BUDGET = 512


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_a_budget_of_tokens_fills_batches_and_loses_no_row(epoch):
    batches = epoch_batches(LENGTHS, batch_size=8, seed=1, epoch=epoch, tokens=BUDGET)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(LENGTHS)))
    assert max(LENGTHS[batch].max() * len(batch) for batch in batches) <= BUDGET
    assert non_padding_share(LENGTHS, batches) > 0.92
    assert 0.75 * BUDGET < np.mean([LENGTHS[batch].max() * len(batch) for batch in batches])


def test_the_first_epoch_of_a_budget_has_the_steps_that_were_planned():
    planned = steps_per_epoch(LENGTHS, 8, tokens=BUDGET, seed=3)
    assert planned == len(epoch_batches(LENGTHS, batch_size=8, seed=3, epoch=0, tokens=BUDGET))


@pytest.mark.parametrize("skip", [0, 1, 160, 400])
def test_skipping_with_a_budget_is_the_same_as_running_through(skip):
    whole = list(islice(endless_batches(LENGTHS, batch_size=8, seed=5, tokens=BUDGET), skip + 20))
    late = list(islice(endless_batches(LENGTHS, batch_size=8, seed=5, tokens=BUDGET, skip=skip), 20))
    assert all(np.array_equal(a, b) for a, b in zip(whole[skip:], late, strict=True))


def test_a_row_beyond_the_budget_goes_alone():
    batches = epoch_batches([5, 900, 5], batch_size=8, seed=0, epoch=0, tokens=100)
    assert [1] in [batch.tolist() for batch in batches]


def test_short_rows_are_evaluated_in_larger_batches():
    short, long = batches_by_length([16] * 1000, batch_size=64), batches_by_length([512] * 100, batch_size=64)
    assert len(short[0]) == 64 * TOKENS_PER_ROW // 16
    assert len(long[0]) == 64 * TOKENS_PER_ROW // 512
