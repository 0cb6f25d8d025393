"""The part of a page about one labelled split: scores, confusion matrices, calibration, rows answered differently."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microbert_cli.data.load import load_split
from microbert_cli.data.task_data import find_task
from microbert_cli.errors import MbertError
from microbert_cli.evaluation.page import answers as row_answers
from microbert_cli.evaluation.page.answers import Answers, Split, confidence_of
from microbert_cli.evaluation.page.charts import Chart, reliability_chart, scatter_chart
from microbert_cli.evaluation.page.run_folder import StageOutput, sources_of
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.runs import manifest

MAX_CLASSES = 20  # of a confusion matrix that a reader can take in
MAX_MARKS = 600  # of a scatter plot
Texts = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: (label, its cells as (rows, share of the label's rows)); columns are answers."""

    who: str
    rows: list[tuple[str, list[tuple[int, float]]]]


@dataclass(frozen=True)
class LabelRow:
    """One of several labels that rows may have: how often it is right, and from which probability on it is given."""

    name: str
    support: int
    threshold: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class DifferingRow:
    """A row that student and teacher answer differently."""

    id: str
    texts: list[str]
    label: Any
    teacher: Any
    student: Any
    teacher_confidence: float | None
    student_confidence: float | None


@dataclass
class SplitPart:
    """What is shown of one split; `notes` say what is left out, and why."""

    evaluation: str
    name: str
    rows: int
    scores: list[tuple[str, float, float | None]] = field(default_factory=list)
    agreement: float | None = None
    classes: list[str] = field(default_factory=list)
    matrices: list[Matrix] = field(default_factory=list)
    labels: list[LabelRow] = field(default_factory=list)
    scatters: list[Chart] = field(default_factory=list)
    calibration: Chart | None = None
    errors: list[tuple[str, float]] = field(default_factory=list)
    differing: int = 0
    right: dict[str, int] = field(default_factory=dict)
    examples: list[DifferingRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def split_parts(evaluation: StageOutput, *, rows: int, catalog: Catalog) -> list[SplitPart]:
    """Returns the parts about an evaluation's labelled splits; `rows` is how many differing rows are shown at most."""
    splits = {split.name: split for split in row_answers.read_splits(evaluation.out, evaluation.metrics)}
    parts = []
    for name, scores in evaluation.metrics["splits"].items():
        part = SplitPart(
            evaluation.name, name, int(scores["rows"]), _scores(scores), scores.get("teacher", {}).get("agreement")
        )
        if name in splits and splits[name].are_texts:
            part.notes.append(
                f"The answers are tags of words: {row_answers.PREDICTIONS} of {evaluation.name} has them beside the labels."
                if "words" in scores
                else f"The answers are texts: {row_answers.PREDICTIONS} of {evaluation.name} has them beside the targets."
            )
        elif name in splits:
            part.labels = _label_rows(scores)
            _add_answers(part, splits[name], evaluation, rows, catalog)
        else:
            part.notes.append(f"{evaluation.name} has no {row_answers.PREDICTIONS}: no matrices, calibration and rows.")
        parts.append(part)
    return parts


def _scores(scores: Mapping[str, Any]) -> list[tuple[str, float, float | None]]:
    teacher = scores.get("teacher", {})
    measured = {**scores["metrics"], **{name: scores[name] for name in ("calibration_error",) if name in scores}}
    lines = [(name, float(value), teacher.get(f"teacher_{name}")) for name, value in measured.items()]
    by_type = {name: values for name, values in scores.get("entities", {}).items() if name != "all"}  # of words
    lines += [(f"entity_f1 of {name}", float(values["f1"]), None) for name, values in by_type.items()]
    named = {f"teacher_{name}" for name in measured}
    return lines + [(name, float(value), None) for name, value in teacher.items() if name not in named]


def _label_rows(scores: Mapping[str, Any]) -> list[LabelRow]:
    if not scores.get("several_labels"):
        return []
    fields = ("support", "threshold", "precision", "recall", "f1")
    return [LabelRow(name, *(values[field] for field in fields)) for name, values in scores["classes"].items()]


def _weights_notes(evaluation: StageOutput) -> list[str]:
    """Returns a sentence for student and teacher, where they were trained with weights of classes."""
    notes = []
    for role, _, path in sources_of(evaluation):
        record = manifest.read(path) if path is not None and (path / manifest.FILE).is_file() else {}
        if weights := record.get("recipe", {}).get("data", {}).get("class_weights"):
            who = "student" if role == "model" else role
            notes.append(
                f"The {who} was trained with class_weights = {weights if isinstance(weights, str) else dict(weights)}: its "
                "probabilities are those of rows so weighted, higher than the true share where a class is rare, and the "
                "calibration error counts that. A student learns such probabilities from such a teacher."
            )
    return notes


def _add_answers(part: SplitPart, split: Split, evaluation: StageOutput, rows: int, catalog: Catalog) -> None:
    models = {"teacher": split.teacher, "student": split.student}
    present = {who: answers for who, answers in models.items() if answers is not None}
    if split.teacher is None:
        part.notes.append(_teacher_missing(evaluation))
    part.classes = split.classes
    if split.classes:
        part.notes += _weights_notes(evaluation)
        _add_classes(part, split, present)
    else:
        step = -(-len(split.ids) // MAX_MARKS)
        part.scatters = [
            scatter_chart(f"The {who}'s scores", list(zip(split.labels, answers.predicted, strict=True))[::step], who)
            for who, answers in present.items()
        ]
    if split.teacher is not None:
        _add_differences(part, split, evaluation, rows, catalog)


def _teacher_missing(evaluation: StageOutput) -> str:
    sources = evaluation.record.get("sources", {})
    if "teacher" not in sources:
        return f"{evaluation.name} had no teacher beside the student: its answers are not shown."
    model, teacher = (str(sources.get(role, role)).removeprefix("../") for role in ("model", "teacher"))
    command = f"mbert evaluate RUN/{model} --teacher RUN/{teacher} -o RUN/{evaluation.name} --force"
    return f"{evaluation.name} did not record the teacher's answers row by row; this does, RUN being this folder: {command}"


def _add_classes(part: SplitPart, split: Split, present: Mapping[str, Answers]) -> None:
    if split.several:
        pass  # rows and columns would be sets of labels; the labels have a table of their own
    elif len(split.classes) <= MAX_CLASSES:
        part.matrices = [_matrix(who, split, answers) for who, answers in present.items()]
    else:
        part.notes.append(f"{len(split.classes)} classes: no confusion matrices; metrics.json of {part.evaluation} has them.")
    curves = {who: curve for who, answers in present.items() if (curve := row_answers.reliability(split, answers))}
    if curves:
        part.calibration = reliability_chart(
            "Confidence and right answers", {who: curve.points for who, curve in curves.items()}
        )
        part.errors = [(who, curve.error) for who, curve in curves.items()]
    else:
        part.notes.append("The probabilities of the answers are not recorded: no calibration.")


def _matrix(who: str, split: Split, answers: Answers) -> Matrix:
    counts = row_answers.confusion(split, answers)
    rows = [[(count, count / max(1, sum(row))) for count in row] for row in counts]
    return Matrix(who, list(zip(split.classes, rows, strict=True)))


def _add_differences(part: SplitPart, split: Split, evaluation: StageOutput, rows: int, catalog: Catalog) -> None:
    assert split.teacher is not None
    ordered = row_answers.differences(split)
    part.differing = len(ordered)
    part.right = row_answers.who_is_right(split) if split.classes else {}
    if not rows or not ordered:
        return
    texts, reason = _texts(evaluation, split.name, catalog)
    if reason:
        part.notes.append(reason)
    for i in (difference.index for difference in ordered[:rows]):
        part.examples.append(
            DifferingRow(
                split.ids[i],
                texts.get(split.ids[i], []),
                split.labels[i],
                split.teacher.predicted[i],
                split.student.predicted[i],
                confidence_of(split.teacher, i, several=split.several),
                confidence_of(split.student, i, several=split.several),
            )
        )


def _texts(evaluation: StageOutput, split: str, catalog: Catalog) -> tuple[dict[str, list[str]], str]:
    """Returns the texts of a split by the rows' names; none, and why, where they are not the rows that were scored."""
    facts = evaluation.record.get("data", {}).get(split, {})
    try:
        recipe = Recipe.model_validate(evaluation.record["recipe"])
        task = find_task(recipe, catalog)
        folder = Path(recipe.data.folder) if recipe.data.folder else None
        loaded = load_split(task, split, data_dir=folder)
    except (MbertError, ValueError, KeyError) as error:
        why = error.what if isinstance(error, MbertError) else "its manifest does not say where they are"
        return {}, f"The texts of {split} cannot be read here: {why}."
    if loaded.fingerprint != facts.get("fingerprint"):
        return {}, f"The texts of {split} have changed since {evaluation.name}: they are not shown."
    return {row: list(text) for row, text in zip(loaded.ids or [], loaded.texts, strict=True)}, ""
