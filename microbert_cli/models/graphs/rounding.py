"""Weights rounded to levels of few bits such that a product changes little, rather than the weights.

For Y = X W with H = X^T X [K, K]: the rows of W are rounded in the order of falling H_kk; the error of row k goes to the rows j
that are not rounded yet, so that the error of X W is least for the rest taken as free:

    W_j <- W_j - U_kj / U_kk (W_k - Q_k),   H^-1 = U^T U, U upper triangular

Source: GPTQ, Frantar et al. 2023, arXiv:2210.17323 (algorithm 1).
"""

import numpy as np

DAMPING = 0.01  # of the mean of the diagonal, added to it: few rows leave H without an inverse
BLOCK = 64  # rows whose errors are applied to all later ones at once


def round_to_levels(weight_KN: np.ndarray, moments_KK: np.ndarray, levels: int) -> np.ndarray:
    """Returns W on the levels q s_n, q whole, |q| <= levels, s_n = max_k |W_kn| / levels, float32.

    The largest weight of a column keeps its level, so that s_n can be read from the result. Where H has no inverse, or is not
    finite, every weight is rounded to the nearest level.
    """
    scale_N = (np.abs(weight_KN).max(axis=0) / np.float32(levels)).astype(np.float64)
    scale_N = np.where(scale_N > 0, scale_N, 1.0)
    order = np.argsort(-np.diagonal(moments_KK), kind="stable")
    largest_N = np.argsort(order)[np.abs(weight_KN).argmax(axis=0)]
    levels_KN = weight_KN[order] / scale_N
    factor_KK = _factor(moments_KK[np.ix_(order, order)].astype(np.float64))
    rounded_KN = _rounded(levels_KN, factor_KK, largest_N, levels)
    result_KN = np.empty_like(weight_KN, dtype=np.float32)
    result_KN[order] = rounded_KN.astype(np.float32) * scale_N.astype(np.float32)
    return result_KN


def _factor(moments_KK: np.ndarray) -> np.ndarray:
    """Returns U with H^-1 = U^T U for the damped H; the identity where it cannot be had."""
    size = len(moments_KK)
    mean = float(np.trace(moments_KK)) / size
    if not np.isfinite(moments_KK).all() or mean <= 0:
        return np.eye(size)
    try:
        inverse_KK = np.linalg.inv(moments_KK + DAMPING * mean * np.eye(size))
        return np.linalg.cholesky((inverse_KK + inverse_KK.T) / 2).T
    except np.linalg.LinAlgError:
        return np.eye(size)


def _rounded(values_KN: np.ndarray, factor_KK: np.ndarray, largest_N: np.ndarray, levels: int) -> np.ndarray:
    """Rounds rows from the first to the last; values are in units of a level, largest_N the row of a column's largest."""
    values_KN, rounded_KN = values_KN.copy(), np.empty_like(values_KN)
    extremes_N = np.sign(values_KN[largest_N, np.arange(values_KN.shape[1])]) * levels
    for first in range(0, len(values_KN), BLOCK):
        last = min(first + BLOCK, len(values_KN))
        errors = np.empty((last - first, values_KN.shape[1]))
        for row in range(first, last):
            nearest_N = np.clip(np.rint(values_KN[row]), -levels, levels)
            rounded_KN[row] = np.where(largest_N == row, extremes_N, nearest_N)
            errors[row - first] = (values_KN[row] - rounded_KN[row]) / factor_KK[row, row]
            values_KN[row + 1 : last] -= factor_KK[row, row + 1 : last, None] * errors[row - first]
        values_KN[last:] -= factor_KK[first:last, last:].T @ errors
    return rounded_KN
