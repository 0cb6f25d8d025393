"""When a small classifier may answer instead of a big one: a threshold that some rows choose, and a bound by other rows.

A row is answered by the small model where the largest of its probabilities, p, is above a threshold t, else by the big one.
Rows that chose t would flatter it, so what it comes to is counted on others: of n rows k are right (or answered as the big
model answers), and the lower end of Clopper and Pearson's one-sided interval holds with the confidence 1 - a:

    L = B(a; k, n - k + 1)      the a-quantile of the beta distribution; 0 for k = 0, a^(1/n) for k = n

Source: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial", 1934.
"""

import math
from dataclasses import dataclass

import numpy as np

LIKELY = 0.95  # chance, by the rows that choose, that the other rows will confirm the threshold
QUANTILES = (np.arange(32) + 0.5) / 32  # of the share of wrong answers that is not known
NEVER = 1.0  # the threshold above which no probability is: the big model answers every row


@dataclass(frozen=True)
class Answered:
    """What the two models say of some rows: `sureness` [n] of the small one, and whether each is `wrong` there, [n] bool.

    For an agreement a small model is wrong where it differs from the big one, and the big one never.
    """

    sureness: np.ndarray
    small_wrong: np.ndarray
    big_wrong: np.ndarray

    def __len__(self) -> int:
        return len(self.sureness)

    def take(self, rows: np.ndarray) -> "Answered":
        """Returns some of the rows."""
        return Answered(self.sureness[rows], self.small_wrong[rows], self.big_wrong[rows])

    def sent(self, threshold: float) -> float:
        """Returns the share of rows that go to the big model."""
        return float((self.sureness <= threshold).mean())

    def right(self, threshold: float) -> int:
        """Returns how many rows both models together answer as wished."""
        return int((~np.where(self.sureness > threshold, self.small_wrong, self.big_wrong)).sum())

    def bound(self, threshold: float, confidence: float) -> float:
        """Returns the lower bound L of the share of rows that is answered as wished.

        Where the big model answers every row and cannot be wrong, it is 1: nothing is left to chance.
        """
        if threshold >= NEVER and not self.big_wrong.any():
            return 1.0
        return clopper_pearson(self.right(threshold), len(self), confidence)


def clopper_pearson(right: int, rows: int, confidence: float) -> float:
    """Returns the lower bound of a share of which `right` of `rows` were seen, one-sided; 0 without any row."""
    from scipy.special import betaincinv

    return float(betaincinv(right, rows - right + 1, 1 - confidence)) if right else 0.0


def rounded_down(bound: float) -> str:
    """Returns a lower bound as text; rounded up it would promise too much."""
    return f"{math.floor(10_000 * bound) / 10_000:.4f}"


def rows_needed(wish: float, confidence: float) -> int | None:
    """Returns how many rows without any wrong answer it takes to be sure of a share; None for a share of 1."""
    return math.ceil(math.log(1 - confidence) / math.log(wish)) if 0 < wish < 1 else None


def most_wrong(rows: int, wish: float, confidence: float) -> int:
    """Returns how many of some rows may be wrong while the bound is the wish at least; -1 where none may."""
    low, high = -1, rows
    while low < high:
        middle = -(-(low + high) // 2)
        low, high = (middle, high) if clopper_pearson(rows - middle, rows, confidence) >= wish else (low, middle - 1)
    return low


def choose_threshold(seen: Answered, *, wish: float, confidence: float, rows: int) -> float:
    """Returns the lowest threshold that `rows` other rows will confirm with a chance of 0.95; else 1, the big model alone.

    Of the n rows seen, the small model answers the j surest; x of the whole are then wrong. The share of wrong answers is
    taken to be s X, with X from Beta(x + 1, m - x + 1), m the rows that x was counted on: all n of them, s = 1; for an
    agreement, to which sent rows do no harm, the m = a >= j surest, s = j / n, since surer rows are not wrong more often.
    The wrong ones among the other rows are binomial, and at most as many as the bound allows.
    """
    allowed = most_wrong(rows, wish, confidence)
    order = np.argsort(-seen.sureness, kind="stable")
    sureness, small, big = seen.sureness[order], seen.small_wrong[order], seen.big_wrong[order]
    if allowed < 0 or not len(seen):
        return NEVER
    answered = _most_sure(small, rows, allowed) if not big.any() else _most_right(small, big, rows, allowed)
    # Between two rows: on one of them the last bit of its probability would decide.
    return float((sureness[answered - 1] + sureness[answered]) / 2) if answered else NEVER


def _most_sure(wrong: np.ndarray, rows: int, allowed: int) -> int:
    """Returns how many of the surest rows the small model may answer, for an agreement; not the least sure of all."""
    total, best = len(wrong), 0
    anchors = {*np.flatnonzero(wrong).tolist(), total - 1}  # the longest runs with one more, two more ... wrong answers
    for anchor in sorted(anchors, reverse=True):
        shares = _posterior(int(wrong[:anchor].sum()), anchor)
        low, high = best, anchor
        while low < high:
            middle = -(-(low + high) // 2)
            is_likely = _chance(shares * middle / total, rows, allowed) >= LIKELY
            low, high = (middle, high) if is_likely else (low, middle - 1)
        best = max(best, low)
    return best


def _most_right(small: np.ndarray, big: np.ndarray, rows: int, allowed: int) -> int:
    """Returns how many of the surest rows the small model may answer, where wrong answers of both count."""
    wrong = np.concatenate([[0], np.cumsum(small)]) + big.sum() - np.concatenate([[0], np.cumsum(big)])
    counts = wrong[:-1].tolist()
    is_likely = {count: _chance(_posterior(count, len(small)), rows, allowed) >= LIKELY for count in set(counts)}
    return max((answered for answered, count in enumerate(counts) if is_likely[count]), default=0)


def _posterior(wrong: int, seen: int) -> np.ndarray:
    """Returns quantiles of the share of wrong answers of which some were seen: of Beta(wrong + 1, seen - wrong + 1)."""
    from scipy.special import betaincinv

    quantiles: np.ndarray = betaincinv(wrong + 1, seen - wrong + 1, QUANTILES)
    return quantiles


def _chance(shares: np.ndarray, rows: int, allowed: int) -> float:
    """Returns the chance that at most `allowed` of other rows are wrong, on average over the shares that may be true."""
    from scipy.special import bdtr

    return float(bdtr(allowed, rows, shares).mean())


def split_rows(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of the rows that choose a threshold, a share of all, and of those that check it; both sorted."""
    order = np.random.default_rng(seed).permutation(count)
    first = round(share * count)
    return np.sort(order[:first]), np.sort(order[first:])
