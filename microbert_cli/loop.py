"""THE training loop: the only place with backward().

Whatever is trained - a teacher on labels, a masked-LM, a student - comes as an objective that turns a batch into losses and a
source of batches that is a pure function of (seed, step). So a run that was stopped goes on bit by bit as if it had not been:
weights, optimiser, random state and the best checkpoint are saved, and the batches seen are passed over.

Several processes run this same loop, each on its rows of every batch (`processes.py`): gradients, losses and the wish to stop
are agreed on every step, so weights, decisions and the step of a stop are the same in all; the main one writes.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from microbert_cli import checkpoint, processes
from microbert_cli.errors import Exit, MbertError
from microbert_cli.objective import Batch, Objective
from microbert_cli.optimisers import clips_globally, make_optimiser, schedule_factor
from microbert_cli.tracking import SILENT, Log, Talk

Score = Callable[[], dict[str, float]]


class Interrupted(Exception):
    """The user or the system asked to stop; the step was finished and the state saved."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = Exit.INTERRUPTED if number == signal.SIGINT else Exit.TERMINATED


@dataclass(frozen=True)
class Plan:
    """How one phase is trained. `steps` are optimiser steps of `accumulate` batches each."""

    name: str
    steps: int
    learning_rate: float
    optimizer: str = "adamw"
    schedule: str = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    accumulate: int = 1
    evaluate_every: int = 0
    checkpoint_seconds: float = 120.0
    keep_best: bool = True


@dataclass
class Trained:
    """What a phase came to: the last numbers, the score of the kept weights, and every evaluation."""

    steps: int
    losses: dict[str, float]
    best: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def train(
    objective: Objective,
    batches: Callable[[int], Iterator[Batch]],
    plan: Plan,
    *,
    directory: Path,
    seed: int,
    score: Score | None = None,
    primary: str = "",
    talk: Talk = SILENT,
) -> Trained:
    """Trains `objective.student` in place; with a `score`, the weights with the best `primary` are the ones kept.

    batches    from the number of batches to skip to the rest of them
    directory  holds log.jsonl and the resume state, the finished phase's too: a stage of several phases skips it on resume
    Raises M401 when the loss is no number any more, Interrupted on SIGINT and SIGTERM after the step is saved.
    """
    run = _Run(objective, plan, directory, seed, score, primary, talk)
    torch.manual_seed(seed)
    run.restore()
    processes.same_everywhere(run.tensors)
    source = batches(run.step * plan.accumulate)
    with Log(directory / "log.jsonl") as log, _signals() as asked:
        while run.step < plan.steps:
            run.one_step([next(source) for _ in range(plan.accumulate)], log)
            run.maybe_evaluate(log)
            if processes.any_of(bool(asked)):
                run.save()
                processes.wait()  # whoever leaves first makes the launcher end the others
                raise Interrupted(asked[0] if asked else signal.SIGTERM)
            run.maybe_save()
    return run.finish()


