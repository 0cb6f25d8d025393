"""Attention transfer: in every mapped layer the student's attention approaches the teacher's, head by head.

    L = 1/M sum over mapped layers m  mean over heads a and real queries q of
            - sum_k p_aqk log s_aqk                 divergence = "cross-entropy", the released code
              sum_k p_aqk log(p_aqk / s_aqk)        divergence = "kl", the paper: 0 for the teacher itself        (nats)

p, s  softmax of the teacher's and the student's scores Q K^T / sqrt(head size) over the real keys; both models have A heads.
The two differ by the teacher's entropy, so their gradients are the same.

Source: MobileBERT (Sun et al., ACL 2020), attention transfer. The released code counts padded queries, too, and gives padded
keys a score of -6 where the mask here takes them out; leaving padding out is this toolkit's.
"""

from typing import Literal

from torch import Tensor

from microbert_cli.reduce import divergence_of_attention

needs = {"scores", "mask"}
over = "layers"


def attention_transfer(
    student_BAQK: Tensor,
    teacher_BAQK: Tensor,
    mask_BT: Tensor,
    *,
    mapped_layers: int,
    divergence: Literal["cross-entropy", "kl"] = "cross-entropy",
) -> Tensor:
    """Returns one layer's term; see the module's formulas."""
    return divergence_of_attention(student_BAQK, teacher_BAQK, mask_BT, entropy=divergence != "kl") / mapped_layers
