"""Soft targets for words: at every token the student's distribution over the vocabulary approaches the teacher's.

    L = T^2 mean over positions of  sum_v p_v log(p_v / q_v),   p = softmax(z_T / T), q = softmax(z_S / T)        (nats)

z  masked-LM logits [P, V] of the P positions: all real tokens ("all"), or those whose word was hidden ("masked").
   Where the two embeddings have different numbers of rows, the columns that both have count.
squared_temperature = false leaves T^2 out.

All real tokens of a batch times a vocabulary is more than anything else in a step: 4 bytes x 4,096 tokens x 30,522 words =
500 MB, several times over. So logits are made for AT_ONCE positions at a time, of both models, and made again in the backward
pass; no more than that is ever there. Measured for one float32 step of that size at d = 768, over the weights: 0.6 GB at the
most instead of 3.4 GB, in 1.4 times the seconds (two cores, beside other work).

Source: DistilBERT (Sanh et al. 2019) and its released code, L_ce: the paper writes a cross-entropy, the code is this
divergence; `restrict_ce_to_mask` there is positions = "masked".
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from microbert_cli.reduce import denominator

AT_ONCE = 512  # positions
over = "top"
requires = {"tokens"}  # and one vocabulary

Head = Callable[[Tensor], Tensor]


def needs(*, positions: str = "all", **_: Any) -> set[str]:
    """Hidden words only where they are asked for."""
    return {"hidden", "mask", "token_head"} | ({"token_labels"} if positions == "masked" else set())


def token_soft_target(
    student_hidden_BTd: Tensor,
    teacher_hidden_BTD: Tensor,
    student_head_PV: Head,
    teacher_head_PV: Head,
    mask_BT: Tensor,
    token_positions_P: Tensor | None = None,
    *,
    temperature: float = 2.0,
    positions: Literal["all", "masked"] = "all",
    squared_temperature: bool = True,
) -> Tensor:
    """The batch's term; see the module's formula. The heads turn top vectors [P, d] into logits [P, V]."""
    chosen_P = mask_BT.flatten().nonzero()[:, 0] if positions == "all" or token_positions_P is None else token_positions_P
    student_Pd, teacher_PD = (hidden.flatten(0, 1)[chosen_P] for hidden in (student_hidden_BTd, teacher_hidden_BTD))

    def divergence(piece_Pd: Tensor, piece_PD: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_PV = teacher_head_PV(piece_PD).float()
        student_PV = student_head_PV(piece_Pd).float()
        words = min(student_PV.shape[-1], teacher_PV.shape[-1])
        log_p, log_q = (z_PV[:, :words].div(temperature).log_softmax(-1) for z_PV in (teacher_PV, student_PV))
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True)

    pieces = list(zip(student_Pd.split(AT_ONCE), teacher_PD.split(AT_ONCE), strict=True))
    if len(pieces) == 1 or not torch.is_grad_enabled():
        parts = [divergence(*piece) for piece in pieces]
    else:
        parts = [checkpoint(divergence, *piece, use_reentrant=False) for piece in pieces]
    mean = torch.stack(parts).sum() / denominator(mask_BT.new_tensor(len(chosen_P), dtype=torch.float), at_least=1.0)
    return mean * temperature**2 if squared_temperature else mean
