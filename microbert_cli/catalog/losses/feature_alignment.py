"""Feature alignment: sentence vectors of the student's layers, mapped to the teacher's width, approach the teacher's.

    L = 1/M sum over mapped layers m  sum over v in {cls, max, mean}  pi_v D( W s_v(H_m) + b, s_v(G_g(m)) )

s_v   a sentence vector of the real tokens of H [B, T, d]: the first token, the largest value of every feature, the mean
W, b  the one map [d -> D] that the other hidden-state losses use; vectors are pooled first, since the maximum does not commute
pi_v  weights, 1/3 each; a weight 0 leaves its vector out. gate = "task": learned for each task instead, as
      floor + (1 - V floor) softmax(a_task) over the V vectors in use; without the floor the smallest distance would get all
D     mse: |a - b|^2 / D   cosine: 1 - cos(a, b)   smooth-l1   normalised-mse: |a/|a| - b/|b||^2   mse+cosine; mean over rows

Source: MicroBERT (Zheng et al., Applied Sciences 2024, 14, 6171), section 3.2, names the three vectors, the map and the level
of the sentence; its formula is not known to us. Weights, distances and the order of pooling and mapping are this toolkit's
reading.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microbert_cli.errors import MbertError
from microbert_cli.reduce import mean_over_rows, squared_error

needs = {"hidden", "mask"}
over = "layers"
bounds = {"cls": (0, 1e6), "max": (0, 1e6), "mean": (0, 1e6)}
projects = "hidden"
requires: set[str] = set()  # one vector per sentence, so that the two models may tokenise it differently

DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda a_BD, b_BD: squared_error(a_BD, b_BD).mean(-1),
    "cosine": lambda a_BD, b_BD: 1 - F.cosine_similarity(a_BD, b_BD),
    "smooth-l1": lambda a_BD, b_BD: F.smooth_l1_loss(a_BD, b_BD, reduction="none").mean(-1),
    "normalised-mse": lambda a_BD, b_BD: squared_error(F.normalize(a_BD), F.normalize(b_BD)).sum(-1),
    "mse+cosine": lambda a_BD, b_BD: squared_error(a_BD, b_BD).mean(-1) + 1 - F.cosine_similarity(a_BD, b_BD),
}


class Gate(nn.Module):
    """The weights pi of every task, trained with the student."""

    def __init__(self, tasks: int, floor: float, used: list[str]):
        super().__init__()
        self.floor, self.used = floor, used
        self.preference = nn.Parameter(torch.zeros(tasks, len(used)))

    def forward(self, task: int) -> dict[str, Tensor]:
        """Returns the weight of each vector in use; they sum to 1."""
        pi_V = self.floor + (1 - len(self.used) * self.floor) * self.preference[task].softmax(-1)
        return dict(zip(self.used, pi_V.unbind(), strict=True))

    def told(self) -> dict[str, Tensor]:
        """Returns the weights for the log, by task where there are several."""
        tasks = len(self.preference)
        return {
            f"pi_{name}" + (f"_{task}" if tasks > 1 else ""): weight.detach()
            for task in range(tasks)
            for name, weight in self(task).items()
        }


def trains(
    *,
    tasks: int,
    gate: str = "none",
    floor: float = 0.1,
    cls: float = 1 / 3,
    max: float = 1 / 3,
    mean: float = 1 / 3,
    **_: Any,
) -> Gate | None:
    """Returns the gate, None without one; raises M056 for a floor that leaves no weight to learn."""
    used = [name for name, weight in {"cls": cls, "max": max, "mean": mean}.items() if weight]
    if gate == "none":
        return None
    if not 0 <= floor * len(used) < 1:
        raise _no_floor(floor, len(used))
    return Gate(tasks, floor, used)


def feature_alignment(
    student_BTd: Tensor,
    teacher_BTD: Tensor,
    mask_BT: Tensor,
    task_B: Tensor | None = None,
    teacher_mask_BT: Tensor | None = None,
    *,
    project: Callable[[Tensor], Tensor],
    mapped_layers: int,
    own: Gate | None = None,
    distance: Literal["mse", "cosine", "smooth-l1", "normalised-mse", "mse+cosine"] = "mse",
    cls: float = 1 / 3,
    max: float = 1 / 3,
    mean: float = 1 / 3,
    gate: Literal["none", "task"] = "none",
    floor: float = 0.1,
) -> Tensor:
    """Returns one layer's term; see the module's formula."""
    student = sentence_vectors(student_BTd.float(), mask_BT)
    teacher = sentence_vectors(teacher_BTD.float(), mask_BT if teacher_mask_BT is None else teacher_mask_BT)
    weights: dict[str, Any] = {"cls": cls, "max": max, "mean": mean}
    if own is not None:  # an empty batch, of a process without rows, still needs some task's weights
        weights = own(0 if task_B is None or not len(task_B) else int(task_B[0]))
    terms = [
        weight * mean_over_rows(DISTANCES[distance](project(student[name]).float(), teacher[name]))
        for name, weight in weights.items()
        if own is not None or weight
    ]
    return sum(terms, student_BTd.new_zeros(())) / mapped_layers


def sentence_vectors(hidden_BTd: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
    """Returns the three sentence vectors [B, d] of the real tokens, [CLS] and [SEP] included."""
    real_BT1 = mask_BT.bool()[:, :, None]
    return {
        "cls": hidden_BTd[:, 0],
        "max": hidden_BTd.masked_fill(~real_BT1, -float("inf")).amax(1),
        "mean": (hidden_BTd * real_BT1).sum(1) / real_BT1.sum(1),
    }


def _no_floor(floor: float, used: int) -> MbertError:
    return MbertError(
        "M056",
        f"a floor of {floor} under each of {used} weights leaves nothing to share out",
        where="losses.feature_alignment.floor",
        allowed=f"0 or more, and less than 1 / {max(1, used)}.",
        fix="Leave it out: it is 0.1.",
    )
