"""New rows for a teacher to label: which rows each augmenter makes of a tiny training set, and that they have no label."""

import math
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from microbert_cli.augmentation.algorithm import AugmentSettings, DatasetAugmenter, augment, concatenate
from microbert_cli.augmentation.interface import Phrase, Tools
from microbert_cli.augmentation.new_rows import lengths_of
from microbert_cli.augmentation.word_vectors import WordTable
from microbert_cli.augmentation.words import Spelling
from microbert_cli.catalog.augmenters import perturb, recombine
from microbert_cli.catalog.losses.hard_label import hard_label
from microbert_cli.catalog.losses.soft_target import soft_target
from microbert_cli.data.augmented_files import load_augmented, write_augmented
from microbert_cli.data.examples import Examples
from microbert_cli.data.tokenized import tokenize_examples
from microbert_cli.errors import MbertError
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.task import Task, load_task

PAIRS = [
    ("the red car stopped", "a red car came to a halt"),
    ("the old house burned", "fire destroyed an old house"),
    ("a dog barked loudly", "the loud barking of a dog"),
    ("prices rose again today", "today prices went up again"),
    ("the red house stopped burning", "an old car burned"),
]
WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()


def tools(rows: list[tuple[str, ...]], copies: int = 1, dev_lengths: list[int] | None = None) -> Tools:
    return Tools(Spelling(), rows=rows, copies=copies, dev_lengths=dev_lengths)


def pairs_of(rows: list[tuple[str, ...]], labels: list[Any] | None = None) -> Examples:
    return Examples(rows, labels, [f"r{i}" for i in range(len(rows))])


def varied(rows: Examples, *sources: str, dev: Examples | None = None, **settings: Any) -> Examples:
    return augment(rows, tokenizer=None, dev=dev, settings=AugmentSettings(sources=sources, **settings))


# phrases


@pytest.mark.parametrize("text", ["It's a well-made film, isn't it?", "天气很好，我们去公园。", "one", "a  b\tc"])
def test_a_phrase_is_its_text_again(text: str) -> None:
    assert str(Phrase.of(text)) == " ".join(text.split())


def test_windows_and_sums_of_phrases_keep_white_space() -> None:
    phrase = Phrase.of("It's well-made, isn't it?")
    assert phrase.words == ("It", "'", "s", "well", "-", "made", ",", "isn", "'", "t", "it", "?")
    assert str(phrase.window(3, 4)) == "well-made," and str(phrase.window(4, 3)) == "-made,"
    assert str(phrase.window(0, 3) + phrase.window(10, 2)) == "It's it?"
    assert str(Phrase.of("") + Phrase.of("a b")) == "a b" and len(Phrase.of("a") + Phrase.of("")) == 1


# recombine


def tf_idf(texts: list[str]) -> list[dict[str, float]]:
    """TF-IDF by the formula in the augmenter's docstring, with words split at spaces."""
    documents = [Counter(text.split()) for text in texts]
    frequency = Counter(word for document in documents for word in document)
    idf = {word: math.log((1 + len(texts)) / (1 + count)) + 1 for word, count in frequency.items()}
    return [{word: (1 + math.log(count)) * idf[word] for word, count in document.items()} for document in documents]


def cosine(a: dict[str, float], b: dict[str, float]) -> float:
    norm = math.sqrt(sum(value**2 for value in a.values()) * sum(value**2 for value in b.values()))
    return sum(value * b.get(word, 0.0) for word, value in a.items()) / norm


def test_neighbours_are_those_of_tf_idf_by_hand() -> None:
    first, second = ([pair[side] for pair in PAIRS] for side in (0, 1))
    vectors = tf_idf(first + second)
    maker = recombine.Augmenter(tools(PAIRS), neighbours=2)
    for column, (queries, pool, query_at, pool_at) in {1: (first, second, 0, 5), 0: (second, first, 5, 0)}.items():
        for number, neighbours in enumerate(maker._similar_texts(queries, column)):
            cosines = [cosine(vectors[query_at + number], vectors[pool_at + i]) for i in range(5)]
            order = sorted((i for i in range(5) if cosines[i] > 0), key=lambda i: (-round(cosines[i], 9), i))
            assert neighbours == [pool[i] for i in order][:4]


