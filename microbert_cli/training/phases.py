"""Phases of training on a task: from the recipe's numbers to the training loop, for fine-tuning and distillation.

Each seed is trained in `seed-N/`; the directory above holds a copy of the seed with the best dev score. A phase with several
learning rates is trained with each from the same weights and keeps the best on dev; later seeds reuse the first seed's choice.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

from microbert_cli import distributed
from microbert_cli.data.batching import steps_per_epoch
from microbert_cli.data.multitask_batching import MultitaskExamples, batches_of
from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.models.capture import Batch
from microbert_cli.models.save import copy_model
from microbert_cli.recipe.values import PhaseSpec, Training
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs.trials import best_trial, trial_name
from microbert_cli.training import checkpoint
from microbert_cli.training.checkpoint import BestWeights
from microbert_cli.training.loop import LOSS, Score, train
from microbert_cli.training.objective import Objective
from microbert_cli.training.plan import TrainingPlan, TrainingResult, race_share, shares_of_first_seed

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Phase:
    """One phase ready to run.

    rows    of one task or of several;  split  their name in the record
    scored  whether the phase is evaluated on dev; one without a loss on logits leaves the head untrained
    table   the recipe table of its numbers
    dev_loss   the objective's loss on dev, where the best weights are those of the smallest
    stage_of, trained, continues   of a stage of a phase (`freeze.py`): the phase, the parts that are trained, and whether it is
               not the first
    """

    name: str
    training: Training
    rows: TokenizedExamples | MultitaskExamples
    learning_rates: Sequence[float]
    objective: Callable[[Any], Objective]
    scored: bool
    pad_to: int | None = None
    drop_last: bool = False
    split: str = "train"
    table: str = "phases"
    dev_loss: Callable[[Objective], float] | None = None
    stage_of: str | None = None
    trained: tuple[str, ...] = ()
    continues: bool = False

    def evaluation(self, objective: Objective, score: Score) -> Score | None:
        """Returns the function that evaluates the phase on dev: its scores, with `dev_loss` the loss; None without both."""
        if self.dev_loss is None:
            return score if self.scored else None
        dev_loss = self.dev_loss
        return lambda: {**(score() if self.scored else {}), LOSS: dev_loss(objective)}


@dataclass
class ChosenLearningRates:
    """The learning rates chosen on dev, by phase."""

    learning_rate: dict[str, float] = field(default_factory=dict)

    def restore(self, result: Numbers) -> None:
        """Restores the rates of a finished seed, so that a resumed run trains later seeds with the same."""
        for name, phase in result.get("phases", {}).items():
            self.learning_rate.setdefault(name, phase["learning_rate"])


@dataclass
class _Start:
    """What a run begins with: the model's weights, the projection, and what the losses of the stage before have learnt."""

    weights: Mapping[str, torch.Tensor]
    projection: Mapping[str, torch.Tensor] | None
    learnt: Mapping[str, torch.Tensor]


@dataclass
class _Outcome:
    """What a run of a phase with one learning rate came to: its record, weights, objective and best weights by metric."""

    trained: TrainingResult
    weights: dict[str, torch.Tensor]
    objective: Objective
    tracker: BestWeights | None


def make_plan(
    name: str,
    training: Training,
    lengths: Sequence[int] | np.ndarray,
    *,
    table: str = "phases",
    learning_rate: float | None = None,
    drop_last: bool = False,
    seed: int = 0,
    share: float = 1.0,
    continues: bool = False,
) -> TrainingPlan:
    """Makes the training plan of a recipe table: epochs become steps, evaluations an interval.

    share      of the steps that are taken, such as to try a learning rate
    continues  a stage before had the same losses, so that the weights that this one begins with may stay the best
    """
    size, tokens = training.batch_size, training.batch_tokens
    per_epoch = steps_per_epoch(lengths, size, drop_last=drop_last, tokens=tokens, seed=seed)
    steps = training.steps or max(1, round(training.epochs * per_epoch / training.accumulate), training.min_steps or 0)
    steps = max(1, round(share * steps))
    return TrainingPlan(
        name=name,
        table=table,
        steps=steps,
        learning_rate=learning_rate or training.learning_rate,
        optimizer=training.optimizer,
        schedule=training.schedule,
        warmup=training.warmup,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        accumulate=training.accumulate,
        # A part of the schedule is taken to compare learning rates by what they end at.
        evaluate_every=Fraction(steps, min(steps, training.evaluations)) if training.evaluations and share == 1.0 else 0,
        checkpoint_seconds=training.checkpoint_seconds,
        checkpoint_steps=training.checkpoint_steps or 0,
        gradient_norms=training.gradient_norms,
        freeze=tuple(training.freeze),
        best_by=getattr(training, "best_by", "score"),
        patience=getattr(training, "patience", 0) if share == 1.0 else 0,
        from_start=continues and getattr(training, "best_by", "score") == LOSS,
    )


