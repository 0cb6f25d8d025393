"""Masked means shared by the losses: padding never enters numerator or denominator."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def mean_over_tokens(values_BTD: "Tensor", mask_BT: "Tensor") -> "Tensor":
    """sum over real tokens of mean_D(values) / number of real tokens.

    values_BTD  any per-token quantity; mask_BT  1 = real token, 0 = padding.
    """
    mask_BT = mask_BT.to(values_BTD.dtype)
    return (values_BTD.mean(-1) * mask_BT).sum() / mask_BT.sum()


def mean_over_pairs(values_BAQK: "Tensor", mask_BT: "Tensor") -> "Tensor":
    """sum over heads and real query-key pairs of values / (heads x number of real pairs).

    values_BAQK  any quantity per head A, query Q and key K; mask_BT  1 = real token.
    """
    mask_BT = mask_BT.to(values_BAQK.dtype)
    pairs_BQK = mask_BT[:, :, None] * mask_BT[:, None, :]
    return (values_BAQK.mean(1) * pairs_BQK).sum() / pairs_BQK.sum()
