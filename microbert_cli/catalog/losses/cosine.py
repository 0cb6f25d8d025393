"""Cosine: the directions of the student's top token vectors approach the teacher's; their lengths are free.

    L = mean over real tokens t of  1 - cos(s_t, h_t)        (0 .. 2)

s_t the student's last hidden state [d], h_t the mapped teacher layer's [D]: its last with layer_map = "top" or "last".
A student of another width is projected first, as for the hidden-state losses. normalisation = "reference" averages
over padding as well.

Source: DistilBERT (Sanh et al. 2019), whose widths are equal; the projection between widths is this toolkit's.
"""

import torch.nn.functional as F
from torch import Tensor

from microbert_cli.reduce import mean_by

needs = {"hidden", "mask"}
over = "top"
projects = "hidden"


def cosine(student_BTD: Tensor, teacher_BTD: Tensor, mask_BT: Tensor, *, normalisation: str = "masked") -> Tensor:
    """Returns the top layer's term; see the module's formula."""
    distance_BT = 1 - F.cosine_similarity(student_BTD.float(), teacher_BTD.float(), dim=-1)
    return mean_by(normalisation, distance_BT[..., None], mask_BT)