def test_similar_pairs_of_a_tiny_set() -> None:
    """With one neighbour each row can become two pairs, whichever text is kept: both come, and nothing else."""
    made_rows = varied(pairs_of(PAIRS), "recombine", copies=2, options={"recombine": {"similar": 1.0, "neighbours": 1}})
    new = [texts for texts, flag in zip(made_rows.texts, made_rows.augmented or [], strict=True) if flag]
    # "a" and "red" are in three texts each, and the second text has "a" twice: 1 + log 2 against 1.
    of_the_car = {("the red car stopped", "an old car burned"), ("a dog barked loudly", "a red car came to a halt")}
    assert set(new[:2]) == of_the_car
    first, second = ({pair[side] for pair in PAIRS} for side in (0, 1))
    assert all(a in first and b in second for a, b in new), "a text keeps its column"
    assert not set(new) & set(PAIRS), "no pair of the training set"


def test_random_pairs_come_from_the_whole_column() -> None:
    rows = [(f"a{i}", f"b{i}") for i in range(40)]
    maker = recombine.Augmenter(tools(rows, copies=30), similar=0.0)
    (new,) = maker.new_rows([7], [Random(1)])
    assert len(new) == len(set(new)) == 30 and ("a7", "b7") not in new
    assert all((a == "a7") != (b == "b7") for a, b in new), "one text is kept"
    assert 8 < sum(a == "a7" for a, _ in new) < 22
    assert len({a for a, _ in new} | {b for _, b in new}) > 25


def test_the_share_of_similar_pairs() -> None:
    """Texts of one group share a word; at random 1 of 10 pairs stays in its group."""
    rows = [(f"w{i % 10} x{i}", f"w{i % 10} y{i}") for i in range(200)]
    for share in (0.0, 0.5, 1.0):
        maker = recombine.Augmenter(tools(rows, copies=5), similar=share, neighbours=10)
        new = [pair for part in maker.new_rows(range(200), [Random(i) for i in range(200)]) for pair in part]
        inside = np.mean([a.split()[0] == b.split()[0] for a, b in new])
        assert inside == pytest.approx(share + (1 - share) / 10, abs=0.06)


def test_neighbours_do_not_depend_on_company_or_order() -> None:
    rng = Random(3)
    rows = [(" ".join(rng.choices(WORDS, k=4)), " ".join(rng.choices(WORDS, k=4))) for _ in range(300)]
    together = recombine.Augmenter(tools(rows)).new_rows(range(300), [Random(i) for i in range(300)])
    alone = recombine.Augmenter(tools(rows))
    assert [alone.new_rows([i], [Random(i)])[0] for i in (299, 0, 17)] == [together[i] for i in (299, 0, 17)]


def test_equal_similarities_go_by_position() -> None:
    similarities, positions = np.array([0.5, 0.5, 0.9, 0.5, 0.1]), np.array([8, 2, 7, 4, 1])
    assert recombine.nearest_of(similarities, positions, 3).tolist() == [7, 2, 4]
    assert recombine.nearest_of(similarities[:0], positions[:0], 3).tolist() == []


def test_a_pool_bounds_the_search() -> None:
    rows = [(f"a{i}", f"shared b{i}") for i in range(100)]
    maker = recombine.Augmenter(tools(rows), pool=10)
    assert [len(pool) for pool in maker._pools] == [10, 10] and maker._pools[0][:2] == ["a0", "a10"]


# windows


