"""Stage two: the student learns a task, or several, from fine-tuned teachers, through all phases of the method."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from microbert_cli import checkpoint, manifest, models, numerics, places
from microbert_cli.batching import in_order
from microbert_cli.bests import Bests
from microbert_cli.capture import Want
from microbert_cli.catalog import Catalog
from microbert_cli.course import Course
from microbert_cli.encoding import Encoded
from microbert_cli.importance import importance
from microbert_cli.initialising import Start, layers_of, reorder_labels, start
from microbert_cli.layer_map import layer_map
from microbert_cli.lesson import Lesson
from microbert_cli.matching import check_pair
from microbert_cli.mixture import Mixture
from microbert_cli.models import Loaded
from microbert_cli.objective import AskAny, Objective
from microbert_cli.output import working
from microbert_cli.phases import Choices, Phase, over_seeds, run_phases
from microbert_cli.recipe import NUMERICS, OF_SEVERAL, Recipe
from microbert_cli.recipe import Phase as PhaseSpec
from microbert_cli.routed_student import Wanted, check_expert_teacher, with_experts
from microbert_cli.several import each_place, listed
from microbert_cli.splits import not_taken, trained_splits
from microbert_cli.stage import StageResult, sign, up_to_date
from microbert_cli.task_results import experts_of, results, save_bests
from microbert_cli.task_rows import TaskRows, facts_of, fingerprints_of, open_tasks
from microbert_cli.terms import ANSWERED, MAPPED, LossTerm, check_depth, make_terms, without_teacher
from microbert_cli.tracking import SILENT, Log, Talk

NAME = "task-distill"
ASKED = "teacher.jsonl"  # a line for each phase: what asking the teacher before it took
IMPORTANCE_BATCH = 32
KEYS = (
    "task", "data", "teacher", "phases", "normalisation", "layer_map", "initialise", "moe", "cache", "seed", "seeds",
    *NUMERICS, *OF_SEVERAL,
)  # fmt: skip
Teachers = str | Sequence[str] | Mapping[str, Sequence[str]]


def run(
    recipe: Recipe,
    out: Path,
    *,
    catalog: Catalog,
    teacher: Teachers,
    student: str,
    augmented: str | Mapping[str, str] | None = None,
    initial: str | None = None,
    force: bool = False,
    resume: bool = True,
    renew: bool = False,
    talk: Talk = SILENT,
) -> StageResult:
    """Distils the fine-tuned `teacher` into `student`; dev scores beside the teacher's are in metrics.json.

    teacher    a classifier fine-tuned on the task, or several to be asked together; of several tasks those of each by its name
    student    the output of general-distill, any encoder, or a student of the catalogue (random weights)
    augmented  a directory made by `augment`, of several tasks one by name; without it the original training set is used
    initial    whose weights a new student takes where the recipe says that it takes any; else the teacher's
    """
    if left := not_taken(recipe, catalog):
        talk.warn(left)
    data = open_tasks(recipe, catalog, splits=trained_splits(recipe, catalog), augmented=augmented, talk=talk)
    used = dict(each_place("teacher", teacher)) | {"student": student}
    if len(used) == 1 and recipe.base is not None:
        used["base"] = recipe.base  # nobody teaches: a new student's tokens are those of the base model
    used |= {"initial": initial} if initial else {}
    inputs = {name: places.identify(place, catalog) for name, place in used.items()}
    identity = {
        "recipe": recipe.identity(*KEYS),
        "own_files": catalog.own_files(),
        **inputs,
        "data": fingerprints_of(data),
    }
    with working(
        out, stage=NAME, identity=identity, force=force, resume=resume, renew=renew, reuse=recipe.reuse, talk=talk
    ) as work:
        if work.done:
            return up_to_date(NAME, out)
        for _, source in each_place("teacher", teacher) if recipe.moe.side in ("teacher", "both") else ():
            check_expert_teacher(source, side=recipe.moe.side, experts=recipe.moe.experts)
        distiller = Distiller(recipe, catalog, data, teacher, student, inputs, talk, initial)
        distiller.teacher_log = work.path / ASKED
        course, seeds = distiller.course, recipe.seeds or [recipe.seed]
        taught = course.examine()
        metrics = over_seeds(seeds, work.path, course.primary, distiller.train_one, distiller.choices, talk)
        metrics |= results(course, metrics, taught, work.path, talk) | distiller.start_told
        varied = dict(each_place("augmented", augmented)) or {"augmented": None}
        return sign(
            work,
            stage=NAME,
            recipe=recipe.keys(*KEYS),
            metrics=metrics,
            inputs={**inputs, **{name: manifest.identify(place) for name, place in varied.items()}},
            sources={**used, **varied},
            data=facts_of(data),
            seeds=seeds,
        )


class Distiller:
    """Teachers, tasks and method at hand; trains one student per seed.

    teacher     of one task: its teacher or teachers; of several: those of each by the task's name
    identities  what identifies every teacher's weights, as `each_place("teacher", teacher)` names them
    """

    teacher_log: Path | None = None

    def __init__(
        self, recipe: Recipe, catalog: Catalog, data: Sequence[TaskRows], teacher: Teachers, student: str,
        identities: Mapping[str, Any], talk: Talk, initial: str | None = None,
    ):  # fmt: skip
        self.recipe, self.catalog, self.talk = recipe, catalog, talk
        self.student = student
        self.device = places.device(recipe.device)
        self.numerics = numerics.choose(self.device, **recipe.numerics())
        self.course = Course(recipe, catalog, [self._lesson(one, teacher, identities) for one in data])
        self.asks: dict[str, AskAny | None] = {}
        self.choices = Choices()
        weighs = self._routes and recipe.moe.experts > 1 and recipe.moe.routing != "hash"  # a table keeps no gate busy
        balance = recipe.moe.balance if weighs else 0.0
        self.terms = {name: _terms(name, spec, catalog, balance) for name, spec in recipe.run_phases.items()}
        self.course.check(self.terms)
        if not self.course.instructors:
            self.terms = {name: without_teacher(terms) for name, terms in self.terms.items()}
        self.map_layers: list[int] = [0]
        self._important: Mapping[int, Tensor] | None = None
        self._start = self._beginning(initial)
        self._check(self.load(recipe.seed))

    def _lesson(self, data: TaskRows, teacher: Teachers, identities: Mapping[str, Any]) -> Lesson:
        of_each = isinstance(teacher, Mapping)
        own = teacher[data.task.name] if isinstance(teacher, Mapping) else listed(teacher)
        named = each_place(f"teacher {data.task.name}" if of_each else "teacher", list(own))
        weights = [identities.get(name) for name, _ in named]
        return Lesson(self.recipe, data, own, weights, self.numerics, self.talk)

    def train_one(self, seed: int, place: Path) -> dict[str, Any]:
        loaded = self.load(seed)
        model = self.numerics.place(loaded.model)
        bests = Bests(list(self.course.primaries.values()))
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
            talk=self.talk,
        )
        checkpoint.save_model(model, loaded.tokenizer, place, projection=projection)
        found = {"dev": self.course.score(model, loaded), "phases": outcome, "parameters": models.parameters(model)}
        further = {"best": save_bests(bests, self.course, model, loaded, place), "experts": experts_of(model)}
        return found | {name: told for name, told in further.items() if told}

    def load(self, seed: int) -> Loaded:
        """A student at its start."""
        taught = next(iter(self.course.instructors), None)
        tasks = [lesson.data.task for lesson in self.course.lessons]
        like = {"tokenizer": taught.source, "like": taught.loaded.model.config} if taught else {"tokenizer": self.recipe.base}
        made: dict[str, Any] = {"seed": seed, "where": "student", "start": self._start, **like}
        if self.course.several or self._routes:
            loaded = places.several_heads(self.student, self.catalog, tasks=tasks, **made)
        else:
            loaded = places.classifier(self.student, self.catalog, task=tasks[0], **made)
        if taught and self.student == taught.source:
            reorder_labels(loaded.model, taught.teacher.columns)
        return self._with_experts(loaded, seed) if self._routes else loaded

    @property
    def start_told(self) -> dict[str, Any]:
        """What a new student began as, for the record; nothing where its weights were random or a checkpoint's."""
        return {"start": self._start.told} if self._start else {}

    def _beginning(self, initial: str | None) -> Start | None:
        """What a new student takes of the first teacher, or of the model `initial`."""
        said, taught = self.recipe.initialise, next(iter(self.course.instructors), None)
        if taught is None or self.recipe.init == "random" or not places.is_description(self.student, self.catalog):
            return None
        return start(said.by, said.layers, taught.loaded, initial, labels=taught.teacher.columns, talk=self.talk)

    @property
    def _routes(self) -> bool:
        """Whether the student has experts."""
        return self.recipe.moe.side in ("student", "both")

    def _with_experts(self, loaded: Loaded, seed: int) -> Loaded:
        moe = self.recipe.moe
        how = (moe.routing, moe.top_k, moe.init, moe.shared, moe.norm, moe.gate)
        wanted = Wanted(moe.layers, moe.experts, moe.expert_width, *how)
        return with_experts(loaded, wanted, seed=seed, importance=self._measuring(loaded))

    def _measuring(self, loaded: Loaded) -> Callable[[Sequence[int]], Mapping[int, Tensor]] | None:
        """How important neurons of a student's layers are: in itself, or in the teacher whose layers a new one has taken."""
        if not places.is_description(self.student, self.catalog):
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

    def _importance(self, loaded: Loaded, layers: Sequence[int], columns: Sequence[int] | None = None) -> Mapping[int, Tensor]:
        """Of the neurons of a model as it begins, on rows of the training set; the same for every seed."""
        if self._important is None:
            rows, pad_id = self.course.lessons[0].data.encode("train", loaded, where="student"), loaded.tokenizer.pad_token_id
            chosen = np.arange(len(rows))[:: max(1, len(rows) // self.recipe.moe.importance_rows)]
            self.talk.note(f"importance of neurons: {len(chosen)} rows")
            parts = in_order(rows.lengths[chosen], batch_size=IMPORTANCE_BATCH)
            batches = (rows.batch(chosen[part], pad_id=pad_id) for part in parts)
            before = loaded.model.device
            self._important = importance(loaded.model.to(self.device), batches, layers, columns=columns)
            loaded.model.to(before)
        return self._important

    def phases(self, loaded: Loaded) -> list[Phase]:
        """The recipe's phases, ready to run with this student."""
        return [self._phase(name, spec, loaded) for name, spec in self.recipe.run_phases.items()]

    def _check(self, loaded: Loaded) -> None:
        self.course.meet(loaded)
        models.check_length(self.course.max_length, loaded.model.config, where="data.max_length")
        terms = {f"phases.{name}.losses.{term.name}": term for name, phase in self.terms.items() for term in phase}
        for term in terms.values():
            term.own(**self.course.sizes, student_width=loaded.model.config.hidden_size)
        for one in self.course.instructors:
            check_pair(terms, one.loaded, loaded, where=f"student {self.student}")
            theirs, ours = one.loaded.model.config, loaded.model.config
            check_depth(terms, ours.num_hidden_layers)
            if any(term.over in MAPPED for term in terms.values()):
                self.map_layers = layer_map(
                    self.recipe.layer_map, teacher_layers=theirs.num_hidden_layers, student_layers=ours.num_hidden_layers
                )

    def _phase(self, name: str, spec: PhaseSpec, loaded: Loaded) -> Phase:
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

    def _objective(self, name: str, spec: PhaseSpec, rows: Encoded | Mixture, model: Any) -> Objective:
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

    def _timed(self, name: str, spec: PhaseSpec, rows: Encoded | Mixture, want: Want) -> AskAny | None:
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
    return make_terms(losses, catalog, given=ANSWERED | {"teacher"} | routed, where=f"phases.{phase}.losses")