class _Run:
    """The state of one phase."""

    def __init__(
        self, objective: Objective, plan: Plan, directory: Path, seed: int, score: Score | None, primary: str, talk: Talk
    ):
        self.objective, self.plan, self.directory, self.seed = objective, plan, directory, seed
        self.score, self.primary, self.talk = score, primary, talk
        self.state_directory = directory / checkpoint.RESUME / "phases" / plan.name
        self.optimiser = make_optimiser(
            plan.optimizer,
            [objective.student, objective],
            learning_rate=plan.learning_rate,
            weight_decay=plan.weight_decay,
            max_grad_norm=plan.max_grad_norm,
        )
        self.step = 0
        self.result = Trained(0, {})
        self.best_weights: dict[str, dict[str, Tensor]] | None = None
        self.saved_at = time.monotonic()

    @property
    def parameters(self) -> list[Tensor]:
        return [p for group in self.optimiser.param_groups for p in group["params"]]

    @property
    def tensors(self) -> list[Tensor]:
        """Everything that training changes or reads of the student and its objective."""
        return [*self.objective.student.state_dict().values(), *self.objective.state_dict().values()]

    def one_step(self, batches: list[Batch], log: Log) -> None:
        self.objective.train()
        self.objective.student.train()
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate()
        self._draw_own_dropout()
        parts = processes.mean(self._accumulate(batches))
        processes.average_gradients(self.parameters)
        norm = self._clip()
        if not math.isfinite(parts["loss"]) or not math.isfinite(norm):
            raise self._diverged(parts["loss"], norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.result.losses = parts
        log.write(phase=self.plan.name, step=self.step, lr=self.optimiser.param_groups[0]["lr"], norm=norm, **parts)
        self.talk.progress(self.plan.name, self.step, self.plan.steps, loss=parts["loss"])

    def maybe_evaluate(self, log: Log) -> None:
        every = self.plan.evaluate_every
        due = self.step == self.plan.steps or (every and self.step % every == 0)
        if self.score is None or not due:
            return
        random = torch.get_rng_state()
        scores = self.score()
        torch.set_rng_state(random)
        log.write(phase=self.plan.name, step=self.step, dev=scores)
        self.result.history.append({"step": self.step, **scores})
        better = not self.result.best or scores[self.primary] > self.result.best[self.primary]
        if better or not self.plan.keep_best:
            self.result.best, self.result.best_step = scores, self.step
            self.best_weights = self._weights()

    def finish(self) -> Trained:
        if self.best_weights is not None and self.plan.keep_best:
            self._load(self.best_weights)
        self.result.steps = self.step
        self.save()
        return self.result

    def maybe_save(self) -> None:
        if time.monotonic() - self.saved_at >= self.plan.checkpoint_seconds and self.step < self.plan.steps:
            self.save()

    def save(self) -> None:
        state = {
            "step": self.step,
            "weights": self._weights(),
            "best_weights": self.best_weights,
            "optimiser": self.optimiser.state_dict(),
            "random": torch.get_rng_state(),
            "random_gpu": torch.cuda.get_rng_state_all(),
            "result": vars(self.result),
        }
        checkpoint.save_state(state, self.state_directory)
        self.saved_at = time.monotonic()

    def restore(self) -> None:
        state = checkpoint.load_state(self.state_directory)
        if state is None:
            return
        self.step, self.best_weights = state["step"], state["best_weights"]
        self._load(state["weights"])
        self.optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["random"])
        torch.cuda.set_rng_state_all(state["random_gpu"])
        self.result = Trained(**state["result"])
        self.talk.note(f"{self.plan.name}: going on after step {self.step} of {self.plan.steps}")

    def _learning_rate(self) -> float:
        plan = self.plan
        return plan.learning_rate * schedule_factor(plan.schedule, self.step, plan.steps, plan.warmup)

    def _draw_own_dropout(self) -> None:
        """Each of several processes draws its own, from (seed, phase, step, rank) alone: there is nothing to save."""
        if processes.world() > 1:
            torch.manual_seed(processes.seed_of(self.seed, self.plan.name, self.step))

    def _accumulate(self, batches: list[Batch]) -> dict[str, float]:
        sums: dict[str, float] = {}
        for batch in batches:
            for _, loss, parts in self.objective.losses(batch):
                (loss / len(batches)).backward()
                for name, value in {"loss": loss, **parts}.items():
                    sums[name] = sums.get(name, 0.0) + value.item() / len(batches)
        return sums

    def _clip(self) -> float:
        if not clips_globally(self.optimiser):
            return 0.0
        return float(nn.utils.clip_grad_norm_(self.parameters, self.plan.max_grad_norm))

    def _weights(self) -> dict[str, dict[str, Tensor]]:
        modules: dict[str, nn.Module] = {"student": self.objective.student, "objective": self.objective}
        return {name: {k: v.detach().clone() for k, v in m.state_dict().items()} for name, m in modules.items()}

    def _load(self, weights: dict[str, dict[str, Tensor]]) -> None:
        self.objective.student.load_state_dict(weights["student"])
        self.objective.load_state_dict(weights["objective"])

    def _diverged(self, loss: float, norm: float) -> MbertError:
        return MbertError(
            "M401",
            f"the loss is {loss} and the gradient norm {norm} at step {self.step + 1}",
            where=f"{self.plan.name}, learning_rate {self.plan.learning_rate}",
            allowed="Finite losses; a smaller learning rate or a longer warm-up usually mends it.",
            fix=f"The same command with: --set {_table(self.plan.name)}.learning_rate={self.plan.learning_rate / 3:.0e}",
        )


def _table(phase: str) -> str:
    """The recipe table whose numbers a phase is trained with."""
    name = phase.partition("-lr")[0]
    known = {"pretrain": "pretrain", "finetune": "finetune", "general-distill": "general"}
    return known.get(name, f"phases.{name}")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM; the second one leaves at once."""
    asked: list[int] = []

    def receive(number: int, _: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever runs us handles signals
        yield asked
        return
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
