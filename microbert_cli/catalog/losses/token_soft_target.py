"""Soft targets for words: at every token the student's distribution over the vocabulary approaches the teacher's.

    L = T^2 mean over positions of  sum_v p_v log(p_v / q_v),   p = softmax(z_T / T), q = softmax(z_S / T)        (nats)

z  masked-LM logits [P, V] of the P positions: all real tokens ("all"), or the masked positions ("masked").
   Where the two vocabularies are padded to different sizes, the columns of both count.
squared_temperature = false leaves T^2 out.

The logits of all real tokens are the largest tensors of a step: 4 bytes x 4,096 tokens x 30,522 words = 500 MB, several times
over. So the logits of both models and their gradients are computed for CHUNK_POSITIONS positions at a time. Measured for one
float32 step of that size at d = 768, over the weights: 0.7 GB at the most instead of 3.6 GB, in 0.77 times the seconds
(docs/lab-notes.md).

Source: DistilBERT (Sanh et al. 2019) and its released code, L_ce: the paper writes a cross-entropy, the code is this
divergence; `restrict_ce_to_mask` there is positions = "masked".
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from microbert_cli.reduce import denominator

CHUNK_POSITIONS = 512  # positions
over = "top"
bounds = {"temperature": (1e-3, 1e3)}
requires = {"tokens"}  # and one vocabulary

Head = Callable[[Tensor], Tensor]
Piece = tuple[Tensor, Tensor]
Divergence = Callable[[Tensor, Tensor], Tensor]


def needs(*, positions: str = "all", **_: Any) -> set[str]:
    """Returns what the loss reads; masked words only with positions = "masked"."""
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
    """Returns the batch's term; see the module's formula. The heads turn top vectors [P, d] into logits [P, V]."""
    chosen_P = mask_BT.flatten().nonzero()[:, 0] if positions == "all" or token_positions_P is None else token_positions_P
    student_Pd, teacher_PD = (hidden.flatten(0, 1)[chosen_P] for hidden in (student_hidden_BTd, teacher_hidden_BTD))

    def divergence(piece_Pd: Tensor, piece_PD: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_PV = teacher_head_PV(piece_PD).float()
        student_PV = student_head_PV(piece_Pd).float()
        words = min(student_PV.shape[-1], teacher_PV.shape[-1])
        log_p, log_q = (z_PV[:, :words].div(temperature).log_softmax(-1) for z_PV in (teacher_PV, student_PV))
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True)

    pieces = list(zip(student_Pd.split(CHUNK_POSITIONS), teacher_PD.split(CHUNK_POSITIONS), strict=True))
    if len(pieces) == 1 or not torch.is_grad_enabled():
        total = torch.stack([divergence(*piece) for piece in pieces]).sum()
    else:
        total = _ChunkedDivergence.apply(divergence, pieces, student_Pd, *_head_weights(divergence, *pieces[0]))
    mean = total / denominator(mask_BT.new_tensor(len(chosen_P), dtype=torch.float), at_least=1.0)
    return mean * temperature**2 if squared_temperature else mean


class _ChunkedDivergence(torch.autograd.Function):
    """The sum of a divergence over pieces; its gradients are computed in the forward pass, piece by piece.

    So a piece's logits are freed before the next piece's are made, and the backward pass needs none of them.
    """

    @staticmethod
    def forward(ctx: Any, divergence: Divergence, pieces: Sequence[Piece], student_Pd: Tensor, *weights: Tensor) -> Tensor:
        total = torch.zeros((), device=student_Pd.device)
        vector_gradients, head_gradients = [], [torch.zeros_like(weight) for weight in weights]
        for student_pd, teacher_pD in pieces:
            leaf_pd = student_pd.detach().requires_grad_()
            with torch.enable_grad():
                value = divergence(leaf_pd, teacher_pD)
            vector_gradient, *weight_gradients = torch.autograd.grad(value, [leaf_pd, *weights])
            total += value.detach()
            vector_gradients.append(vector_gradient)
            for total_gradient, gradient in zip(head_gradients, weight_gradients, strict=True):
                total_gradient += gradient
        ctx.save_for_backward(torch.cat(vector_gradients), *head_gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(grad_outputs[0] * gradient for gradient in ctx.saved_tensors)


def _head_weights(divergence: Divergence, student_pd: Tensor, teacher_pD: Tensor) -> list[Tensor]:
    """Returns the weights of the student's head: the leaves of the graph of one position's divergence.

    The head is a plain function to the loss, so that autograd's graph is where its weights can be found.
    """
    leaf_1d = student_pd[:1].detach().requires_grad_()
    pending, leaves = [divergence(leaf_1d, teacher_pD[:1]).grad_fn], {}
    while pending:
        node = pending.pop()
        if (leaf := getattr(node, "variable", None)) is not None and leaf is not leaf_1d:
            leaves[id(leaf)] = leaf
        pending += [parent for parent, _ in node.next_functions if parent is not None] if node is not None else []
    return list(leaves.values())
