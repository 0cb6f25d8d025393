"""Rows with several labels in tables: lists, `a|b`, columns of 0 and 1; hidden labels, held-out rows, soft labels."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from microbert_cli.data.augmented_files import load_augmented, write_augmented
from microbert_cli.data.examples import Examples
from microbert_cli.data.load import load_split, own_task
from microbert_cli.data.soft_labels import SoftColumns, soft_logits
from microbert_cli.data.task_data import load_task_data
from microbert_cli.errors import MbertError
from microbert_cli.recipe.multitask import check_several_labels
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.values import identity_values

LABELS = [["food", "service"], [], ["food"], ["service", "price"]] * 6
EXPECTED = [(1, 0, 1), (0, 0, 0), (1, 0, 0), (0, 1, 1)] * 6  # food, price, service
TEXTS = [f"the row number {i}" for i in range(len(LABELS))]


def write(path: Path, names: list[str], rows: list[Any]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows])
    return path


def json_lines(path: Path, labels: list[Any]) -> Path:
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=False)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def columns(path: Path, cells: list[tuple[Any, ...]]) -> Path:
    return write(path, ["text", "food", "price", "service"], [[text, *row] for text, row in zip(TEXTS, cells, strict=False)])


def refused(code: str, path: Path, split: str = "train", **options: Any) -> MbertError:
    with pytest.raises(MbertError) as caught:
        load_split(own_task(path, path, path, **options), split)
    error = caught.value
    assert error.code == code and error.what and error.where and error.allowed and error.fix
    return error


@pytest.mark.parametrize("form", ["jsonl", "parquet", "bars", "lists", "columns", "truth values", "floats"])
def test_every_form_gives_the_same_rows(tmp_path: Path, form: str) -> None:
    options: dict[str, Any] = {"kind": "labels"}
    if form == "jsonl":
        path = json_lines(tmp_path / "a.jsonl", LABELS)
    elif form == "parquet":
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"text": TEXTS, "label": LABELS}), path)
    elif form in ("bars", "lists"):
        cells = ["|".join(label) if form == "bars" else str(label) for label in LABELS]
        path = write(tmp_path / "a.csv", ["text", "label"], list(zip(TEXTS, cells, strict=True)))
    else:
        shown = {"columns": int, "truth values": bool, "floats": float}[form]
        path = columns(tmp_path / "a.csv", [tuple(map(shown, row)) for row in EXPECTED])
        options = {"columns": ["food", "price", "service"]}
    task = own_task(path, path, **options)
    assert task.label.names == ("food", "price", "service") and task.kind.name == "labels" and task.primary == "micro_f1"
    rows = load_split(task, "train")
    assert rows.labels == EXPECTED
    assert task.kind.label_array(rows.labels).shape == (24, 3)


def test_names_of_ones_own(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", LABELS)
    task = own_task(path, path, kind="labels", labels=["service", "food", "price"])
    assert load_split(task, "train").labels == [(row[2], row[0], row[1]) for row in EXPECTED]
    table = columns(tmp_path / "a.csv", EXPECTED)
    task = own_task(table, table, columns=["service", "food", "price"], labels=["S", "F", "P"])
    assert task.label.names == ("S", "F", "P")
    assert load_split(task, "train").labels == [(row[2], row[0], row[1]) for row in EXPECTED]


def test_lists_need_the_kind_to_be_named(tmp_path: Path) -> None:
    error = refused("M378", json_lines(tmp_path / "a.jsonl", LABELS))
    assert "--set data.kind=labels" in error.fix


def test_wrong_cells_are_named_with_their_rows(tmp_path: Path) -> None:
    options = {"kind": "labels", "labels": ["food", "price", "service"]}
    cases: list[tuple[Any, str, str]] = [
        (["food", "drink"], "M351", '"drink"'),
        ('["food", "price"', "M442", "JSON"),
        (["food", "food"], "M442", "twice"),
        ({"food": 1}, "M442", "object"),
    ]
    for cell, code, what in cases:
        error = refused(code, json_lines(tmp_path / "a.jsonl", [*LABELS[:4], cell, *LABELS[5:]]), **options)
        assert what in error.what and error.where.endswith("line 5")
        if code == "M442":
            refused(code, tmp_path / "a.jsonl", kind="labels")
    wrong = [*EXPECTED[:2], (1, 2, 0), *EXPECTED[3:]]
    error = refused("M445", columns(tmp_path / "a.csv", wrong), columns=["food", "price", "service"])
    assert '"2" in column "price"' in error.what and error.where.endswith("line 4")
    error = refused("M445", columns(tmp_path / "a.csv", [*EXPECTED[:2], (1, "", 0), *EXPECTED[3:]]), columns=["food", "price"])
    assert 'no value in column "price"' in error.what
    assert "drinks" in refused("M253", tmp_path / "a.csv", columns=["food", "drinks"]).what
    never = [row[:1] for row in LABELS]
    assert "price" in refused("M358", json_lines(tmp_path / "b.jsonl", never), **options).what
    refused("M358", json_lines(tmp_path / "b.jsonl", [["food"]] * 9), kind="labels")


def test_labels_of_a_test_file_are_hidden_where_none_are_given(tmp_path: Path) -> None:
    """A missing column, cells that are all empty, or -1 throughout; an empty list says that a row has no label."""
    train = json_lines(tmp_path / "a.jsonl", LABELS)
    for name, labels in {"empty": [""] * 4, "null": [None] * 4, "minus": ["-1"] * 4}.items():
        test = json_lines(tmp_path / f"{name}.jsonl", labels)
        assert load_split(own_task(train, train, test, kind="labels"), "test").labels is None
    test = json_lines(tmp_path / "none.jsonl", [[]] * 4)
    assert load_split(own_task(train, train, test, kind="labels"), "test").labels == [(0, 0, 0)] * 4
    test = json_lines(tmp_path / "mixed.jsonl", [["food"], None, ""])
    assert load_split(own_task(train, train, test, kind="labels"), "test").labels == [(1, 0, 0), (0, 0, 0), (0, 0, 0)]
    wide = columns(tmp_path / "a.csv", EXPECTED)
    three: dict[str, Any] = {"columns": ["food", "price", "service"]}
    for cells in [("", "", "")] * 2, [(-1, -1, -1)] * 2:
        hidden = columns(tmp_path / "b.csv", cells)
        assert load_split(own_task(wide, wide, hidden, **three), "test").labels is None
    missing = write(tmp_path / "c.csv", ["text"], [["a text"]])
    assert load_split(own_task(wide, wide, missing, **three), "test").labels is None
    error = refused("M359", json_lines(tmp_path / "d.jsonl", [""] * 9), kind="labels", labels=["food", "price"])
    assert "hidden" in error.what


def test_a_dev_part_leaves_every_label_a_row_in_train(tmp_path: Path) -> None:
    rare = [["rare"] if i in (3, 7) else ["food"] if i % 2 else ["food", "service"] for i in range(24)]
    path = json_lines(tmp_path / "a.jsonl", rare)
    task = own_task(path, kind="labels")
    train, dev = load_split(task, "train"), load_split(task, "dev")
    assert len(train) + len(dev) == 24 and all(any(row[i] for row in train.labels or []) for i in range(3))


def test_augmented_rows_keep_their_labels(tmp_path: Path) -> None:
    table = columns(tmp_path / "a.csv", EXPECTED)
    lists = json_lines(tmp_path / "a.jsonl", LABELS)
    for task in (own_task(table, table, columns=["food", "price", "service"]), own_task(lists, kind="labels")):
        labels: Any = [(1, 0, 1), (0, 0, 0), None]
        rows = Examples([("a",), ("b",), ("c",)], labels, augmented=[False, False, True], source=[0, 1, 0])
        for form in ("parquet", "tsv"):
            (tmp_path / form).mkdir(exist_ok=True)
            write_augmented(rows, tmp_path / form / f"augmented.{form}", task, form)  # type: ignore[arg-type]
            assert load_augmented(tmp_path / form, task).labels == labels
        array = task.kind.label_array(labels)
        assert np.isnan(array[2]).all() and array[0].tolist() == [1, 0, 1]


def test_soft_labels_have_no_sum(tmp_path: Path) -> None:
    rows = [(text, "|".join(label), 0.9, 0.8, 0.1) for text, label in zip(TEXTS, LABELS, strict=True)]
    path = write(tmp_path / "a.csv", ["text", "label", "f", "p", "s"], rows)
    soft = SoftColumns("data.label_probabilities", ("f", "p", "s"))
    task = own_task(path, path, kind="labels", soft=soft)
    values = load_split(task, "train", soft=soft).soft
    assert values is not None and values[0] == (0.9, 0.8, 0.1)
    logits = soft_logits(values, are_scores=False, independent=True)
    assert 1 / (1 + np.exp(-logits[0])) == pytest.approx([0.9, 0.8, 0.1], abs=1e-6)
    assert np.isfinite(soft_logits([(0.0, 1.0)], are_scores=False, independent=True)).all()
    wrong = write(tmp_path / "b.csv", ["text", "label", "f", "p", "s"], [(*row[:2], 1.2, 0, 0) for row in rows])
    with pytest.raises(MbertError) as caught:
        load_split(own_task(wrong, wrong, kind="labels", soft=soft), "train", soft=soft)
    assert caught.value.code == "M385" and "sum" not in caught.value.allowed


def test_what_needs_one_class_a_row_is_refused() -> None:
    for values in ({"early_exit": {"branch": "linear"}}, {"moe": {"side": "student"}}, {"tasks": ["python-topics", "sst2"]}):
        with pytest.raises(MbertError) as caught:
            check_several_labels(Recipe.model_validate(values))
        assert caught.value.code == "M446" and caught.value.where in ("early_exit.branch", "moe.side", "tasks")
    check_several_labels(Recipe())


def test_keys_that_nobody_set_leave_identities_as_they_were() -> None:
    data = Recipe().keys("data")["data"]
    assert not {"label_columns", "class_weights", "primary"} & identity_values("data", data).keys()
    changed = Recipe.model_validate({"data": {"class_weights": "balanced"}}).keys("data")["data"]
    assert identity_values("data", changed)["class_weights"] == "balanced"


def test_weights_of_classes_that_are_not_there_are_refused_before_any_work(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", LABELS)
    data = {"train_file": str(path), "dev_file": str(path), "kind": "labels", "class_weights": {"drinks": 2.0}}
    with pytest.raises(MbertError) as caught:
        load_task_data(Recipe.model_validate({"data": data}), Catalog(), splits=("train", "dev"))
    assert caught.value.code == "M441" and "food, price, service" in caught.value.allowed
    weighed = load_task_data(
        Recipe.model_validate({"data": {**data, "class_weights": "balanced"}}), Catalog(), splits=("train", "dev")
    )
    assert weighed.label_form.independent and weighed.label_form.weights == pytest.approx((1.0, 3.0, 1.0))
