"""Rules on words: what each rule does, how often, by which parts of speech, and that a row's result is its own."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from nltk.tag.perceptron import PerceptronTagger

from microbert_cli.augmentation.algorithm import AugmentSettings, augment
from microbert_cli.augmentation.interface import Phrase, Texts, Tools
from microbert_cli.augmentation.words import Spelling
from microbert_cli.catalog.augmenters import rules
from microbert_cli.data.examples import Examples
from microbert_cli.errors import MbertError

TAGS = {
    "the": "DT", "a": "DT", "red": "JJ", "old": "JJ", "car": "NN", "house": "NN", "dog": "NN", "dogs": "NNS", "cars": "NNS",
    "stopped": "VBD", "burned": "VBD", "slowly": "RB", "stop": "VB", "burn": "VB", ".": ".",
}  # fmt: skip
ROWS = [
    ("the red car stopped slowly .", "a old house burned ."),
    ("dogs stop the car", "the cars burn"),
    ("the dog", "the dog burned the house slowly"),
]


class ByTable:
    """Tags words by a table, as the tagger's interface does."""

    def tag(self, words: list[str]) -> list[tuple[str, str]]:
        return [(word, TAGS[word]) for word in words]


@pytest.fixture
def tagged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_tagger", ByTable)


def augmenter(rows: list[Texts] = ROWS, copies: int = 1, **options: Any) -> rules.Augmenter:
    return rules.Augmenter(Tools(Spelling(), rows=rows, copies=copies), **options)


def words_of(new: list[Texts], side: int = 0) -> list[tuple[str, ...]]:
    return [Phrase.of(texts[side]).words for texts in new]


@pytest.mark.usefixtures("tagged")
def test_a_word_becomes_one_of_the_same_tag_by_its_share() -> None:
    """Of NN there are car twice, house twice and dog twice in ROWS; of VB and RB, which share a letter, each its own."""
    maker = augmenter(
        [("the dog stop slowly",), *((text,) for row in ROWS for text in row)], 4000, mask=0.0, replace=0.5, ngram=0.0
    )
    (new,) = maker.new_rows([0], [Random(1)])
    columns = [Counter(column) for column in zip(*words_of(new), strict=True)]
    assert [set(column) for column in columns] == [{"the", "a"}, {"dog", "house", "car"}, {"stop", "burn"}, {"slowly"}]
    # dog is drawn in 3 of 7 cases and stays in half of all; rows none of whose words stayed are gone.
    shares = {word: count / len(new) for word, count in columns[1].items()}
    assert shares["house"] == pytest.approx(0.5 * 2 / 7, abs=0.03) and shares["car"] == pytest.approx(0.5 * 2 / 7, abs=0.03)


@pytest.mark.usefixtures("tagged")
def test_the_shares_of_words_masked_and_replaced() -> None:
    row = (" ".join(["dogs"] * 50),)
    maker = augmenter([row, ("cars " * 5000,)], copies=200, mask=0.2, replace=0.3, ngram=0.0)
    (new,) = maker.new_rows([0], [Random(2)])
    counts = Counter(word for (text,) in new for word in text.split())
    assert {word: count / (200 * 50) for word, count in counts.items()} == pytest.approx(
        {"[MASK]": 0.2, "cars": 0.3 * 5000 / 5050, "dogs": 0.5 + 0.3 * 50 / 5050}, abs=0.02
    )


@pytest.mark.usefixtures("tagged")
def test_n_grams_are_one_to_five_words_in_a_row() -> None:
    text = "the red car stopped slowly . dogs burn a old house"
    maker = augmenter([(text,)], copies=4000, mask=0.0, replace=0.0, ngram=0.25)
    (new,) = maker.new_rows([0], [Random(3)])
    cut = [changed for (changed,) in new if changed != text]
    assert len(cut) / 4000 == pytest.approx(0.25, abs=0.03)
    lengths = Counter(len(Phrase.of(changed)) for changed in cut)
    assert set(lengths) == {1, 2, 3, 4, 5} and min(lengths.values()) / len(cut) == pytest.approx(0.2, abs=0.05)
    assert all(changed in text for changed in cut)


@pytest.mark.usefixtures("tagged")
def test_a_pair_changes_its_first_text_its_second_and_both_in_turn() -> None:
    maker = augmenter([("the red car " * 40, "a old house " * 40)], copies=7, mask=0.3, replace=0.0, ngram=0.0)
    (new,) = maker.new_rows([0], [Random(4)])
    changed = [tuple("[MASK]" in text for text in texts) for texts in new]
    assert changed == [(True, False), (False, True), (True, True)] * 2 + [(True, False)]