def test_windows_of_a_long_text_and_joins_of_short_ones() -> None:
    rows = [("one two three four five",), ("six seven",), ("eight",)]
    made_rows = varied(pairs_of(rows), "windows", dev=Examples([("a b c",)]), copies=8)
    by_row: dict[int, set[str]] = {0: set(), 1: set(), 2: set()}
    for (text,), flag, source in zip(made_rows.texts, made_rows.augmented or [], made_rows.source or [], strict=True):
        if flag:
            by_row[source].add(text)
    assert by_row[0] == {"one two three", "two three four", "three four five"}
    assert all(len(text.split()) == 3 and "six seven" in text for text in by_row[1])
    assert all(len(text.split()) == 3 and "eight" in text.split() for text in by_row[2])
    assert {"six seven eight", "eight six seven"} <= by_row[1]


def test_lengths_are_those_of_dev() -> None:
    """Training texts of 1 to 10 words, dev of 15 to 35: what is made has dev's lengths, not those of the training set."""
    rng = Random(0)
    rows = [(" ".join(rng.choices(WORDS, k=rng.randint(1, 10))),) for _ in range(400)]
    dev = Examples([(" ".join(rng.choices(WORDS, k=rng.randint(15, 35))),) for _ in range(500)])
    made_rows = varied(pairs_of(rows), "windows", dev=dev, copies=5)
    lengths = [len(text.split()) for (text,), flag in zip(made_rows.texts, made_rows.augmented or [], strict=True) if flag]
    assert len(lengths) == 2000
    wanted = lengths_of(dev)
    quantiles = np.linspace(0.05, 0.95, 10)
    np.testing.assert_allclose(np.quantile(lengths, quantiles), np.quantile(wanted, quantiles), atol=1)
    assert np.mean(lengths) == pytest.approx(np.mean(wanted), abs=0.4)


def test_of_dev_nothing_but_lengths_is_seen() -> None:
    rows = pairs_of([("one two three four five",), ("six seven",)])
    answers = [
        varied(rows, "windows", dev=Examples([(text,)], [label]), copies=4) for text, label in (("a b c", 0), ("x y z", 1))
    ]
    assert answers[0] == answers[1]


def test_rows_without_words_end() -> None:
    made_rows = varied(pairs_of([("",), ("",)]), "windows", dev=Examples([("a b",)]), copies=2)
    assert len(made_rows) == 2


# perturb


def perturbed(text: str, rows: list[tuple[str, ...]] | None = None, seed: int = 0, **options: Any) -> str:
    off = {"dropout": 0.0, "swap": 0.0, "replace": 0.0, "mask": 0.0, "ngram": 0.0}
    maker = perturb.Augmenter(tools(rows or [(text,)]), **off | options)
    return maker._changed(Phrase.of(text), Random(seed)).__str__()


def test_each_change_by_hand() -> None:
    assert perturbed("a b c d", swap=1.0) == "b a d c" and perturbed("a b c", swap=1.0) == "b a c"
    assert perturbed("a b c", dropout=1.0) == ""
    assert perturbed("It's fine.", mask=1.0) == "[MASK][MASK][MASK] [MASK][MASK]"
    assert perturbed("a b", mask=1.0, mask_token="<mask>") == "<mask> <mask>"
    assert perturbed("It's as it was.") == "It's as it was."


def test_a_word_becomes_one_as_common() -> None:
    rows = [("a a a a b b b c c d , ,",)]  # in the order of frequency: a b c d, and marks do not count
    for seed in range(20):
        words = perturbed("a d , x", rows, seed, replace=1.0, nearby=1).split()
        assert words == ["b", "c", ",", "x"]
    assert {perturbed("b", rows, seed, replace=1.0, nearby=1) for seed in range(20)} == {"a", "c"}


def test_ngrams_are_windows_of_one_to_five_words() -> None:
    text = " ".join(WORDS)
    pieces = {perturbed(text, seed=seed, ngram=1.0) for seed in range(200)}
    assert {len(piece.split()) for piece in pieces} == {1, 2, 3, 4, 5} and all(piece in text for piece in pieces)


