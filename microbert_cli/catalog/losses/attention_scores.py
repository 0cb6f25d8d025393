"""Attention distillation: the student's attention scores approach the teacher's, head by head.

    L = sum over mapped layers m of  mean over heads a and real pairs (q, k) of  (s_maqk - t_g(m)aqk)^2

s, t  scores Q K^T / sqrt(head size) BEFORE softmax and before any mask is added, [B, A, Q, K]; both models have A heads.
normalisation = "reference" repeats the released code: the additive mask of -10,000 puts padded keys below -100, every
score <= -100 becomes 0 on both sides, then one mean over all B x A x Q x K elements - padded queries count in full.

Source: TinyBERT, attention loss on unnormalised scores; the arithmetic of `reference` is the released code's.
"""

from torch import Tensor

from microbert_cli.reduce import mean_over_elements, mean_over_pairs, squared_error

needs = {"scores", "mask"}
over = "layers"


def attention_scores(student_BAQK: Tensor, teacher_BAQK: Tensor, mask_BT: Tensor, *, normalisation: str = "masked") -> Tensor:
    """Returns one layer's term; see the module's formula."""
    if normalisation != "reference":
        return mean_over_pairs(squared_error(student_BAQK, teacher_BAQK), mask_BT)
    return mean_over_elements(squared_error(_released_masking(student_BAQK, mask_BT), _released_masking(teacher_BAQK, mask_BT)))


def _released_masking(scores_BAQK: Tensor, mask_BT: Tensor) -> Tensor:
    # The released code finds padded keys by their value, so that a real score of -100 or less becomes 0 as well.
    masked_BAQK = (mask_BT == 0)[:, None, None, :] | (scores_BAQK <= -100.0)
    return scores_BAQK.masked_fill(masked_BAQK, 0.0)
