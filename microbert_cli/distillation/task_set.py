"""The tasks of a run, one or several: their rows as one dataset, their scores as one table, the right teacher for a batch.

A run of several tasks keeps the model with the best mean of the tasks' primary metrics.
"""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from microbert_cli.data.multitask_batching import MultitaskExamples, task_shares
from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.distillation.ensemble import ask_by_task
from microbert_cli.errors import MbertError
from microbert_cli.evaluation.scoring import EVALUATION_BATCH, predict_logits, score, score_split
from microbert_cli.models.architectures import model_shape
from microbert_cli.models.capture import Batch, OptionalTeacherFunction, OutputRequest
from microbert_cli.models.exits.answers import ExitLogits
from microbert_cli.models.exits.build import ExitSettings, add_exits, exit_ends, has_exits
from microbert_cli.models.load import LoadedModel
from microbert_cli.models.windows.settings import POOLS, mark_windows
from microbert_cli.recipe.phase_data import ANSWERS, AUGMENTED, SELECTED_BY, needs_model, phase_split
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.values import PhaseSpec, TaskPhase
from microbert_cli.training.heads.bias import start_head_bias
from microbert_cli.training.loss_terms import LossTerm, check_windows, without_teacher_terms
from microbert_cli.training.objective import Objective
from microbert_cli.training.phases import rows_processed

if TYPE_CHECKING:
    from microbert_cli.distillation.taught_task import LoadedTeacher, TaughtTask


MEAN_SCORE = "mean"