@pytest.mark.usefixtures("tagged")
def test_a_text_none_of_whose_words_stayed_is_dropped() -> None:
    assert augmenter(copies=5, mask=1.0).new_rows([0], [Random(5)]) == [[]]
    (new,) = augmenter([("dog car",)], copies=300, mask=0.6, replace=0.0, ngram=0.0).new_rows([0], [Random(5)])
    assert len(new) == pytest.approx(300 * (1 - 0.36), abs=40)
    assert all("dog" in text or "car" in text for (text,) in new)


@pytest.mark.usefixtures("tagged")
def test_white_space_is_that_of_the_text() -> None:
    (new,) = augmenter([("the dog.",)], copies=40, mask=0.0, replace=0.9, ngram=0.0).new_rows([0], [Random(6)])
    assert new and all(text.endswith(("dog.", "car.", "house.")) for (text,) in new)


@pytest.mark.usefixtures("tagged")
def test_a_rows_result_does_not_depend_on_company_or_order() -> None:
    together = augmenter(copies=6).new_rows([0, 1, 2], [Random(i) for i in range(3)])
    alone = augmenter(copies=6)
    assert [alone.new_rows([i], [Random(i)])[0] for i in (2, 0, 1)] == [together[i] for i in (2, 0, 1)]


@pytest.mark.usefixtures("tagged")
def test_new_rows_have_no_label_and_none_is_of_the_training_set() -> None:
    settings = AugmentSettings(sources=("rules",), copies=9, options={"rules": {"ngram": 0.0}})
    rows = augment(Examples(ROWS, [0, 1, 0], ["a", "b", "c"]), tokenizer=None, settings=settings)
    new = [
        (texts, label) for texts, label, flag in zip(rows.texts, rows.labels or [], rows.augmented or [], strict=True) if flag
    ]
    assert len(new) > 5 and {label for _, label in new} == {None}
    assert not {texts for texts, _ in new} & set(ROWS) and len({texts for texts, _ in new}) == len(new)


def test_without_replacement_no_tagger_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nltk.data.path", [])
    rules.check({"replace": 0.0})
    assert augmenter(copies=3, replace=0.0).new_rows([0], [Random(0)])[0]
    for lacking in (lambda: rules.check({}), augmenter):
        with pytest.raises(MbertError) as raised:
            lacking()
        assert raised.value.code == "M247" and "NLTK_DATA" in raised.value.allowed and "nltk.downloader" in raised.value.fix


@pytest.fixture
def small_tagger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """NLTK's own tagger, trained on a few sentences, where NLTK looks for its data."""
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    folder = tmp_path / "taggers" / rules.DATA
    folder.mkdir(parents=True)
    tagger = PerceptronTagger(load=False)
    sentences = [[(word, TAGS[word]) for word in text.split()] for row in ROWS for text in row]
    tagger.train(sentences * 5)
    tagger.save_to_json(lang="eng", loc=str(folder))
    yield folder


def test_the_tagger_is_the_one_that_nltk_finds(small_tagger: Path) -> None:
    maker = augmenter(copies=200, mask=0.0, replace=0.5, ngram=0.0)
    (new,) = maker.new_rows([1], [Random(7)])
    assert {words[0] for words in words_of(new)} == {"dogs", "cars"}
    (small_tagger / f"{rules.DATA}.tagdict.json").write_text("no JSON", encoding="utf-8")
    with pytest.raises(MbertError, match="M247"):
        augmenter()


@pytest.mark.real
def test_tags_of_the_published_tagger_are_whole(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nouns in the plural stay plural, past tenses stay past: classes that the second character of a tag would join."""
    monkeypatch.setattr("nltk.data.path", [str(shared / "data" / "nltk_data")])
    rows = [("Two dogs barked at the old cat.",), ("Three birds sang near a large house.",)]
    maker = augmenter(rows, copies=400, mask=0.0, replace=0.5, ngram=0.0)
    (new,) = maker.new_rows([0], [Random(8)])
    columns = [set(column) for column in zip(*words_of(new), strict=True)]
    assert columns[1] == {"dogs", "birds"} and columns[2] == {"barked", "sang"} and columns[5] == {"old", "large"}
