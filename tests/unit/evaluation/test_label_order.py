"""The order of a classifier's outputs, found on labelled rows: as it is, clearly another, or too few rows to tell."""

import numpy as np
import pytest
from recording import RecordingReporter

from microbert_cli.errors import MbertError
from microbert_cli.evaluation.label_order import best_assignment, check_order
from microbert_cli.recipe.task import load_task

CLASSES = 12
NAMES = [f"class {i}" for i in range(CLASSES)]
TASK = load_task({"name": "mine", "files": {"train": "a.csv"}, "text": ["text"], "label": {"column": "label", "names": NAMES}})


def labels_and_logits(rows, right, order, seed=0):
    """Labels, and the logits of a model that is right with this share, its outputs in another order."""
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % CLASSES
    answers = np.where(generator.random(rows) < right, labels, generator.integers(CLASSES, size=rows))
    return labels.tolist(), np.eye(CLASSES)[answers][:, order]


AS_IS = list(range(CLASSES))
AS_TEXTS = [NAMES.index(name) for name in sorted(NAMES)]  # class 0, class 1, class 10, class 11, class 2 ...


@pytest.mark.parametrize(
    ("right", "order", "clear"),
    [(0.95, AS_IS, False), (0.6, AS_IS, False), (0.95, AS_TEXTS, True), (0.7, AS_TEXTS, True), (0.95, AS_IS[::-1], True)],
)
def test_the_best_assignment_is_the_order_that_was_made(right, order, clear):
    labels, logits = labels_and_logits(240, right, order)
    best = best_assignment(logits, labels)
    assert [order[column] for column in best.order] == AS_IS and best.is_clear == clear
    assert best.accuracy >= 0.9 * right and (best.accuracy_as_is == best.accuracy) == (order == AS_IS)


def test_two_classes_that_are_exchanged_among_many_are_noticed():
    labels, logits = labels_and_logits(240, 0.95, [1, 0, *range(2, CLASSES)])
    with pytest.raises(MbertError) as caught:
        check_order(TASK, logits, labels, columns=None, where="teacher.model t")
    assert caught.value.code == "M322" and '"class 1", "class 0", "class 2"' in caught.value.fix


def test_the_order_is_that_of_the_models_own_outputs():
    """Columns that were exchanged already, as names had it, are counted in: what is advised is typed for the model."""
    labels, logits = labels_and_logits(240, 1.0, AS_TEXTS)
    columns = AS_IS[::-1]
    with pytest.raises(MbertError) as caught:
        check_order(TASK, logits[:, columns], labels, columns=columns, where="teacher.model t")
    assert ", ".join(f'"{name}"' for name in sorted(NAMES)) in caught.value.fix


@pytest.mark.parametrize("seed", range(20))
def test_a_model_that_guesses_is_not_taken_for_one_in_another_order(seed):
    labels, logits = labels_and_logits(240, 0.0, AS_IS, seed)
    assert not best_assignment(logits, labels).is_clear
    check_order(TASK, logits, labels, columns=None, where="teacher.model t")


def test_few_rows_are_said_and_not_judged():
    two = load_task({"name": "two", "files": {"train": "a.csv"}, "text": ["text"], "label": {"names": ["a", "b"]}})
    reporter = RecordingReporter()
    check_order(two, np.eye(2)[[1, 0, 1]], [0, 1, 0], columns=None, where="evaluate.model m", reporter=reporter)
    assert len(reporter.warnings) == 1 and "too few rows" in reporter.warnings[0]
    reporter = RecordingReporter()
    check_order(two, np.eye(2)[[0, 0, 0]], [0, 1, 0], columns=None, where="evaluate.model m", reporter=reporter)
    assert reporter.warnings == [], "one class for every row is as good in any order"
