"""Stage two: the student learns a task from the fine-tuned teacher, through all phases of the method."""

import time
from pathlib import Path
from typing import Any

from microbert_cli import checkpoint, manifest, models, numerics, places, scoring
from microbert_cli.capture import Want
from microbert_cli.catalog import Catalog
from microbert_cli.encoding import Encoded
from microbert_cli.layer_map import layer_map
from microbert_cli.models import Loaded
from microbert_cli.objective import Ask, Objective
from microbert_cli.output import working
from microbert_cli.phases import Choices, Phase, over_seeds, rows_asked, run_phases
from microbert_cli.recipe import NUMERICS, Recipe
from microbert_cli.recipe import Phase as PhaseSpec
from microbert_cli.stage import StageResult, sign, up_to_date
from microbert_cli.task_rows import TaskRows, open_task
from microbert_cli.teacher import Teacher, check_heads, check_order, check_strength, match_labels
from microbert_cli.teacher_cache import CacheSettings, remember
from microbert_cli.terms import ANSWERED, LossTerm, make_terms
from microbert_cli.tracking import SILENT, Log, Talk

NAME = "task-distill"
ASKED = "teacher.jsonl"  # a line for each phase: what asking the teacher before it took
KEYS = ("task", "data", "teacher", "phases", "normalisation", "layer_map", "cache", "seed", "seeds", *NUMERICS)


def run(
    recipe: Recipe,
    out: Path,
    *,
    catalog: Catalog,
    teacher: str,
    student: str,
    augmented: str | None = None,
    force: bool = False,
    resume: bool = True,
    renew: bool = False,
    talk: Talk = SILENT,
) -> StageResult:
    """Distils the fine-tuned `teacher` into `student`; dev scores beside the teacher's are in metrics.json.

    teacher    a classifier fine-tuned on the task; its dev score is measured before anything else
    student    the output of general-distill, any encoder, or a student of the catalogue (random weights)
    augmented  a directory made by `augment`; without it the original training set is used
    """
    data = open_task(recipe, catalog, splits=("train", "dev"), augmented=augmented, talk=talk)
    identity = {
        "recipe": recipe.identity(*KEYS),
        "own_files": catalog.own_files(),
        "teacher": places.identify(teacher, catalog),
        "student": places.identify(student, catalog),
        "data": data.fingerprints(),
    }
    with working(out, stage=NAME, identity=identity, force=force, resume=resume, renew=renew, talk=talk) as work:
        if work.done:
            return up_to_date(NAME, out)
        distiller = Distiller(recipe, catalog, data, teacher, student, identity["teacher"], talk)
        distiller.teacher_log = work.path / ASKED
        taught = distiller.examine_teacher()
        seeds = recipe.seeds or [recipe.seed]
        metrics = over_seeds(seeds, work.path, data.task.primary, distiller.train_one, distiller.choices, talk)
        metrics |= {"teacher": taught, "task": data.task.name, "primary": data.task.primary}
        metrics |= {"majority": data.majority("dev"), "retention": _retention(metrics, taught, data.task.primary)}
        return sign(
            work,
            stage=NAME,
            recipe=recipe.keys(*KEYS),
            metrics=metrics,
            inputs={"teacher": identity["teacher"], "student": identity["student"], "augmented": manifest.identify(augmented)},
            sources={"teacher": teacher, "student": student, "augmented": augmented},
            data=data.facts(),
            seeds=seeds,
        )


