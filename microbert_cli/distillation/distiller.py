"""What stage two builds: tasks with their teachers, the student, its phases; trains one student per seed."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from microbert_cli.data.batching import batches_by_length
from microbert_cli.data.multitask_batching import MultitaskExamples
from microbert_cli.data.task_data import TaskData
from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.distillation.initialise import InitialWeights, initial_weights, layers_of, reorder_labels
from microbert_cli.distillation.layer_map import layer_map
from microbert_cli.distillation.pair_checks import check_pair
from microbert_cli.distillation.results import expert_usage, save_best_weights
from microbert_cli.distillation.task_set import TaskSet
from microbert_cli.distillation.taught_task import TaughtTask
from microbert_cli.models import factory
from microbert_cli.models.architectures import check_length
from microbert_cli.models.capture import OutputRequest
from microbert_cli.models.device import choose_precision, pick_device
from microbert_cli.models.load import LoadedModel, count_all_parameters
from microbert_cli.models.moe.convert import MoeSettings, add_experts
from microbert_cli.models.moe.importance import importance
from microbert_cli.models.save import save_model
from microbert_cli.recipe.multitask import as_list, named_inputs
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import PhaseSpec, Recipe
from microbert_cli.reporter import Log, Reporter
from microbert_cli.training.best_weights import BestWeights
from microbert_cli.training.loss_terms import (
    CLASSIFICATION_INPUTS,
    LAYERWISE,
    LossTerm,
    check_depth,
    make_terms,
    without_teacher_terms,
)
from microbert_cli.training.objective import Objective, OptionalTeacherFunction
from microbert_cli.training.phases import ChosenLearningRates, Phase, run_phases

IMPORTANCE_BATCH = 32


Teachers = str | Sequence[str] | Mapping[str, Sequence[str]]


class Distiller:
    """Teachers, tasks and method at hand; trains one student per seed.

    teacher     of one task: its teacher or teachers; of several: those of each by the task's name
    identities  what identifies every teacher's weights, as `each_place("teacher", teacher)` names them
    """

    teacher_log: Path | None = None

    def __init__(
        self, recipe: Recipe, catalog: Catalog, data: Sequence[TaskData], teacher: Teachers, student: str,
        identities: Mapping[str, Any], reporter: Reporter, initial: str | None = None,
    ):  # fmt: skip
        self.recipe, self.catalog, self.reporter = recipe, catalog, reporter
        self.student = student
        self.device = pick_device(recipe.device)
        self.numerics = choose_precision(self.device, **recipe.numerics())
        self.course = TaskSet(recipe, catalog, [self._lesson(one, teacher, identities) for one in data])
        self.asks: dict[str, OptionalTeacherFunction | None] = {}
        self.choices = ChosenLearningRates()
        weighs = self._routes and recipe.moe.experts > 1 and recipe.moe.routing != "hash"  # a table keeps no gate busy
        balance = recipe.moe.balance if weighs else 0.0
        self.terms = {name: _terms(name, spec, catalog, balance) for name, spec in recipe.run_phases.items()}
        self.course.check(self.terms)
        if not self.course.instructors:
            self.terms = {name: without_teacher_terms(terms) for name, terms in self.terms.items()}
        self.map_layers: list[int] = [0]
        self._important: Mapping[int, Tensor] | None = None
        self._start = self._beginning(initial)
        self._check(self.load(recipe.seed))

    def _lesson(self, data: TaskData, teacher: Teachers, identities: Mapping[str, Any]) -> TaughtTask:
        of_each = isinstance(teacher, Mapping)
        own = teacher[data.task.name] if isinstance(teacher, Mapping) else as_list(teacher)
        named = named_inputs(f"teacher {data.task.name}" if of_each else "teacher", list(own))
        weights = [identities.get(name) for name, _ in named]
        return TaughtTask(self.recipe, data, own, weights, self.numerics, self.reporter)

    def train_one(self, seed: int, place: Path) -> dict[str, Any]:
        loaded = self.load(seed)
        model = self.numerics.place(loaded.model)
        bests = BestWeights(list(self.course.primaries.values()))
        outcome, projection = run_phases(
            model,
            self.phases(loaded),
            directory=place,
            seed=seed,
            pad_id=loaded.tokenizer.pad_token_id,
            device=self.device,
            score=lambda: self.course.score(model, loaded),
            primary=self.course.primary,
            choices=self.choices,
            projection=loaded.projection,
            bests=bests,
            reporter=self.reporter,
        )
        save_model(model, loaded.tokenizer, place, projection=projection)
        found = {"dev": self.course.score(model, loaded), "phases": outcome, "parameters": count_all_parameters(model)}
        further = {"best": save_best_weights(bests, self.course, model, loaded, place), "experts": expert_usage(model)}
        return found | {name: told for name, told in further.items() if told}

    def load(self, seed: int) -> LoadedModel:
        """A student at its start."""
        taught = next(iter(self.course.instructors), None)
        tasks = [lesson.data.task for lesson in self.course.lessons]
        like = {"tokenizer": taught.source, "like": taught.loaded.model.config} if taught else {"tokenizer": self.recipe.base}
        made: dict[str, Any] = {"seed": seed, "where": "student", "start": self._start, **like}
        if self.course.several or self._routes:
            loaded = factory.several_heads(self.student, self.catalog, tasks=tasks, **made)
        else:
            loaded = factory.classifier(self.student, self.catalog, task=tasks[0], **made)
        if taught and self.student == taught.source:
            reorder_labels(loaded.model, taught.teacher.columns)
        return self._with_experts(loaded, seed) if self._routes else loaded

    @property
    def start_told(self) -> dict[str, Any]:
        """What a new student began as, for the record; nothing where its weights were random or a checkpoint's."""
        return {"start": self._start.told} if self._start else {}

    def _beginning(self, initial: str | None) -> InitialWeights | None:
        """What a new student takes of the first teacher, or of the model `initial`."""
        said, taught = self.recipe.initialise, next(iter(self.course.instructors), None)
        if taught is None or self.recipe.init == "random" or not factory.is_description(self.student, self.catalog):
            return None
        return initial_weights(
            said.by, said.layers, taught.loaded, initial, labels=taught.teacher.columns, reporter=self.reporter
        )

    @property
    def _routes(self) -> bool:
        """Whether the student has experts."""
        return self.recipe.moe.side in ("student", "both")

    def _with_experts(self, loaded: LoadedModel, seed: int) -> LoadedModel:
        moe = self.recipe.moe
        how = (moe.routing, moe.top_k, moe.init, moe.shared, moe.norm, moe.gate)
        wanted = MoeSettings(moe.layers, moe.experts, moe.expert_width, *how)
        return add_experts(loaded, wanted, seed=seed, importance=self._measuring(loaded))

    def _measuring(self, loaded: LoadedModel) -> Callable[[Sequence[int]], Mapping[int, Tensor]] | None:
        """How important neurons of a student's layers are: in itself, or in the teacher whose layers a new one has taken."""
        if not factory.is_description(self.student, self.catalog):
            return partial(self._importance, loaded)
        begun, taught = self._start, next(iter(self.course.instructors), None)
        if begun is None or taught is None or begun.by != "teacher-layers" or begun.source is not taught.loaded:
            return None
        depths = (taught.loaded.model.config.num_hidden_layers, loaded.model.config.num_hidden_layers)
        origin = dict(enumerate((layer + 1 for layer in layers_of(begun.layers, *depths)), 1))

        def measured(layers: Sequence[int]) -> Mapping[int, Tensor]:
            found = self._importance(taught.loaded, [origin[layer] for layer in layers], taught.teacher.columns)
            return {layer: found[origin[layer]] for layer in layers}

        return measured

    def _importance(
        self, loaded: LoadedModel, layers: Sequence[int], columns: Sequence[int] | None = None
    ) -> Mapping[int, Tensor]:
        """Of the neurons of a model as it begins, on rows of the training set; the same for every seed."""
        if self._important is None:
            rows, pad_id = self.course.lessons[0].data.encode("train", loaded, where="student"), loaded.tokenizer.pad_token_id
            chosen = np.arange(len(rows))[:: max(1, len(rows) // self.recipe.moe.importance_rows)]
            self.reporter.note(f"importance of neurons: {len(chosen)} rows")
            parts = batches_by_length(rows.lengths[chosen], batch_size=IMPORTANCE_BATCH)
            batches = (rows.batch(chosen[part], pad_id=pad_id) for part in parts)
            before = loaded.model.device
            self._important = importance(loaded.model.to(self.device), batches, layers, columns=columns)
            loaded.model.to(before)
        return self._important

    def phases(self, loaded: LoadedModel) -> list[Phase]:
        """The recipe's phases, ready to run with this student."""
        return [self._phase(name, spec, loaded) for name, spec in self.recipe.run_phases.items()]

    def _check(self, loaded: LoadedModel) -> None:
        self.course.meet(loaded)
        check_length(self.course.max_length, loaded.model.config, where="data.max_length")
        terms = {f"phases.{name}.losses.{term.name}": term for name, phase in self.terms.items() for term in phase}
        for term in terms.values():
            term.own(**self.course.sizes, student_width=loaded.model.config.hidden_size)
        for one in self.course.instructors:
            check_pair(terms, one.loaded, loaded, where=f"student {self.student}")
            theirs, ours = one.loaded.model.config, loaded.model.config
            check_depth(terms, ours.num_hidden_layers)
            if any(term.over in LAYERWISE for term in terms.values()):
                self.map_layers = layer_map(
                    self.recipe.layer_map, teacher_layers=theirs.num_hidden_layers, student_layers=ours.num_hidden_layers
                )

    def _phase(self, name: str, spec: PhaseSpec, loaded: LoadedModel) -> Phase:
        terms, rows = self.terms[name], self.course.rows(spec, loaded)
        reference = self.recipe.normalisation == "reference"
        return Phase(
            name=name,
            training=spec,
            rows=rows,
            learning_rates=spec.learning_rates,
            objective=lambda model: self._objective(name, spec, rows, model),
            scored=any("logits" in term.needs for term in terms),
            pad_to=self.course.max_length if reference else None,
            drop_last=reference,
            split=self.course.splits(spec),
        )

    def _objective(self, name: str, spec: PhaseSpec, rows: TokenizedExamples | MultitaskExamples, model: Any) -> Objective:
        objective = Objective(
            self.terms[name],
            model,
            ask_teacher=None,
            map_layers=self.map_layers,
            student_width=model.config.hidden_size,
            **self.course.sizes,
            normalisation=self.recipe.normalisation,
            numerics=self.numerics,
        )
        if name not in self.asks:
            self.asks[name] = self._timed(name, spec, rows, objective.teacher_want)
        return objective.asking(self.asks[name])

    def _timed(
        self, name: str, spec: PhaseSpec, rows: TokenizedExamples | MultitaskExamples, want: OutputRequest
    ) -> OptionalTeacherFunction | None:
        """The teachers through the cache, and a line on how many rows were asked about before training, in what time."""
        began, course = time.monotonic(), self.course
        before = course.asked
        ask = course.ask(spec, rows, want)
        if self.teacher_log is not None and ask is not None:
            taken = {"phase": name, "kept": course.kept, "rows": len(rows.lengths), "asked": course.asked - before}
            with Log(self.teacher_log) as log:
                log.write(**taken, took=round(time.monotonic() - began, 3))
        return ask


def _terms(phase: str, spec: PhaseSpec, catalog: Catalog, balance: float) -> list[LossTerm]:
    """The phase's losses; a student with experts keeps them busy alike, by `balance` where the phase does not say it."""
    losses = {name: (term.weight, term.parameters) for name, term in spec.losses.items()}
    routed = {"routing"} if balance else set()
    losses = {"load_balance": (balance, {}), **losses} if balance else losses
    return make_terms(losses, catalog, given=CLASSIFICATION_INPUTS | {"teacher"} | routed, where=f"phases.{phase}.losses")
