"""Targets that were filled in: a student that writes from left to right approaches what a teacher sees from both sides.

    L = mean over the tokens of all targets of  - sum over the k likeliest tokens w of  p_w log q_w
    p = softmax(z_T / T) over these k,   q = softmax(z_S) over the whole vocabulary       (nats)

z_T the teacher's k largest logits at a position that was hidden from it, with source and the rest of the target before its
eyes [B, T, k]; z_S the student's logits there [B, T, V], with source and the target so far. q has no temperature.

k        likeliest tokens that are kept of the teacher's answer
copies   masked copies of a row, at most: copy i hides positions i, i + copies, i + 2 copies, ...
Source: C-MLM (Chen et al., ACL 2020), L_bidi, with T = 10, k = 8, 7 copies; there a sum over positions.
"""

from torch import Tensor

from microbert_cli.reduce import mean_over_rows

needs = {"logits", "top_k", "labels"}
over = "batch"
bounds = {"temperature": (1e-3, 1e3), "k": (1, 1024), "copies": (1, 512)}
NO_TOKEN = -100


def bidirectional_target(
    student_BTV: Tensor,
    teacher_values_BTk: Tensor,
    teacher_tokens_BTk: Tensor,
    labels_BT: Tensor,
    *,
    temperature: float = 10.0,
    k: int = 8,
    copies: int = 7,
) -> Tensor:
    """Returns the batch's term; see the module's formulas."""
    p_BTk = teacher_values_BTk[..., :k].float().div(temperature).softmax(-1)
    log_q_BTk = student_BTV.float().log_softmax(-1).gather(-1, teacher_tokens_BTk[..., :k])
    return mean_over_rows(-(p_BTk * log_q_BTk).sum(-1).flatten(), labels_BT.flatten() != NO_TOKEN)
