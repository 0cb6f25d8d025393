"""mbert's side of the comparisons: its own parts, driven by its own loop, timed step by step from outside.

A step lasts from the moment the loop asks for a batch to the moment it reports progress: batch building, losses, the guard
against numbers that are none, clipping, the optimiser and the log are in it. Saving the state, which happens once in two
minutes and at the end of a phase, is not.
"""

import importlib.util
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from meter import TRAINING, Lap, Watch
from shapes import Sample, Setup, build, catalog

from microbert_cli.distillation.layer_map import layer_map
from microbert_cli.distillation.teacher import Teacher
from microbert_cli.models.capture import Batch, TeacherFunction
from microbert_cli.models.device import PLAIN, Precision
from microbert_cli.models.load import LoadedModel
from microbert_cli.reporter import Reporter
from microbert_cli.training.loop import train
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.objective import Objective
from microbert_cli.training.plan import TrainingPlan

INTERMEDIATE = {"embedding": 1.0, "hidden_states": 1.0, "attention_scores": 1.0}
PREDICTION = {"soft_target": 1.0}
WARM = 1  # steps of a lap that are not measured: they make the optimiser's state


class NoCache(Exception):
    """This mbert has no cache of the teacher's answers, so there is nothing to measure."""


class Pair:
    """A teacher and a student of the setup's shapes with random weights."""

    def __init__(self, setup: Setup, *, kind: str = "classifier", numerics: Precision = PLAIN):
        self.setup, self.kind, self.numerics = setup, kind, numerics
        self.teacher = self._loaded(build(setup.teacher, kind, setup.tokenizer, seed=1))
        self.student = self._loaded(build(setup.student, kind, setup.tokenizer, seed=2))
        self.map_layers = layer_map("uniform", teacher_layers=setup.teacher.layers, student_layers=setup.student.layers)
        self.asked = Teacher(self.teacher)

    def watched(self, watch: Watch) -> None:
        """Counts what the two models execute."""
        watch.sees(self.teacher.model.base_model)
        watch.sees(self.student.model.base_model, TRAINING)

    def objective(self, losses: Mapping[str, float], ask: TeacherFunction | None = None) -> Objective:
        """mbert's objective with these losses; without `ask` the teacher is asked directly."""
        return Objective(
            make_terms({name: (weight, {}) for name, weight in losses.items()}, catalog()),
            self.student.model,
            ask_teacher=ask or self.asked.ask,
            map_layers=self.map_layers,
            student_width=self.setup.student.width,
            teacher_width=self.setup.teacher.width,
            numerics=self.numerics,
        ).to(self.numerics.device)

    def _loaded(self, model: Any) -> LoadedModel:
        return LoadedModel(self.numerics.place(model), self.setup.tokenizer, "random", [])


class _Clock(Reporter):
    """Stops the watch at the end of every step."""

    def __init__(self, watch: Watch):
        self.watch, self.samples = watch, 0

    def progress(self, stage: str, step: int, total: int, **numbers: float) -> None:
        self.watch.stop(self.samples)


def training_lap(
    objective: Objective, batch: Callable[[int], Batch], steps: int, watch: Watch, *, warm: int = WARM, **plan: Any
) -> Lap:
    """`steps` measured steps of mbert's loop after `warm` others; `batch` makes the batch of a number."""
    clock = _Clock(watch)

    def batches(skip: int) -> Iterator[Batch]:
        for number in itertools.count(skip):
            if number >= warm:
                watch.start()
            rows = batch(number - warm)
            clock.samples = len(rows["input_ids"])
            yield rows

    numbers = {"name": "bench", "steps": warm + steps, "learning_rate": 5e-5, **plan}
    with tempfile.TemporaryDirectory() as place:
        train(objective, batches, TrainingPlan(**numbers), directory=Path(place), seed=0, reporter=clock)
    lap = watch.lap()
    lap.facts["loss"] = losses_of(objective, batch(0))
    return lap


def losses_of(objective: Objective, batch: Batch) -> float:
    """The objective's number on a batch, so that a lap that learnt nothing would be seen."""
    with torch.no_grad():
        return round(float(objective(batch)), 4)


def has_cache() -> bool:
    """Whether this mbert keeps the teacher's answers."""
    return importlib.util.find_spec("microbert_cli.distillation.teacher_cache") is not None


def cached(pair: Pair, sample: Sample, losses: Mapping[str, float], *, turn: int = 0) -> TeacherFunction:
    """Asks the teacher about every row of the sample, through mbert's cache; what is returned answers from it.

    turn  another number is another teacher to the cache, so that it asks again
    Raises NoCache where mbert has none.
    """
    if not has_cache():
        raise NoCache("microbert_cli.distillation.teacher_cache is not there yet")
    from microbert_cli.distillation.teacher_cache import CacheSettings, cached_ask

    settings = CacheSettings(teacher="auto", budget="8GB", precision="fp16")
    identity = {"benchmark": pair.setup.teacher.name, "turn": turn}
    want = pair.objective(losses).teacher_request
    answers: TeacherFunction = cached_ask(
        pair.asked, sample.rows, want, identity=identity, pad_id=sample.pad_id, settings=settings
    )
    return answers
