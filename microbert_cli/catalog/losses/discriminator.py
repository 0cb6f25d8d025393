"""A discriminator: what the student shows shall not be told from what the teacher shows.

    student's term      - mean over rows log D(x_S)                                      gradient to the student alone
    discriminator's     - s mean log D(x_T) - (1 - s) mean log(1 - D(x_T)) - mean log(1 - D(x_S))      to D alone

x   input = "logits": log softmax(z) [B, C];  "cls": the mapped [CLS] vector of the top mapped layer after LayerNorm without
    weights [B, D];  "both": side by side. Two classes leave "logits" one degree of freedom, a score leaves it none.
D   linear(64), leaky ReLU(0.2), linear(64), leaky ReLU(0.2), linear(1), sigmoid; trained by Adam of its own
    (`learning_rate`, betas 0.5 and 0.999), one step for each of the student's, thrown away afterwards
s   `smoothing`: the label of the teacher's rows

The student's term counts from the share `begin` of the phase on. D rests while it is right in more than `rest_above` of the
rows, as a mean over its last 100 steps: one that wins always teaches nothing.

Source: MicroBERT (Zheng et al., Applied Sciences 2024, 14, 6171), section 3.5, trains a discriminator on the outputs of teacher
and student; no formula of it is known to us. Inputs, sizes, smoothing, delay and rest are this toolkit's reading; the student's
term is the non-saturating one of Goodfellow et al. 2014.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from microbert_cli.errors import MbertError
from microbert_cli.reduce import mean_over_rows

over = "top"
projects = "hidden"
requires: set[str] = set()  # of the first token alone: the others may differ

STEPS = 100  # over which D's accuracy is averaged
Input = Literal["logits", "cls", "both"]


def needs(*, input: Input = "both", **_: Any) -> set[str]:
    """What the models must show for this input."""
    return {"logits": {"logits"}, "cls": {"hidden"}, "both": {"logits", "hidden"}}[input]


def trains(
    *,
    classes: int,
    teacher_width: int,
    input: Input = "both",
    learning_rate: float = 1e-4,
    rest_above: float = 0.9,
    **_: Any,
) -> "Discriminator":
    """The discriminator for this input; raises M055 where the task is a score and logits are to be looked at."""
    if classes == 1 and input != "cls":
        raise _logits_of_a_score(input)
    widths = {"logits": classes, "cls": teacher_width, "both": classes + teacher_width}
    return Discriminator(widths[input], learning_rate=learning_rate, rest_above=rest_above)


class Discriminator(nn.Module):
    """D, and how often it was right of late: both are training state, kept for a resume, no part of the student."""

    accuracies: Tensor
    steps: Tensor

    def __init__(self, width: int, *, learning_rate: float, rest_above: float):
        super().__init__()
        self.learning_rate, self.rest_above = learning_rate, rest_above
        self.judge = nn.Sequential(
            nn.Linear(width, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1)
        )
        self.register_buffer("accuracies", torch.zeros(STEPS))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, shown_BX: Tensor) -> Tensor:
        """The logit of "this is the teacher's", [B]."""
        judged_B1: Tensor = self.judge(shown_BX)
        return judged_B1[:, 0]

    def unmoved(self, shown_BX: Tensor) -> Tensor:
        """The same, with a gradient to what is shown and none to D."""
        held = {name: value.detach() for name, value in self.named_parameters()}
        judged_B: Tensor = functional_call(self, held, (shown_BX,))
        return judged_B

    @property
    def rests(self) -> bool:
        """Whether it has been right too often of late; not before it has taken as many steps as are averaged."""
        return bool(self.steps >= STEPS and self.accuracies.mean() > self.rest_above)

    def optimiser(self) -> torch.optim.Optimizer:
        """Its own."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate, betas=(0.5, 0.999))

    def note(self, parts: dict[str, float]) -> None:
        """Remembers the accuracy of a step that all processes have agreed on."""
        self.accuracies[self.steps % STEPS] = parts["discriminator_accuracy"]
        self.steps += 1


def discriminator(
    student_logits_BC: Tensor | None,
    teacher_logits_BC: Tensor | None,
    student_hidden_BTd: Tensor | None,
    teacher_hidden_BTD: Tensor | None,
    *,
    own: Discriminator,
    project: Callable[[Tensor], Tensor],
    share: float,
    input: Input = "both",
    begin: float = 0.1,
    smoothing: float = 0.9,
    learning_rate: float = 1e-4,
    rest_above: float = 0.9,
) -> Tensor:
    """The student's term; see the module's formulas."""
    shown_BX = _discriminator_input(student_logits_BC, student_hidden_BTd, project)
    return generator_loss(own.unmoved(shown_BX)) if share >= begin else shown_BX.new_zeros(())


def against(
    student_logits_BC: Tensor | None,
    teacher_logits_BC: Tensor | None,
    student_hidden_BTd: Tensor | None,
    teacher_hidden_BTD: Tensor | None,
    *,
    own: Discriminator,
    project: Callable[[Tensor], Tensor],
    smoothing: float = 0.9,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(the discriminator's loss, what of it is logged); no gradient leaves D, and a resting one has none."""
    with torch.no_grad():
        theirs_BX = _discriminator_input(teacher_logits_BC, teacher_hidden_BTD, lambda cls_BD: cls_BD)
        ours_BX = _discriminator_input(student_logits_BC, student_hidden_BTd, project)
    with torch.set_grad_enabled(not own.rests):
        theirs_B, ours_B = own(theirs_BX), own(ours_BX)
        loss = discriminator_loss(theirs_B, ours_B, smoothing=smoothing)
    right_B = torch.cat([theirs_B > 0, ours_B <= 0]).float()
    return loss, {"discriminator_loss": loss, "discriminator_accuracy": mean_over_rows(right_B)}


def generator_loss(ours_B: Tensor) -> Tensor:
    """- mean log D(x_S), of logits."""
    return mean_over_rows(-F.logsigmoid(ours_B))


def discriminator_loss(theirs_B: Tensor, ours_B: Tensor, *, smoothing: float) -> Tensor:
    """The discriminator's loss, of logits."""
    missed_B = F.binary_cross_entropy_with_logits(theirs_B, torch.full_like(theirs_B, smoothing), reduction="none")
    return mean_over_rows(missed_B) + mean_over_rows(-F.logsigmoid(-ours_B))


def _discriminator_input(logits_BC: Tensor | None, hidden_BTd: Tensor | None, project: Callable[[Tensor], Tensor]) -> Tensor:
    """x of one of the two: what of logits and hidden states was asked for."""
    parts = [] if logits_BC is None else [logits_BC.float().log_softmax(-1)]
    if hidden_BTd is not None:
        cls_BD = project(hidden_BTd[:, 0].float()).float()
        parts.append(F.layer_norm(cls_BD, cls_BD.shape[-1:]))
    return torch.cat(parts, dim=-1)


def _logits_of_a_score(input: str) -> MbertError:
    return MbertError(
        "M055",
        f'a discriminator with input = "{input}" looks at classes, and this task is a score',
        where="losses.discriminator.input",
        allowed='input = "cls" for scores: the log-softmax of one number is always 0.',
        fix="--set phases.PHASE.losses.discriminator.input='\"cls\"', or leave it out: --set ablate='[\"dis\"]'",
    )
