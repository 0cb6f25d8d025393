"""What a student and its teacher answered on a labelled split, read from `predictions.parquet`: row by row, and calibration."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from microbert_cli.evaluation.calibration import bin_numbers, calibration_error_of_labels, expected_calibration_error

PREDICTIONS = "predictions.parquet"
TEACHER = "teacher_"
NO_LABEL = "(none)"


@dataclass(frozen=True)
class Answers:
    """The answers of one model on one split.

    predicted      classes by name, of several labels a row their names as one text, or scores
    probabilities  [n, C] in the order of `Split.classes`; None for scores, or where they are not recorded
    """

    predicted: list[Any]
    probabilities: np.ndarray | None


@dataclass(frozen=True)
class Split:
    """One labelled split: its rows and what was answered.

    classes  the task's, in order; empty for scores
    several  whether a row may have several of them
    teacher  None where its answers are not recorded
    """

    name: str
    ids: list[str]
    labels: list[Any]
    classes: list[str]
    student: Answers
    teacher: Answers | None = None
    several: bool = False
    label_sets: list[list[str]] = field(default_factory=list)  # of rows that may have several

    @property
    def are_texts(self) -> bool:
        """Whether the answers are neither classes nor scores, but were written."""
        return not self.classes and any(isinstance(label, str) for label in self.labels)


@dataclass(frozen=True)
class Reliability:
    """A reliability curve: of each bin that is not empty the mean confidence, the share of right answers, the rows."""

    points: list[tuple[float, float, int]] = field(default_factory=list)
    error: float = 0.0


def read_splits(out: Path, metrics: Mapping[str, Any]) -> list[Split]:
    """Returns the labelled splits of an evaluation; none where its predictions are not there."""
    if not (out / PREDICTIONS).is_file():
        return []
    import pyarrow.parquet as pq

    table = pq.read_table(out / PREDICTIONS).to_pydict()
    splits = []
    for name, scores in metrics.get("splits", {}).items():
        rows = [i for i, split in enumerate(table["split"]) if split == name and table["label"][i] is not None]
        if rows:
            splits.append(_split(name, {column: [values[i] for i in rows] for column, values in table.items()}, scores))
    return splits


def _split(name: str, columns: Mapping[str, list[Any]], scores: Mapping[str, Any]) -> Split:
    of_words = "words" in scores  # rows of tags: texts to this page
    classes = [] if of_words else [str(label) for label in scores.get("labels", ())]
    several, label_sets = bool(scores.get("several_labels")), []
    if several:
        label_sets = [json.loads(cell) for cell in columns["label"]]
        answered = {column: columns[column] for column in ("label", "prediction", f"{TEACHER}prediction") if column in columns}
        columns = {**columns, **{name: [_shown(cell) for cell in cells] for name, cells in answered.items()}}
    teacher = columns.get(f"{TEACHER}prediction", [None])
    return Split(
        name,
        columns["id"],
        columns["label"],
        classes,
        _answers(columns, classes, ""),
        _answers(columns, classes, TEACHER) if None not in teacher else None,
        several,
        label_sets,
    )


def _shown(cell: str | None) -> str | None:
    """Returns a row's labels, a JSON list, as one text."""
    return None if cell is None else ", ".join(json.loads(cell)) or NO_LABEL


def _answers(columns: Mapping[str, list[Any]], classes: Sequence[str], prefix: str) -> Answers:
    names = [f"{prefix}p_{label}" for label in classes]
    is_whole = classes and all(name in columns for name in names)
    probabilities = np.array([columns[name] for name in names], dtype=np.float64).T if is_whole else None
    return Answers(columns[f"{prefix}prediction"], probabilities)


def confusion(split: Split, answers: Answers) -> list[list[int]]:
    """Returns how often each class (row: the label) was answered with each class (column)."""
    place = {label: number for number, label in enumerate(split.classes)}
    matrix = [[0] * len(place) for _ in place]
    for label, predicted in zip(split.labels, answers.predicted, strict=True):
        matrix[place[label]][place[predicted]] += 1
    return matrix


def reliability(split: Split, answers: Answers) -> Reliability | None:
    """Returns the reliability curve and the expected calibration error, in bins of equal width; None without probabilities."""
    if answers.probabilities is None:
        return None
    if split.several:
        return _reliability_of_labels(split, answers.probabilities)
    labels = np.array([split.classes.index(label) for label in split.labels])
    confidence = answers.probabilities.max(-1)
    right = answers.probabilities.argmax(-1) == labels
    return Reliability(_points(confidence, right), expected_calibration_error(answers.probabilities, labels.tolist()))


def _reliability_of_labels(split: Split, shares: np.ndarray) -> Reliability:
    """Returns the curve of all labels' probabilities: of each bin the mean, the share of rows with the label, and its size."""
    has = np.array([[name in names for name in split.classes] for names in split.label_sets])
    return Reliability(_points(shares, has), calibration_error_of_labels(shares, has.tolist()))


def _points(shares: np.ndarray, hits: np.ndarray) -> list[tuple[float, float, int]]:
    """Returns of each bin that is not empty the mean probability, the share of hits, and its size."""
    numbers = bin_numbers(shares)
    chosen = (numbers == number for number in np.unique(numbers))
    return [(float(shares[bin].mean()), float(hits[bin].mean()), int(bin.sum())) for bin in chosen]


@dataclass(frozen=True)
class Difference:
    """A row that student and teacher answer differently; `gap` orders them, the largest first."""

    index: int
    gap: float


def differences(split: Split) -> list[Difference]:
    """Returns the rows that student and teacher answer differently, the clearest first.

    Of classes: the rows with another class, by the sum of both confidences. Of several labels: those with others, by the
    largest distance between the probabilities of a label. Of scores: all rows, by the distance.
    """
    assert split.teacher is not None
    return sorted(_differences(split, split.teacher), key=lambda difference: (-difference.gap, difference.index))


def _differences(split: Split, teacher: Answers) -> Iterator[Difference]:
    for i, (mine, other) in enumerate(zip(split.student.predicted, teacher.predicted, strict=True)):
        if not split.classes:
            yield Difference(i, abs(float(mine) - float(other)))
        elif mine != other and split.several:
            pair = (split.student.probabilities, teacher.probabilities)
            yield Difference(i, 0.0 if pair[0] is None or pair[1] is None else float(np.abs(pair[0][i] - pair[1][i]).max()))
        elif mine != other:
            yield Difference(i, sum(confidence_of(answers, i) or 0.0 for answers in (split.student, teacher)))


def confidence_of(answers: Answers, index: int, *, several: bool = False) -> float | None:
    """Returns the probability of the answer that was given to a row; None of several labels, which have one each."""
    return None if answers.probabilities is None or several else float(answers.probabilities[index].max())


def who_is_right(split: Split) -> dict[str, int]:
    """Returns of how many differing rows the teacher, the student or neither of them has the label."""
    assert split.teacher is not None
    counts = {"teacher": 0, "student": 0, "neither": 0}
    for label, mine, other in zip(split.labels, split.student.predicted, split.teacher.predicted, strict=True):
        if mine != other:
            counts["teacher" if other == label else "student" if mine == label else "neither"] += 1
    return counts
