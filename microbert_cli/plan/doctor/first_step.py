"""One step of every training phase: the recipe's own losses on a few of its rows, through the training loop itself.

Weights are those that are there; random ones stand for models that are yet to be made.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from microbert_cli.data.multitask_batching import MultitaskExamples, batches_of
from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.errors import MbertError
from microbert_cli.models.capture import Batch
from microbert_cli.models.device import Precision, choose_precision, pick_device
from microbert_cli.plan.doctor.findings import Finding, attempt, passed
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.values import Training
from microbert_cli.reporter import Reporter
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.training.loop import train
from microbert_cli.training.objective import Objective
from microbert_cli.training.plan import TrainingPlan

if TYPE_CHECKING:
    from microbert_cli.plan.doctor.context import DoctorContext

ROWS = 8  # of a batch, at most: losses are means, so a few rows show whether they are numbers
NEVER = 1e9  # seconds


@dataclass(frozen=True)
class StepTrial:
    """A phase about to take its first step; `table` of the recipe holds its numbers."""

    name: str
    table: str
    training: Training
    objective: Objective
    batch: Batch


class _Enough(Exception):
    """One step was made."""


class _LossMeter(Reporter):
    """Remembers the loss that the loop tells."""

    loss = float("nan")

    def progress(self, stage: str, step: int, total: int, **numbers: float) -> None:
        self.loss = numbers["loss"]


def first_step(case: "DoctorContext") -> Iterator[Finding]:
    """Every training stage makes a step with finite losses, gradients and weights."""
    training = [step for step in case.steps if step.stage.trains]
    for step in training:
        yield attempt(step.name, _first_step, case, step)
    if not training:
        yield passed("no stage trains")


def _first_step(case: "DoctorContext", step: Step) -> Finding:
    losses = [f"{trial.name} {take_step(trial):.4g}" for trial in step.stage.trial(case, step)]
    return passed(f"finite losses: {', '.join(losses)}")


def take_step(trial: StepTrial) -> float:
    """The loss of one step. Raises M401 where loss or gradients are no numbers, M636 where weights are none after it."""
    spec, meter = trial.training, _LossMeter()

    def batches(skip: int) -> Iterator[Batch]:
        yield trial.batch
        raise _Enough

    plan = TrainingPlan(
        trial.name, 2, spec.learning_rate, trial.table, optimizer=spec.optimizer, schedule="constant", warmup=0.0,
        weight_decay=spec.weight_decay, max_grad_norm=spec.max_grad_norm, checkpoint_seconds=NEVER, freeze=tuple(spec.freeze),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(trial.objective, batches, plan, directory=Path(folder), seed=0, reporter=meter)
        except _Enough:
            pass
    weights = [*trial.objective.student.named_parameters(), *trial.objective.named_parameters()]
    if broken := [name for name, weight in weights if not torch.isfinite(weight).all()]:
        raise MbertError(
            "M636",
            f"after one step {len(broken)} tensors hold what is no number, {broken[0]} for one; the loss was {meter.loss:.4g}",
            where=trial.name,
            allowed="Weights that stay finite.",
            fix="Look at the losses and their parameters: --explain-config; and at the weights that the model begins with.",
        )
    return meter.loss


def without_traces(recipe: Recipe) -> Recipe:
    """The recipe without what would leave a trace or take minutes: the teacher's cache, and compilation."""
    return recipe.model_copy(update={"cache": recipe.cache.model_copy(update={"teacher": "off"}), "compile": False})


def trial_precision(recipe: Recipe) -> Precision:
    """Returns the device and number format of a trial, without compilation."""
    return choose_precision(pick_device(recipe.device), **without_traces(recipe).numerics())


def first_batch(
    rows: TokenizedExamples | MultitaskExamples, tokenizer: Any, recipe: Recipe, device: str, pad_to: int | None = None
) -> Batch:
    """The first rows that the seed draws."""
    indices = next(batches_of(rows, batch_size=min(ROWS, len(rows.lengths)), seed=recipe.seed))
    return on_device(rows.batch(indices, pad_to=pad_to, pad_id=tokenizer.pad_token_id), device)


def on_device(batch: Batch, device: str) -> Batch:
    """Moves a batch to a device."""
    return {name: value.to(device) for name, value in batch.items()}
