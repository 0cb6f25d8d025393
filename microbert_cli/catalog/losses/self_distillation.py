"""Self-distillation: every branch of a model with exits approaches what the model itself says after its last layer.

With p_i = softmax(z_i) of the branch after layer i, [B, C], and p_N of the last layer, a constant:

    kl           sum over i  KL(p_N || p_i)    = sum over i  mean over rows  sum_c p_N,c (log p_N,c - log p_i,c)
    reverse-kl   sum over i  KL(p_i || p_N)

A score (C = 1) has no distribution: sum over i of mean (z_i - z_N)^2, this toolkit's. No label is read, so that any text will
do. Source: FastBERT (Liu et al., ACL 2020); "kl" is what its released code
computes, "reverse-kl" what the paper's formula says (from memory, not verified).
"""

from typing import Literal

from torch import Tensor

from microbert_cli.reduce import mean_over_rows

needs = {"exits"}
over = "batch"


def self_distillation(exits_EBC: Tensor, *, divergence: Literal["kl", "reverse-kl"] = "kl") -> Tensor:
    """Returns the batch's term; see the module's formulas. exits_EBC: logits of all exits, the last layer's at the end."""
    branches_EBC, last_BC = exits_EBC[:-1].float(), exits_EBC[-1].detach().float()
    if last_BC.shape[-1] == 1:
        return mean_over_rows((branches_EBC - last_BC).square().sum((0, -1)))
    log_q_EBC, log_p_BC = branches_EBC.log_softmax(-1), last_BC.log_softmax(-1)
    if divergence == "kl":
        return mean_over_rows((log_p_BC.exp() * (log_p_BC - log_q_EBC)).sum((0, -1)))
    return mean_over_rows((log_q_EBC.exp() * (log_q_EBC - log_p_BC)).sum((0, -1)))
