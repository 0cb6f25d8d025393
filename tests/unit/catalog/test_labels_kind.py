"""Several labels a row, by hand: losses, thresholds, weights, metrics, and what a cell may say."""

import json
from math import log
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight

from microbert_cli.catalog.kinds.labels import CONFIG_KEY, best_threshold
from microbert_cli.catalog.losses.discriminator import Discriminator, discriminator
from microbert_cli.catalog.losses.hard_label import hard_label
from microbert_cli.catalog.losses.logit_mse import logit_mse
from microbert_cli.catalog.losses.soft_target import soft_target
from microbert_cli.distillation.ensemble import average_logits
from microbert_cli.errors import MbertError
from microbert_cli.evaluation import metrics
from microbert_cli.evaluation.calibration import calibration_error_of_labels
from microbert_cli.evaluation.label_order import check_order
from microbert_cli.models.moe.importance import _loss as importance_loss
from microbert_cli.recipe.task import load_task
from microbert_cli.recipe.task_kinds import kind_class, kind_of_head, kind_of_model

NAMES = ("a", "b", "c")
KIND = kind_class("labels")(NAMES)
CLASSES = kind_class("classes")(NAMES)


def where(rows: Any) -> str:
    return f"row {', '.join(str(row + 1) for row in rows)}"


def tensor(*rows: Any) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def test_binary_cross_entropy_of_given_logits() -> None:
    """Two labels at z = 0 and log 3: p = 1/2 and 3/4."""
    logits, labels = tensor([0.0, log(3)], [0.0, log(3)]), tensor([1.0, 0.0], [0.0, 1.0])
    expected = (log(2) + log(4) + log(2) + log(4 / 3)) / 4
    assert float(hard_label(logits, labels)) == pytest.approx(expected, abs=1e-6) == pytest.approx(0.765068, abs=1e-6)
    weighted = (2 * log(2) + log(4) + log(2) + 3 * log(4 / 3)) / 4
    assert float(hard_label(logits, labels, None, torch.tensor([2.0, 3.0]))) == pytest.approx(weighted, abs=1e-6)
    smoothed = float(hard_label(logits, labels, label_smoothing=0.2))
    first = (0.9 * log(4) + 0.1 * log(4 / 3) + 0.9 * log(4 / 3) + 0.1 * log(4)) / 4 + log(2) / 2
    assert smoothed == pytest.approx(first, abs=1e-6)


def test_augmented_rows_without_labels_do_not_count() -> None:
    logits = tensor([0.0, log(3)], [5.0, -5.0]).requires_grad_()
    labels = tensor([1.0, 0.0], [float("nan")] * 2)
    loss = hard_label(logits, labels, torch.tensor([False, True]))
    loss.backward()
    assert loss.item() == pytest.approx((log(2) + log(4)) / 2, abs=1e-6)
    assert logits.grad is not None and torch.isfinite(logits.grad).all() and not logits.grad[1].any()


def test_focal_loss_of_given_logits() -> None:
    """p = 3/4 for the gold class, and its rest 1/4: (1/4)^2 log(4/3); gamma = 0 is the cross-entropy."""
    logits, label = tensor([log(3), 0.0]), torch.tensor([0])
    assert float(hard_label(logits, label, gamma=2.0)) == pytest.approx(0.0625 * log(4 / 3), abs=1e-7)
    assert float(hard_label(logits, label, gamma=0.0)) == pytest.approx(log(4 / 3), abs=1e-6)
    of_labels = float(hard_label(tensor([log(3), log(3)]), tensor([1.0, 0.0]), gamma=2.0))
    assert of_labels == pytest.approx((0.0625 * log(4 / 3) + 0.5625 * log(4)) / 2, abs=1e-6)
    weighted = float(hard_label(tensor([log(3), log(3)]), tensor([1.0, 0.0]), None, torch.tensor([4.0, 9.0]), gamma=2.0))
    assert weighted == pytest.approx((4 * 0.0625 * log(4 / 3) + 0.5625 * log(4)) / 2, abs=1e-6)


