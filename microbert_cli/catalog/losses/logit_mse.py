"""Squared error of logits: the student's approach the teacher's, without temperature or softmax.

    L = mean over rows of  (1 / C) sum_c ((z_c - mean z) - (t_c - mean t))^2        z student, t teacher logits [B, C]

Each row is centred, since a softmax does not see a constant; `centred = false` compares logits as they are. It is twice the
limit of T^2 KL(softmax(t / T) || softmax(z / T)) for large T. A score (C = 1) is not centred: (z - t)^2. Nor are several labels
a row, each of whose logits has a meaning of its own.

Source: Ba and Caruana 2014 (arXiv 1312.6184), equation 2; the limit is that of Hinton et al. 2015, section 2.1.
"""

from torch import Tensor

from microbert_cli.reduce import mean_over_elements

needs = {"logits"}
over = "batch"


def logit_mse(student_BC: Tensor, teacher_BC: Tensor, independent: bool = False, *, centred: bool = True) -> Tensor:
    """Returns the batch's term; see the module's formula."""
    student_BC, teacher_BC = student_BC.float(), teacher_BC.float()
    difference_BC = student_BC - teacher_BC
    if centred and not independent and difference_BC.shape[-1] > 1:
        difference_BC = difference_BC - difference_BC.mean(-1, keepdim=True)
    return mean_over_elements(difference_BC.square())
