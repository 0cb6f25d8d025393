"""Rows of words: files of columns, lists in JSONL, class labels in Parquet; where words begin; refusals with the row."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_models import tiny_tokenizer
from tiny_words import TAGS, tiny_sentences, write_conll, write_jsonl

from microbert_cli.data.examples import Examples
from microbert_cli.data.load import load_split, own_task
from microbert_cli.data.tokenized import tokenize_examples
from microbert_cli.data.windows.choice import WindowChoice
from microbert_cli.errors import MbertError
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.task import Task
from microbert_cli.recipe.task_kinds import kind_class, kinds
from microbert_cli.table_format import TableFormat

KIND = "token_classification"
ROWS = [(["EU", "rejects", "calls"], ["B-ORG", "O", "O"]), (["Anna", "Smith"], ["B-PER", "I-PER"])]


def word_task(path: Path, **options: Any) -> Task:
    return own_task(path, path, kind=KIND, text=("tokens",), label="ner_tags", **options)


def refusal(code: str, act: Callable[[], Any]) -> MbertError:
    with pytest.raises(MbertError) as caught:
        act()
    error = caught.value
    assert error.code == code, error
    assert error.what and error.where and error.allowed and error.fix
    return error


def test_conll_and_jsonl_are_the_same_rows(tmp_path):
    rows = tiny_sentences(20)
    files = [write_jsonl(tmp_path / "a.jsonl", rows), write_conll(tmp_path / "a.conll", rows)]
    tasks = [word_task(path) for path in files]
    loaded = [load_split(task, "train") for task in tasks]
    assert loaded[0].texts == loaded[1].texts == [(" ".join(words),) for words, _ in rows]
    assert loaded[0].labels == loaded[1].labels == [tuple(TAGS.index(tag) for tag in tags) for _, tags in rows]
    assert tasks[0].kind.names == TAGS
    assert tasks[0].metrics == ("entity_f1", "entity_precision", "entity_recall", "accuracy")


def test_a_file_of_columns_takes_any_of_them_and_needs_no_kind(tmp_path):
    path = tmp_path / "pos.conll"
    path.write_text("-DOCSTART- X O\n\n# a comment\nEU NNP B-ORG\r\nrejects VBZ O\n\n\nAnna NNP B-PER\n", encoding="utf-8")
    task = own_task(path, path, kind=KIND, text=("tokens",), label="1")
    rows = load_split(task, "train")
    assert task.kind.names == ("NNP", "VBZ") and task.metrics == ("accuracy", "macro_f1")
    assert rows.texts == [("EU rejects",), ("Anna",)] and rows.labels == [(0, 1), (0,)]


@pytest.mark.parametrize("typed", ["datasets", "plain"])
def test_class_labels_in_lists_are_named_by_the_file(tmp_path, typed):
    path = tmp_path / "a.parquet"
    table = pa.table({"tokens": [["EU", "x"], ["y"]], "ner_tags": pa.array([[1, 0], [0]], pa.list_(pa.int64()))})
    names = ["O", "B-ORG", "I-ORG"]
    feature = {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "Sequence" if typed == "datasets" else "List"}
    features = {"info": {"features": {"ner_tags": feature}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path)
    task = word_task(path)
    assert task.kind.names == ("O", "B-ORG", "I-ORG")
    assert load_split(task, "train").labels == [(1, 0), (0,)]


def test_words_in_a_csv_are_texts_or_lists(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('words,tags\nEU rejects,B-ORG O\n"[""a b"", ""c""]","[""O"", ""O""]"\n', encoding="utf-8")
    error = refusal("M431", lambda: word_task(path))
    assert "line 3" in error.where and "'a b'" in error.what
    path.write_text('words,tags\nEU rejects,B-ORG O\n"[""a"", ""c""]","[""O"", ""O""]"\n', encoding="utf-8")
    assert load_split(word_task(path), "train").texts == [("EU rejects",), ("a c",)]


def broken(rows: Sequence[tuple[Any, Any]], tmp_path: Path) -> Callable[[], Any]:
    return lambda: word_task(write_jsonl(tmp_path / "a.jsonl", [*ROWS, *rows]))


@pytest.mark.parametrize(
    ("row", "code", "message"),
    [
        ((["a", "b"], ["O", "I-PER"]), "M434", "word 2 ('b')"),
        ((["a", "b"], ["B-ORG", "I-PER"]), "M434", "follows B-ORG"),
        ((["a"], ["Q-PER"]), "M434", "begins with none of B-, I-"),
        ((["a", "b"], ["O"]), "M433", "2 words and 1 tags"),
        (([], []), "M432", "no words"),
        ((["a b"], ["O"]), "M431", "holds a space"),
        ((["a", ""], ["O", "O"]), "M431", "word 2 ('') is empty"),
        ((["a", 5], ["O", "O"]), "M431", "word 2 is no text but int"),
        ((["a"], [None]), "M431", "the tag of word 1"),
        ((["\ud800"], ["O"]), "M431", "half a character"),
        ((None, ["O"]), "M431", "no words in column"),
    ],
)
def test_bad_rows_are_refused_with_row_and_word(tmp_path, row, code, message):
    error = refusal(code, broken([row], tmp_path))
    assert message in error.what and "line 3" in error.where


def test_an_unknown_tag_is_refused_with_row_and_word(tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", ROWS)
    dev = write_jsonl(tmp_path / "dev.jsonl", [*ROWS, (["Rome"], ["B-LOC"])])
    task = own_task(train, dev, kind=KIND, text=("tokens",), label="ner_tags")
    error = refusal("M351", lambda: load_split(task, "dev"))
    assert "line 3" in error.where and '"B-LOC" of word 1' in error.what


def test_broken_tags_are_mended_where_that_is_asked_for(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [*ROWS, (["a", "b", "c"], ["I-PER", "B-PER", "O"])])
    task = word_task(path, form=TableFormat(repair_tags=True))
    tags = [task.kind.label_text(label) for label in load_split(task, "train").labels or []]
    assert tags[2] == "B-PER B-PER O"


def test_empty_rows_are_passed_over_where_that_is_asked_for(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [*ROWS, ([], [])])
    assert len(load_split(word_task(path, form=TableFormat(skip_empty=True)), "train")) == 2


def test_a_line_of_other_columns_is_refused(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("EU B-ORG\nrejects O O\n", encoding="utf-8")
    assert "line 2" in refusal("M430", lambda: word_task(path)).where


def test_the_first_piece_of_a_word_has_its_label(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path / "t", vocab=("anna", "in"))
    task = word_task(write_jsonl(tmp_path / "a.jsonl", ROWS))
    rows = Examples([("anna zq in",), ("in \ufeff anna",)], [(1, 2, 0), (0, 0, 1)])
    encoded = tokenize_examples(rows, tokenizer, 32, task.kind)
    batch = encoded.arrays([0, 1])
    assert tokenizer.convert_ids_to_tokens(batch["input_ids"][0]) == ["[CLS]", "anna", "z", "##q", "in", "[SEP]"]
    assert batch["words"][0].tolist() == [-1, 0, 1, -1, 2, -1]
    assert batch["labels"][0].tolist() == [-100, 1, 2, -100, 0, -100]
    # A word of no tokens has none; the one behind it keeps its number and label.
    assert batch["words"][1].tolist() == [-1, 0, 2, -1, -1, -1] and batch["labels"][1, 2] == 1
    taken = encoded.take(np.array([1]))
    assert taken.arrays([0])["labels"].tolist() == [[-100, 0, 1, -100]]


def test_weights_of_tags_by_their_words():
    kind = kind_class(KIND)(("O", "B-PER", "I-PER"))
    labels: list[tuple[int, ...] | None] = [(0, 0, 1), (0,), None, (1, 2)]
    assert kind.class_weights(labels, "balanced") == pytest.approx((6 / 9, 1.0, 2.0)), "n / (C n_c), as scikit-learn has it"
    assert kind.class_weights(labels, {"B-PER": 5}) == (1.0, 5.0, 1.0) and kind.class_weights(labels, None) is None
    refusal("M441", lambda: kind.class_weights(labels, {"B-LOC": 2.0}))


def test_a_task_of_words_names_its_metrics(tmp_path):
    entities = word_task(write_jsonl(tmp_path / "a.jsonl", tiny_sentences(20)))
    assert entities.selected_by("macro_f1").primary == "macro_f1"
    assert refusal("M444", lambda: entities.selected_by("matthews")).fix == "--set data.primary=entity_f1"


def test_long_texts_of_words_have_no_windows(tmp_path):
    task = word_task(write_jsonl(tmp_path / "a.jsonl", tiny_sentences(20)))
    for keys in ({"windows": "mean"}, {"transfer_windows": True}):
        error = refusal("M482", lambda keys=keys: WindowChoice.of(Recipe.model_validate({"data": keys}), task))
        assert "tags words" in error.what and "data.windows=none" in error.fix
    choice = WindowChoice.of(Recipe(), task)
    marked = SimpleNamespace(mbert_windows={"pool": "max", "max_length": 8, "stride": 2})
    assert choice.settings(marked, 16, where="model") is None, "whatever a model did before"


def test_a_head_is_of_exactly_one_kind():
    problems = (None, "regression", "single_label_classification", "multi_label_classification", KIND)
    for outputs in (1, 2, 5):
        for problem in problems:
            kinds_of_head = [name for name, kind in kinds().items() if kind.has_head(outputs, problem)]
            assert len(kinds_of_head) == 1, (outputs, problem, kinds_of_head)


def test_words_behind_the_cut_have_no_token(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path / "t", vocab=("anna", "in"))
    kind = word_task(write_jsonl(tmp_path / "a.jsonl", ROWS)).kind
    encoded = tokenize_examples(Examples([("anna in anna in",)], [(1, 0, 1, 0)]), tokenizer, 4, kind)
    assert encoded.truncated == 1 and encoded.arrays([0])["words"].tolist() == [[-1, 0, 1, -1]]
