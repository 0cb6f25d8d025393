"""Shared projections: one pair of matrices U, V maps every weight of a narrower student onto its teacher's, or the other way.

    up     e = T - U S V       U [D, d], V [d, D]: the student is projected up
    down   e = S - U T V       U [d, D], V [D, d]: the teacher is projected down

T [D, D] and S [d, d] are a weight of the teacher, D wide, and the student's at the same place, d wide; U and V are the same for
all layers and weights, are trained, and are dropped after training. A vector (bias, norm) is mapped by U alone, rows of
embeddings by V alone, the feed-forward axis, k times as wide, in k blocks.

    sum       L = sum over weights of the sum of e^2
    mean      that sum, by the number of all elements
    relative  that sum, by the sum of squares of what is approached, T or S: 1 where nothing of it is met

U and V begin with random numbers, N(0, 1 / columns), so that a product is as long as what it maps.
weights = "embeddings" compares the table of word embeddings alone: in the teacher's, the rows of the student's pieces.

Source: SharedProj (Zhao et al. 2019), "sum"; "relative", blocks, and which side a vector has are this toolkit's reading.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

needs = {"weights"}
over = "batch"
EMBEDDINGS = "embeddings.word_embeddings.weight"
WeightPair = tuple[str, str, Tensor, Tensor]


class Projections(nn.Module):
    """U and V; training state, saved for resuming and never with the student."""

    def __init__(self, source: int, target: int):
        super().__init__()
        self.left = nn.Parameter(torch.randn(target, source) * source**-0.5)  # U
        self.right = nn.Parameter(torch.randn(source, target) * source**-0.5)  # V

    def forward(self, side: str, weight: Tensor) -> Tensor:
        """Returns a weight [.., source, source], rows [n, source] or vectors [k, source] as wide as the target."""
        if side == "left":
            return weight @ self.left.T
        return weight @ self.right if side == "right" else self.left @ weight @ self.right


def trains(*, student_width: int, teacher_width: int, direction: str = "up", **_: object) -> Projections:
    """Builds U and V of the direction."""
    sizes = (student_width, teacher_width)
    return Projections(*(sizes if direction == "up" else sizes[::-1]))


def shared_projection(
    weights_K: Iterable[WeightPair],
    *,
    own: Projections,
    direction: Literal["up", "down"] = "up",
    reduction: Literal["sum", "mean", "relative"] = "relative",
    weights: Literal["all", "embeddings"] = "all",
) -> Tensor:
    """Returns the term; K pairs of a side, a name, the teacher's weight and the student's. See the module's formulas."""
    errors, targets = [], []
    for side, name, teacher, student in weights_K:
        if weights == "all" or name == EMBEDDINGS:
            source, target = (student, teacher) if direction == "up" else (teacher, student)
            errors.append((target - own(side, source)).float().square().sum())
            targets.append(target.detach().float())
    total = torch.stack(errors).sum()
    if reduction == "sum":
        return total
    by = sum(target.numel() if reduction == "mean" else target.square().sum() for target in targets)
    return total / by
