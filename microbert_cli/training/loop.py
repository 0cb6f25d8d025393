"""The training loop: the only place with backward().

A teacher on labels, a masked LM and a student are all trained here: an objective turns a batch into losses, and the batches are
a pure function of (seed, step). So a resumed run is bit-equal to one that was never stopped: weights, optimiser, random state
and best checkpoint are restored, and the batches of earlier steps are skipped.

Several processes run this loop together, each on its rows of every batch (`distributed.py`). Gradients, losses and stop signals
are reduced on every step, so all processes hold the same weights and stop at the same step; the main one writes.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from microbert_cli import distributed
from microbert_cli.data.corpus.masking import split_batch
from microbert_cli.errors import DivergedError
from microbert_cli.models.capture import Batch
from microbert_cli.models.save import RESUME
from microbert_cli.models.size import is_out_of_memory, out_of_memory_error
from microbert_cli.models.windows.pooling import row_count
from microbert_cli.reporter import SILENT, Log, Reporter
from microbert_cli.signals import Interrupted, StopSignal, WorkInterrupted, collected_signals
from microbert_cli.training import checkpoint
from microbert_cli.training.checkpoint import BestWeights, RandomState, random_state, set_random_state
from microbert_cli.training.freeze import frozen
from microbert_cli.training.objective import Objective
from microbert_cli.training.optimisers import clips_globally, optimiser_of, set_rates
from microbert_cli.training.plan import TrainingPlan, TrainingResult
from microbert_cli.training.word_rows import WordRows

Score = Callable[[], dict[str, float]]
LOSS = "loss"  # the name of a phase's loss on dev among its scores


def train(
    objective: Objective,
    batches: Callable[[int], Iterator[Batch]],
    plan: TrainingPlan,
    *,
    directory: Path,
    seed: int,
    score: Score | None = None,
    primary: str = "",
    bests: BestWeights | None = None,
    token_ids: np.ndarray | None = None,
    reporter: Reporter = SILENT,
) -> TrainingResult:
    """Trains `objective.student` in place; with `score`, it ends with the weights of the best `primary` score.

    batches    a function from the number of batches to skip to an iterator over the rest
    bests      collects the best weights by further metrics
    token_ids  of all rows, where they are known: other word vectors only decay, and are not walked through (`word_rows.py`)
    directory  holds log.jsonl and the resume state, of a finished phase too, so that a resumed stage skips that phase
    When memory runs out, batches are split in halves from then on; a second time raises M222. Raises M401 when the loss or the
    gradient norm is not finite (last good state and batch are saved), Interrupted on SIGINT and SIGTERM once the step is saved.
    """
    parts = frozen(objective.student, plan.freeze, where=f"{plan.table}.freeze")
    with (
        parts,
        Log(directory / "log.jsonl") as log,
        collected_signals() as stop,
        WordRows.of(objective, plan.optimizer, token_ids) as words,
    ):
        run = _TrainingRun(objective, plan, directory, seed, score, primary, reporter, words)
        run.bests = bests or run.bests
        torch.manual_seed(seed)
        run.restore()
        with words.whole():
            distributed.broadcast_tensors(run.tensors)
        reporter.begin(plan.name, run.step, plan.steps)
        source = batches(run.step * plan.accumulate)
        run.evaluate_if_due(log, stop)
        while not run.is_over:
            run.train_step([next(source) for _ in range(plan.accumulate)], log)
            if distributed.any_process(bool(stop.number)):
                run.save_and_stop(stop)
            run.save_if_due()
            run.evaluate_if_due(log, stop)
    return run.finish()


class _TrainingRun:
    """The state of one phase, and the steps that change it."""

    def __init__(
        self, objective: Objective, plan: TrainingPlan, directory: Path, seed: int, score: Score | None, primary: str,
        reporter: Reporter, words: WordRows,
    ):  # fmt: skip
        self.objective, self.plan, self.directory, self.seed = objective, plan, directory, seed
        self.score, self.reporter, self.words = score, reporter, words
        self.by = LOSS if plan.best_by == LOSS else primary
        self.state_directory = directory / RESUME / "phases" / plan.name
        self.optimiser = optimiser_of(objective, plan)
        self.adversaries = {name: adversary.optimiser() for name, adversary in objective.adversaries.items()}
        self.pruner = objective.pruner
        self.step = 0
        self.result = TrainingResult(0, {})
        self.best_weights: dict[str, dict[str, Tensor]] | None = None
        self.bests = BestWeights()
        self.saved_at = time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether all steps are taken, or evaluations brought nothing better for too long."""
        return self.step >= self.plan.steps or self.result.is_exhausted(self.plan.patience)

    @property
    def optimisers(self) -> list[torch.optim.Optimizer]:
        return [self.optimiser, *self.adversaries.values()]

    @property
    def parameters(self) -> list[Tensor]:
        return _parameters(self.optimiser)

    @property
    def tensors(self) -> list[Tensor]:
        """Returns all parameters and buffers of the student and its objective."""
        return [*self.objective.student.state_dict().values(), *self.objective.state_dict().values()]

    def train_step(self, batches: list[Batch], log: Log) -> None:
        """Takes one optimiser step on `accumulate` batches."""
        self.objective.train()
        self.objective.student.train()
        self.objective.progress(self.step, self.plan.steps)
        set_rates(self.optimiser, self.plan, self.step, self.objective.progressive)
        self._seed_dropout()
        before = random_state()
        parts = self._gradients_if_fitting(batches) or self._repeat_in_halves(batches, before)
        parts = distributed.all_reduce_mean(parts)
        distributed.average_gradients([*self.parameters, *_parameters(*self.adversaries.values())])
        norm = self._clip()
        if not math.isfinite(parts["loss"]) or not math.isfinite(norm):
            self._undo_forward(before)
            raise self._diverged(f"the loss is {parts['loss']} and the gradient norm {norm}", batches)
        if self.pruner:
            self.pruner.observe()
        self.words.decay(self.optimiser)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        distributed.release_memory()
        self.objective.note(parts)
        self.step += 1
        if self.pruner:
            self.pruner.cut(self.step, self.plan.steps, self.optimisers)
        self.result.losses = parts
        rate = max(group["lr"] for group in self.optimiser.param_groups)
        log.write(phase=self.plan.name, step=self.step, lr=rate, norm=norm, **parts)
        scores = self.result.dev_scores(self.by)
        self.reporter.progress(self.plan.name, self.step, self.plan.steps, loss=parts["loss"], **scores)

    def evaluate_if_due(self, log: Log, stop: StopSignal) -> None:
        """Evaluates at the planned steps, once each.

        It is called before the first step as well: a resumed run may have been stopped between a step and its evaluation.
        """
        every, history = self.plan.evaluate_every, self.result.history
        due = self.step == self.plan.steps or (every and self.step and self.step // every > (self.step - 1) // every)
        due = due or (self.step == 0 and self.plan.from_start)
        if self.score is None or not due or (history and history[-1]["step"] == self.step):
            return
        # Evaluating must leave no trace in training: a run evaluated more often draws the same dropout.
        random = random_state()
        try:
            with stop.interruptible(), self.words.whole():
                scores = self.score()
        except WorkInterrupted:
            set_random_state(random)
            self.save_and_stop(stop)
        except DivergedError as error:
            raise self._diverged(f"after step {self.step} {error.what}") from None
        set_random_state(random)
        log.write(phase=self.plan.name, step=self.step, dev=scores)
        self.result.history.append({"step": self.step, **scores})
        if self.pruner and not self.pruner.finished:
            return  # a larger student than the one that is wanted is never the best
        with self.words.whole():
            self.bests.update(self.step, scores, self.objective.student)
            if not self.result.best or self._is_better(scores) or not self.plan.keep_best:
                self.result.best, self.result.best_step = scores, self.step
                self.best_weights = self._weights()

    def _is_better(self, scores: dict[str, float]) -> bool:
        new, best = scores[self.by], self.result.best[self.by]
        return new < best if self.plan.best_by == LOSS else new > best

    def save_and_stop(self, stop: StopSignal) -> NoReturn:
        """Saves the state and raises Interrupted."""
        self.save()
        distributed.barrier()  # torchrun terminates the other processes as soon as one exits
        raise Interrupted(stop.number or int(signal.SIGTERM))

    def finish(self) -> TrainingResult:
        """Restores the best weights and saves the final state."""
        if self.best_weights is not None and self.plan.keep_best:
            self._load(self.best_weights)
        self.result.steps = self.step
        self.save(keep=1)
        return self.result

    def save_if_due(self) -> None:
        """Saves the state where the interval in seconds or steps is over; after the last step `finish` does."""
        every, elapsed = self.plan.checkpoint_steps, time.monotonic() - self.saved_at
        if self.step < self.plan.steps and (elapsed >= self.plan.checkpoint_seconds or (every and self.step % every == 0)):
            self.save()

    def save(self, *, keep: int = 2) -> None:
        """Writes the resume state; the newest `keep` files stay."""
        state = {
            "step": self.step,
            "weights": self._weights(),
            "best_weights": self.best_weights,
            "bests": self.bests.records,
            "optimiser": self.optimiser.state_dict(),
            "adversaries": {name: optimiser.state_dict() for name, optimiser in self.adversaries.items()},
            "random": random_state(),
            "word_rows": self.words.count,
            "word_factor": self.words.factor,
            "result": vars(self.result),
            **({"pruner": self.pruner.state_dict()} if self.pruner else {}),
        }
        checkpoint.save_state(state, self.state_directory, keep=keep)
        self.saved_at = time.monotonic()

    def restore(self) -> None:
        """Loads the latest resume state, if there is one."""
        state = checkpoint.load_state(self.state_directory, self.reporter)
        if state is None:
            return
        self.step, self.best_weights = state["step"], state["best_weights"]
        self.bests.records = state.get("bests", {})
        if self.pruner:
            self.pruner.load_state_dict(state["pruner"])
        if state.get("word_rows", 0) != self.words.count:  # of a run that walked through the whole table
            self.words.give_up()
            self.optimiser = optimiser_of(self.objective, self.plan)
        with self.words.whole():
            self._load(state["weights"])
            self.words.restored(state.get("word_factor", 1.0))
        self.optimiser.load_state_dict(state["optimiser"])
        for name, optimiser in self.adversaries.items():
            optimiser.load_state_dict(state["adversaries"][name])
        set_random_state(state["random"])
        self.result = TrainingResult(**state["result"])
        self.reporter.note(f"{self.plan.name}: going on after step {self.step} of {self.plan.steps}")

    def _seed_dropout(self) -> None:
        """Seeds dropout by (seed, phase, step, rank), so that each process has its own and a resume needs no state of it."""
        if distributed.world_size() > 1:
            torch.manual_seed(distributed.rank_seed(self.seed, self.plan.name, self.step))

    def _gradients_if_fitting(self, batches: list[Batch]) -> dict[str, float] | None:
        """Computes gradients and losses of a step; returns None where memory runs out for the first time."""
        try:
            return self._accumulate(batches)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # Several processes cannot repeat a step alone: losses reduce over all of them in the forward pass.
            if distributed.world_size() == 1 and self.result.halved_after is None and min(map(row_count, batches)) > 1:
                return None
            fix = f"Smaller batches: --set {self.plan.table}.batch_size={max(1, row_count(batches[0]) // 2)}"
            raise out_of_memory_error(error, where=self.plan.name, fix=fix) from error

    def _repeat_in_halves(self, batches: list[Batch], before: RandomState) -> dict[str, float]:
        """Repeats the step with its batches split in halves, as all later steps are."""
        self._undo_forward(before)
        self.result.halved_after = self.step
        self.save()  # halves draw other dropout masks than whole batches do, so a resume must split from the same step on
        why = f"memory ran out at step {self.step + 1}"
        self.reporter.warn(f"{self.plan.name}: {why}; from here on each batch is taken in two halves")
        parts = self._gradients_if_fitting(batches)
        assert parts is not None
        return parts

    def _undo_forward(self, before: RandomState) -> None:
        """Drops the gradients and restores the random state from before this step's forward passes."""
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        if self.pruner:
            self.pruner.forget()
        set_random_state(before)

    def _accumulate(self, batches: list[Batch]) -> dict[str, float]:
        if self.result.halved_after is not None:
            batches = [half for batch in batches for half in split_batch(batch)]
        sums: dict[str, float] = {}
        for batch in batches:
            for group, loss, parts in self.objective.losses(batch):
                values = {"loss": loss, **parts, **self._gradient_norms(parts)} if group == "student" else parts
                # An adversary that rests gives a loss without a graph; a student's loss without one is an error.
                if loss.requires_grad or group == "student":
                    (loss / len(batches)).backward()
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + value.item() / len(batches)
        return sums

    def _gradient_norms(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the gradient norm of each weighted loss in the student, on the steps where `gradient_norms` asks for it."""
        if not self.plan.gradient_norms or (self.step + 1) % self.plan.gradient_norms:
            return {}
        student = [p for p in self.objective.student.parameters() if p.requires_grad]
        norms = {}
        for name, weight in self.objective.weights.items():
            if name not in parts:
                continue
            gradients: tuple[Tensor | None, ...] = ()
            if parts[name].requires_grad:
                gradients = torch.autograd.grad(weight * parts[name], student, retain_graph=True, allow_unused=True)
            norms[f"{name}_gradient"] = nn.utils.get_total_norm([g for g in gradients if g is not None])
        return norms

    def _clip(self) -> float:
        if not clips_globally(self.optimiser):
            return 0.0
        return float(nn.utils.clip_grad_norm_(self.parameters, self.plan.max_grad_norm))

    def _weights(self) -> dict[str, dict[str, Tensor]]:
        modules: dict[str, nn.Module] = {"student": self.objective.student, "objective": self.objective}
        with self.words.whole():
            return {name: {k: v.detach().clone() for k, v in m.state_dict().items()} for name, m in modules.items()}

    def _load(self, weights: dict[str, dict[str, Tensor]]) -> None:
        self.objective.student.load_state_dict(weights["student"])
        self.objective.load_state_dict(weights["objective"])

    def _diverged(self, what: str, batches: Sequence[Batch] = ()) -> DivergedError:
        if batches:  # the state before them is a good one
            self.save()
            file = self.directory / f"diverged-{self.plan.name}-{self.step + 1}.safetensors"
            what += f" at step {self.step + 1}; its batch is in {checkpoint.save_batches(batches, file)}"
        rate_option = f"--set {self.plan.table}.learning_rate={self.plan.learning_rate / 3:.0e}"
        return DivergedError(
            what,
            where=f"{self.plan.name}, learning_rate {self.plan.learning_rate}",
            allowed="Finite losses; a smaller learning rate or a longer warm-up usually mends it.",
            fix=f"The same command with --no-resume and {rate_option}",
        )


def _parameters(*optimisers: torch.optim.Optimizer) -> list[Tensor]:
    return [p for optimiser in optimisers for group in optimiser.param_groups for p in group["params"]]
