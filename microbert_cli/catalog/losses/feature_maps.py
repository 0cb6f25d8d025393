"""Feature maps: the output of every mapped layer approaches the teacher's, both normalised token by token.

    L = 1/M sum over mapped layers m  mean over real tokens t of  | norm(s_mt) - norm(h_g(m)t) |^2 / D        (dimensionless)

s_mt, h_gt  vectors [D] after the layer, of one width in both models;  norm(x) = (x - mean x) / sqrt(var x + 1e-12), LayerNorm
without weights: size and offset of a vector are left to feature_statistics.
normalisation = "reference" averages over every position, padding included, as the released code does.

Source: MobileBERT (Sun et al., ACL 2020), feature map transfer; the arithmetic is that of the released code
(hidden_distill_factor, 100 there), which normalises where the paper writes a plain square. Leaving padding out
is this toolkit's.
"""

import torch.nn.functional as F
from torch import Tensor

from microbert_cli.reduce import mean_by, squared_error

needs = {"hidden", "mask"}
over = "layers"
EPSILON = 1e-12  # of the released code's LayerNorm


def feature_maps(
    student_BTD: Tensor, teacher_BTD: Tensor, mask_BT: Tensor, *, mapped_layers: int, normalisation: str = "masked"
) -> Tensor:
    """Returns one layer's term; see the module's formula."""
    student_BTD, teacher_BTD = (F.layer_norm(x.float(), x.shape[-1:], eps=EPSILON) for x in (student_BTD, teacher_BTD))
    return mean_by(normalisation, squared_error(student_BTD, teacher_BTD), mask_BT) / mapped_layers
