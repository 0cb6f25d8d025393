"""What task distillation builds - tasks with their teachers, the student, its phases - and the training of one seed."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from microbert_cli.data.batching import batches_by_length
from microbert_cli.data.multitask_batching import MultitaskExamples, chunks_of_rows
from microbert_cli.data.task_data import TaskData
from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.distillation.pair_checks import check_pair
from microbert_cli.distillation.pruning.build import layer_maps, pruning_of
from microbert_cli.distillation.results import expert_usage, logged_ask, save_best_weights
from microbert_cli.distillation.start.initialise import InitialWeights, initial_weights, layers_of
from microbert_cli.distillation.start.words import WordVectorStart, word_vector_start
from microbert_cli.distillation.task_set import TaskSet
from microbert_cli.distillation.taught_task import LoadedTeacher, TaughtTask
from microbert_cli.evaluation.scoring import settle_thresholds
from microbert_cli.models import factory
from microbert_cli.models.architectures import model_shape
from microbert_cli.models.capture import OptionalTeacherFunction
from microbert_cli.models.device import choose_precision, pick_device
from microbert_cli.models.load import LoadedModel, count_all_parameters, load_model
from microbert_cli.models.moe.convert import MoeSettings, add_experts
from microbert_cli.models.moe.importance import has_neurons, importance
from microbert_cli.models.save import save_model
from microbert_cli.recipe.multitask import as_list, named_inputs
from microbert_cli.recipe.phase_data import taught_by_table
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.values import PhaseSpec, TaskPhase
from microbert_cli.reporter import Reporter
from microbert_cli.training.budget import Budget
from microbert_cli.training.checkpoint import BestWeights
from microbert_cli.training.freeze import in_stages, parts_of
from microbert_cli.training.heads.score_units import ScoreUnits
from microbert_cli.training.loss_terms import (
    CLASSIFICATION_INPUTS,
    LossTerm,
    check_depth,
    make_terms,
    without_teacher_terms,
)
from microbert_cli.training.objective import Objective
from microbert_cli.training.phases import ChosenLearningRates, Phase, run_phases

IMPORTANCE_BATCH = 32

Rows = TokenizedExamples | MultitaskExamples
Teachers = str | Sequence[str] | Mapping[str, Sequence[str]] | None


class Distiller:
    """The tasks, teachers and losses of a recipe; trains one student per seed.

    teacher     for one task its teacher or teachers, None where a table teaches; for several tasks those of each by name
    identities  what identifies every teacher's weights, under the names that `named_inputs` gives them
    """

    work: Path | None = None  # the stage's directory, for what is kept beside the students of all seeds

    def __init__(
        self, recipe: Recipe, catalog: Catalog, data: Sequence[TaskData], teacher: Teachers, student: str,
        identities: Mapping[str, Any], reporter: Reporter, initial: str | None = None, vectors: str | None = None,
    ):  # fmt: skip
        self.recipe, self.catalog, self.reporter = recipe, catalog, reporter
        self.student, self.started = student, time.monotonic()
        self.device = pick_device(recipe.device)
        self.numerics = choose_precision(self.device, **recipe.numerics())
        self.task_set = TaskSet(recipe, catalog, [self._taught_task(task, teacher, identities) for task in data])
        # By phase, with the first row of the chunk; all seeds share them, so that the cache is filled once.
        self.asks: dict[str, tuple[int, OptionalTeacherFunction | None]] = {}
        self.choices = ChosenLearningRates()
        # Routing by a fixed table has no gate that could be kept busy.
        balances = self._has_experts and recipe.moe.experts > 1 and recipe.moe.routing != "hash"
        balance = recipe.moe.balance if balances else 0.0
        self.terms = {name: _terms(name, spec, catalog, balance) for name, spec in recipe.run_phases.items()}
        self.task_set.check(self.terms)
        if not self.task_set.teachers and not taught_by_table(recipe):
            self.terms = {name: without_teacher_terms(terms) for name, terms in self.terms.items()}
        self.map_layers: dict[str, list[int]] = {}  # by phase
        self.teacher_layers = 0
        first = self._first_teacher
        self.pruning = pruning_of(recipe, catalog, first.loaded, student, self.terms) if first is not None else None
        self._neuron_importance: Mapping[int, Tensor] | None = None
        self._from_vectors = vectors and partial(word_vector_start, vectors, limit=recipe.vectors.limit, reporter=reporter)
        self._start = self._initial_weights(initial)
        self._check(self.load(recipe.seed))

    def _taught_task(self, data: TaskData, teacher: Teachers, identities: Mapping[str, Any]) -> TaughtTask:
        if isinstance(teacher, Mapping):
            sources, key = list(teacher[data.task.name]), f"teacher {data.task.name}"
        else:
            sources, key = as_list(teacher or []), "teacher"
        weights = [identities.get(name) for name, _ in named_inputs(key, sources)]
        return TaughtTask(self.recipe, data, sources, weights, self.numerics, self.reporter)

    @property
    def _first_teacher(self) -> LoadedTeacher | None:
        """The teacher whose tokenizer and weights a new student takes."""
        return next(iter(self.task_set.teachers), None)

    def train_one(self, seed: int, place: Path) -> dict[str, Any]:
        """Trains the student of one seed, saves it in `place`, and returns its dev scores and what is recorded with them."""
        loaded = self.task_set.with_windows(self.load(seed))
        model = self.numerics.place(loaded.model)
        units = ScoreUnits(model, {task.name: task.data.standardisation for task in self.task_set.tasks}, loaded.new)
        best = BestWeights(list(self.task_set.primaries.values()))
        score = partial(self._score, model, loaded, units)
        context: dict[str, Any] = {
            "seed": seed, "pad_id": loaded.tokenizer.pad_token_id, "device": self.device, "score": score
        }  # fmt: skip
        planned = self.phases(loaded)
        if self.recipe.budget is not None:
            planned = Budget(self.recipe.budget, self.work or place, self.started, self.reporter).fit(planned, model, **context)
        phases, projection = run_phases(
            model,
            planned,
            directory=place,
            **context,
            primary=self.task_set.primary,
            choices=self.choices,
            projection=loaded.projection,
            bests=best,
            reporter=self.reporter,
        )
        units.restore()
        settle_thresholds(self.task_set.tasks[0].data, model, loaded)
        save_model(model, loaded.tokenizer, place, projection=projection)
        record = {"dev": self.task_set.score(model, loaded), "phases": phases, "parameters": count_all_parameters(model)}
        optional: dict[str, Any] = {"best": save_best_weights(best, self.task_set, model, loaded, units, place)}
        optional |= {"experts": expert_usage(model), "exits": self.task_set.score_exits(model, loaded)}
        return record | {name: value for name, value in optional.items() if value}

    def _score(self, model: Any, loaded: LoadedModel, units: ScoreUnits) -> dict[str, float]:
        with units.plain():
            return self.task_set.score(model, loaded)

    def load(self, seed: int) -> LoadedModel:
        """Returns the student before training."""
        teacher = self._first_teacher
        student = teacher.source if teacher and self.pruning else self.student
        tasks = [task.data.task for task in self.task_set.tasks]
        options: dict[str, Any] = {"seed": seed, "where": "student", "start": self._start, "tokenizer": self.recipe.base}
        if teacher:
            options |= {"tokenizer": teacher.source, "like": teacher.loaded.model.config}
        elif self._start:
            options |= {"tokenizer": self._start.source.source, "like": self._start.source.model.config}
        if teacher and student == teacher.source:  # it starts with the teacher's head, whose outputs the user may have named
            options["label_order"] = self.recipe.teacher.label_order
        if self.task_set.is_multitask or self._has_experts:
            loaded = factory.multitask_classifier(student, self.catalog, tasks=tasks, **options)
        else:
            loaded = factory.classifier(student, self.catalog, task=tasks[0], **options)
        if self.pruning:
            return self.pruning.begin(loaded)
        return self._with_experts(loaded, seed) if self._has_experts else self.task_set.with_heads(loaded, seed)

    @property
    def start_record(self) -> dict[str, Any]:
        """What metrics.json says of a new student's initial weights; empty for random weights and for a checkpoint."""
        if self.pruning and self._first_teacher:
            return {"start": {"by": "pruning", "of": self._first_teacher.source}}
        return {"start": self._start.record} if self._start else {}

    def _initial_weights(self, initial: str | None) -> InitialWeights | WordVectorStart | None:
        """Returns what a new student takes from the first teacher, or from the model `initial`."""
        settings, teacher = self.recipe.initialise, self._first_teacher
        described = factory.is_description(self.student, self.catalog)
        if self.pruning or self.recipe.init == "random" or not described:
            return None
        if teacher is None:
            return self._weights_without_teacher(initial) if taught_by_table(self.recipe) else None
        if self._from_vectors:
            return self._from_vectors(teacher.loaded)
        columns, measure = teacher.teacher.columns, None
        if settings.neurons == "sensitivity" and has_neurons(teacher.loaded.model):
            measure = cache(lambda layers: self._sensitivity(teacher.loaded, layers, columns=columns, rows=settings.rows))
        return initial_weights(
            settings.by,
            settings.layers,
            teacher.loaded,
            initial,
            student=partial(factory.student_config, self.student, self.catalog, teacher.loaded),
            labels=columns,
            measure=measure,
            reporter=self.reporter,
        )

    def _weights_without_teacher(self, initial: str | None) -> InitialWeights | WordVectorStart | None:
        """Returns what a new student takes from `initial` where no model teaches."""
        if initial is None:
            return None
        settings, source = self.recipe.initialise, load_model(initial, "encoder", where="base", new_head=True)
        if self._from_vectors:
            return self._from_vectors(source)
        config = partial(factory.student_config, self.student, self.catalog, source)
        return initial_weights(settings.by, settings.layers, source, None, student=config, reporter=self.reporter)

    @property
    def _is_random(self) -> bool:
        """Whether the student is new and takes no weights."""
        return not (self._start or self.pruning) and factory.is_description(self.student, self.catalog)

    @property
    def _has_experts(self) -> bool:
        """Whether the recipe puts experts into the student."""
        return self.recipe.moe.side in ("student", "both")

    def _with_experts(self, loaded: LoadedModel, seed: int) -> LoadedModel:
        moe = self.recipe.moe
        settings = MoeSettings(
            moe.layers, moe.experts, moe.expert_width, moe.routing, moe.top_k, moe.init, moe.shared, moe.norm, moe.gate
        )
        return add_experts(loaded, settings, seed=seed, importance=self._importance_function(loaded))

    def _importance_function(self, loaded: LoadedModel) -> Callable[[Sequence[int]], Mapping[int, Tensor]] | None:
        """Returns a function for the importance of neurons in a student's layers; None where new weights have none.

        A checkpoint is measured itself. Of a new student that takes the teacher's layers, the teacher is.
        """
        if not factory.is_description(self.student, self.catalog):
            return partial(self._importance, loaded)
        init, teacher = self._start, self._first_teacher
        if not (isinstance(init, InitialWeights) and teacher and init.by == "teacher-layers" and init.source is teacher.loaded):
            return None
        depths = (model_shape(teacher.loaded.model.config).layers, model_shape(loaded.model.config).layers)
        # Both sides count layers from 1, `layers_of` from 0.
        teacher_layer = dict(enumerate((layer + 1 for layer in layers_of(init.layers, *depths)), 1))

        def measure(layers: Sequence[int]) -> Mapping[int, Tensor]:
            values = self._importance(teacher.loaded, [teacher_layer[layer] for layer in layers], teacher.teacher.columns)
            return {layer: values[teacher_layer[layer]] for layer in layers}

        return measure

    def _importance(
        self, loaded: LoadedModel, layers: Sequence[int], columns: Sequence[int] | None = None
    ) -> Mapping[int, Tensor]:
        """Returns the importance of a model's neurons before training, on rows of the training set; the same for every seed."""
        if self._neuron_importance is None:
            rows = self.recipe.moe.importance_rows
            self._neuron_importance = self._sensitivity(loaded, layers, columns=columns, rows=rows)
        return self._neuron_importance

    def _sensitivity(
        self, loaded: LoadedModel, layers: Sequence[int], *, columns: Sequence[int] | None, rows: int
    ) -> Mapping[int, Tensor]:
        """Returns the importance of a model's neurons on about `rows` rows, evenly spaced over the training set."""
        examples = self.task_set.tasks[0].data.encode("train", loaded, where="student")
        sample = np.arange(len(examples))[:: max(1, len(examples) // rows)]
        self.reporter.note(f"importance of neurons: {len(sample)} rows")
        groups = batches_by_length(examples.lengths[sample], batch_size=IMPORTANCE_BATCH)
        batches = (examples.batch(sample[group], pad_id=loaded.tokenizer.pad_token_id) for group in groups)
        device = loaded.model.device
        values = importance(loaded.model.to(self.device), batches, layers, columns=columns)
        loaded.model.to(device)
        return values

    def phases(self, loaded: LoadedModel) -> list[Phase]:
        """Returns the recipe's phases for this student; a stage of a phase is a phase of its own."""
        phases = (self._chunks(name, spec, loaded) for name, spec in self.recipe.run_phases.items())
        return [stage for chunks in phases for stage in in_stages(chunks, parts_of(loaded.model))]

    def _check(self, loaded: LoadedModel) -> None:
        """Checks a student against its tasks, losses and teachers, and sets the layer map."""
        self.task_set.compare_vocabularies(loaded)
        shape = model_shape(loaded.model.config)
        for task in self.task_set.tasks:
            for model in (loaded, *(teacher.loaded for teacher in task.teachers)):
                task.data.fit_length(model.model.config, where="data.max_length")
        terms = {f"phases.{name}.losses.{term.name}": term for name, phase in self.terms.items() for term in phase}
        sizes = {**self.task_set.sizes, "student_width": shape.width, "depth": shape.layers}
        for term in terms.values():
            term.make_module(**sizes)  # raises where a loss does not fit these sizes
        for teacher in self.task_set.teachers:
            final = self.pruning.target if self.pruning else loaded
            check_pair(terms, teacher.loaded, final, where=f"student {self.student}")
            check_depth(terms, model_shape(final.model.config).layers)
            self.teacher_layers = model_shape(teacher.loaded.model.config).layers
            self.map_layers = layer_maps(self.recipe.layer_map, self.terms, self.pruning, self.teacher_layers, shape.layers)

    def _chunks(self, name: str, spec: TaskPhase, loaded: LoadedModel) -> list[Phase]:
        """Returns a phase once for each chunk of its rows."""
        if spec.freeze and self._is_random:
            self.reporter.note(f"phases.{name}.freeze: the student begins with random weights, so all of it is trained")
            spec = spec.model_copy(update={"freeze": []})
        rows = self.task_set.training_rows(spec, loaded)
        chunks = chunks_of_rows(rows, spec.chunk_rows, where=f"phases.{name}.chunk_rows")
        return [self._phase(name, spec, loaded, *chunk) for chunk in chunks]

    def _phase(self, name: str, spec: TaskPhase, loaded: LoadedModel, rows: Rows, part: np.ndarray | None) -> Phase:
        terms, reference = self.terms[name], self.recipe.normalisation == "reference"
        pad_to = self.task_set.max_length if reference else None
        return Phase(
            name=name,
            table=f"phases.{name}",
            training=spec,
            rows=rows,
            learning_rates=spec.learning_rates,
            objective=lambda model: self._objective(name, spec, rows, part, model),
            # A phase of hidden states alone leaves the classifier untrained, so that its dev score says nothing.
            scored=any("logits" in term.needs for term in terms),
            pad_to=pad_to,
            drop_last=reference,
            split=self.task_set.split_names(spec),
            dev_loss=partial(self.task_set.dev_loss, loaded=loaded, pad_to=pad_to) if spec.best_by == "loss" else None,
        )

    def _objective(self, name: str, spec: TaskPhase, rows: Rows, part: np.ndarray | None, model: Any) -> Objective:
        sizes = self.task_set.sizes
        objective = Objective(
            self.terms[name],
            model,
            ask_teacher=None,
            map_layers=self.map_layers.get(name, [0]),
            student_width=model_shape(model.config).width,
            teacher_width=sizes["teacher_width"],
            teacher_layers=self.teacher_layers,
            **self.task_set.labels_as_learnt,
            classes=sizes["classes"],
            tasks=sizes["tasks"],
            normalisation=self.recipe.normalisation,
            always_project=self.pruning is not None and name == self.pruning.phase and self.pruning.projects,
            numerics=self.numerics,
        )
        if self.pruning and name == self.pruning.phase:
            self.pruning.attach(objective)
        chunk = 0 if part is None else int(part[0])
        # It needs an objective, which knows what its losses read. Of chunks only the current one's files stay open.
        if name not in self.asks or self.asks[name][0] != chunk:
            self.asks.pop(name, None)
            make = partial(self.task_set.make_ask, spec, rows, objective.teacher_request, part)
            self.asks[name] = chunk, logged_ask(self.work, self.task_set, name, len(rows.lengths), make)
        return objective.with_teacher(self.asks[name][1])


def _terms(phase: str, spec: PhaseSpec, catalog: Catalog, balance: float) -> list[LossTerm]:
    """Returns the phase's losses; with experts also `load_balance`, of weight `balance` unless the phase sets its own."""
    losses = {name: (term.weight, term.parameters) for name, term in spec.losses.items()}
    routed = {"routing"} if balance else set()
    losses = {"load_balance": (balance, {}), **losses} if balance else losses
    return make_terms(
        losses, catalog, available=CLASSIFICATION_INPUTS | {"teacher", "exits"} | routed, where=f"phases.{phase}.losses"
    )
