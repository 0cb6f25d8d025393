"""Metrics against scikit-learn and scipy, and where they are undefined."""

import numpy as np
import pytest
from recording import RecordingReporter
from scipy import stats
from sklearn import metrics as reference

from microbert_cli.errors import MbertError
from microbert_cli.evaluation import metrics
from microbert_cli.recipe.task_kinds import kind_class

SEEDS = range(20)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("classes", [2, 3, 9])
def test_class_metrics_are_scikit_learns(seed: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, 41)
    answers = np.where(random.random(41) < 0.6, labels, random.integers(0, classes, 41))
    names = ["accuracy", "macro_f1", "matthews"] + (["f1"] if classes == 2 else [])
    scores = metrics.compute(names, answers, labels.tolist())
    assert scores["accuracy"] == pytest.approx(reference.accuracy_score(labels, answers), abs=1e-12)
    assert scores["macro_f1"] == pytest.approx(reference.f1_score(labels, answers, average="macro"), abs=1e-12)
    assert scores["matthews"] == pytest.approx(reference.matthews_corrcoef(labels, answers), abs=1e-12)
    if classes == 2:
        assert scores["f1"] == pytest.approx(reference.f1_score(labels, answers), abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_correlations_are_scipys(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 26, 37) / 5  # with ties, as in STS-B
    answers = (labels + random.normal(0, 1, 37)).astype(np.float32)
    if seed % 2:
        answers = np.round(answers)
    scores = metrics.compute(["pearson", "spearman", "mean"], answers, labels)
    assert scores["pearson"] == pytest.approx(stats.pearsonr(answers, labels).statistic, abs=1e-6)
    assert scores["spearman"] == pytest.approx(stats.spearmanr(answers, labels).statistic, abs=1e-9)
    assert scores["mean"] == pytest.approx((scores["pearson"] + scores["spearman"]) / 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_report_is_scikit_learns(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels, answers = random.integers(0, 3, 30), random.integers(0, 3, 30)
    report = kind_class("classes")(("a", "b", "c")).report(answers, labels.tolist())
    assert report["confusion"] == reference.confusion_matrix(labels, answers, labels=[0, 1, 2]).tolist()
    expected = reference.precision_recall_fscore_support(labels, answers, labels=[0, 1, 2], zero_division=0)
    for i, name in enumerate("abc"):
        assert list(report["classes"][name].values()) == pytest.approx([column[i] for column in expected])


def test_constant_answers_score_zero_and_are_spoken_of() -> None:
    reporter = RecordingReporter()
    assert metrics.compute(["matthews", "f1"], [0] * 4, [0, 1, 0, 1], reporter=reporter) == {"matthews": 0.0, "f1": 0.0}
    assert reporter.warnings == []
    scores = metrics.compute(["pearson", "spearman"], [2.5] * 4, [0.0, 1.0, 2.0, 3.0], reporter=reporter)
    assert scores == {"pearson": 0.0, "spearman": 0.0}
    assert len(reporter.warnings) == 1 and "undefined" in reporter.warnings[0]


def test_the_mean_is_that_of_the_other_two() -> None:
    scores = metrics.compute(["accuracy", "f1", "mean"], [1, 1, 0, 0], [1, 0, 0, 0])
    assert scores == {"accuracy": 0.75, "f1": pytest.approx(2 / 3), "mean": pytest.approx((0.75 + 2 / 3) / 2)}
    assert list(scores) == ["accuracy", "f1", "mean"]


@pytest.mark.parametrize("labels", [None, [-1, -1, -1]])
def test_hidden_labels_are_refused(labels: list[int] | None) -> None:
    with pytest.raises(MbertError) as caught:
        metrics.compute(["accuracy"], [0, 1, 0], labels)
    assert caught.value.code == "M260"


def test_answers_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(MbertError) as caught:
        metrics.compute(["pearson"], [1.0, float("nan")], [1.0, 2.0])
    assert caught.value.code == "M410" and "1 of 2" in caught.value.what


def test_an_unknown_metric_is_named_with_its_neighbour() -> None:
    with pytest.raises(MbertError) as caught:
        metrics.compute(["acuracy"], [1], [1])
    assert 'Did you mean "accuracy"?' in caught.value.allowed


def test_glue_counts_both_halves_of_mnli_once() -> None:
    scores = dict.fromkeys(metrics.GLUE, 0.5) | {"mnli": 0.8, "mnli_mismatched": 0.6, "ax": 0.1}
    assert metrics.glue_score(scores) == pytest.approx((8 * 0.5 + 0.7) / 9)
    del scores["wnli"]
    assert metrics.glue_score(scores) is None