def test_weighted_classes_are_torchs() -> None:
    logits, labels, weights = tensor([1.0, 0.0], [0.5, 2.0], [0.0, 0.0]), torch.tensor([0, 1, 1]), torch.tensor([1.5, 0.75])
    expected = torch.nn.functional.cross_entropy(logits, labels, weight=weights)
    assert float(hard_label(logits, labels, None, weights)) == pytest.approx(float(expected), abs=1e-6)
    left_out = hard_label(logits, torch.tensor([0, 1, -100]), torch.tensor([False, False, True]), weights)
    expected = torch.nn.functional.cross_entropy(logits[:2], labels[:2], weight=weights)
    assert float(left_out) == pytest.approx(float(expected), abs=1e-6)


def test_soft_targets_by_sigmoid_at_temperature_two() -> None:
    """z_T = (2 log 3, 0) and z_S = (0, 0) at T = 2: p = (3/4, 1/2), q = (1/2, 1/2); KL = (0.13081, 0), times 4, over 2."""
    teacher, student = tensor([2 * log(3), 0.0]), tensor([0.0, 0.0])
    kl = 0.75 * log(1.5) + 0.25 * log(0.5)
    loss = soft_target(student, teacher, None, True, temperature=2.0, divergence="kl")
    assert float(loss) == pytest.approx(4 * kl / 2, abs=1e-6) == pytest.approx(0.26162, abs=1e-5)
    cross_entropy = float(soft_target(student, teacher, None, True, temperature=2.0))
    assert cross_entropy == pytest.approx(4 * log(2), abs=1e-6)
    symmetric = float(soft_target(student, teacher, None, True, temperature=2.0, divergence="symmetric-kl"))
    other_way = 0.5 * log(0.5 / 0.75) + 0.5 * log(0.5 / 0.25)
    assert symmetric == pytest.approx(4 * (kl + other_way) / 2 / 2, abs=1e-6)
    both = {keyword: float(soft_target(student, teacher, None, True, temperature=2.0, divergence="kl", **keyword_value))
            for keyword, keyword_value in {"plain": {}, "reference": {"normalisation": "reference"},
                                           "squared": {"squared_temperature": True}}.items()}  # fmt: skip
    assert len(set(both.values())) == 1, "a mean over labels with T^2, whatever the method says of classes"
    assert float(soft_target(teacher, teacher, None, True, divergence="kl")) == pytest.approx(0, abs=1e-7)


def test_gradient_of_soft_targets_keeps_its_size_with_the_temperature() -> None:
    """With T^2 the gradient of (z_S - z_T) small approaches (q - p) T / (B C), about (z_S - z_T) / 4 for large T."""
    sizes = []
    for temperature in (20.0, 100.0):
        student = tensor([0.1, 0.0]).requires_grad_()
        soft_target(student, tensor([0.0, 0.0]), None, True, temperature=temperature, divergence="kl").backward()
        assert student.grad is not None
        sizes.append(float(student.grad[0, 0]))
    assert sizes == pytest.approx([0.1 / 4 / 2] * 2, rel=1e-2)


def test_other_losses_of_logits_take_each_label_by_itself() -> None:
    student, teacher = tensor([1.0, 2.0]), tensor([0.0, 1.0])
    assert float(logit_mse(student, teacher)) == pytest.approx(0, abs=1e-7), "of classes a constant is nothing"
    assert float(logit_mse(student, teacher, True)) == pytest.approx(1.0)
    judge = Discriminator(2, learning_rate=1e-4, rest_above=0.9)
    seen: list[torch.Tensor] = []
    judge.frozen = lambda x: seen.append(x) or x[:, 0]  # type: ignore[method-assign,func-returns-value]
    discriminator(student, teacher, None, None, True, own=judge, project=lambda x: x, share=1.0, input="logits")
    assert torch.allclose(seen[0], torch.nn.functional.logsigmoid(student))
    labels = tensor([1.0, 0.0])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(student, labels, reduction="sum")
    assert float(importance_loss(student, labels)) == pytest.approx(float(expected))
    of_words = importance_loss(torch.zeros(1, 3, 4), torch.tensor([[2, -100, 0]]))
    assert float(of_words) == pytest.approx(2 * log(4)), "labels of words, of which the second token begins none"


def test_ensembles_answer_with_the_mean_probability() -> None:
    mean = average_logits([tensor([log(3), 0.0]), tensor([0.0, -log(3)])], independent=True)
    assert mean.sigmoid().tolist() == [pytest.approx([(0.75 + 0.5) / 2, (0.5 + 0.25) / 2])]