def test_the_share_of_changed_words() -> None:
    words = [f"w{i}" for i in range(20_000)]
    kept = perturbed(" ".join(words), dropout=0.1).split()
    assert len(kept) == pytest.approx(18_000, abs=200)
    masked = perturbed(" ".join(words), dropout=0.1, mask=0.2).split()
    assert sum(word == "[MASK]" for word in Phrase.of(" ".join(masked)).words) == 0  # the mark is five tokens to a splitter
    assert sum(word == "[MASK]" for word in masked) == pytest.approx(4_000, abs=200)


def test_the_other_text_of_a_pair_stays() -> None:
    maker = perturb.Augmenter(tools(PAIRS, copies=20), dropout=0.3)
    (new,) = maker.new_rows([0], [Random(0)])
    assert {a == PAIRS[0][0] for a, _ in new} == {True, False}
    assert all(a == PAIRS[0][0] or b == PAIRS[0][1] for a, b in new)


# the rows as a whole


def test_rows_have_sources_ids_flags_and_no_label() -> None:
    rows = varied(pairs_of(PAIRS, [0, 1, 0, 1, 1]), "recombine", copies=2)
    assert rows.ids[:3] == ["r0", "r0-a1", "r0-a2"] and rows.source[:3] == [0, 0, 0]
    for label, flag, source in zip(rows.labels or [], rows.augmented or [], rows.source or [], strict=True):
        assert label == (None if flag else [0, 1, 0, 1, 1][source])
    assert varied(pairs_of(PAIRS), "recombine").labels is None


def test_seed_and_row_decide_and_nothing_else() -> None:
    rng = Random(5)
    rows = pairs_of(
        [(" ".join(rng.choices(WORDS, k=5)), " ".join(rng.choices(WORDS, k=5))) for _ in range(60)], list(range(60))
    )
    settings = AugmentSettings(sources=("recombine", "perturb"), copies=3)
    whole = augment(rows, tokenizer=None, settings=settings)
    driver = DatasetAugmenter(rows, tokenizer=None, settings=settings)
    assert concatenate([driver.shard(number, size=7) for number in range(driver.shards(7))]) == whole
    assert driver.chunk([41]) == whole.take([i for i, source in enumerate(whole.source) if source == 41])
    assert augment(rows, tokenizer=None, settings=AugmentSettings(sources=("recombine", "perturb"), copies=3, seed=1)) != whole


def test_new_rows_stand_behind_the_copies_of_algorithm_1() -> None:
    table = WordTable(["red", "old", "dog"], np.eye(3, 2, dtype=np.float32) + 1)
    settings = AugmentSettings(sources=("word_vectors", "recombine"), copies=2, replace_probability=1.0)
    alone = AugmentSettings(sources=("word_vectors",), copies=2, replace_probability=1.0)
    rows = pairs_of(PAIRS, [0, 1, 0, 1, 1])
    both, copies = (augment(rows, tokenizer=None, vectors=table, settings=which) for which in (settings, alone))
    labelled = [i for i, label in enumerate(both.labels or []) if label is not None]
    assert both.take(labelled) == copies, "the copies of words are what they are without the others"
    assert len(both) - len(labelled) == 10


def test_the_number_of_texts_must_fit() -> None:
    for source, rows in (("recombine", [("a",)]), ("windows", PAIRS)):
        with pytest.raises(MbertError) as caught:
            varied(pairs_of(rows), source, dev=Examples([("a",)]))
        assert caught.value.code == "M246" and source in caught.value.what
    with pytest.raises(MbertError) as caught:
        varied(pairs_of([("a",)]), "windows")
    assert caught.value.code == "M244" and "dev" in caught.value.what


