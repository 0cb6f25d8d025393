"""Fits the phases of a student into a length of time.

A few steps of every phase are timed on this machine, with batches of its own rows, and one evaluation. If all phases would take
longer than the budget, each is shortened by the same factor:

    f = min(1, B / sum over phases of  (n s R + E e R))

B the budget in seconds, less what was spent before the first step (mostly the teacher's answers), n the phase's steps, s the
seconds of a step, E its evaluations, e the seconds of each, R how often the first seed runs it: 1 + r k where each of k
learning rates is tried for a share r of the steps. The steps that come of it are kept in budget.json, so that a resumed run
and the other seeds take as many.
"""

import copy
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from microbert_cli import distributed
from microbert_cli.errors import MbertError
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import atomic
from microbert_cli.text import dump_json, seconds_of
from microbert_cli.training.loop import train
from microbert_cli.training.phases import Phase, make_plan, row_batches
from microbert_cli.training.plan import shares_of_first_seed

FILE = "budget.json"
FEWEST = 50  # steps of a phase; fewer teach a student nothing
WARM, TIMED = 3, 12  # steps of a phase; the first ones allocate
MARGIN = 0.95  # of the time left is planned with: saving, and batches that are longer than those timed


@dataclass
class Budget:
    """The time for one student, and where the steps that fit are kept.

    duration  as in the recipe;  directory  of the stage's work;  started  time.monotonic() when the stage began
    """

    duration: str
    directory: Path
    started: float
    reporter: Reporter = SILENT

    def fit(
        self, phases: Sequence[Phase], model: Any, *, seed: int, pad_id: int, device: str, score: Callable[[], Any]
    ) -> list[Phase]:
        """Returns the phases with as many steps as fit; those of an earlier seed or of the run that is resumed, if any."""
        path = self.directory / FILE
        if not path.is_file():
            measured = [_seconds(phase, model, seed, pad_id, device, score) for phase in phases]
            record = distributed.broadcast(self._record(phases, measured, seed))
            if distributed.is_main():
                atomic.write_text(path, dump_json(record))
            distributed.barrier()
        steps: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))["steps"]
        return [_with_steps(phase, steps[phase.name]) for phase in phases]

    def _record(self, phases: Sequence[Phase], measured: Sequence[tuple[float, float]], seed: int) -> dict[str, Any]:
        plans = [make_plan(p.name, p.training, p.rows.lengths, drop_last=p.drop_last, seed=seed) for p in phases]
        wanted = sum(
            sum(shares_of_first_seed(phase.training)) * (plan.steps * step + _evaluations(plan, phase) * evaluation)
            for phase, plan, (step, evaluation) in zip(phases, plans, measured, strict=True)
        )
        spent = time.monotonic() - self.started
        left = max(MARGIN * (seconds_of(self.duration) - spent), 0.0)
        factor = min(1.0, left / wanted) if wanted else 1.0
        steps = {plan.name: min(plan.steps, int(factor * plan.steps)) for plan in plans}
        if any(steps[plan.name] < min(FEWEST, plan.steps) for plan in plans):
            raise _too_short(self.duration, wanted, spent, min(1.0, max(FEWEST / plan.steps for plan in plans)))
        self._report(factor, wanted, spent, {plan.name: plan.steps for plan in plans}, steps)
        return {
            "budget": self.duration,
            "spent_before": round(spent, 1),
            "expected_seconds": round(factor * wanted, 1),
            "share": round(factor, 4),
            "planned_steps": {plan.name: plan.steps for plan in plans},
            "steps": steps,
        }

    def _report(self, factor: float, wanted: float, spent: float, planned: dict[str, int], steps: dict[str, int]) -> None:
        expected = f"about {wanted / 60:.0f} min after {spent / 60:.0f} min so far"
        if factor == 1.0:
            self.reporter.note(f"budget {self.duration}: the whole schedule fits ({expected})")
            return
        cut = ", ".join(f"{name} {steps[name]:,} of {planned[name]:,} steps" for name in steps)
        self.reporter.warn(
            f"budget {self.duration}: the whole schedule would take {expected}, so it is cut to {factor:.0%}: {cut}; "
            'more time: --set budget="4h"'
        )


def _too_short(duration: str, wanted: float, spent: float, share: float) -> MbertError:
    needed = max(1, math.ceil((spent + share * wanted) / MARGIN / 60))
    return MbertError(
        "M402",
        f"a budget of {duration} is too short: {spent:.0f} s went by before the first step, all steps take {wanted:.0f} s",
        where="budget",
        allowed=f"Time for {FEWEST} steps of every phase at least: about {needed} min here. What the teacher answered is kept.",
        fix=f'--set budget="{needed}min"',
    )


def record_of_budget(directory: Path) -> dict[str, Any]:
    """Returns what metrics.json says of the budget; empty where there was none."""
    path = directory / FILE
    return {"budget": json.loads(path.read_text(encoding="utf-8"))} if path.is_file() else {}


def _with_steps(phase: Phase, steps: int) -> Phase:
    return replace(phase, training=phase.training.model_copy(update={"steps": steps}))


def _evaluations(plan: Any, phase: Phase) -> int:
    return min(plan.steps, phase.training.evaluations or 1) if phase.scored or phase.dev_loss else 0


def _seconds(phase: Phase, model: Any, seed: int, pad_id: int, device: str, score: Callable[[], Any]) -> tuple[float, float]:
    """Returns the seconds of a step and of an evaluation; the model and the random state are left as they were."""
    weights = copy.deepcopy(model.state_dict())
    marks: list[float] = []

    def batches(skip: int) -> Any:
        for batch in row_batches(phase, seed=seed, pad_id=pad_id, device=device)(skip):
            marks.append(time.monotonic())
            yield batch

    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        objective = phase.objective(model).to(device)
        objective.pruner = None  # a student that is pruned is timed at its first size, which is its slowest
        plan = make_plan(
            phase.name, phase.training, phase.rows.lengths, table=phase.table, drop_last=phase.drop_last, seed=seed
        )
        short = replace(plan, steps=WARM + TIMED, evaluate_every=0, checkpoint_seconds=1e9, checkpoint_steps=0)
        train(objective, batches, short, directory=Path(folder), seed=seed, token_ids=phase.rows.distinct_ids(pad_id))
        ended = time.monotonic()
        if (evaluation := phase.evaluation(objective, score)) is not None:
            evaluation()
        evaluated = time.monotonic()
    model.load_state_dict(weights)
    per_step = (marks[-1] - marks[WARM * plan.accumulate]) / max(1, TIMED * plan.accumulate - 1) * plan.accumulate
    return per_step, evaluated - ended