class TaskSet:
    """The tasks of a run, each with its data and teachers."""

    def __init__(self, recipe: Recipe, catalog: Catalog, tasks: "Sequence[TaughtTask]"):
        self.recipe, self.catalog, self.tasks = recipe, catalog, list(tasks)
        self._dev_asks: dict[tuple[str, OutputRequest], OptionalTeacherFunction] = {}

    @property
    def is_multitask(self) -> bool:
        """Whether the recipe names several tasks, so that the model has a head for each."""
        return bool(self.recipe.tasks)

    @property
    def primary(self) -> str:
        """The name of the score by which the model is chosen."""
        return MEAN_SCORE if self.is_multitask else self.tasks[0].data.task.primary

    @property
    def primaries(self) -> dict[str, str]:
        """For each of several tasks the name of its primary score among all scores; empty for a single task."""
        return {task.name: f"{task.name}.{task.data.task.primary}" for task in self.tasks} if self.is_multitask else {}

    @property
    def teachers(self) -> "list[LoadedTeacher]":
        """The teachers of all tasks."""
        return [teacher for task in self.tasks for teacher in task.teachers]

    @property
    def max_length(self) -> int:
        """The number of tokens of the longest row that may come."""
        return max(task.data.max_length for task in self.tasks)

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that losses need which train a module of their own, such as a discriminator."""
        # Teachers of several widths are refused by `check` wherever a loss compares hidden states.
        widths = [model_shape(teacher.loaded.model.config).width for teacher in self.teachers]
        classes = self.tasks[0].data.task.kind.num_outputs
        return {"classes": classes, "teacher_width": widths[0] if widths else 1, "tasks": len(self.tasks)}

    @property
    def labels_as_learnt(self) -> dict[str, Any]:
        """What an objective must know of each task's labels, by the task's number: `standardise` and `forms`."""
        numbered = sorted(self.tasks, key=lambda task: task.data.number or 0)
        units, forms = ([getattr(task.data, name) for task in numbered] for name in ("standardisation", "label_form"))
        return {"standardise": units, "forms": forms}

    def score_teachers(self) -> list[dict[str, float] | None]:
        """Returns the dev scores of each task's teachers, None for a task without any."""
        return [task.score_teachers() if task.teachers else task.score_table() for task in self.tasks]

    def score(self, model: Any, loaded: LoadedModel) -> dict[str, float]:
        """Returns a student's dev scores: the task's metrics, or each task's as `TASK.METRIC` and the mean of primary ones."""
        scores = {task.name: score_split(task.data, "dev", model, loaded) for task in self.tasks}
        if not self.is_multitask:
            return scores[self.tasks[0].name]
        by_name = {f"{task}.{metric}": value for task, metrics in scores.items() for metric, value in metrics.items()}
        return {MEAN_SCORE: mean(by_name[name] for name in self.primaries.values()), **by_name}

    def with_heads(self, loaded: LoadedModel, seed: int) -> LoadedModel:
        """Returns a student whose head, where new, begins with its task's bias, and with the exits of the recipe, if any."""
        start_head_bias(loaded.model, self.tasks[0].data.head_bias)
        if self.recipe.early_exit.branch == "none":
            return loaded
        scale = self.tasks[0].data.standardisation
        return add_exits(
            loaded, ExitSettings(**self.recipe.early_exit.model_dump()), seed=seed, spread=scale.std if scale else None
        )

    def with_windows(self, loaded: LoadedModel) -> LoadedModel:
        """Returns a student whose configuration says how it reads long texts; that of several tasks reads their beginning."""
        config = loaded.model.config
        mark_windows(config, None if self.is_multitask else self.tasks[0].data.windows_for(config, where="student"))
        return loaded

    def score_exits(self, model: Any, loaded: LoadedModel) -> dict[str, dict[str, float]]:
        """Returns the dev scores of a student if all rows left at one exit, by its layer; none without exits."""
        if not has_exits(model.config):
            return {}
        data, exits = self.tasks[0].data, ExitLogits(model)
        logits = predict_logits(data, "dev", exits, loaded)
        numbers = exit_ends(model.config)
        by_exit = np.split(logits, len(numbers), axis=-1)
        return {str(number): score(data.task, part, data.rows["dev"]) for number, part in zip(numbers, by_exit, strict=True)}

    def training_rows(self, spec: PhaseSpec, loaded: LoadedModel) -> TokenizedExamples | MultitaskExamples:
        """Returns the tokenised rows that a phase trains on."""
        parts = tuple(task.data.encode(self._split(task, spec), loaded, where="student") for task in self.tasks)
        if not self.is_multitask:
            return parts[0]
        sampling = self.recipe.sampling
        return MultitaskExamples(parts, tuple(task_shares([len(part) for part in parts], sampling.by, cap=sampling.cap)))

    def split_names(self, spec: PhaseSpec) -> str:
        """Returns the names of the splits that a phase trains on, as they are recorded in metrics.json."""
        return ", ".join(dict.fromkeys(self._split(task, spec) for task in self.tasks))

    def _split(self, task: "TaughtTask", spec: PhaseSpec) -> str:
        return phase_split(spec, self.catalog, task.data.rows)

    def compare_vocabularies(self, student: LoadedModel) -> None:
        """Finds, for each task, the teachers whose vocabulary is not the student's."""
        for task in self.tasks:
            task.compare_vocabularies(student)

    def make_ask(
        self,
        spec: TaskPhase,
        rows: TokenizedExamples | MultitaskExamples,
        request: OutputRequest,
        part: np.ndarray | None = None,
    ) -> OptionalTeacherFunction | None:
        """Returns the function that gives a batch's teacher outputs, through the cache; None where no loss needs any.

        part  the numbers of the rows in their split, where they are a chunk of it
        """
        if request == OutputRequest():  # a phase of losses on labels alone
            return None
        total_rows = rows_processed(spec, rows.lengths, self.recipe.seeds) * (2 if spec.unfreeze else 1)  # or more stages
        if not isinstance(rows, MultitaskExamples):
            split = self._split(self.tasks[0], spec)
            return self.tasks[0].make_ask(rows, request, total_rows=total_rows, split=split, part=part)
        parts = zip(self.tasks, rows.parts, rows.shares, strict=True)
        return ask_by_task(
            {
                task.data.number: task.make_ask(
                    part, request, total_rows=round(share * total_rows), split=self._split(task, spec)
                )
                for task, part, share in parts
            }
        )

    def dev_loss(self, objective: Objective, loaded: LoadedModel, *, pad_to: int | None = None) -> float:
        """Returns the loss of an objective on dev, the mean over the tasks.

        The teachers' answers are kept as those to training rows are. Raises M461 where columns teach, and dev has none.
        """
        losses = []
        for task in self.tasks:
            rows = task.data.encode(SELECTED_BY, loaded, where="student")
            batches = rows.all_batches(batch_size=EVALUATION_BATCH, pad_id=loaded.tokenizer.pad_token_id, pad_to=pad_to)
            losses.append(objective.mean_loss(batches, self._ask_dev(task, rows, objective.teacher_request)))
        return mean(losses)

    def _ask_dev(self, task: "TaughtTask", rows: TokenizedExamples, request: OutputRequest) -> OptionalTeacherFunction | None:
        key = (task.name, request)
        if request == OutputRequest():
            return None
        if key not in self._dev_asks:
            # Every evaluation asks about every row, so that keeping the answers always pays.
            ask = task.make_ask(rows, request, total_rows=2 * len(rows), split=SELECTED_BY)
            if ask is None and task.by_table:
                raise _no_dev_columns(task.name)
            self._dev_asks[key] = ask or _no_answer
        return self._dev_asks[key]

    @property
    def rows_asked(self) -> int:
        """How many rows went through teachers so far."""
        teachers = [teacher.teacher for teacher in self.teachers]
        teachers += [teacher for task in self.tasks for teacher in task.cached_teachers]
        # A teacher may be in both lists, and several phases share one: by identity each counts once.
        return sum(teacher.rows_asked for teacher in {id(teacher): teacher for teacher in teachers}.values())

    @property
    def uses_cache(self) -> bool:
        """Whether any teacher's outputs come from the cache."""
        return any(task.uses_cache for task in self.tasks)

    def check(self, phases: Mapping[str, Sequence[LossTerm]]) -> None:
        """Checks that every phase's losses can be computed for every task.

        Raises M085 where a phase has no loss for a task without a teacher, M144 where one takes labels and rows
        have none, M146 and M148 where columns of a table cannot teach it, M086 where a loss compares layers with an
        ensemble's, M087 where it compares them with teachers of different shapes, M083 where a discriminator of logits meets
        tasks of different numbers of outputs, M485 where a loss of layers and labels meets windows.
        """
        for task in self.tasks:
            for phase, terms in phases.items():
                if task.by_table:
                    self._check_table(task, phase, terms)
                elif not task.teachers and not any("labels" in term.needs for term in without_teacher_terms(terms)):
                    raise _no_loss_without_teacher(task.name, phase)
                self._check_labels(task, phase, terms)
        named = {f"phases.{phase}.losses.{term.name}": term for phase, terms in phases.items() for term in terms}
        if any(task.data.windows.pool in POOLS for task in self.tasks):
            check_windows(named)
        discriminators = [key for key, term in named.items() if term.trains and "logits" in term.needs]
        outputs = {task.name: task.data.task.kind.num_outputs for task in self.tasks}
        if discriminators and len(set(outputs.values())) > 1:
            raise _output_sizes_differ(outputs, discriminators[0])
        if layer_losses := [key for key, term in named.items() if _compares_layers(term)]:
            self._check_layers(layer_losses[0])

    def _check_labels(self, task: "TaughtTask", phase: str, terms: Sequence[LossTerm]) -> None:
        split = self._split(task, self.recipe.run_phases[phase])
        if split not in task.data.rows or None not in (task.data.rows[split].labels or ()):
            return
        for term in terms:
            if self.catalog.loss_needs_labels(term.name) and "augmented" not in term.needs:
                raise _rows_without_labels(split, phase, term.name)

    def _check_table(self, task: "TaughtTask", phase: str, terms: Sequence[LossTerm]) -> None:
        """Checks that columns can teach a phase: M146 a loss reads more than answers, M148 its rows have no such columns."""
        if deep := [term.name for term in terms if term.asks_teacher and term.needs - ANSWERS - {"mask"}]:
            raise needs_model(f"phases.{phase}", deep, "recipe")
        split = self._split(task, self.recipe.run_phases[phase])
        if any(term.asks_teacher for term in terms) and task.data.rows[split].soft is None:
            raise _no_soft_labels(task.name, split, phase, self.recipe)
        if task.data.rows[split].labels is None:
            for term in terms:
                if self.catalog.loss_needs_labels(term.name):
                    raise _rows_without_labels(split, phase, term.name)

    def _check_layers(self, key: str) -> None:
        for task in self.tasks:
            if len(task.teachers) > 1:
                raise _ensemble_layers(task.name, key)
        shapes = {teacher.source: _shape(teacher) for teacher in self.teachers}
        if len(set(shapes.values())) > 1:
            raise _teacher_shapes_differ(shapes, key)