def rows_processed(training: PhaseSpec, lengths: Sequence[int] | np.ndarray, seeds: Sequence[int]) -> int:
    """Returns how many rows a phase processes over all seeds, of which the first tries every learning rate."""
    runs = max(1, len(seeds)) - 1 + sum(shares_of_first_seed(training))
    size, tokens = training.batch_size, training.batch_tokens
    rows = len(lengths) / steps_per_epoch(lengths, size, tokens=tokens) if tokens else size
    return round(runs * make_plan("", training, lengths).steps * training.accumulate * rows)


def row_batches(phase: Phase, *, seed: int, pad_id: int, device: str) -> Callable[[int], Iterator[Batch]]:
    """Returns a function from the number of batches to skip to an iterator over the others, of this rank's rows."""

    def batches(skip: int) -> Iterator[Batch]:
        index_batches = batches_of(
            phase.rows,
            batch_size=phase.training.batch_size,
            tokens=phase.training.batch_tokens,
            seed=seed,
            skip=skip,
            drop_last=phase.drop_last,
        )
        for indices in index_batches:
            batch = distributed.rank_batch(lambda rows: phase.rows.batch(rows, pad_id=pad_id, pad_to=phase.pad_to), indices)
            yield {name: value.to(device) for name, value in batch.items()}

    return batches


def run_phases(
    model: Any,
    phases: Sequence[Phase],
    *,
    directory: Path,
    seed: int,
    pad_id: int,
    device: str,
    score: Score,
    primary: str,
    choices: ChosenLearningRates,
    projection: Mapping[str, torch.Tensor] | None = None,
    bests: BestWeights | None = None,
    reporter: Reporter = SILENT,
) -> tuple[dict[str, Numbers], dict[str, torch.Tensor] | None]:
    """Trains `model` through the phases in order; returns the record of each, and the trained projection.

    bests  receives the best weights by each of its metrics, of the last phase that is scored
    """
    runner = _PhaseRunner(model, directory, seed, pad_id, device, score, primary, bests, reporter)
    results: dict[str, Numbers] = {}
    learnt: Mapping[str, torch.Tensor] = {}
    for phase in phases:
        rates, race = _learning_rates(phase, choices), race_share(phase.training)
        start = _Start(_copy_of_weights(model), projection, learnt)
        labels = [phase.name if len(rates) == 1 else trial_name(phase.name, rate) for rate in rates]
        share = race if len(rates) > 1 else 1.0
        outcomes = [runner.run(phase, *trial, start, share) for trial in zip(labels, rates, strict=True)]
        # A phase without dev scores has no best one: it is run with its one learning rate, or the first is kept.
        best = best_trial([_rank(outcome.trained, primary, phase.training) for outcome in outcomes])
        assert best is not None
        winner = outcomes[best] if share == 1.0 else runner.run(phase, phase.name, rates[best], start)
        if bests and winner.tracker:
            bests.records = winner.tracker.records
        model.load_state_dict(winner.weights)
        choices.learning_rate[phase.name] = rates[best]
        learnt = winner.objective.own.state_dict()
        projection = winner.objective.projection.state_dict() if winner.objective.projection is not None else projection
        record = _phase_record(winner.trained, rates, [outcome.trained for outcome in outcomes], best, primary)
        pruned = {"pruned": winner.objective.pruner.record} if winner.objective.pruner else {}
        stage = {"stage_of": phase.stage_of, "trained": list(phase.trained)} if phase.stage_of else {}
        results[phase.name] = {"split": phase.split, **stage, **record, **pruned}
    return results, {k: v.detach().cpu() for k, v in projection.items()} if projection else None


