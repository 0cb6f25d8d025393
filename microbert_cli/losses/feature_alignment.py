"""Feature alignment: sentence vectors of the student's layers, mapped to the teacher's width, approach the teacher's.

    L = 1/M sum over mapped layers m  sum over v in {cls, max, mean}  pi_v D( W s_v(H_m) + b, s_v(G_g(m)) )

s_v   a sentence vector of the real tokens of H [B, T, d]: the first token, the largest value of every feature, the mean
W, b  the one map [d -> D] that the other hidden-state losses use; vectors are pooled first, since the maximum does not commute
pi_v  weights, 1/3 each; a weight 0 leaves its vector out
D     mse: |a - b|^2 / D   cosine: 1 - cos(a, b)   smooth-l1   normalised-mse: |a/|a| - b/|b||^2   mse+cosine; mean over rows

Source: MicroBERT (Zheng et al., Applied Sciences 2024, 14, 6171), section 3.2, names the three vectors, the map and the level
of the sentence; no formula of it is known to us. Weights, distances and the order of pooling and mapping are this toolkit's
reading.
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from microbert_cli.reduce import mean_over_rows, squared_error

needs = {"hidden", "mask"}
over = "layers"
projects = "hidden"

DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda a_BD, b_BD: squared_error(a_BD, b_BD).mean(-1),
    "cosine": lambda a_BD, b_BD: 1 - F.cosine_similarity(a_BD, b_BD),
    "smooth-l1": lambda a_BD, b_BD: F.smooth_l1_loss(a_BD, b_BD, reduction="none").mean(-1),
    "normalised-mse": lambda a_BD, b_BD: squared_error(F.normalize(a_BD), F.normalize(b_BD)).sum(-1),
    "mse+cosine": lambda a_BD, b_BD: squared_error(a_BD, b_BD).mean(-1) + 1 - F.cosine_similarity(a_BD, b_BD),
}


def feature_alignment(
    student_BTd: Tensor,
    teacher_BTD: Tensor,
    mask_BT: Tensor,
    *,
    project: Callable[[Tensor], Tensor],
    mapped_layers: int,
    distance: Literal["mse", "cosine", "smooth-l1", "normalised-mse", "mse+cosine"] = "mse",
    cls: float = 1 / 3,
    max: float = 1 / 3,
    mean: float = 1 / 3,
) -> Tensor:
    """One layer's term; see the module's formula."""
    student, teacher = (sentence_vectors(hidden.float(), mask_BT) for hidden in (student_BTd, teacher_BTD))
    weights = {"cls": cls, "max": max, "mean": mean}
    terms = [
        weight * mean_over_rows(DISTANCES[distance](project(student[name]).float(), teacher[name]))
        for name, weight in weights.items()
        if weight
    ]
    return sum(terms, student_BTd.new_zeros(())) / mapped_layers


def sentence_vectors(hidden_BTd: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
    """The three sentence vectors [B, d] of real tokens, [CLS] and [SEP] among them."""
    real_BT1 = mask_BT.bool()[:, :, None]
    return {
        "cls": hidden_BTd[:, 0],
        "max": hidden_BTd.masked_fill(~real_BT1, -float("inf")).amax(1),
        "mean": (hidden_BTd * real_BT1).sum(1) / real_BT1.sum(1),
    }
