"""Value relation: similarities of values between tokens of the student's top layer approach the teacher's, head by head.

    L = mean over heads a and real queries q of  KL( softmax_k(t_aq . t_ak / sqrt(h_T)) || softmax_k(s_aq . s_ak / sqrt(h_S)) )

s, t  values of the top mapped layer [B, A, T, head size]; both models have A heads, whose sizes h_S and h_T may differ,
      so that no projection is needed. Keys are real tokens only, and padded queries do not enter the mean.

Source: MiniLM (Wang et al., NeurIPS 2020, arXiv 2002.10957), self-attention value-relation transfer; leaving padding out is
this toolkit's.
"""

from torch import Tensor

from microbert_cli.reduce import divergence_of_attention

Vectors = tuple[Tensor, Tensor, Tensor]  # queries, keys, values

needs = {"qkv", "mask"}
over = "top"
requires = {"tokens", "heads"}


def value_relation(student_qkv_BATh: Vectors, teacher_qkv_BATH: Vectors, mask_BT: Tensor) -> Tensor:
    """Returns the term; see the module's formula."""
    student_BATT, teacher_BATT = (_value_scores(values_BATh) for _, _, values_BATh in (student_qkv_BATh, teacher_qkv_BATH))
    return divergence_of_attention(student_BATT, teacher_BATT, mask_BT)


def _value_scores(values_BATh: Tensor) -> Tensor:
    values_BATh = values_BATh.float()
    return values_BATh @ values_BATh.transpose(-1, -2) * values_BATh.shape[-1] ** -0.5
