"""Patience: the first token's vectors in the student's inner layers approach the teacher's.

    reduction = "mean"   L = 1/(M-1) sum over inner layers m  mean over rows of  |s_m - t_g(m)|^2 / D       (dimensionless)
    reduction = "sum"    L =         sum over inner layers m  mean over rows of  |s_m - t_g(m)|^2

s_m  the first token's vector [D] after student layer m, divided by its length; t_g(m) the teacher's likewise. With
     normalise = false they are compared as they are. Inner layers are 1 .. M-1: the last one learns through the logits.
     A student of another width is projected first, as for the hidden-state losses.

Source: PKD (Sun et al., EMNLP 2019): the formula sums, the released code averages over rows, layers and features, and the
weights of hundreds that the authors tried belong to that mean: at D = 768 and 5 layers it is 3840 times smaller. The
projection between widths is this toolkit's.
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from microbert_cli.reduce import mean_over_rows, squared_error

needs = {"hidden"}
over = "inner"
projects = "hidden"
requires: set[str] = set()  # reads the first token only, so that the others may differ


def patience(
    student_BTd: Tensor,
    teacher_BTD: Tensor,
    *,
    project: Callable[[Tensor], Tensor],
    mapped_layers: int,
    normalise: bool = True,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Returns one inner layer's term; see the module's formulas."""
    student_BD, teacher_BD = project(student_BTd[:, 0]).float(), teacher_BTD[:, 0].float()
    if normalise:
        student_BD, teacher_BD = F.normalize(student_BD, dim=-1), F.normalize(teacher_BD, dim=-1)
    square_BD = squared_error(student_BD, teacher_BD)
    if reduction == "sum":
        return mean_over_rows(square_BD.sum(-1))
    return mean_over_rows(square_BD.mean(-1)) / mapped_layers
