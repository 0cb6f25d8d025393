"""Mixed targets for masked words: half of the target is the masked word, half the teacher's distribution.

    L = mean over masked positions of  - sum_v y_v log q_v,   y = alpha onehot(word) + (1 - alpha) softmax(z_T)        (nats)

z_T, z_S  masked-LM logits [P, V] of teacher and student at the P masked positions, q = softmax(z_S); `alpha` the
          share of the word. Where the two vocabularies are padded to different sizes, the columns of both count.
alpha = 1 is masked_lm; a batch without masked positions gives 0.

Source: MobileBERT (Sun et al., ACL 2020), pre-training distillation: alpha L_MLM + (1 - alpha) L_KD, which is this one
cross-entropy; alpha = 0.5 is the released code's distill_ground_truth_ratio; the third part of its sum is next_sentence.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from microbert_cli.reduce import denominator

needs = {"hidden", "token_head", "token_labels"}
over = "top"
bounds = {"alpha": (0, 1)}
requires = {"tokens"}  # and one vocabulary

Head = Callable[[Tensor], Tensor]


def token_mixed_target(
    student_hidden_BTd: Tensor,
    teacher_hidden_BTD: Tensor,
    student_head_PV: Head,
    teacher_head_PV: Head,
    token_labels_P: Tensor,
    token_positions_P: Tensor,
    *,
    alpha: float = 0.5,
) -> Tensor:
    """Returns the batch's term; see the module's formula. The heads turn top vectors [P, d] into logits [P, V]."""
    student_Pd, teacher_PD = (hidden.flatten(0, 1)[token_positions_P] for hidden in (student_hidden_BTd, teacher_hidden_BTD))
    with torch.no_grad():
        teacher_PV = teacher_head_PV(teacher_PD).float()
    student_PV = student_head_PV(student_Pd).float()
    words = min(student_PV.shape[-1], teacher_PV.shape[-1])
    log_q_PV = student_PV[:, :words].log_softmax(-1)
    soft = -(teacher_PV[:, :words].softmax(-1) * log_q_PV).sum()
    hard = F.nll_loss(log_q_PV, token_labels_P, reduction="sum")
    total = alpha * hard + (1 - alpha) * soft
    return total / denominator(total.new_tensor(float(len(token_labels_P))), at_least=1.0)
