"""Representation: the student's vector of a text, mapped to the teacher's width, approaches the teacher's first token.

    L = sum over layers m  mean over rows of  D( act(W_m dropout(v(H_m)) + b_m), G_g(m)[0] )            (dimensionless)

H_m   hidden states [B, T, d] of student layer m; G_g(m) [B, T, D] of the teacher's layer that it is mapped to
layers  "top": the last layer of both alone;  "all": every student layer, by the layer map, whose "last" counts from the end
v     the student's vector: pooling "cls" the first token, "max" the largest value of every feature, "mean", over real tokens
W, b  [d -> D], one for each layer; there is none where widths are equal and act is none
D     mse: |a - b|^2 / D   kl: KL(softmax b || softmax a) over the features

Nothing but the teacher's first token is kept in its cache: 1 / T of what losses of all tokens need.

Source: XtremeDistil (microsoft/xtreme-distil-transformers, models.py): mse, the first token, no activation, dropout 0.1 before
W, and W where the teacher is wider. Its 2019 form (arXiv 1910.01769) has a pooled BiLSTM, kl and an activation (gelu: not
verified).
"""

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from microbert_cli.reduce import mean_over_rows, squared_error

needs = {"hidden", "mask"}
bounds = {"dropout": (0, 0.99)}
requires: set[str] = set()  # one vector a text, so that the two models may tokenise it differently
teacher_reads = "first token"

Layers = Literal["top", "all"]
Activation = Literal["none", "gelu", "tanh"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"none": nn.Identity, "gelu": nn.GELU, "tanh": nn.Tanh}
STD = 0.02  # of new weights, as in BERT


def over(*, layers: Layers = "top", **_: Any) -> str:
    """Returns the layers that the loss is called for."""
    return "top" if layers == "top" else "layers"


class Projections(nn.ModuleList):
    """The maps from the student's width to the teacher's, one for each layer."""

    def __init__(self, count: int, widths: tuple[int, int], activation: str, dropout: float):
        super().__init__(
            nn.Sequential(nn.Dropout(dropout), nn.Linear(*widths), ACTIVATIONS[activation]()) for _ in range(count)
        )
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            nn.init.normal_(linear.weight, std=STD)
            nn.init.zeros_(linear.bias)


def trains(
    *,
    student_width: int,
    teacher_width: int,
    layers: Layers = "top",
    activation: Activation = "none",
    dropout: float = 0.1,
    depth: int = 1,
    **_: Any,
) -> Projections | None:
    """Returns the maps; None where widths are equal and there is no activation."""
    if student_width == teacher_width and activation == "none":
        return None
    return Projections(depth if layers == "all" else 1, (student_width, teacher_width), activation, dropout)


def representation(
    student_BTd: Tensor,
    teacher_BTD: Tensor,
    mask_BT: Tensor,
    *,
    own: Projections | None = None,
    layer: int = 1,
    layers: Layers = "top",
    pooling: Literal["cls", "max", "mean"] = "cls",
    distance: Literal["mse", "kl"] = "mse",
    activation: Activation = "none",
    dropout: float = 0.1,
) -> Tensor:
    """Returns one layer's term; see the module's formula."""
    student_BD, teacher_BD = pooled(student_BTd, mask_BT, pooling), teacher_BTD[:, 0].float()
    if own is not None:
        student_BD = own[layer - 1 if layers == "all" else 0](student_BD)
    student_BD = student_BD.float()
    if distance == "mse":
        return mean_over_rows(squared_error(student_BD, teacher_BD).mean(-1))
    log_s, log_t = student_BD.log_softmax(-1), teacher_BD.log_softmax(-1)
    return mean_over_rows(F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1))


def pooled(hidden_BTd: Tensor, mask_BT: Tensor, pooling: str) -> Tensor:
    """Returns the vectors [B, d] of texts; padding has no part in them."""
    if pooling == "cls":
        return hidden_BTd[:, 0]
    real_BT1 = mask_BT.bool()[:, :, None]
    if pooling == "max":
        return hidden_BTd.masked_fill(~real_BT1, -float("inf")).amax(1)
    return (hidden_BTd * real_BT1).sum(1) / real_BT1.sum(1)
