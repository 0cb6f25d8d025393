"""Phases of training on a task: the bridge from a recipe's numbers to the loop, for labels alone and for distillation alike.

Each seed is trained in `seed-N/`; the directory above holds a copy of the one that is best on dev. A phase with several
learning rates is run with each from the same start, and the best on dev is kept; later seeds take the first one's choice.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

from microbert_cli import distributed
from microbert_cli.data.batching import steps_per_epoch
from microbert_cli.data.multitask_batching import MultitaskExamples, batches_of
from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.models.save import copy_model
from microbert_cli.recipe.schema import PhaseSpec, Training
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs.trials import best_trial, trial_name
from microbert_cli.training import checkpoint
from microbert_cli.training.best_weights import BestWeights
from microbert_cli.training.loop import Score, TrainingPlan, TrainingResult, train
from microbert_cli.training.objective import Batch, Objective

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Phase:
    """One phase ready to run: its numbers, its rows of one task or of several, and whether dev scores mean something in it.

    split  what the rows are called in the record
    table  the table of the recipe that its numbers stand in
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


@dataclass
class ChosenLearningRates:
    """Learning rates chosen on dev, by phase."""

    learning_rate: dict[str, float] = field(default_factory=dict)

    def take(self, result: Numbers) -> None:
        """The rates of a seed that is done, so that a resumed run gives the later seeds the same."""
        for name, phase in result.get("phases", {}).items():
            self.learning_rate.setdefault(name, phase["learning_rate"])


def make_plan(
    name: str,
    training: Training,
    lengths: Sequence[int] | np.ndarray,
    *,
    table: str = "phases",
    learning_rate: float | None = None,
    drop_last: bool = False,
    seed: int = 0,
) -> TrainingPlan:
    """The loop's plan of a recipe's numbers: epochs become steps, evaluations an interval."""
    size, tokens = training.batch_size, training.batch_tokens
    per_epoch = steps_per_epoch(lengths, size, drop_last=drop_last, tokens=tokens, seed=seed)
    steps = training.steps or max(1, round(training.epochs * per_epoch / training.accumulate))
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
        evaluate_every=max(1, steps // training.evaluations) if training.evaluations else 0,
        checkpoint_seconds=training.checkpoint_seconds,
        checkpoint_steps=training.checkpoint_steps or 0,
        gradient_norms=training.gradient_norms,
    )


def rows_processed(training: PhaseSpec, lengths: Sequence[int] | np.ndarray, seeds: Sequence[int]) -> int:
    """How many rows a phase goes through with all seeds, of which the first tries every learning rate."""
    runs = max(1, len(seeds)) - 1 + max(1, len(training.learning_rates))
    size, tokens = training.batch_size, training.batch_tokens
    rows = len(lengths) / steps_per_epoch(lengths, size, tokens=tokens) if tokens else size
    return round(runs * make_plan("", training, lengths).steps * training.accumulate * rows)


def row_batches(phase: Phase, *, seed: int, pad_id: int, device: str) -> Callable[[int], Iterator[Batch]]:
    """Batches of task rows from a given position on; of several processes each gets its rows of them."""

    def batches(skip: int) -> Iterator[Batch]:
        drawn = batches_of(
            phase.rows,
            batch_size=phase.training.batch_size,
            tokens=phase.training.batch_tokens,
            seed=seed,
            skip=skip,
            drop_last=phase.drop_last,
        )
        for indices in drawn:
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
    """Runs the phases one after the other on `model`; returns what each came to, and the trained projection.

    bests  is given the best weights by each of its metrics, of the last phase that is scored
    """
    results: dict[str, Numbers] = {}
    for phase in phases:
        tried = _learning_rates(phase, choices)
        start = {name: value.clone() for name, value in model.state_dict().items()}
        outcomes = []
        for rate in tried:
            model.load_state_dict(start)
            label = phase.name if len(tried) == 1 else trial_name(phase.name, rate)
            torch.manual_seed(seed)
            objective = phase.objective(model).to(device)
            _restore_projection(objective, projection)
            trained = train(
                objective,
                row_batches(phase, seed=seed, pad_id=pad_id, device=device),
                make_plan(
                    label,
                    phase.training,
                    phase.rows.lengths,
                    table=phase.table,
                    learning_rate=rate,
                    drop_last=phase.drop_last,
                    seed=seed,
                ),  # fmt: skip
                directory=directory,
                seed=seed,
                score=score if phase.scored else None,
                primary=primary,
                bests=(kept := bests.anew() if bests and phase.scored else None),
                reporter=reporter,
            )
            outcomes.append((trained, {k: v.clone() for k, v in model.state_dict().items()}, objective, kept))
        # A phase without dev scores has no best one: it is run with its one learning rate, or the first is kept.
        best = best_trial([outcome[0].best.get(primary, 0.0) for outcome in outcomes])
        assert best is not None
        trained, weights, objective, kept = outcomes[best]
        if bests and kept:
            bests.kept = kept.kept
        model.load_state_dict(weights)
        choices.learning_rate[phase.name] = tried[best]
        projection = objective.projection.state_dict() if objective.projection is not None else projection
        told = _phase_record(trained, tried, [outcome[0] for outcome in outcomes], best, primary)
        results[phase.name] = {"split": phase.split, **told}
    return results, {k: v.detach().cpu() for k, v in projection.items()} if projection else None


def train_over_seeds(
    seeds: Sequence[int],
    directory: Path,
    primary: str,
    train_one: Callable[[int, Path], Numbers],
    choices: ChosenLearningRates,
    reporter: Reporter = SILENT,
) -> Numbers:
    """Runs `train_one` for each seed in its own directory, skips those that are done, copies the best one up.

    Returns every seed's scores, and mean and standard deviation of each over the seeds.
    """
    scores: dict[int, Numbers] = {}
    for seed in seeds:
        place = directory / f"seed-{seed}" if len(seeds) > 1 else directory
        place.mkdir(exist_ok=True)
        if (found := checkpoint.read_scores(place)) is None:
            found = train_one(seed, place)
            checkpoint.write_scores(place, found)
            distributed.barrier()  # until the main one has written them
        checkpoint.drop_states(place)
        scores[seed] = found
        choices.take(scores[seed])
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


def _restore_projection(objective: Objective, projection: Mapping[str, torch.Tensor] | None) -> None:
    """A projection trained before goes on, where its shape still fits."""
    if objective.projection is None or projection is None:
        return
    if objective.projection.weight.shape == projection["weight"].shape:
        objective.projection.load_state_dict(dict(projection))


def _phase_record(
    trained: TrainingResult, tried: list[float], outcomes: list[TrainingResult], best: int, primary: str
) -> Numbers:
    told: Numbers = {"steps": trained.steps, "losses": trained.losses, "learning_rate": tried[best]}
    if trained.halved_after is not None:
        told["halved_after"] = trained.halved_after
    if trained.best:
        told |= {"dev": trained.best, "best_step": trained.best_step}
    if len(tried) > 1:
        told["tried"] = {f"{rate:g}": outcome.best[primary] for rate, outcome in zip(tried, outcomes, strict=True)}
    return told
