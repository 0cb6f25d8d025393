"""Attention distribution: the attention of the student's top layer approaches the teacher's, head by head.

    L = mean over heads a and real queries q of  KL( softmax_k(t_aqk) || softmax_k(s_aqk) )        (nats)

s, t  scores Q K^T / sqrt(head size) of the top mapped layer [B, A, Q, K], before the mask; both models have A heads. Keys
      are real tokens only, and padded queries do not enter the mean.

Unlike attention_scores it does not change when one number is added to all scores of a query.

Source: MiniLM (Wang et al., NeurIPS 2020, arXiv 2002.10957), self-attention distribution transfer. The paper sums over all
positions of full blocks of text; leaving padding out is this toolkit's.
"""

from torch import Tensor

from microbert_cli.reduce import divergence_of_attention

needs = {"scores", "mask"}
over = "top"


def attention_distribution(student_BAQK: Tensor, teacher_BAQK: Tensor, mask_BT: Tensor) -> Tensor:
    """Returns the term; see the module's formula."""
    return divergence_of_attention(student_BAQK, teacher_BAQK, mask_BT)
