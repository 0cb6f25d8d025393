"""How far the probabilities of a classifier can be believed: expected calibration error, and temperature scaling.

Source: Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 15  # as published
COLDEST, HOTTEST = 0.05, 20.0  # temperatures that are tried: beyond them a softmax is a maximum, or uniform


def expected_calibration_error(probabilities: np.ndarray, labels: Sequence[Any], *, bins: int = BINS) -> float:
    """Returns the expected calibration error of `probabilities` [n, C], a share.

        ECE = sum_b |b| / n * |acc(b) - conf(b)|

    b the bins of equal width over (0, 1] of the largest probability of a row; acc(b) the share of right answers in a bin,
    conf(b) the mean of that probability.
    """
    confidence = probabilities.max(-1)
    right = probabilities.argmax(-1) == np.asarray(labels)
    return _mean_gap(confidence, right - confidence, bins)


def calibration_error_of_labels(shares: np.ndarray, labels: Sequence[Any], *, bins: int = BINS) -> float:
    """Returns the expected calibration error of the probabilities of several labels a row, a share.

        ECE = sum_b |b| / (n C) * |has(b) - p(b)|

    b the bins of equal width over [0, 1] of all n C probabilities; has(b) the share of a bin's rows that have the label, p(b)
    the mean of the probabilities. shares [n, C], labels [n, C] of 0 and 1.
    """
    gaps = np.asarray(labels, dtype=np.float64) - shares
    return _mean_gap(shares.ravel(), gaps.ravel(), bins)


def bin_numbers(shares: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Returns the number of each probability's bin, of bins of equal width over (0, 1]; 0 is in the first."""
    numbers: np.ndarray = np.clip(np.ceil(shares * bins).astype(int) - 1, 0, bins - 1)
    return numbers


def _mean_gap(shares: np.ndarray, gaps: np.ndarray, bins: int) -> float:
    """Returns the mean over probabilities [N] of the distance between a bin's share of hits and its mean probability."""
    return float(np.abs(np.bincount(bin_numbers(shares, bins), weights=gaps, minlength=bins)).sum() / len(gaps))


def fit_temperature(logits: np.ndarray, labels: Sequence[Any]) -> float:
    """Returns the temperature T in [0.05, 20] with the least cross-entropy of softmax(logits / T); logits [n, C].

    The loss is convex in 1 / T, so that it has a single minimum.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    logits, rows = logits.astype(np.float64), np.arange(len(logits))
    ids = np.asarray(labels, dtype=np.int64)

    def loss(inverse: float) -> float:
        return float(-log_softmax(inverse * logits, axis=-1)[rows, ids].mean())

    return float(1 / minimize_scalar(loss, bounds=(1 / HOTTEST, 1 / COLDEST), method="bounded").x)
