"""What the training loop is given of a phase, and what it returns."""

from dataclasses import dataclass, field
from fractions import Fraction


@dataclass(frozen=True)
class TrainingPlan:
    """The hyperparameters of one phase; `steps` are optimiser steps of `accumulate` batches each.

    table  the table of the recipe that these numbers stand in, for errors that name a key
    """

    name: str
    steps: int
    learning_rate: float
    table: str = "phases"
    optimizer: str = "adamw"
    schedule: str = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    accumulate: int = 1
    evaluate_every: int | Fraction = 0  # steps: at the first one from each multiple on, and at the last
    checkpoint_seconds: float = 120.0
    checkpoint_steps: int = 0
    gradient_norms: int = 0
    freeze: tuple[str, ...] = ()
    keep_best: bool = True


@dataclass
class TrainingResult:
    """The result of a phase: the last losses, the scores of the best weights, and every evaluation.

    halved_after  the step from which batches are split in halves because memory ran out
    """

    steps: int
    losses: dict[str, float]
    best: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    halved_after: int | None = None
