"""A task of a run with its teachers: examined once, then asked about the task's rows through the cache.

A run of one task has one lesson, a run of several one each; a lesson without teachers is learned from labels alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from microbert_cli.data.task_data import TaskData
from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.distillation.ensemble import averaged, reading, together
from microbert_cli.distillation.pair_checks import other_tokens
from microbert_cli.distillation.teacher import Teacher, check_order, check_strength
from microbert_cli.distillation.teacher_cache import CacheSettings, remember
from microbert_cli.evaluation import scoring
from microbert_cli.evaluation.scoring import majority_of_split, predict_logits
from microbert_cli.models.capture import OutputRequest
from microbert_cli.models.device import Precision
from microbert_cli.models.labels import match_labels
from microbert_cli.models.load import LoadedModel, load_model
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import Reporter
from microbert_cli.training.objective import TeacherFunction


@dataclass(frozen=True)
class LoadedTeacher:
    """One teacher, ready to be asked. `asked_by` is its identity in the cache."""

    source: str
    loaded: LoadedModel
    teacher: Teacher
    asked_by: Mapping[str, Any]

    @property
    def where(self) -> str:
        return f"teacher.model {self.source}"


class TaughtTask:
    """One task: its rows, and the teachers that are asked about them, none or several.

    sources, identities   where each teacher is, and what identifies its weights
    """

    def __init__(
        self,
        recipe: Recipe,
        data: TaskData,
        sources: Sequence[str],
        identities: Sequence[Any],
        numerics: Precision,
        reporter: Reporter,
    ):
        self.recipe, self.data, self.numerics, self.reporter = recipe, data, numerics, reporter
        self.asking: list[Teacher] = []  # those asked through the cache: teachers, or their int8 copies
        self.apart: list[str] = []  # teachers of another vocabulary than the student's
        self.kept = False  # whether answers come from the cache
        self.instructors = [self._instructor(*pair) for pair in zip(sources, identities, strict=True)]

    def _instructor(self, source: str, weights: Any) -> LoadedTeacher:
        said = self.recipe.teacher
        loaded = load_model(source, "classifier", where="teacher.model", task=self.data.task.name)
        columns = match_labels(loaded, self.data.task, said.label_order, where=f"teacher.model {source}")
        teacher = Teacher(loaded, columns, dropout=said.dropout)
        self.numerics.place(teacher.model)
        return LoadedTeacher(source, loaded, teacher, {"weights": weights, "columns": teacher.columns})

    @property
    def name(self) -> str:
        """The task's name."""
        return self.data.task.name

    def examine(self) -> dict[str, float]:
        """The dev scores of the teachers, together; refuses one that is weak or whose outputs are permuted."""
        task, rows = self.data.task, self.data.rows["dev"]
        answers = []
        for one in self.instructors:
            answers.append(predict_logits(self.data, "dev", one.teacher, one.loaded))
            if one.loaded.label_names is None and not self.recipe.teacher.label_order:
                check_order(task, answers[-1], [int(label) for label in rows.labels or []], where=one.where)
            self._check_strength(scoring.score(task, answers[-1], rows), one)
        return scoring.score(task, averaged([torch.as_tensor(logits) for logits in answers]).numpy(), rows)

    def _check_strength(self, scores: dict[str, float], one: LoadedTeacher) -> None:
        task, majority = self.data.task, majority_of_split(self.data, "dev")
        of = f" of {task.name}" if self.recipe.tasks else ""
        self.reporter.note(f"teacher{of}: dev {task.primary} {scores[task.primary]:.4f} (commonest class {majority:.4f})")
        if not self.recipe.teacher.allow_weak:
            margin = self.recipe.teacher.margin
            check_strength(task, scores[task.primary], majority, margin=margin, where=one.where)

    def meet(self, student: LoadedModel) -> None:
        """Notes which teachers have another vocabulary than the student: they read the same texts in their own tokens."""
        self.apart = [one.source for one in self.instructors if other_tokens(one.loaded, student)]
        for source in self.apart:
            self.reporter.note(
                f"teacher {source} has another vocabulary than the student: texts are tokenised for each of them"
            )

    def asked(self, rows: TokenizedExamples, want: OutputRequest, *, asks: int, split: str = "train") -> TeacherFunction | None:
        """The teachers as one, through the cache; `asks` is how many rows will be asked for in all. None: nobody teaches.

        rows  of the split `split`, as the student reads them
        """
        if not self.instructors:
            return None
        return together([self._in_own_tokens(one, rows, want, asks, split) for one in self.instructors])

    def _in_own_tokens(
        self, one: LoadedTeacher, rows: TokenizedExamples, want: OutputRequest, asks: int, split: str
    ) -> TeacherFunction:
        if one.source not in self.apart:
            return self._remembered(one, rows, want, asks)
        theirs = self.data.encode(split, one.loaded, where=one.where)
        return reading(theirs, self._remembered(one, theirs, want, asks), pad_id=one.loaded.tokenizer.pad_token_id)

    def _remembered(self, one: LoadedTeacher, rows: TokenizedExamples, want: OutputRequest, asks: int) -> TeacherFunction:
        """Under `reference` padding counts, and padding is not kept."""
        if self.recipe.normalisation == "reference" and (want.hidden or want.scores):
            return one.teacher.ask
        teacher = self._in_int8(one, want) or one.teacher
        self.asking.append(teacher)
        ask = remember(
            teacher,
            rows,
            want,
            asked_by={**one.asked_by, "teacher": type(teacher).__name__},
            pad_id=one.loaded.tokenizer.pad_token_id,
            settings=CacheSettings(**self.recipe.cache.model_dump()),
            asks=asks,
            numerics=self.numerics,
            reporter=self.reporter,
        )
        self.kept = self.kept or ask != teacher.ask
        return ask

    def _in_int8(self, one: LoadedTeacher, want: OutputRequest) -> Teacher | None:
        """The teacher's int8 copy where the recipe asks for one and it has what is wanted; says aloud where it has not."""
        if self.recipe.teacher.precision != "int8":
            return None
        from microbert_cli.distillation.int8_teacher import LOGITS, Int8Teacher

        if want == LOGITS and one.teacher.device.type == "cpu" and not self.recipe.teacher.dropout:
            return Int8Teacher(one.teacher, weights=one.asked_by, reporter=self.reporter)
        self.reporter.note("teacher: asked in float32 here: int8 gives logits alone, on a CPU, without dropout")
        return None