def _compares_layers(term: LossTerm) -> bool:
    return term.asks_teacher and bool(term.needs & {"hidden", "layers", "scores", "qkv"})


def _shape(teacher: "LoadedTeacher") -> tuple[int, int, int | None]:
    shape = model_shape(teacher.loaded.model.config)
    return shape.layers, shape.width, shape.heads


def _no_loss_without_teacher(task: str, phase: str) -> MbertError:
    return MbertError(
        "M085",
        f"{task} has no teacher, and every loss of this phase asks one",
        where=f"phases.{phase}.losses",
        allowed="A loss on labels beside them, such as hard_label; or a teacher for every task.",
        fix=f"--set teachers.{task}=DIR, or --set phases.{phase}.losses.hard_label=1, or --set method=mt-dnn",
    )


def _rows_without_labels(split: str, phase: str, loss: str) -> MbertError:
    return MbertError(
        "M144",
        f"the loss {loss} needs labels, and there are {split} rows without any",
        where=f"phases.{phase}.losses.{loss}",
        allowed="Losses that ask the teacher alone; beside new rows also hard_label, which leaves them out.",
        fix=f"--set phases.{phase}.losses.{loss}=0"
        + (f", or --set phases.{phase}.data=original" if split == AUGMENTED else ""),
    )


