"""What a user would take instead of a student: the commonest class, a linear model, the teacher, its int8 file.

Every table of results has these rows beside the students'. A row that cannot be measured stays in the table, with a note that
says why.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microbert_cli.data.examples import Examples
from microbert_cli.data.task_data import TaskData, load_task_data
from microbert_cli.errors import MbertError
from microbert_cli.evaluation.alternatives.kinds import LINEAR, MAJORITY
from microbert_cli.evaluation.alternatives.rows import Row, table_row
from microbert_cli.evaluation.compare_speed import BenchmarkModel
from microbert_cli.evaluation.linear.fit import fit_linear, linear_class
from microbert_cli.evaluation.linear.interface import Linear
from microbert_cli.evaluation.scoring import majority_of_split, score_predictor
from microbert_cli.models.predictor import open_predictor
from microbert_cli.recipe.phase_data import TRAIN
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import manifest
from microbert_cli.runs.stage_result import METRICS, read_metrics

if TYPE_CHECKING:
    from microbert_cli.evaluation.alternatives.int8_copy import Int8Copy

TEACHER_INT8_NAME = "teacher, int8"


@dataclass
class Alternatives:
    """The commonest class and the linear model of one task, and int8 copies of models.

    floor          the score of the commonest class, or of the mean: 0 for correlations
    linear         the linear model; None where it was not fitted, for the reason in `linear_note`
    linear_score   its score on dev
    copies         int8 copies by their row's name
    train          the training rows, which calibrate them; None where there are none
    """

    data: TaskData
    floor: float
    linear: Linear | None = None
    linear_score: float | None = None
    linear_note: str | None = None
    copies: dict[str, "Int8Copy"] = field(default_factory=dict)
    train: Examples | None = None

    @property
    def floor_name(self) -> str:
        """What the answer that looks at no text is called."""
        kind = self.data.task.kind
        if kind.of_words or kind.independent:
            return "commonest tag" if kind.of_words else "commonest labels"
        return "commonest class" if kind.exclusive else "mean score"

    def add_int8(self, name: str, source: str, *, label_order: Any = None, reporter: Reporter = SILENT) -> None:
        """Makes and scores the int8 copy of a model, for the row `name`."""
        from microbert_cli.evaluation.alternatives.int8_copy import int8_copy  # loads torch

        self.copies[name] = int8_copy(name, source, self.data, train=self.train, label_order=label_order, reporter=reporter)

    def entrants(self) -> list[BenchmarkModel]:
        """Returns the int8 copies that can be timed."""
        return [copy.entrant for copy in self.copies.values() if copy.entrant is not None]

    def linear_models(self) -> Mapping[str, Linear]:
        """Returns the linear model by its row's name, for the benchmark."""
        return {self.linear.row_name: self.linear} if self.linear else {}

    def first_rows(self, teacher: float | None, speeds: Mapping[str, Any]) -> list[Row]:
        """Returns the rows of the commonest class and of the linear model."""
        linear = linear_class(self.data.task).row_name
        return [
            table_row(self.floor_name, MAJORITY, self.floor, teacher=teacher, floor=self.floor),
            table_row(
                linear, LINEAR, self.linear_score, teacher=teacher, floor=self.floor, speed=speeds.get(linear),
                note=self.linear_note,
            ),
        ]  # fmt: skip

    def int8_row(self, name: str, kind: str, teacher: float | None, speeds: Mapping[str, Any]) -> Row:
        """Returns the row of an int8 copy."""
        copy = self.copies[name]
        score = copy.scores[self.data.task.primary] if copy.scores else None
        speed = speeds.get(name) if copy.entrant else None
        return table_row(name, kind, score, teacher=teacher, floor=self.floor, speed=speed, note=copy.note)


def find_alternatives(data: TaskData, train: Examples | None, note: str | None = None) -> Alternatives:
    """Fits the linear model on the training rows and scores it on dev.

    train  None where there are none: `note` says why
    """
    result = Alternatives(data, majority_of_split(data, "dev"), linear_note=note, train=train)
    if train is None or not train.labels:
        result.linear_note = note or "no training rows with labels"
        return result
    try:
        result.linear = fit_linear(data.task, train)
        result.linear.choose_thresholds(data.rows["dev"])
        result.linear_score = result.linear.score(data.rows["dev"])[data.task.primary]
    except (ValueError, MemoryError) as error:
        result.linear, result.linear_note = None, f"not fitted: {next(iter(str(error).splitlines()), 'memory ran out')}"
    return result


def training_rows(recipe: Recipe, catalog: Catalog) -> tuple[Examples | None, str | None]:
    """Returns the task's training rows, `data.limit` included; where they cannot be read, None and why."""
    try:
        return load_task_data(recipe, catalog, splits=(TRAIN,)).rows[TRAIN], None
    except MbertError as error:
        return None, f"no training rows: {error.what} [{error.code}]"


def known_result(source: str, data: TaskData) -> dict[str, Any] | None:
    """Returns what an output's metrics.json says of the same dev rows, of several tasks this one's part; else None."""
    path, task = Path(source), data.task
    if not (path / manifest.FILE).is_file() or not (path / METRICS).is_file():
        return None
    facts, metrics = manifest.read(path).get("data", {}), read_metrics(path)
    dev = facts.get("dev") or facts.get(f"{task.name} dev") or {}
    if isinstance(metrics.get("tasks"), dict):
        metrics = _part_of(metrics, task.name)
    is_same = dev.get("fingerprint") == data.rows["dev"].fingerprint and task.primary in metrics.get("dev", {})
    return metrics if is_same else None


def _part_of(metrics: Mapping[str, Any], task: str) -> dict[str, Any]:
    part = dict(metrics["tasks"].get(task, {}))
    for name in ("mean", "spread", "seeds"):
        if name in metrics:
            values = metrics[name]
            part[name] = values if name == "seeds" else {key.removeprefix(f"{task}."): value for key, value in values.items()}
    return part


def score_of(source: str, data: TaskData, *, where: str, label_order: Any = None) -> float:
    """Returns a classifier's primary score on dev: as its own metrics.json has it, else computed.

    Of an output of several seeds it is the score of the model that lies there, the best one, and not their mean.
    """
    if result := known_result(source, data):
        return float(result["dev"][data.task.primary])
    predictor = open_predictor(source, data.task, where=where, label_order=label_order)
    return score_predictor(data, predictor)[data.task.primary]