def test_balanced_weights() -> None:
    labels = [0, 0, 0, 1, 2, 2]
    weights = CLASSES.class_weights(labels, "balanced")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert weights == pytest.approx(tuple(expected)) and weights == pytest.approx((6 / 9, 2.0, 1.0))
    assert CLASSES.class_weights(labels, {"b": 5}) == (1.0, 5.0, 1.0) and CLASSES.class_weights(labels, None) is None
    several = [(1, 0, 0), (1, 1, 0), (1, 0, 0), (0, 0, 0), None]
    assert KIND.class_weights(several, "balanced") == pytest.approx((1 / 3, 3.0, 1.0)), "negatives over positives"
    for kind in (CLASSES, KIND):
        with pytest.raises(MbertError, match="no label") as caught:
            kind.class_weights(labels, {"d": 2.0})
        assert caught.value.code == "M441"
    with pytest.raises(MbertError) as caught:
        kind_class("score")().class_weights([0.5], "balanced")
    assert caught.value.code == "M440"


def test_thresholds_of_a_small_dev() -> None:
    """The best F1: all of 0.9 and 0.4 against 0.3 and 0.1, so anything between 0.4 and 0.3; and 0.5 where it is as good."""
    shares = np.array([0.9, 0.4, 0.3, 0.1])
    assert best_threshold(shares, np.array([1, 1, 0, 0])) == pytest.approx(0.35)
    assert best_threshold(shares, np.array([1, 0, 0, 0])) == 0.5, "0.5 parts them as well as 0.65 does"
    assert best_threshold(shares, np.zeros(4)) == 0.5, "no positive row"
    assert best_threshold(shares, np.ones(4)) == pytest.approx(0.05)
    assert best_threshold(np.full(4, 0.2), np.array([1, 0, 0, 0])) == pytest.approx(0.1), "equal rows are answered alike"
    random = np.random.default_rng(0)
    for _ in range(20):
        p, y = random.random(30).round(1) * 0.9 + 0.05, random.integers(0, 2, 30)
        best = max(f1_score(y, p > t, zero_division=0) for t in (0, *np.unique(p)))  # all ways to part the rows
        assert f1_score(y, p > best_threshold(p, y), zero_division=0) == pytest.approx(best)


def test_thresholds_go_with_a_model() -> None:
    config = SimpleNamespace(id2label={0: "c", 1: "a", 2: "b"}, num_labels=3, problem_type=KIND.problem_type)
    logits = np.array([[2.0, -1.0, -1.0], [2.0, -2.0, -3.0]], dtype=np.float32)
    fitted = KIND.fitted(logits, [(1, 1, 0), (0, 0, 0)])
    fitted.configure(config)
    assert config.id2label == {0: "a", 1: "b", 2: "c"} and config.label_thresholds["c"] == 0.5
    assert kind_of_model(config) == fitted, "what config.json says is what predict applies"
    assert [row["labels"] for row in fitted.answers(logits)] == [["a", "b"], ["a"]]
    assert fitted.predictions(logits)[0, 1] > 0 > KIND.predictions(logits)[0, 1]
    other = SimpleNamespace(id2label={0: "B", 1: "A", 2: "C"}, num_labels=3, **{CONFIG_KEY: {"A": 0.1, "B": 0.2}})
    assert KIND.answered_by(other, [1, 0, 2]).thresholds == (0.1, 0.2, 0.5)
    assert fitted.answered_by(SimpleNamespace(id2label=config.id2label)).thresholds == (), "another model has its own"
    for wrong in ("x", 0, 1, True, None):
        with pytest.raises(MbertError) as caught:
            KIND.answered_by(SimpleNamespace(id2label=config.id2label, **{CONFIG_KEY: {"a": wrong}}))
        assert caught.value.code == "M443" and '"a"' in caught.value.what


def test_one_kind_answers_for_each_head() -> None:
    cases = {(3, "multi_label_classification"): "labels", (1, "multi_label_classification"): "labels", (3, None): "classes",
             (2, "single_label_classification"): "classes", (1, None): "score", (1, "regression"): "score"}  # fmt: skip
    assert {head: kind_of_head(*head).name for head in cases} == cases


