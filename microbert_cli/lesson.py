"""A task of a run with its teachers: examined once, then asked about the task's rows through the cache.

A run of one task has one lesson, a run of several one each; a lesson without teachers is learned from labels alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from microbert_cli import models, scoring
from microbert_cli.capture import Want
from microbert_cli.encoding import Encoded
from microbert_cli.ensemble import averaged, reading, together
from microbert_cli.matching import other_tokens
from microbert_cli.models import Loaded
from microbert_cli.numerics import Numerics
from microbert_cli.objective import Ask
from microbert_cli.recipe import Recipe
from microbert_cli.task_rows import TaskRows
from microbert_cli.teacher import Teacher, check_order, check_strength, match_labels
from microbert_cli.teacher_cache import CacheSettings, remember
from microbert_cli.tracking import Talk


@dataclass(frozen=True)
class Instructor:
    """One teacher, ready to be asked. `asked_by` is its identity in the cache."""

    source: str
    loaded: Loaded
    teacher: Teacher
    asked_by: Mapping[str, Any]

    @property
    def where(self) -> str:
        return f"teacher.model {self.source}"


class Lesson:
    """One task: its rows, and the teachers that are asked about them, none or several.

    sources, identities   where each teacher is, and what identifies its weights
    """

    def __init__(
        self, recipe: Recipe, data: TaskRows, sources: Sequence[str], identities: Sequence[Any], numerics: Numerics, talk: Talk
    ):
        self.recipe, self.data, self.numerics, self.talk = recipe, data, numerics, talk
        self.asking: list[Teacher] = []  # those asked through the cache: teachers, or their int8 copies
        self.apart: list[str] = []  # teachers of another vocabulary than the student's
        self.kept = False  # whether answers come from the cache
        self.instructors = [self._instructor(*pair) for pair in zip(sources, identities, strict=True)]

    def _instructor(self, source: str, weights: Any) -> Instructor:
        said = self.recipe.teacher
        loaded = models.load(source, "classifier", where="teacher.model", task=self.data.task.name)
        columns = match_labels(loaded, self.data.task, said.label_order, where=f"teacher.model {source}")
        teacher = Teacher(loaded, columns, dropout=said.dropout)
        self.numerics.place(teacher.model)
        return Instructor(source, loaded, teacher, {"weights": weights, "columns": teacher.columns})

    @property
    def name(self) -> str:
        """The task's name."""
        return self.data.task.name

    def examine(self) -> dict[str, float]:
        """The dev scores of the teachers, together; refuses one that is weak or whose outputs are permuted."""
        task, rows = self.data.task, self.data.rows["dev"]
        answers = []
        for one in self.instructors:
            answers.append(self.data.logits("dev", one.teacher, one.loaded))
            if one.loaded.label_names is None and not self.recipe.teacher.label_order:
                check_order(task, answers[-1], [int(label) for label in rows.labels or []], where=one.where)
            self._check_strength(scoring.score(task, answers[-1], rows), one)
        return scoring.score(task, averaged([torch.as_tensor(logits) for logits in answers]).numpy(), rows)

    def _check_strength(self, scores: dict[str, float], one: Instructor) -> None:
        task, majority = self.data.task, self.data.majority("dev")
        of = f" of {task.name}" if self.recipe.tasks else ""
        self.talk.note(f"teacher{of}: dev {task.primary} {scores[task.primary]:.4f} (commonest class {majority:.4f})")
        if not self.recipe.teacher.allow_weak:
            margin = self.recipe.teacher.margin
            check_strength(task, scores[task.primary], majority, margin=margin, where=one.where)

    def meet(self, student: Loaded) -> None:
        """Notes which teachers have another vocabulary than the student: they read the same texts in their own tokens."""
        self.apart = [one.source for one in self.instructors if other_tokens(one.loaded, student)]
        for source in self.apart:
            self.talk.note(f"teacher {source} has another vocabulary than the student: texts are tokenised for each of them")

    def asked(self, rows: Encoded, want: Want, *, asks: int, split: str = "train") -> Ask | None:
        """The teachers as one, through the cache; `asks` is how many rows will be asked for in all. None: nobody teaches.

        rows  of the split `split`, as the student reads them
        """
        if not self.instructors:
            return None
        return together([self._in_own_tokens(one, rows, want, asks, split) for one in self.instructors])

    def _in_own_tokens(self, one: Instructor, rows: Encoded, want: Want, asks: int, split: str) -> Ask:
        if one.source not in self.apart:
            return self._remembered(one, rows, want, asks)
        theirs = self.data.encode(split, one.loaded, where=one.where)
        return reading(theirs, self._remembered(one, theirs, want, asks), pad_id=one.loaded.tokenizer.pad_token_id)

    def _remembered(self, one: Instructor, rows: Encoded, want: Want, asks: int) -> Ask:
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
            talk=self.talk,
        )
        self.kept = self.kept or ask != teacher.ask
        return ask

    def _in_int8(self, one: Instructor, want: Want) -> Teacher | None:
        """The teacher's int8 copy where the recipe asks for one and it has what is wanted; says aloud where it has not."""
        if self.recipe.teacher.precision != "int8":
            return None
        from microbert_cli.int8_teacher import LOGITS, Int8Teacher

        if want == LOGITS and one.teacher.device.type == "cpu" and not self.recipe.teacher.dropout:
            return Int8Teacher(one.teacher, weights=one.asked_by, talk=self.talk)
        self.talk.note("teacher: asked in float32 here: int8 gives logits alone, on a CPU, without dropout")
        return None
