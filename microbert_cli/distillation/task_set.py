"""The lessons of a run, one or several: their rows as one source, their scores as one table, the right teacher for a batch.

Of several tasks the model that is kept is the one with the best mean of the tasks' primary metrics.
"""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from microbert_cli.data.multitask_batching import MultitaskExamples, task_shares
from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.distillation.ensemble import by_task
from microbert_cli.distillation.taught_task import LoadedTeacher, TaughtTask
from microbert_cli.errors import MbertError
from microbert_cli.evaluation.scoring import score_split
from microbert_cli.models.capture import OutputRequest
from microbert_cli.models.load import LoadedModel
from microbert_cli.recipe.phase_data import phase_split
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import PhaseSpec, Recipe
from microbert_cli.training.loss_terms import LossTerm, without_teacher_terms
from microbert_cli.training.objective import OptionalTeacherFunction
from microbert_cli.training.phases import rows_processed

MEAN_SCORE = "mean"


class TaskSet:
    """What is to be learned in a run."""

    def __init__(self, recipe: Recipe, catalog: Catalog, lessons: Sequence[TaughtTask]):
        self.recipe, self.catalog, self.lessons = recipe, catalog, list(lessons)

    @property
    def several(self) -> bool:
        """Whether the run is one of several tasks: then the model has a head for each."""
        return bool(self.recipe.tasks)

    @property
    def primary(self) -> str:
        """The score by which the model is chosen."""
        return MEAN_SCORE if self.several else self.lessons[0].data.task.primary

    @property
    def primaries(self) -> dict[str, str]:
        """Of several tasks: the name of each task's primary score among all scores."""
        return {lesson.name: f"{lesson.name}.{lesson.data.task.primary}" for lesson in self.lessons} if self.several else {}

    @property
    def instructors(self) -> list[LoadedTeacher]:
        """All teachers of the run."""
        return [one for lesson in self.lessons for one in lesson.instructors]

    @property
    def max_length(self) -> int:
        """Tokens of the longest row that may come."""
        return max(lesson.data.max_length for lesson in self.lessons)

    @property
    def sizes(self) -> dict[str, int]:
        """What terms that train something beside the student have to know; teachers are of one width where it counts."""
        widths = [one.loaded.model.config.hidden_size for one in self.instructors]
        classes = self.lessons[0].data.task.num_labels
        return {"classes": classes, "teacher_width": widths[0] if widths else 1, "tasks": len(self.lessons)}

    def examine(self) -> list[dict[str, float] | None]:
        """Every lesson's teachers' dev scores, None where it has none."""
        return [lesson.examine() if lesson.instructors else None for lesson in self.lessons]

    def score(self, model: Any, loaded: LoadedModel) -> dict[str, float]:
        """Dev scores of a student: the task's metrics, or `TASK.METRIC` of each of several and the mean of the primary ones."""
        found = {lesson.name: score_split(lesson.data, "dev", model, loaded) for lesson in self.lessons}
        if not self.several:
            return found[self.lessons[0].name]
        every = {f"{task}.{metric}": value for task, scores in found.items() for metric, value in scores.items()}
        return {MEAN_SCORE: mean(every[name] for name in self.primaries.values()), **every}

    def rows(self, spec: PhaseSpec, loaded: LoadedModel) -> TokenizedExamples | MultitaskExamples:
        """The rows that a phase trains on."""
        parts = tuple(self._rows(lesson, spec, loaded) for lesson in self.lessons)
        if not self.several:
            return parts[0]
        sampling = self.recipe.sampling
        return MultitaskExamples(parts, tuple(task_shares([len(part) for part in parts], sampling.by, cap=sampling.cap)))

    def _rows(self, lesson: TaughtTask, spec: PhaseSpec, loaded: LoadedModel) -> TokenizedExamples:
        return lesson.data.encode(self._split(lesson, spec), loaded, where="student")

    def splits(self, spec: PhaseSpec) -> str:
        """The name of the rows that a phase trains on, for the record; of several tasks all that there are."""
        return ", ".join(dict.fromkeys(self._split(lesson, spec) for lesson in self.lessons))

    def _split(self, lesson: TaughtTask, spec: PhaseSpec) -> str:
        return phase_split(spec, self.catalog, lesson.data.rows)

    def meet(self, student: LoadedModel) -> None:
        """Notes which teachers read the student's rows in tokens of their own."""
        for lesson in self.lessons:
            lesson.meet(student)

    def ask(
        self, spec: PhaseSpec, rows: TokenizedExamples | MultitaskExamples, want: OutputRequest
    ) -> OptionalTeacherFunction | None:
        """The teacher of each batch of these rows, through the cache; None where nobody teaches at all."""
        asks = rows_processed(spec, rows.lengths, self.recipe.seeds)
        if want == OutputRequest():
            return None
        if not isinstance(rows, MultitaskExamples):
            return self.lessons[0].asked(rows, want, asks=asks, split=self._split(self.lessons[0], spec))
        pairs = zip(self.lessons, rows.parts, rows.shares, strict=True)
        return by_task(
            {
                one.data.number: one.asked(part, want, asks=round(share * asks), split=self._split(one, spec))
                for one, part, share in pairs
            }
        )

    @property
    def asked(self) -> int:
        """How many rows teachers have been asked about through the cache so far."""
        known = [*(one.teacher for one in self.instructors), *(one for lesson in self.lessons for one in lesson.asking)]
        return sum(teacher.asked for teacher in {id(one): one for one in known}.values())

    @property
    def kept(self) -> bool:
        """Whether answers of any teacher come from the cache."""
        return any(lesson.kept for lesson in self.lessons)

    def check(self, phases: Mapping[str, Sequence[LossTerm]]) -> None:
        """Raises M085 where a phase has nothing for a task without a teacher, M086 where an ensemble is to show its layers,
        M087 where teachers' layers differ and are compared with one student's, M083 where tasks' answers do and are so."""
        for lesson in self.lessons:
            for phase, terms in phases.items():
                if not lesson.instructors and not any("labels" in term.needs for term in without_teacher_terms(terms)):
                    raise _untaught(lesson.name, phase)
        named = {f"phases.{phase}.losses.{term.name}": term for phase, terms in phases.items() for term in terms}
        judges = [key for key, term in named.items() if term.trains and "logits" in term.needs]
        outputs = {lesson.name: lesson.data.task.num_labels for lesson in self.lessons}
        if judges and len(set(outputs.values())) > 1:
            raise _unlike_answers(outputs, judges[0])
        if inner := [key for key, term in named.items() if _looks_inside(term)]:
            self._check_layers(inner[0])

    def _check_layers(self, key: str) -> None:
        for lesson in self.lessons:
            if len(lesson.instructors) > 1:
                raise _no_common_axes(lesson.name, key)
        shapes = {one.source: _shape(one) for one in self.instructors}
        if len(set(shapes.values())) > 1:
            raise _unlike(shapes, key)