class Distiller:
    """Teacher, task and method at hand; trains one student per seed."""

    teacher_log: Path | None = None

    def __init__(self, recipe: Recipe, catalog: Catalog, data: TaskRows, teacher: str, student: str, weights: Any, talk: Talk):
        self.recipe, self.catalog, self.data, self.talk = recipe, catalog, data, talk
        self.student, self.teacher_source = student, teacher
        self.device = places.device(recipe.device)
        self.numerics = numerics.choose(self.device, **recipe.numerics())
        self.taught = models.load(teacher, "classifier", where="teacher.model")
        columns = match_labels(self.taught, data.task, recipe.teacher.label_order, where=f"teacher.model {teacher}")
        self.teacher = Teacher(self.taught, columns, dropout=recipe.teacher.dropout)
        self.numerics.place(self.teacher.model)
        self.asked_by = {"weights": weights, "columns": self.teacher.columns}
        self.asks: dict[str, Ask] = {}
        self.choices = Choices()
        self.terms = {name: _terms(name, spec, catalog) for name, spec in recipe.run_phases.items()}
        self.map_layers: list[int] = [0]
        self._check(self.load(recipe.seed))

    def examine_teacher(self) -> dict[str, float]:
        """The teacher's dev scores; refuses one that is weak or whose outputs are permuted."""
        task, where = self.data.task, f"teacher.model {self.teacher_source}"
        rows = self.data.rows["dev"]
        logits = self.data.logits("dev", self.teacher, self.taught)
        if self.taught.label_names is None and not self.recipe.teacher.label_order:
            check_order(task, logits, [int(label) for label in rows.labels or []], where=where)
        scores = scoring.score(task, logits, rows)
        majority = self.data.majority("dev")
        self.talk.note(f"teacher: dev {task.primary} {scores[task.primary]:.4f} (commonest class {majority:.4f})")
        if not self.recipe.teacher.allow_weak:
            check_strength(task, scores[task.primary], majority, margin=self.recipe.teacher.margin, where=where)
        return scores

    def train_one(self, seed: int, place: Path) -> dict[str, Any]:
        loaded = self.load(seed)
        model = self.numerics.place(loaded.model)
        results, projection = run_phases(
            model,
            self.phases(loaded),
            directory=place,
            seed=seed,
            pad_id=loaded.tokenizer.pad_token_id,
            device=self.device,
            score=lambda: self.data.score("dev", model, loaded),
            primary=self.data.task.primary,
            choices=self.choices,
            projection=loaded.projection,
            talk=self.talk,
        )
        checkpoint.save_model(model, loaded.tokenizer, place, projection=projection)
        dev = self.data.score("dev", model, loaded)
        return {"dev": dev, "phases": results, "parameters": models.parameters(model)}

    def load(self, seed: int) -> Loaded:
        """A student at its start."""
        return places.classifier(
            self.student,
            self.catalog,
            task=self.data.task,
            seed=seed,
            tokenizer=self.teacher_source,
            where="student",
            like=self.taught.model.config,
        )

    def phases(self, loaded: Loaded) -> list[Phase]:
        """The recipe's phases, ready to run with this student."""
        return [self._phase(name, spec, loaded) for name, spec in self.recipe.run_phases.items()]

    def _check(self, loaded: Loaded) -> None:
        models.same_vocabulary(self.taught.tokenizer, loaded.tokenizer, where=f"student {self.student}")
        models.check_length(self.data.max_length, loaded.model.config, where="data.max_length")
        theirs, ours = self.taught.model.config, loaded.model.config
        terms = {f"phases.{name}.losses.{term.name}": term for name, phase in self.terms.items() for term in phase}
        for key in (key for key, term in terms.items() if "scores" in term.needs):
            check_heads(theirs, ours, where=f"student {self.student}", key=key)
        for term in terms.values():
            term.own(classes=self.data.task.num_labels, teacher_width=theirs.hidden_size, tasks=1)
        if any(term.over in ("layers", "top") for term in terms.values()):
            self.map_layers = layer_map(
                self.recipe.layer_map, teacher_layers=theirs.num_hidden_layers, student_layers=ours.num_hidden_layers
            )

    def _phase(self, name: str, spec: PhaseSpec, loaded: Loaded) -> Phase:
        terms, rows = self.terms[name], self._rows(spec, loaded)
        reference = self.recipe.normalisation == "reference"
        return Phase(
            name=name,
            training=spec,
            rows=rows,
            learning_rates=spec.learning_rates,
            objective=lambda model: self._objective(name, spec, rows, model),
            scored=any("logits" in term.needs for term in terms),
            pad_to=self.data.max_length if reference else None,
            drop_last=reference,
        )

    def _rows(self, spec: PhaseSpec, loaded: Loaded) -> Encoded:
        use_augmented = "augmented" in self.data.rows and spec.data != "original"
        return self.data.encode("augmented" if use_augmented else "train", loaded, where="student")

    def _objective(self, name: str, spec: PhaseSpec, rows: Encoded, model: Any) -> Objective:
        objective = Objective(
            self.terms[name],
            model,
            ask_teacher=self.teacher.ask,
            map_layers=self.map_layers,
            student_width=model.config.hidden_size,
            teacher_width=self.taught.model.config.hidden_size,
            classes=self.data.task.num_labels,
            normalisation=self.recipe.normalisation,
            numerics=self.numerics,
        )
        if name not in self.asks:
            self.asks[name] = self._timed(name, spec, rows, objective.teacher_want)
        return objective.asking(self.asks[name])

    def _timed(self, name: str, spec: PhaseSpec, rows: Encoded, want: Want) -> Ask:
        """The same, with a line on how many rows were asked about before training, and how long it took."""
        began, teacher = time.monotonic(), self._in_int8(want) or self.teacher
        before = teacher.asked
        ask = self._remember(teacher, spec, rows, want)
        if self.teacher_log is not None and want != Want():
            taken = {"phase": name, "kept": ask != teacher.ask, "rows": len(rows), "asked": teacher.asked - before}
            with Log(self.teacher_log) as log:
                log.write(**taken, took=round(time.monotonic() - began, 3))
        return ask

    def _remember(self, teacher: Teacher, spec: PhaseSpec, rows: Encoded, want: Want) -> Ask:
        """The teacher, through the cache. Under `reference` padding counts, and padding is not kept."""
        if want == Want():
            return self.teacher.ask
        if self.recipe.normalisation == "reference" and (want.hidden or want.scores):
            return teacher.ask
        return remember(
            teacher,
            rows,
            want,
            asked_by={**self.asked_by, "teacher": type(teacher).__name__},
            pad_id=self.taught.tokenizer.pad_token_id,
            settings=CacheSettings(**self.recipe.cache.model_dump()),
            asks=rows_asked(spec, rows.lengths, self.recipe.seeds),
            numerics=self.numerics,
            talk=self.talk,
        )

    def _in_int8(self, want: Want) -> Teacher | None:
        """The teacher's int8 copy where the recipe asks for one and it has what is wanted; says aloud where it has not."""
        if self.recipe.teacher.precision != "int8":
            return None
        from microbert_cli.int8_teacher import LOGITS, Int8Teacher

        if want == LOGITS and self.teacher.device.type == "cpu" and not self.recipe.teacher.dropout:
            return Int8Teacher(self.teacher, weights=self.asked_by, talk=self.talk)
        self.talk.note("teacher: asked in float32 here: int8 gives logits alone, on a CPU, without dropout")
        return None


def _terms(phase: str, spec: PhaseSpec, catalog: Catalog) -> list[LossTerm]:
    losses = {name: (term.weight, term.parameters) for name, term in spec.losses.items()}
    return make_terms(losses, catalog, given=ANSWERED | {"teacher"}, where=f"phases.{phase}.losses")


def _retention(metrics: dict[str, Any], teacher: dict[str, float], primary: str) -> float | None:
    """Student's score as a share of the teacher's; with several seeds, of their mean."""
    student = metrics.get("mean", metrics["dev"])[primary]
    return student / teacher[primary] if teacher[primary] > 0 else None
