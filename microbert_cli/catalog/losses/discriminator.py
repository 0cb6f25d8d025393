"""A discriminator: it learns to tell the student's outputs from the teacher's, and the student learns to prevent that.

    student's term      - mean over rows log D(x_S)                                      gradient to the student alone
    discriminator's     - s mean log D(x_T) - (1 - s) mean log(1 - D(x_T)) - mean log(1 - D(x_S))      to D alone

x   input = "logits": log softmax(z) [B, C];  "cls": the mapped [CLS] vector of the top mapped layer after LayerNorm without
    weights [B, D];  "both": concatenated. Two classes leave "logits" one degree of freedom, a score leaves it none.
D   linear(64), leaky ReLU(0.2), linear(64), leaky ReLU(0.2), linear(1), sigmoid; trained by Adam of its own
    (`learning_rate`, betas 0.5 and 0.999), one step for each of the student's, thrown away afterwards
s   `smoothing`: the label of the teacher's rows

The student's term counts from the share `begin` of the phase on. D pauses while it is right in more than `rest_above` of
the rows, as a mean over its last 100 steps: from a discriminator that always wins the student learns nothing.

Source: MicroBERT (Zheng et al., Applied Sciences 2024, 14, 6171), section 3.5, trains a discriminator on the outputs of teacher
and student; its formula is not known to us. Inputs, sizes, smoothing, delay and pause are this toolkit's reading; the student's
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
bounds = {"begin": (0, 1), "smoothing": (0, 1), "learning_rate": (1e-10, 10), "rest_above": (0, 1)}
projects = "hidden"
requires: set[str] = set()  # reads the first token only, so that the others may differ

STEPS = 100  # over which D's accuracy is averaged
Input = Literal["logits", "cls", "both"]


def needs(*, input: Input = "both", **_: Any) -> set[str]:
    """Returns the outputs that this input reads."""
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
    """Returns the discriminator for this input; raises M055 for logits of a task that is a score."""
    if classes == 1 and input != "cls":
        raise _logits_of_a_score(input)
    widths = {"logits": classes, "cls": teacher_width, "both": classes + teacher_width}
    return Discriminator(widths[input], learning_rate=learning_rate, rest_above=rest_above)


class Discriminator(nn.Module):
    """D and its recent accuracies. Both are training state: saved for resuming, never with the student."""

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

    def forward(self, input_BX: Tensor) -> Tensor:
        """Returns the logit of "this is the teacher's", [B]."""
        logit_B1: Tensor = self.judge(input_BX)
        return logit_B1[:, 0]

    def frozen(self, input_BX: Tensor) -> Tensor:
        """Returns the same logit with a gradient to the input and none to D."""
        weights = {name: value.detach() for name, value in self.named_parameters()}
        logit_B: Tensor = functional_call(self, weights, (input_BX,))
        return logit_B

    @property
    def paused(self) -> bool:
        """Whether its mean accuracy is above `rest_above`; never before it has taken as many steps as are averaged."""
        return bool(self.steps >= STEPS and self.accuracies.mean() > self.rest_above)

    def optimiser(self) -> torch.optim.Optimizer:
        """Returns D's own optimiser."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate, betas=(0.5, 0.999))

    def note(self, parts: dict[str, float]) -> None:
        """Records the accuracy of a step, averaged over all processes."""
        self.accuracies[self.steps % STEPS] = parts["discriminator_accuracy"]
        self.steps += 1


def discriminator(
    student_logits_BC: Tensor | None,
    teacher_logits_BC: Tensor | None,
    student_hidden_BTd: Tensor | None,
    teacher_hidden_BTD: Tensor | None,
    independent: bool = False,
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
    """Returns the student's term; see the module's formulas."""
    student_BX = _discriminator_input(student_logits_BC, student_hidden_BTd, project, independent)
    return generator_loss(own.frozen(student_BX)) if share >= begin else student_BX.new_zeros(())


def against(
    student_logits_BC: Tensor | None,
    teacher_logits_BC: Tensor | None,
    student_hidden_BTd: Tensor | None,
    teacher_hidden_BTD: Tensor | None,
    independent: bool = False,
    *,
    own: Discriminator,
    project: Callable[[Tensor], Tensor],
    smoothing: float = 0.9,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns (the discriminator's loss, values for the log); no gradient leaves D, and a paused one gets none."""
    with torch.no_grad():
        teacher_BX = _discriminator_input(teacher_logits_BC, teacher_hidden_BTD, lambda cls_BD: cls_BD, independent)
        student_BX = _discriminator_input(student_logits_BC, student_hidden_BTd, project, independent)
    with torch.set_grad_enabled(not own.paused):
        teacher_B, student_B = own(teacher_BX), own(student_BX)
        loss = discriminator_loss(teacher_B, student_B, smoothing=smoothing)
    correct_B = torch.cat([teacher_B > 0, student_B <= 0]).float()
    return loss, {"discriminator_loss": loss, "discriminator_accuracy": mean_over_rows(correct_B)}


def generator_loss(student_B: Tensor) -> Tensor:
    """Returns - mean log D(x_S) from the logits of D."""
    return mean_over_rows(-F.logsigmoid(student_B))


def discriminator_loss(teacher_B: Tensor, student_B: Tensor, *, smoothing: float) -> Tensor:
    """Returns the discriminator's loss from its logits."""
    teacher_loss_B = F.binary_cross_entropy_with_logits(teacher_B, torch.full_like(teacher_B, smoothing), reduction="none")
    return mean_over_rows(teacher_loss_B) + mean_over_rows(-F.logsigmoid(-student_B))


def _discriminator_input(
    logits_BC: Tensor | None, hidden_BTd: Tensor | None, project: Callable[[Tensor], Tensor], independent: bool
) -> Tensor:
    """Returns x of one model: its logits, its mapped first-token vector, or both."""
    parts = []
    if logits_BC is not None:
        parts.append(F.logsigmoid(logits_BC.float()) if independent else logits_BC.float().log_softmax(-1))
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