def _looks_inside(term: LossTerm) -> bool:
    return term.asks_teacher and bool(term.needs & {"hidden", "scores", "qkv"})


def _shape(one: LoadedTeacher) -> tuple[int, int, int]:
    config = one.loaded.model.config
    return config.num_hidden_layers, config.hidden_size, config.num_attention_heads


def _untaught(task: str, phase: str) -> MbertError:
    return MbertError(
        "M085",
        f"{task} has no teacher, and every loss of this phase asks one",
        where=f"phases.{phase}.losses",
        allowed="A loss on labels beside them, such as hard_label; or a teacher for every task.",
        fix=f"--set teachers.{task}=DIR, or --set phases.{phase}.losses.hard_label=1, or --set method=mt-dnn",
    )


def _no_common_axes(task: str, key: str) -> MbertError:
    return MbertError(
        "M086",
        f"{task} has several teachers, and this loss compares hidden states or attention, which have no common axes in them",
        where=key,
        allowed="An ensemble with losses on answers alone, such as soft_target and hard_label; or one teacher.",
        fix=f"Leave it out: --set {key}=0",
    )


def _unlike(shapes: Mapping[str, tuple[int, int, int]], key: str) -> MbertError:
    told = "; ".join(f"{source}: {layers} x {width}, {heads} heads" for source, (layers, width, heads) in shapes.items())
    return MbertError(
        "M087",
        f"the tasks' teachers are of different shapes ({told}), and this loss compares their layers with one student's",
        where=key,
        allowed="Teachers of the same depth, width and number of heads for all tasks; or losses on answers alone.",
        fix=f"Leave it out: --set {key}=0",
    )


def _unlike_answers(outputs: Mapping[str, int], key: str) -> MbertError:
    told = ", ".join(f"{task} {number}" for task, number in outputs.items())
    return MbertError(
        "M083",
        f"this loss trains one judge of the answers to all tasks, and they have different numbers of outputs: {told}",
        where=key,
        allowed='Tasks of the same number of outputs; or a judge of hidden states alone, such as input = "cls".',
        fix=f"--set {key}.input=cls, or leave it out: --set {key}=0",
    )
