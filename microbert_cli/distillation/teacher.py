"""The teacher: a frozen model, and the checks it has to pass before a student learns from it.

The two commonest failures of distillation are a teacher that was never fine-tuned and permuted labels. So a teacher's outputs
are matched to the task's labels by NAME, and its dev score is measured first: a teacher that is hardly better than always
answering the commonest class is refused.
"""

import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from microbert_cli.distillation.cast_weights import CastWeights
from microbert_cli.errors import MbertError
from microbert_cli.models.capture import Batch, ModelOutputs, OutputRequest, forward_in_pieces
from microbert_cli.models.load import LoadedModel, frozen
from microbert_cli.recipe.task import Task

MIN_CORRELATION = 0.5  # of a teacher with dev, for its units to be told from its errors


class Teacher:
    """A frozen model whose class columns are in the task's order.

    columns     column c of the task is column columns[c] of the model; None = the same order
    dropout     keeps dropout active, as the released TinyBERT code does by mistake
    rows_asked  how many rows went through it so far
    """

    rows_asked = 0

    def __init__(self, loaded: LoadedModel, columns: Sequence[int] | None = None, *, dropout: bool = False):
        self.model, self.tokenizer = frozen(loaded.model).train(dropout), loaded.tokenizer
        self._cast_weights = CastWeights(self.model)
        self.columns = list(columns) if columns and list(columns) != sorted(columns) else None

    @property
    def cache_name(self) -> str:
        """Names what answers, in the identity of cached answers: the class, whose renaming would empty users' caches."""
        return type(self).__name__

    @property
    def device(self) -> torch.device:
        """The device of the model's weights."""
        return next(self.model.parameters()).device

    def to_device(self, batch: Batch) -> Batch:
        """Returns the batch on the teacher's device."""
        return {name: value.to(self.device) for name, value in batch.items()}

    def ask(self, batch: Batch, request: OutputRequest) -> ModelOutputs:
        """Returns the requested outputs for a batch, without gradients; a large batch is run in pieces."""
        # "task" is an index among the run's tasks; a multi-task model as a teacher would take it for one of its own heads.
        batch = {name: value for name, value in batch.items() if name != "task"}
        self.rows_asked += len(batch["input_ids"])
        with torch.no_grad(), self._cast_weights.used(self.device):
            outputs = forward_in_pieces(self.model, batch, request)
        if outputs.logits is not None and self.columns:
            outputs.logits = outputs.logits[..., self.columns]
        return outputs

    def logits(self, batch: Batch) -> np.ndarray:
        """Returns the logits [B, C] in the task's order, with dropout off."""
        training = self.model.training  # the case with `dropout`
        self.model.eval()
        outputs = self.ask(self.to_device(batch), OutputRequest(logits=True))
        self.model.train(training)
        assert outputs.logits is not None
        return outputs.logits.float().cpu().numpy()


def line_into_units(scores: np.ndarray, labels: Sequence[Any]) -> tuple[float, float] | None:
    """Returns slope and intercept that take a teacher's scores into the units of the labels; None where they are in them.

    Scores are in other units where they are further from the labels than a constant is, though a rising line through them
    is near.
    """
    teacher_n, gold_n = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if len(gold_n) < 2 or not np.isfinite(teacher_n).all() or np.square(teacher_n - gold_n).mean() <= gold_n.var():
        return None
    covariance = float(((teacher_n - teacher_n.mean()) * (gold_n - gold_n.mean())).mean())
    # A weak teacher is far from the labels in any units, and is left for `check_strength`.
    if covariance <= MIN_CORRELATION * float(teacher_n.std() * gold_n.std()):
        return None
    slope = covariance / float(teacher_n.var())
    return slope, float(gold_n.mean() - slope * teacher_n.mean())


def check_strength(task: Task, teacher: float, majority: float, *, margin: float, where: str, source: str = "MODEL") -> None:
    """Raises M610 for a teacher that is not better than the commonest class by `margin` of the primary metric."""
    if teacher >= majority + margin:
        return
    raise MbertError(
        "M610",
        f"the teacher scores {task.primary} {teacher:.3f} on dev, always answering the commonest class {majority:.3f}",
        where=where,
        allowed=f"A teacher fine-tuned on {task.name}, better than that by at least {margin}.",
        fix=f"Fine-tune it: mbert finetune --model {shlex.quote(source)} {task.options}; "
        "or insist: --set teacher.allow_weak=true",
    )