@pytest.mark.parametrize("format", ["parquet", "tsv"])
@pytest.mark.parametrize("kind", ["classes", "score"])
def test_files_keep_what_has_no_label(tmp_path: Path, format: Any, kind: str) -> None:
    label = {"names": ["no", "yes"]} if kind == "classes" else {"kind": "score"}
    task = load_task({"name": "pairs", "builtin": "none", "text": ["a", "b"], "label": label})
    labels: list[Any] = [0, 1, 0, 1, 1] if kind == "classes" else [0.5, 1.0, 0.0, 2.0, -1.0]
    rows = varied(pairs_of(PAIRS, labels), "recombine", copies=2)
    write_augmented(rows, tmp_path / f"augmented.{format}", task, format)
    assert load_augmented(tmp_path, task) == rows
    missing = Examples(rows.texts, [None, *(rows.labels or [])[1:]], rows.ids, rows.augmented, rows.source)
    write_augmented(missing, tmp_path / f"augmented.{format}", task, format)
    with pytest.raises(MbertError) as caught:
        load_augmented(tmp_path, task)
    assert caught.value.code == "M351", "an original row must have its label"


class Letters:
    """A tokenizer of letters, as far as rows need one."""

    padding_side, model_input_names = "right", ("input_ids",)

    def __call__(self, *texts: Any, **_: Any) -> dict[str, list[Any]]:
        if isinstance(texts[0], list):
            return {"input_ids": [[ord(letter) % 90 for letter in text] for text in texts[0]]}
        ids = [0, *(ord(text) for text in texts), 0]
        special = [1, *(0 for _ in texts), 1]
        return {"input_ids": ids, "special_tokens_mask": special, "token_type_ids": [0] * len(ids)}


@pytest.mark.parametrize("kind", ["classes", "score"])
def test_hard_labels_leave_new_rows_out(kind: str) -> None:
    """The loss of a batch with new rows is that of its original rows, and its gradient at new rows is 0."""
    label = {"names": ["no", "yes"]} if kind == "classes" else {"kind": "score"}
    task: Task = load_task({"name": "pairs", "builtin": "none", "text": ["a", "b"], "label": label})
    rows = varied(pairs_of(PAIRS, [0, 1, 0, 1, 1] if kind == "classes" else [0.5, 1.0, 0.0, 2.0, -1.0]), "recombine", copies=1)
    batch = tokenize_examples(rows, Letters(), 99, task.kind).batch(range(len(rows)))
    logits = torch.randn(len(rows), 2 if kind == "classes" else 1, requires_grad=True)
    loss = hard_label(logits, batch["labels"], batch["augmented"])
    loss.backward()
    original = ~batch["augmented"]
    assert loss.isfinite() and loss.item() == pytest.approx(hard_label(logits[original], batch["labels"][original]).item())
    assert (logits.grad[batch["augmented"]] == 0).all() and (logits.grad[original] != 0).all()


def test_the_released_rule_takes_the_teacher_where_there_is_no_score() -> None:
    student, teacher = torch.tensor([[1.0], [1.0]]), torch.tensor([[3.0], [4.0]])
    labels = torch.tensor([2.0, torch.nan])
    assert soft_target(student, teacher, labels, normalisation="reference").item() == pytest.approx((1 + 9) / 2)


# the recipe


def test_options_are_checked_by_the_augmenters_parameters() -> None:
    catalog = Catalog()
    assert catalog.augmenter_options("recombine")["similar"] == ("float", 0.8)
    assert catalog.augmenter_facts("windows") == {"makes": "rows", "texts": {1}}
    wrong = {
        "augment.options.recombine.simlar=0.5": "M035",
        "augment.options.recombine.similar=2": "M019",
        "augment.options.recombine.similar=true": "M017",
        "augment.options.perturb.nearby=1.5": "M017",
        "augment.options.recombin.similar=0.5": "M005",
    }
    for text, code in wrong.items():
        with pytest.raises(MbertError) as caught:
            resolve(catalog=catalog, sets=[text], environment={})
        assert caught.value.code == code, text
    assert resolve(catalog=catalog, sets=["augment.options.recombine.similar=0.5"], environment={}).recipe.augment.options


def test_without_options_the_identity_is_as_before() -> None:
    assert "options" not in Recipe().identity("augment")["augment"]
    assert "options" in Recipe(augment={"options": {"recombine": {"pool": 9}}}).identity("augment")["augment"]
