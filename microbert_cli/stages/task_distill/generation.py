"""Stage two on a task of texts: a student learns to write targets from a teacher that fills them in (C-MLM)."""

import time
from pathlib import Path
from typing import Any

from microbert_cli import distributed
from microbert_cli.data.generation.rows import TextPairs
from microbert_cli.data.task_data import TaskData
from microbert_cli.distillation.generation.teacher import FillingTeacher, score_teacher
from microbert_cli.distillation.generation.text_task import TextTask, load_filler
from microbert_cli.distillation.generation.top_cache import TopLayout, cached_top
from microbert_cli.distillation.generation.trainers import COPIES, WriterTrainer, writer_terms
from microbert_cli.distillation.results import TEACHER_LOG
from microbert_cli.distillation.teacher_cache import CacheSettings
from microbert_cli.evaluation.generation.text_metrics import check_installed
from microbert_cli.models import factory
from microbert_cli.models.capture import OutputRequest, TeacherFunction
from microbert_cli.models.config import read_config
from microbert_cli.models.device import choose_precision, pick_device
from microbert_cli.models.find import find_model
from microbert_cli.models.generation.vocabulary import teacher_ids
from microbert_cli.models.tokenizers import load_tokenizer
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import Log, Reporter
from microbert_cli.training.objective import Objective
from microbert_cli.training.phases import rows_processed, train_over_seeds


def distil_text(
    recipe: Recipe, catalog: Catalog, data: TaskData, teacher: str, student: str, identity: Any, work: Path, reporter: Reporter
) -> dict[str, Any]:
    """Trains the student of every seed in `work`, and returns what metrics.json holds.

    identity  what identifies the teacher's weights
    """
    check_installed()
    started = time.monotonic()
    taught = TaughtText(recipe, catalog, data, teacher, student, identity, work, reporter)
    of_teacher = taught.score_teacher()
    trainer = taught.trainer(started)
    seeds = recipe.seeds or [recipe.seed]
    metrics = train_over_seeds(seeds, work, trainer.primary, trainer.train_one, trainer.choices, reporter)
    return metrics | {
        "primary": trainer.primary,
        "task": data.task.name,
        "teacher": None,  # it writes nothing: there is no score of its own to compare with
        "teacher_sees_the_future": of_teacher,
        **trainer.facts(),
        "retention": None,
    }


class TaughtText:
    """A teacher that fills in targets, and the student that it teaches."""

    def __init__(
        self,
        recipe: Recipe,
        catalog: Catalog,
        data: TaskData,
        teacher: str,
        student: str,
        identity: Any,
        work: Path | None,
        reporter: Reporter,
    ):
        self.recipe, self.catalog, self.data, self.student = recipe, catalog, data, student
        self.identity, self.work, self.reporter = identity, work, reporter
        self.numerics = choose_precision(pick_device(recipe.device), **recipe.numerics())
        self.filler, self.task = load_filler(teacher, data, where="teacher.model")
        if not factory.is_description(student, catalog):
            self.task = self._in_tokens_of(student)
        self.numerics.place(self.filler.model)
        self.asks: dict[str, TeacherFunction] = {}

    def _in_tokens_of(self, student: str) -> TextTask:
        """Returns the task in the tokens of a checkpoint; raises M393 where it has others than the teacher."""
        path = find_model(student, where="student")
        tokenizer = load_tokenizer(path, read_config(path, where="student"), where="student")
        ids = teacher_ids(tokenizer, self.filler.tokenizer, where=f"student {student}")
        self.filler = type(self.filler)(self.filler.model, self.filler.tokenizer, ids)
        return TextTask(self.data, tokenizer, self.task.lengths)

    def score_teacher(self) -> dict[str, float]:
        """Returns how the teacher fills in dev, and says so with a warning."""
        rows = self.task.filled("dev", self.filler)
        scores = score_teacher(self.filler, rows, lambda numbers: self.task.labels("dev", numbers), COPIES)
        self.reporter.note(
            f"teacher: fills in {scores['token_accuracy']:.1%} of the hidden tokens of dev, and sees what comes after them: "
            "no upper bound of the student"
        )
        return scores

    def trainer(self, started: float | None = None) -> WriterTrainer:
        """Returns the training of the student."""
        phases = {}
        for name, spec in self.recipe.run_phases.items():
            losses = {loss: (term.weight, term.parameters) for loss, term in spec.losses.items()}
            table = f"phases.{name}"
            phases[name] = spec, writer_terms(losses, self.catalog, where=f"{table}.losses", taught=True), table
        return WriterTrainer(
            self.recipe, self.catalog, self.task, self.student, phases, self.ask, self.reporter, self.work,
            started=time.monotonic() if started is None else started,
        )  # fmt: skip

    def ask(self, phase: str, objective: Objective) -> TeacherFunction | None:
        """Returns the function that gives the teacher's answers in a phase, through the cache; None where no loss asks."""
        request = objective.teacher_request
        if not request.top_k:
            return None
        if phase not in self.asks:
            self.asks[phase] = self._make_ask(phase, request)
        return self.asks[phase]

    def _make_ask(self, phase: str, request: OutputRequest) -> TeacherFunction:
        pairs, spec = self.task.pairs("train"), self.recipe.run_phases[phase]
        teacher = FillingTeacher(self.filler, self.task.filled("train", self.filler))
        begun = time.monotonic()
        total = rows_processed(spec, pairs.lengths, self.recipe.seeds) * (2 if spec.unfreeze else 1)  # or more stages
        ask = cached_top(
            teacher,
            pairs,
            request,
            identity={"weights": self.identity},
            settings=CacheSettings(**self.recipe.cache.model_dump()),
            total_rows=total,
            numerics=self.numerics,
            reporter=self.reporter,
        )
        if self.work is not None and distributed.is_main():
            with Log(self.work / TEACHER_LOG) as log:
                took, kept = round(time.monotonic() - begun, 3), ask != teacher.ask
                size = self._bytes_kept(pairs, request) if kept else 0
                log.write(phase=phase, kept=kept, rows=len(pairs), asked=teacher.rows_asked, took=took, bytes=size)
        return ask

    def _bytes_kept(self, pairs: TextPairs, request: OutputRequest) -> int:
        """Returns how many bytes of the cache the teacher's answers take."""
        k = min(request.top_k, len(self.filler.teacher_ids))
        return TopLayout.of_targets(pairs.target_lengths, k, self.recipe.cache.precision).bytes