def test_metrics_are_scikit_learns() -> None:
    labels = [(1, 0, 0), (1, 1, 0), (0, 0, 0), (0, 1, 0)]
    margins = np.array([[1.0, -1, -1], [2, -0.5, 1], [-1, -2, -1], [0.5, 3, -1]])
    scores = metrics.compute(KIND.metrics, margins, labels)
    given = (margins > 0).astype(int)
    assert scores["micro_f1"] == pytest.approx(6 / 9) and scores["subset_accuracy"] == pytest.approx(0.5)
    assert scores["macro_f1"] == pytest.approx(np.mean([0.8, 2 / 3, 0]))
    assert scores["mean_average_precision"] == pytest.approx((1.0 + 1.0) / 2), "of the labels that any row has"
    assert given.shape == (4, 3)
    assert metrics.compute(KIND.metrics, np.zeros((2, 3)), [(0, 0, 0)] * 2)["mean_average_precision"] == 0.0
    with pytest.raises(MbertError, match='no metric "accuracy"'):
        metrics.compute(["accuracy"], margins, labels)
    with pytest.raises(ValueError, match="micro_f1"):
        KIND.check_metrics(["accuracy"])


def test_the_commonest_labels_are_those_of_the_best_micro_f1() -> None:
    labels = [(1, 0, 0)] * 4 + [(1, 1, 0)] * 2 + [(0, 0, 1)]
    assert KIND.constant(labels).tolist() == [1, 0, 0]
    assert KIND.constant([(1, 1, 0)] * 3).tolist() == [1, 1, 0] and KIND.constant([(0, 0, 0)] * 3).sum() <= 1


def test_calibration_of_labels() -> None:
    """All probabilities of a bin are 0.95, of which half are right: off by 0.45; those of 0.05 by 0.05."""
    shares = np.array([[0.95, 0.05], [0.95, 0.05]])
    assert calibration_error_of_labels(shares, [(1, 0), (0, 0)]) == pytest.approx((0.45 + 0.05) / 2)
    assert calibration_error_of_labels(np.array([[1.0, 0.0]]), [(1, 0)]) == 0.0


def test_reports_and_comparisons() -> None:
    logits = np.array([[1.0, -1, -1], [2, -0.5, 1]], dtype=np.float32)
    report = KIND.report(KIND.predictions(logits), [(1, 0, 0), (1, 1, 0)])
    assert report["labels"] == list(NAMES) and report["several_labels"]
    assert report["classes"]["b"] == {
        "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1, "threshold": 0.5,
        "rows": {"both": 0, "answered_alone": 0, "labelled_alone": 1, "neither": 1},
    }  # fmt: skip
    assert KIND.agreement(logits, logits) == 1.0 and KIND.agreement(logits, -logits) == 0.0
    same = KIND.compare_with_teacher(logits, logits)
    assert same["agreement"] == same["label_agreement"] == 1.0 and same["kl"] == pytest.approx(0, abs=1e-6)
    columns = KIND.prediction_columns(logits)
    assert columns["prediction"] == ['["a"]', '["a", "c"]'] and list(columns) == ["prediction", "p_a", "p_b", "p_c"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["a", "b"], (1, 1, 0)), ("a|b", (1, 1, 0)), (" b | c ", (0, 1, 1)), ('["c"]', (0, 0, 1)), ("['a', 'c']", (1, 0, 1)),
        ([], (0, 0, 0)), ("", (0, 0, 0)), ("[]", (0, 0, 0)), (None, (0, 0, 0)), (float("nan"), (0, 0, 0)), ("a", (1, 0, 0)),
        ([0, 2], (1, 0, 1)), ("1", (0, 1, 0)), ([1.0], (0, 1, 0)), (("b",), (0, 1, 0)),
    ],
)  # fmt: skip
def test_what_a_cell_may_say(value: Any, expected: tuple[int, ...]) -> None:
    cells = KIND.cells([value, "c"])
    assert cells is not None and KIND.read_labels(cells, where)[0] == expected
    assert KIND.read_labels([KIND.label_text(expected)], where) == [expected]


