"""The linear model: what it learns from one text and from two, and what it falls back on where there is nothing to count."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from microbert_cli.data.examples import Examples
from microbert_cli.data.task_data import load_task_data
from microbert_cli.evaluation.linear.fit import linear_baseline
from microbert_cli.evaluation.linear.texts import LinearModel, _features, _vectorizer
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.task import Label, Task

GLUE = Path(os.environ.get("MBERT_SHARED", "/nowhere")) / "data" / "glue"


def task(*, text: tuple[str, ...] = ("text",), kind: str = "classes", names: tuple[str, ...] | None = ("a", "b")) -> Task:
    label = Label(kind=kind, names=names if kind == "classes" else None)
    metrics = ("accuracy",) if kind == "classes" else ("pearson",)
    return Task(name="mine", text=text, label=label, metrics=metrics, files={"train": "train.csv"})


def rows(texts: list[tuple[str, ...]], labels: list) -> Examples:
    return Examples(texts, labels)


def test_words_of_single_texts_are_learnt() -> None:
    train = rows([("a good film",), ("a bad film",)] * 10, [1, 0] * 10)
    model = LinearModel(task(), train)
    assert model.predict([("good",), ("bad",)]).tolist() == [1, 0]
    assert model.score(train) == {"accuracy": 1.0} == linear_baseline(task(), train, train)
    assert model.bytes > 500


def test_pairs_are_told_by_what_their_texts_share() -> None:
    """No word of a dev row is of one class in train: only the features of the pair can tell."""
    words = [f"word{i}" for i in range(40)]
    same = [(a, a) for a in words]
    other = [(a, b) for a, b in zip(words, words[1:] + words[:1], strict=True)]
    model = LinearModel(task(text=("one", "two")), rows(same + other, [1] * 40 + [0] * 40))
    shuffled = [(a, b) for a, b in zip(words, words[7:] + words[:7], strict=True)]
    assert model.score(rows(same + shuffled, [1] * 40 + [0] * 40))["accuracy"] == 1.0


def test_features_of_a_pair_are_difference_product_and_cosine() -> None:
    texts = [("red fish", "red fish"), ("red fish", "blue dog")]
    vectorizer = _vectorizer(texts)
    first, second = (vectorizer.transform([row[side] for row in texts]).toarray() for side in (0, 1))
    features = _features(vectorizer, texts)
    assert sparse.issparse(features)
    expected = np.hstack([abs(first - second), first * second, (first * second).sum(1, keepdims=True)])
    assert np.allclose(features.toarray(), expected)
    assert features.toarray()[:, -1] == pytest.approx([1.0, 0.0])


def test_scores_are_predicted() -> None:
    similar = [("the cat sat here", "the cat sat here"), ("the cat sat here", "a dog runs far away")] * 8
    model = LinearModel(task(text=("one", "two"), kind="score"), rows(similar, [5.0, 0.0] * 8))
    assert np.ptp(model.predict(similar[:2])) > 3
    assert model.score(rows(similar, [5.0, 0.0] * 8))["pearson"] > 0.99


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        ([("good",), ("fine",)], [1, 1]),  # one class
        ([("!",), ("?",)], [0, 1]),  # no word: single characters are counted
        ([("x",), ("x",)], [0, 1]),
        ([("alone",), ("apart",)], [0, 1]),  # no word in two rows
        ([(" ",), ("\t",)], [0, 1]),  # nothing but space
        ([("",), ("",)], [1, 0]),
    ],
)
def test_it_falls_back_where_there_is_little_to_learn(texts: list, labels: list) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = LinearModel(task(), rows(texts, labels))
    predictions = model.predict([*texts, ("something else",)])
    assert len(predictions) == 3 and set(predictions) <= {0, 1} and model.bytes > 0
    if len(set(labels)) == 1:
        assert predictions.tolist() == [1, 1, 1]


def test_equal_scores_and_no_rows_of_dev_words() -> None:
    model = LinearModel(task(kind="score"), rows([("a b",), ("c d",)], [2.5, 2.5]))
    assert model.predict([("unseen words",)]).tolist() == [2.5]


def test_scripts_without_spaces_are_read_by_characters() -> None:
    good = ["这部电影非常好看我很喜欢它的故事情节和演员表演", "非常好看的电影推荐大家去看真的很喜欢这个故事"]
    bad = ["这部电影太难看了浪费时间完全不值得去电影院观看", "难看的电影浪费钱浪费时间情节无聊演员也不好的"]
    model = LinearModel(task(), rows([(text,) for text in good + bad] * 3, [1, 1, 0, 0] * 3))
    assert model.vectorizer.analyzer == "char"
    assert model.predict([("非常好看我喜欢",), ("太难看浪费时间",)]).tolist() == [1, 0]


def test_words_of_a_single_row_are_dropped_from_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microbert_cli.evaluation.linear.texts.MANY_ROWS", 4)
    texts = [("common rare",), ("common",), ("common other",), ("common other",)]
    assert set(_vectorizer(texts).vocabulary_) == {"common", "other", "common other"}
    assert "rare" in _vectorizer(texts[:3]).vocabulary_


@pytest.mark.real
@pytest.mark.skipif(not (GLUE / "SST-2").is_dir(), reason="MBERT_SHARED names no folder with GLUE")
@pytest.mark.parametrize(
    ("name", "metric", "expected"),
    [("sst2", "accuracy", 0.828), ("mrpc", "accuracy", 0.7304), ("rte", "accuracy", 0.5632), ("stsb", "pearson", 0.714)],
)
def test_it_reaches_on_glue_what_a_user_would_reach(name: str, metric: str, expected: float) -> None:
    recipe = Recipe(task=name, data={"folder": str(GLUE)})
    data = load_task_data(recipe, Catalog(), splits=("train", "dev"))
    assert linear_baseline(data.task, data.rows["train"], data.rows["dev"])[metric] >= expected - 5e-4