def _no_soft_labels(task: str, split: str, phase: str, recipe: Recipe) -> MbertError:
    key = "data.label_score" if recipe.data.label_probabilities is None else "data.label_probabilities"
    names = recipe.data.label_probabilities or recipe.data.label_score
    return MbertError(
        "M148",
        f"columns of a table are to teach, and the {split} rows of {task} have none of them: {names}",
        where=f"{key}, phases.{phase}",
        allowed="The columns in the training file, or in the transfer file of a phase that trains on that.",
        fix=f"Name the columns as the file does: {key}.",
    )


def _no_answer(batch: Batch, request: OutputRequest) -> None:
    """Answers for a task without a teacher."""


def _no_dev_columns(task: str) -> MbertError:
    return MbertError(
        "M461",
        f"the best weights are those of the smallest loss on dev, and dev of {task} has no columns of the teacher's answers",
        where="phases, best_by",
        allowed='Such columns in dev, too; or best_by = "score".',
        fix="Name a dev file with the columns: --dev-file FILE",
    )


def _ensemble_layers(task: str, key: str) -> MbertError:
    return MbertError(
        "M086",
        f"{task} has several teachers, and this loss compares hidden states or attention, which have no common axes in them",
        where=key,
        allowed="An ensemble with losses on answers alone, such as soft_target and hard_label; or one teacher.",
        fix=f"Leave it out: --set {key}=0",
    )


def _teacher_shapes_differ(shapes: Mapping[str, tuple[int, int, int | None]], key: str) -> MbertError:
    shown = "; ".join(f"{source}: {layers} x {width}, {heads} heads" for source, (layers, width, heads) in shapes.items())
    return MbertError(
        "M087",
        f"the tasks' teachers are of different shapes ({shown}), and this loss compares their layers with one student's",
        where=key,
        allowed="Teachers of the same depth, width and number of heads for all tasks; or losses on answers alone.",
        fix=f"Leave it out: --set {key}=0",
    )


def _output_sizes_differ(outputs: Mapping[str, int], key: str) -> MbertError:
    shown = ", ".join(f"{task} {number}" for task, number in outputs.items())
    return MbertError(
        "M083",
        f"this loss trains one judge of the answers to all tasks, and they have different numbers of outputs: {shown}",
        where=key,
        allowed='Tasks of the same number of outputs; or a judge of hidden states alone, such as input = "cls".',
        fix=f"--set {key}.input=cls, or leave it out: --set {key}=0",
    )