@pytest.mark.parametrize(
    ("value", "code", "what"),
    [
        (["a", "d"], "M351", '"d"'), (["x", "y"], "M351", '"x"'), ("a|dd", "M351", '"dd"'), ("a||b", "M442", "without a name"),
        ('["a", "b"', "M442", "JSON"),
        ("[a, b]", "M442", "JSON"), (["a", "a"], "M442", "twice"), ("a|a", "M442", "twice"), ([0, "a"], "M442", "twice"),
        ({"a": 1}, "M442", "object"), ([["a"]], "M442", "text or a number"), ([None], "M442", "text or a number"),
        ([True], "M442", "text or a number"), ("['a' 'b']", "M442", "JSON"),
    ],
)  # fmt: skip
def test_what_a_cell_may_not_say(value: Any, code: str, what: str) -> None:
    cells = KIND.cells(["a", value, "b", value])
    assert cells is not None
    with pytest.raises(MbertError) as caught:
        KIND.read_labels(cells, where)
    error = caught.value
    assert error.code == code and what in error.what and error.where == "row 2, 4" and "1 more row is wrong" in error.what
    assert error.allowed and error.fix


def test_names_that_look_like_something_else() -> None:
    odd = kind_class("labels")(("[pos]", "a,b", "10", "p|q"))
    assert odd.read_labels(["p|q", '["p|q"]'], where) == [(0, 0, 0, 1)] * 2
    assert odd.read_labels(["[pos]|10", json.dumps(["a,b"])], where) == [(1, 0, 1, 0), (0, 1, 0, 0)]
    with pytest.raises(MbertError) as caught:
        odd.read_labels(["1"], where)
    assert caught.value.code == "M351", "where names are numbers, a number is a name"


def test_a_task_of_several_labels() -> None:
    task = load_task("microbert_cli/catalog/tasks/python-topics.toml")
    assert task.kind.name == "labels" and task.primary == "micro_f1"
    named = {"files": {"train": "a.csv"}, "name": "x", "text": ["text"]}
    columns = load_task({**named, "label": {"columns": ["p", "q"]}})
    assert columns.kind == kind_class("labels")(("p", "q")) and columns.metrics == KIND.metrics
    assert load_task({**named, "label": {"kind": "labels"}}).kind.is_complete is False
    for label in ({"columns": ["p", "p"]}, {"columns": ["p"]}, {"columns": ["p", "q"], "names": ["a", "b", "c"]},
                  {"columns": ["p", "q"], "kind": "classes"}, {"columns": ["text", "q"]},
                  {"kind": "labels", "range": [0, 1]}):  # fmt: skip
        with pytest.raises(MbertError) as caught:
            load_task({**named, "label": label})
        assert caught.value.code == "M030"


def test_selection_by_another_metric() -> None:
    task = load_task("microbert_cli/catalog/tasks/sst2.toml")
    other = task.selected_by("macro_f1")
    assert other.primary == "macro_f1" and set(other.metrics) == {*task.metrics, "macro_f1"}
    assert task.selected_by(None) is task and task.selected_by(task.primary) is task
    for metric in ("pearson", "nonsense", "mean"):
        with pytest.raises(MbertError) as caught:
            task.selected_by(metric)
        assert caught.value.code == "M444"
    topics = load_task("microbert_cli/catalog/tasks/python-topics.toml").selected_by("macro_f1")
    assert topics.primary == "macro_f1" and topics.metrics == KIND.metrics


def test_order_of_outputs_without_names_is_asked_of_the_rows() -> None:
    task = load_task("microbert_cli/catalog/tasks/python-topics.toml")
    labels = np.random.default_rng(0).integers(0, 2, (200, 9))
    logits = labels * 2.0 - 1 + np.random.default_rng(1).normal(size=labels.shape)
    rows = list(map(tuple, labels))
    check_order(task, np.zeros((2, 9)), [(0,) * 9] * 2, columns=None, where="teacher.model t")
    check_order(task, logits, rows, columns=None, where="teacher.model t")
    with pytest.raises(MbertError) as caught:
        check_order(task, logits[:, [1, 0, *range(2, 9)]], rows, columns=None, where="teacher.model t")
    assert caught.value.code == "M322" and "teacher.label_order" in caught.value.fix
    assert '["classes", "calls", "errors"' in caught.value.fix
