"""Embedding distillation: the student's embedding output, mapped to the teacher's width, approaches the teacher's.

    L = mean over real tokens t of  |W e_t + b - E_t|^2 / D        (dimensionless)

e_t student embedding output [d] (after LayerNorm and dropout), E_t the teacher's [D], W, b the map that the hidden-state
loss uses too. normalisation = "reference" averages over padding as well.

Source: TinyBERT, embedding-layer loss; the map is shared with the hidden states as in the released code.
"""

from torch import Tensor

from microbert_cli.reduce import mean_by, squared_error

needs = {"hidden", "mask"}
over = "embedding"
projects = "hidden"


def embedding(student_BTD: Tensor, teacher_BTD: Tensor, mask_BT: Tensor, *, normalisation: str = "masked") -> Tensor:
    """Returns the term of layer 0; see the module's formula."""
    return mean_by(normalisation, squared_error(student_BTD, teacher_BTD), mask_BT)
