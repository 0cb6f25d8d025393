"""Dual training: the teacher predicts its own hidden words, so that it learns with its student.

    L = mean over masked positions of -log softmax(z)_word        (nats)

z the teacher's vocabulary logits at its masked positions [P, V], word the hidden piece's id [P]. The teacher reads each word in
the student's pieces with probability `general.dual.share`, else in its own; a hidden piece is predicted among those of the
vocabulary that its word was read in, which is in z as -inf for all others. A teacher is trained where this loss is in a recipe,
and nowhere else.

Source: DualTrain (Zhao et al. 2019); a softmax for each vocabulary is from memory of the paper: not verified.
"""

import torch.nn.functional as F
from torch import Tensor

from microbert_cli.reduce import denominator

needs = {"teacher_token_logits", "teacher_token_labels"}
over = "batch"


def teacher_masked_lm(teacher_token_logits_PV: Tensor, teacher_token_labels_P: Tensor) -> Tensor:
    """Returns the batch's term; see the module's formula."""
    total = F.cross_entropy(teacher_token_logits_PV.float(), teacher_token_labels_P, reduction="sum")
    return total / denominator(total.new_tensor(len(teacher_token_labels_P)), at_least=1.0)
