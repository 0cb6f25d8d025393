"""The linear model of words: its features, a score that can be checked by hand, and what it falls back on."""

import pytest

from microbert_cli.data.examples import Examples
from microbert_cli.evaluation.linear import words as linear_words
from microbert_cli.evaluation.linear.fit import fit_linear, linear_baseline
from microbert_cli.evaluation.linear.words import LinearWordModel, shape, word_features
from microbert_cli.recipe.task import Label, Task

BIO = ("O", "B-LOC", "I-LOC")


def task(names: tuple[str, ...] = BIO) -> Task:
    label = Label(kind="token_classification", names=names)
    return Task(name="mine", text=("tokens",), label=label, files={"train": "train.conll"})


def rows(*sentences: str, names: tuple[str, ...] = BIO) -> Examples:
    """Rows of "word/TAG word/TAG"; a word without a tag has the first."""
    pairs = [[word.partition("/")[::2] for word in sentence.split()] for sentence in sentences]
    labels = [tuple(names.index(tag) if tag else 0 for _, tag in row) for row in pairs]
    return Examples([(" ".join(word for word, _ in row),) for row in pairs], labels)


def test_the_score_is_that_of_entities() -> None:
    """Rome and Oslo are places in train; dev says Rome is none in one row: 2 of 3 are right, and none is missed."""
    train = rows(*["a film in Rome/B-LOC now", "a film in Oslo/B-LOC now", "the plot of a film"] * 8)
    dev = rows("a film in Oslo/B-LOC now", "a film in Rome/B-LOC now", "a film in Rome now")
    scores = linear_baseline(task(), train, dev)
    assert scores["entity_precision"] == pytest.approx(2 / 3) and scores["entity_recall"] == 1.0
    assert scores["entity_f1"] == pytest.approx(0.8) and scores["accuracy"] == pytest.approx(14 / 15)


def test_neighbours_tell_what_a_word_is() -> None:
    train = rows(*["Jordan plays", "in Jordan/B-LOC today", "New/B-LOC York/I-LOC today"] * 8)
    model = fit_linear(task(), train)
    assert model.predict([("in Jordan today",), ("Jordan plays",), ("New York",)]) == [(0, 1, 0), (0, 0), (1, 2)]
    assert model.row_name == "linear, word features" and 0 < model.bytes < 100_000


def test_words_that_nobody_saw_are_told_by_their_endings() -> None:
    nouns, verbs = ("nation station ration motion", "walking talking singing making")
    sentences = [f"{noun}/NOUN" for noun in nouns.split()] + [f"{verb}/VERB" for verb in verbs.split()]
    names = ("NOUN", "VERB")
    model = fit_linear(task(names), rows(*sentences * 4, names=names))
    assert model.predict([("action running",)]) == [(0, 1)]


def test_features_of_a_word() -> None:
    first, second = word_features(["McGill", "x2"])
    assert set(first) == {
        "all", "word mcgill", "shape XxXxx", "shape-1 \n", "shape+1 x0", "word-2 \n", "word-1 \n", "word+1 x2", "word+2 \n",
        "begins m", "begins mc", "begins mcg", "begins mcgi", "ends l", "ends ll", "ends ill", "ends gill",
    }  # fmt: skip
    assert {"word-1 mcgill", "shape-1 XxXxx", "begins x", "ends 2"} <= set(second) and "begins x2" not in second
    assert [shape(word) for word in ("McGill-2019", "...", "Ünï", "世界世界")] == ["XxXxx-00", "..", "Xxx", "xx"]


def test_a_single_tag_and_rows_of_no_words() -> None:
    model = fit_linear(task(), rows("a film", "the plot"))
    assert model.predict([("in Rome",), ("",)]) == [(0, 0), ()] and model.bytes > 0
    assert fit_linear(task(), rows(*["a Rome/B-LOC"] * 4)).predict([("",), (" ",)]) == [(), ()]
    assert model.predict([]) == []


def test_of_many_words_rows_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_words, "MOST_WORDS", 40)
    train = rows(*[f"a film in Town{i}/B-LOC" for i in range(40)])
    assert sum(map(len, linear_words._at_most(train, 40, 0).labels or [])) == 40
    models = [LinearWordModel(task(), train, seed=seed) for seed in (1, 1, 2)]
    assert (models[0].weights != models[1].weights).nnz == 0 < (models[0].weights != models[2].weights).nnz
