"""Hidden-state distillation: the student's token vectors, mapped to the teacher's width, approach the teacher's.

    L = sum over mapped layers m of  mean over real tokens t of  |W s_mt + b - h_g(m)t|^2 / D        (dimensionless)

s_mt  student vector [d], h_gt teacher vector [D], W, b one map [d -> D] shared by all layers (made by the objective).
normalisation = "reference" averages over every position, padding included, as the released code does; its value then
depends on the padded length.

Source: TinyBERT, equation of the hidden-state loss; one shared, biased map as in the released code, where the paper's
notation suggests one without bias.
"""

from torch import Tensor

from microbert_cli.reduce import mean_by, squared_error

needs = {"hidden", "mask"}
over = "layers"
projects = "hidden"


def hidden_states(student_BTD: Tensor, teacher_BTD: Tensor, mask_BT: Tensor, *, normalisation: str = "masked") -> Tensor:
    """Returns one layer's term; see the module's formula."""
    return mean_by(normalisation, squared_error(student_BTD, teacher_BTD), mask_BT)