@dataclass
class _PhaseRunner:
    """Runs phases of one seed, each with one learning rate at a time; see `run_phases`."""

    model: Any
    directory: Path
    seed: int
    pad_id: int
    device: str
    score: Score
    primary: str
    bests: BestWeights | None
    reporter: Reporter

    def run(self, phase: Phase, label: str, learning_rate: float, start: _Start, share: float = 1.0) -> _Outcome:
        """Trains from `start`, for a share of the phase's steps."""
        self.model.load_state_dict(start.weights)
        torch.manual_seed(self.seed)  # again for every rate: each starts with the same new projection
        objective = phase.objective(self.model).to(self.device)
        _restore_projection(objective, start.projection)
        if phase.continues:
            objective.own.load_state_dict(dict(start.learnt))
        plan = make_plan(
            label,
            phase.training,
            phase.rows.lengths,
            table=phase.table,
            learning_rate=learning_rate,
            drop_last=phase.drop_last,
            seed=self.seed,
            share=share,
            continues=phase.continues,
        )
        tracker = self.bests.empty() if self.bests and phase.scored else None
        trained = train(
            objective,
            row_batches(phase, seed=self.seed, pad_id=self.pad_id, device=self.device),
            plan,
            directory=self.directory,
            seed=self.seed,
            score=phase.evaluation(objective, self.score),
            primary=self.primary,
            bests=tracker,
            token_ids=phase.rows.distinct_ids(self.pad_id),
            reporter=self.reporter,
        )
        if objective.pruner:
            objective.pruner.finish()
        objective.with_teacher(None)  # its files are closed, so that a cache that drops them gets their room
        return _Outcome(trained, _copy_of_weights(self.model), objective, tracker)


def _copy_of_weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def train_over_seeds(
    seeds: Sequence[int],
    directory: Path,
    primary: str,
    train_one: Callable[[int, Path], Numbers],
    choices: ChosenLearningRates,
    reporter: Reporter = SILENT,
) -> Numbers:
    """Trains every seed in a directory of its own, skips finished ones, and copies the best model up.

    Returns the best seed's scores, and over all seeds the mean and standard deviation of each metric.
    """
    scores: dict[int, Numbers] = {}
    for seed in seeds:
        seed_dir = directory / f"seed-{seed}" if len(seeds) > 1 else directory
        seed_dir.mkdir(exist_ok=True)
        if (scores_of_seed := checkpoint.read_scores(seed_dir)) is None:
            scores_of_seed = train_one(seed, seed_dir)
            checkpoint.write_scores(seed_dir, scores_of_seed)
            distributed.barrier()  # the scores are written by the main process alone
        checkpoint.drop_states(seed_dir)
        scores[seed] = scores_of_seed
        choices.restore(scores[seed])
        reporter.note(f"seed {seed}: {primary} {scores[seed]['dev'][primary]:.4f}")
    best = max(seeds, key=lambda seed: scores[seed]["dev"][primary])
    if len(seeds) > 1:
        copy_model(directory / f"seed-{best}", directory)
    return _summary(scores, best)


def _summary(scores: dict[int, Numbers], best: int) -> Numbers:
    every = [result["dev"] for result in scores.values()]
    summary: Numbers = {**scores[best], "seed": best}
    if len(every) > 1:
        summary["seeds"] = {str(seed): result["dev"] for seed, result in scores.items()}
        summary["mean"] = {name: mean(dev[name] for dev in every) for name in every[0]}
        summary["spread"] = {name: stdev(dev[name] for dev in every) for name in every[0]}
    return summary


def _learning_rates(phase: Phase, choices: ChosenLearningRates) -> list[float]:
    if phase.name in choices.learning_rate:
        return [choices.learning_rate[phase.name]]
    return list(phase.learning_rates) or [phase.training.learning_rate]


def _rank(trained: TrainingResult, primary: str, training: Training) -> float:
    """Returns what the runs of a phase with several learning rates are compared by; the largest is the best."""
    by_loss = getattr(training, "best_by", "score") == LOSS and LOSS in trained.best
    return -trained.best[LOSS] if by_loss else trained.best.get(primary, 0.0)


def _restore_projection(objective: Objective, projection: Mapping[str, torch.Tensor] | None) -> None:
    """Loads the projection of an earlier phase, where its shape fits."""
    if objective.projection is None or projection is None:
        return
    if objective.projection.weight.shape == projection["weight"].shape:
        objective.projection.load_state_dict(dict(projection))


def _phase_record(
    trained: TrainingResult, rates: list[float], outcomes: list[TrainingResult], best: int, primary: str
) -> Numbers:
    record: Numbers = {"steps": trained.steps, "losses": trained.losses, "learning_rate": rates[best]}
    if trained.halved_after is not None:
        record["halved_after"] = trained.halved_after
    if trained.best:
        scores = {name: value for name, value in trained.best.items() if name != LOSS}
        record |= {"dev": scores} if scores else {}
        record |= {"dev_loss": trained.best[LOSS]} if LOSS in trained.best else {}
        record["best_step"] = trained.best_step
    if len(rates) > 1:
        name = primary if primary in outcomes[best].best else LOSS
        record["tried"] = {f"{rate:g}": outcome.best[name] for rate, outcome in zip(rates, outcomes, strict=True)}
        if outcomes[best] is not trained:
            record["race_steps"] = outcomes[best].steps
    return record
