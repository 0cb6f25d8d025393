"""The bound by hand and by table, what chooses a threshold, and on synthetic rows that the bound holds as often as it says."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from microbert_cli.evaluation.guarantee import (
    NEVER,
    Answered,
    choose_threshold,
    clopper_pearson,
    most_wrong,
    rows_needed,
    split_rows,
)

SPLITS, ROWS = 200, 872  # SST-2's dev set has as many rows


def population(seed: int, rows: int = 100_000) -> Answered:
    """Rows of which the less sure ones are more often answered otherwise than by the big model: 6 % of all."""
    random = np.random.default_rng(seed)
    sureness = 1 - 0.5 * random.beta(0.35, 2.2, rows)
    wrong = random.random(rows) < 0.9 * (1 - sureness)
    return Answered(sureness, wrong, np.zeros(rows, dtype=bool))


def test_bound_by_hand() -> None:
    assert clopper_pearson(59, 59, 0.95) == pytest.approx(0.05 ** (1 / 59)) == pytest.approx(0.9505, abs=1e-4)
    assert clopper_pearson(0, 10, 0.95) == 0
    assert clopper_pearson(8, 10, 0.95) == pytest.approx(0.4931, abs=1e-4)  # the published tables' one-sided limit
    # By its definition: of so many rows, so many or more are right with a chance of just 1 - 0.95.
    bound = clopper_pearson(450, 470, 0.95)
    assert binom.sf(449, 470, bound) == pytest.approx(0.05)
    assert bound == pytest.approx(binomtest(450, 470, alternative="greater").proportion_ci(0.95).low)


def test_rows_without_a_wrong_answer() -> None:
    """The rule of three, exactly: 59 rows for 0.95, 149 for 0.98, 299 for 0.99."""
    assert [rows_needed(wish, 0.95) for wish in (0.95, 0.98, 0.99)] == [59, 149, 299]
    assert rows_needed(1.0, 0.95) is None
    assert most_wrong(298, 0.99, 0.95) == -1 and most_wrong(299, 0.99, 0.95) == 0


@pytest.mark.parametrize(("rows", "wish"), [(100, 0.9), (523, 0.95), (523, 0.98), (5000, 0.99)])
def test_most_wrong_is_the_last_that_the_bound_allows(rows: int, wish: float) -> None:
    most = most_wrong(rows, wish, 0.95)
    assert clopper_pearson(rows - most, rows, 0.95) >= wish > clopper_pearson(rows - most - 1, rows, 0.95)


def test_a_threshold_lies_between_two_rows() -> None:
    """All rows agree but the least sure fifth: next to nothing of that fifth is answered by the small model."""
    sureness = np.linspace(0.999, 0.5, 1000)
    answered = Answered(sureness, np.arange(1000) >= 800, np.zeros(1000, dtype=bool))
    threshold = choose_threshold(answered, wish=0.98, confidence=0.95, rows=1000)
    assert threshold not in sureness
    # So few of a thousand may be wrong that not 20 of the fifth are answered.
    assert most_wrong(1000, 0.98, 0.95) < 20
    assert 0.18 < answered.sent(threshold) < 0.3 and answered.bound(threshold, 0.95) >= 0.98
    lower = choose_threshold(answered, wish=0.90, confidence=0.95, rows=1000)
    assert lower < threshold


def test_what_cannot_be_shown_sends_every_row() -> None:
    answered = population(0, 300)
    assert choose_threshold(answered, wish=0.99, confidence=0.95, rows=298) == NEVER
    assert choose_threshold(answered, wish=1.0, confidence=0.95, rows=10_000) == NEVER
    assert answered.sent(NEVER) == 1 and answered.right(NEVER) == 300 and answered.bound(NEVER, 0.95) == 1
    always_wrong = Answered(answered.sureness, np.ones(300, dtype=bool), np.zeros(300, dtype=bool))
    assert choose_threshold(always_wrong, wish=0.99, confidence=0.95, rows=500) == NEVER


def test_equal_rows_are_not_torn_apart() -> None:
    same = Answered(np.full(400, 0.9), np.arange(400) % 2 == 0, np.zeros(400, dtype=bool))
    threshold = choose_threshold(same, wish=0.9, confidence=0.95, rows=400)
    assert same.sent(threshold) == 1


def test_an_accuracy_counts_wrong_answers_of_both() -> None:
    random = np.random.default_rng(1)
    sureness = random.uniform(0.5, 1, 4000)
    small, big = random.random(4000) < 0.4 * (1 - sureness), random.random(4000) < 0.05
    answered = Answered(sureness, small, big)
    assert answered.right(NEVER) == 4000 - big.sum() and answered.right(0.0) == 4000 - small.sum()
    assert answered.bound(NEVER, 0.95) < 1
    threshold = choose_threshold(answered, wish=0.93, confidence=0.95, rows=4000)
    assert 0 < answered.sent(threshold) < 1
    assert choose_threshold(answered, wish=0.99, confidence=0.95, rows=4000) == NEVER


def test_split_is_a_partition_that_the_seed_decides() -> None:
    first, second = split_rows(101, 0.4, seed=3)
    assert len(first) == 40 and sorted([*first, *second]) == list(range(101))
    assert (split_rows(101, 0.4, seed=3)[0] == first).all() and (split_rows(101, 0.4, seed=4)[0] != first).any()


@pytest.mark.parametrize("wish", [0.95, 0.98, 0.99])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_bound_holds_as_often_as_its_confidence(wish: float, confidence: float) -> None:
    """200 dev sets of a population, each split at random: the true agreement is below the bound in a share 1 - c at most."""
    everybody = population(7)
    random = np.random.default_rng(11)
    held = confirmed = 0
    sent = []
    for number in range(SPLITS):
        dev = everybody.take(random.integers(len(everybody), size=ROWS))
        choosing, checking = split_rows(ROWS, 0.4, seed=number)
        threshold = choose_threshold(dev.take(choosing), wish=wish, confidence=confidence, rows=len(checking))
        checked = dev.take(checking)
        bound = checked.bound(threshold, confidence)
        held += everybody.right(threshold) / len(everybody) >= bound
        confirmed += bound >= wish
        sent.append(everybody.sent(threshold))
    # That many of 200 hold with a chance of 99 % or more, if each does with the chance that is promised.
    assert held >= binom.ppf(0.01, SPLITS, confidence)
    assert confirmed >= 0.85 * SPLITS, "the rows that choose leave a margin, so that the check mostly confirms them"
    assert np.mean(sent) < 0.95, "or else nothing is gained"
