"""What the training loop is given of a phase, and what it returns."""

from dataclasses import dataclass, field
from fractions import Fraction

from microbert_cli.recipe.values import Training


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
    best_by: str = "score"  # or "loss", of the phase's own losses on dev
    patience: int = 0  # evaluations in a row without a better one, after which the phase ends; 0 = never
    from_start: bool = False  # the weights that the phase begins with may be its best ones


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

    def dev_scores(self, name: str) -> dict[str, float]:
        """Returns the last and the best score of a name on dev, where there are any."""
        scores = {"dev": self.history[-1] if self.history else {}, "best": self.best}
        return {key: values[name] for key, values in scores.items() if name in values}

    def is_exhausted(self, patience: int) -> bool:
        """Whether the last `patience` evaluations brought nothing better; a resumed run finds the same in the record."""
        return bool(patience) and sum(scores["step"] > self.best_step for scores in self.history) >= patience


def shares_of_first_seed(training: Training) -> list[float]:
    """Returns the share of a phase's steps that each of the first seed's runs takes; a race ends with one of all steps."""
    rates, race = max(1, len(getattr(training, "learning_rates", ()))), race_share(training)
    return [1.0] * rates if race == 1.0 else [race] * rates + [1.0]


def race_share(training: Training) -> float:
    """Returns the share of the steps for which each of several learning rates is tried; 1 where there is one."""
    rates = getattr(training, "learning_rates", ())
    return float(getattr(training, "race", 1.0)) if len(rates) > 1 else 1.0
