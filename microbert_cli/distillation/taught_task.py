"""A task of a run with its teachers: they are scored once, then asked about the task's rows through the cache.

A run of one task has one `TaughtTask`, a run of several tasks one for each. A task without teachers is learned from its labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from microbert_cli.data.soft_labels import soft_logits
from microbert_cli.data.task_data import TaskData
from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.distillation.ensemble import (
    average_logits,
    ensemble_ask,
    pooled_ask,
    rescaled_ask,
    retokenized_ask,
    table_ask,
)
from microbert_cli.distillation.pair_checks import encodings_differ, vocabularies_differ
from microbert_cli.distillation.teacher import Teacher, check_strength, line_into_units
from microbert_cli.distillation.teacher_cache import CacheSettings, cached_ask
from microbert_cli.errors import MbertError
from microbert_cli.evaluation import scoring
from microbert_cli.evaluation.label_order import check_order
from microbert_cli.evaluation.scoring import majority_of_split, predict_logits
from microbert_cli.models.capture import OutputRequest, TeacherFunction
from microbert_cli.models.device import Precision
from microbert_cli.models.exits.build import without_exits
from microbert_cli.models.labels import match_labels, names_settle_order
from microbert_cli.models.load import LoadedModel, load_model
from microbert_cli.models.windows.settings import windows_of_model
from microbert_cli.recipe.phase_data import TRANSFER, taught_by_table
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.task_kinds import TaskKind
from microbert_cli.reporter import Reporter


@dataclass(frozen=True)
class LoadedTeacher:
    """One teacher with its tokenizer. `identity` is what addresses its answers in the cache."""

    source: str
    loaded: LoadedModel
    teacher: Teacher
    identity: Mapping[str, Any]

    @property
    def where(self) -> str:
        """The teacher as errors name it."""
        return f"teacher.model {self.source}"


class TaughtTask:
    """One task: its data and its teachers, of which there may be none, one or several.

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
        self.cached_teachers: list[Teacher] = []  # those asked through the cache: teachers, or their int8 copies
        # Sources of teachers that cannot read the student's batches, and whether their token ids are others.
        self.other_encoding: dict[str, bool] = {}
        self.uses_cache = False
        self.score_lines: dict[str, tuple[float, float]] = {}  # by source: slope and intercept into the table's units
        self.teachers = [self._load_teacher(*pair) for pair in zip(sources, identities, strict=True)]

    def _load_teacher(self, source: str, weights: Any) -> LoadedTeacher:
        settings = self.recipe.teacher
        loaded = without_exits(load_model(source, "classifier", where="teacher.model", task=self.data.task.name))
        columns = match_labels(
            loaded.model.config, self.data.task, where="teacher.model", source=source, order=settings.label_order
        )
        teacher = Teacher(loaded, columns, dropout=settings.dropout)
        self.numerics.place(teacher.model)
        return LoadedTeacher(source, loaded, teacher, {"weights": weights, "columns": teacher.columns})

    @property
    def name(self) -> str:
        """The task's name."""
        return self.data.task.name

    @property
    def by_table(self) -> bool:
        """Whether columns of a table teach."""
        return taught_by_table(self.recipe)

    def table_logits(self, split: str) -> np.ndarray | None:
        """Returns what the table says of a split's rows as logits [n, C]; None where it says nothing."""
        soft = self.data.rows[split].soft
        kind = self.data.task.kind
        return None if soft is None else soft_logits(soft, are_scores=not kind.is_named, independent=kind.independent)

    def score_table(self) -> dict[str, float] | None:
        """Returns the dev scores of what the table says; None where dev has no such columns."""
        logits = self.table_logits("dev") if self.by_table else None
        return None if logits is None else scoring.score(self.data.task, logits, self.data.rows["dev"])

    def score_teachers(self) -> dict[str, float]:
        """Returns the dev scores of the teachers' ensemble; refuses a weak teacher and one whose outputs are permuted."""
        task, rows = self.data.task, self.data.rows["dev"]
        logits = []
        for teacher in self.teachers:
            logits.append(self._in_table_units(teacher, predict_logits(self.data, "dev", teacher.teacher, teacher.loaded)))
            if not names_settle_order(teacher.loaded.model.config, task, self.recipe.teacher.label_order):
                columns, labels = teacher.teacher.columns, rows.labels or []
                check_order(task, logits[-1], labels, columns=columns, where=teacher.where, reporter=self.reporter)
            self._check_strength(scoring.score(task, logits[-1], rows, kind=self._kind_of(teacher)), teacher)
        mean = average_logits([torch.as_tensor(array) for array in logits], independent=task.kind.independent).numpy()
        return scoring.score(task, mean, rows, kind=self._kind_of(self.teachers[0]) if len(self.teachers) == 1 else None)

    def _kind_of(self, teacher: LoadedTeacher) -> TaskKind:
        """Returns the task's kind as a teacher answers it."""
        return self.data.task.kind.answered_by(teacher.loaded.model.config, teacher.teacher.columns)

    def _in_table_units(self, teacher: LoadedTeacher, logits: np.ndarray) -> np.ndarray:
        """Returns a teacher's dev logits in the units of the table, and remembers the line that takes them there."""
        line = None if self.data.standardisation is None else line_into_units(logits[:, 0], self.data.rows["dev"].labels or [])
        if line is None:
            return logits
        self.score_lines[teacher.source] = line
        slope, intercept = line
        self.reporter.note(
            f"teacher {teacher.source} answers in other units than the table's: its scores are taken times {slope:.4g} "
            f"plus {intercept:.4g}, by the least squares of dev"
        )
        return logits * np.float32(slope) + np.float32(intercept)

    def _check_strength(self, scores: dict[str, float], teacher: LoadedTeacher) -> None:
        task, majority = self.data.task, majority_of_split(self.data, "dev")
        of = f" of {task.name}" if self.recipe.tasks else ""
        self.reporter.note(f"teacher{of}: dev {task.primary} {scores[task.primary]:.4f} (commonest class {majority:.4f})")
        if not self.recipe.teacher.allow_weak:
            margin = self.recipe.teacher.margin
            check_strength(task, scores[task.primary], majority, margin=margin, where=teacher.where, source=teacher.source)

    def compare_vocabularies(self, student: LoadedModel) -> None:
        """Finds the teachers that cannot read the student's batches: they get the same texts in their own tokens."""
        different = [teacher for teacher in self.teachers if encodings_differ(teacher.loaded, student)]
        self.other_encoding = {teacher.source: vocabularies_differ(teacher.loaded, student) for teacher in different}
        for source, other_vocabulary in self.other_encoding.items():
            what = "vocabulary" if other_vocabulary else "way of segments or padding"
            self.reporter.note(f"teacher {source} has another {what} than the student: texts are tokenised for each of them")
        self._compare_windows(student)

    def _compare_windows(self, student: LoadedModel) -> None:
        """Says where teachers read more of a text than the student; raises M484 where windows of texts are not the same."""
        config = student.model.config
        windows = self.data.windows_for(config, where="student")
        for teacher in self.teachers:
            by_model = windows_of_model(teacher.loaded.model.config, where=teacher.where)
            if windows is None and by_model and self.data.windows.pool is None:
                self.reporter.note(
                    f"teacher {teacher.source} reads long texts in windows, the student their beginning; for both in windows: "
                    f"--set data.windows={by_model.pool}"
                )
        others = [source for source, other_ids in self.other_encoding.items() if other_ids]
        if others and TRANSFER in self.data.rows and self.data.has_window_rows(TRANSFER, config, where="student"):
            raise _other_windows(others[0])

    def make_ask(
        self,
        rows: TokenizedExamples,
        request: OutputRequest,
        *,
        total_rows: int,
        split: str = "train",
        part: np.ndarray | None = None,
    ) -> TeacherFunction | None:
        """Returns one function for the teachers' outputs, through the cache; None for a task without teachers.

        rows        of the split `split`, in the student's tokens
        total_rows  how many rows will be asked about in all, epochs and seeds included
        part        the numbers of the rows in the split, where they are not all of it
        """
        if not self.teachers:
            logits = self.table_logits(split) if self.by_table else None
            return None if logits is None else table_ask(logits if part is None else logits[part])
        asks = [(teacher, self._ask_of(teacher, rows, request, total_rows, split, part)) for teacher in self.teachers]
        rescaled = [rescaled_ask(ask, self.score_lines.get(teacher.source)) for teacher, ask in asks]
        return ensemble_ask(rescaled, independent=self.data.task.kind.independent)

    def _ask_of(
        self,
        teacher: LoadedTeacher,
        rows: TokenizedExamples,
        request: OutputRequest,
        total_rows: int,
        split: str,
        part: np.ndarray | None,
    ) -> TeacherFunction:
        """One teacher's function, in its own tokens where it cannot read the student's."""
        if teacher.source not in self.other_encoding:
            return pooled_ask(self._cached(teacher, rows, request, total_rows))
        retokenized = self.data.encode(split, teacher.loaded, where=teacher.where)
        retokenized = retokenized if part is None else retokenized.take(part)
        ask = pooled_ask(self._cached(teacher, retokenized, request, total_rows))
        return retokenized_ask(
            retokenized, ask, pad_id=teacher.loaded.tokenizer.pad_token_id, same_ids=not self.other_encoding[teacher.source]
        )

    def _cached(
        self, teacher: LoadedTeacher, rows: TokenizedExamples, request: OutputRequest, total_rows: int
    ) -> TeacherFunction:
        # Under `reference` padded positions count in the losses, and the cache keeps real tokens only.
        if self.recipe.normalisation == "reference" and (request.hidden or request.scores):
            return teacher.teacher.ask
        windows = rows.windows  # their answers are kept, not those of rows: other rows may share them
        model = self._int8_copy(teacher, windows, request) or teacher.teacher
        self.cached_teachers.append(model)
        ask = cached_ask(
            model,
            windows,
            request,
            identity={**teacher.identity, "teacher": model.cache_name},
            pad_id=teacher.loaded.tokenizer.pad_token_id,
            settings=CacheSettings(**self.recipe.cache.model_dump()),
            total_rows=total_rows * len(windows) // max(1, len(rows)),
            numerics=self.numerics,
            reporter=self.reporter,
        )
        self.uses_cache = self.uses_cache or ask != model.ask
        return ask

    def _int8_copy(self, teacher: LoadedTeacher, rows: TokenizedExamples, request: OutputRequest) -> Teacher | None:
        """The teacher's int8 copy, where the recipe asks for one and it can answer the request."""
        if self.recipe.teacher.precision != "int8":
            return None
        from microbert_cli.distillation.int8_teacher import LOGITS, Int8Teacher

        if request == LOGITS and teacher.teacher.device.type == "cpu" and not self.recipe.teacher.dropout:
            return Int8Teacher(teacher.teacher, weights=teacher.identity, rows=rows, reporter=self.reporter)
        self.reporter.note("teacher: asked in float32 here: int8 gives logits alone, on a CPU, without dropout")
        return None


def _other_windows(source: str) -> MbertError:
    return MbertError(
        "M484",
        f"every window of an unlabelled text is a row of its own, and the teacher {source} has other tokens, so other windows",
        where="data.transfer_windows",
        allowed="A teacher with the student's tokens; or rows of whole texts, whose windows answer together.",
        fix="--set data.transfer_windows=false",
    )
