"""Soft labels in a user's table: every form they are read in, every value that is refused with its line, and the logits."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from microbert_cli.data.load import load_split, load_transfer, own_task
from microbert_cli.data.soft_labels import SoftColumns, soft_logits
from microbert_cli.distillation.ensemble import table_ask
from microbert_cli.errors import MbertError
from microbert_cli.models.capture import OutputRequest
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.recipe.schema import Recipe

ROWS = [("a fine film", "good", 0.1, 0.9), ("a dull film", "bad", 0.75, 0.25), ("so so", "bad", 0.5, 0.5)]
TWO = SoftColumns("data.label_probabilities", ("p_bad", "p_good"))
JSON = SoftColumns("data.label_probabilities", ("answer",))
WANTED = [(0.1, 0.9), (0.75, 0.25), (0.5, 0.5)]


def rows_as(form: str) -> list[dict[str, Any]]:
    answers = {
        "columns": lambda p, q: {"p_bad": p, "p_good": q},
        "list": lambda p, q: {"answer": [p, q]},
        "object": lambda p, q: {"answer": {"good": q, "bad": p}},
        "text": lambda p, q: {"answer": json.dumps({"good": q, "bad": p})},
    }
    return [{"text": text, "label": label, **answers[form](p, q)} for text, label, p, q in ROWS]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        cells = [[json.dumps(cell) if isinstance(cell, list | dict) else str(cell) for cell in row.values()] for row in rows]
        mark = "\t" if path.suffix == ".tsv" else ","
        quoted = [[f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row] for row in [list(rows[0]), *cells]]
        path.write_text("".join(mark.join(row) + "\n" for row in quoted))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("form", ["columns", "list", "object", "text"])
def test_every_form_in_every_format(tmp_path: Path, suffix: str, form: str) -> None:
    file = write(tmp_path / f"train{suffix}", rows_as(form))
    soft = TWO if form == "columns" else JSON
    rows = load_split(own_task(file, soft=soft), "train", soft=soft)
    held = load_split(own_task(file, soft=soft), "dev", soft=soft)
    by_text = dict(zip([*rows.texts, *held.texts], [*(rows.soft or []), *(held.soft or [])], strict=True))
    assert by_text == {(text,): wanted for (text, *_), wanted in zip(ROWS, WANTED, strict=True)}


def loaded(path: Path, soft: SoftColumns, split: str = "train", **options: Any) -> Any:
    dev = write(path.parent / "dev.csv", [{"text": "x", "label": "good"}, {"text": "y", "label": "bad"}])
    return load_split(own_task(path, dev, soft=soft, **options), split, soft=soft)


def test_a_training_file_needs_no_labels(tmp_path: Path) -> None:
    bare = [{key: cell for key, cell in row.items() if key != "label"} for row in rows_as("columns")]
    rows = loaded(write(tmp_path / "train.csv", bare), TWO)
    assert rows.labels is None and rows.soft == WANTED
    assert loaded(tmp_path / "train.csv", TWO, "dev").labels == [1, 0], "the classes are those of dev, sorted: bad, good"
    assert loaded(tmp_path / "train.csv", TWO, "dev").soft is None
    with pytest.raises(MbertError) as caught:
        load_split(own_task(tmp_path / "train.csv", soft=TWO, labels=["bad", "good"]), "dev", soft=TWO)
    assert caught.value.code == "M387" and "--dev-file" in caught.value.fix


def test_the_order_of_columns_is_that_of_the_labels(tmp_path: Path) -> None:
    file = write(tmp_path / "train.jsonl", rows_as("object"))
    rows = loaded(file, JSON, labels=["good", "bad"])
    assert rows.soft == [(q, p) for p, q in WANTED] and rows.labels == [0, 1, 1], "an object names its classes"


def test_rows_keep_their_soft_labels(tmp_path: Path) -> None:
    rows = loaded(write(tmp_path / "train.csv", rows_as("columns")), TWO)
    assert rows.take([2, 0]).soft == [WANTED[2], WANTED[0]] and rows.limit(2).soft is not None
    plain = load_split(own_task(tmp_path / "train.csv", tmp_path / "dev.csv"), "train")
    assert plain.soft is None and plain.fingerprint != rows.fingerprint and plain.texts == rows.texts


def test_empty_rows_that_are_passed_over_take_theirs_along(tmp_path: Path) -> None:
    rows = rows_as("columns")
    rows[1]["text"] = ""
    from microbert_cli.table_format import TableFormat

    assert loaded(write(tmp_path / "train.csv", rows), TWO, form=TableFormat(skip_empty=True)).soft == [WANTED[0], WANTED[2]]


def test_a_transfer_file_may_have_them(tmp_path: Path) -> None:
    task = own_task(write(tmp_path / "train.csv", rows_as("columns")))
    texts = write(tmp_path / "texts.jsonl", [{"text": "new", "p_bad": 0.2, "p_good": 0.8}])
    assert load_transfer(texts, task, soft=TWO).soft == [(0.2, 0.8)]
    assert load_transfer(texts, task).soft is None


@pytest.mark.parametrize(
    ("cells", "what"),
    [
        ({"p_bad": 0.2, "p_good": 0.7}, "sum to 0.9"),
        ({"p_bad": 0.2, "p_good": 0.802}, "sum to 1.002"),
        ({"p_bad": -0.1, "p_good": 1.1}, "-0.1 is no probability"),
        ({"p_bad": "nan", "p_good": 1.0}, "nan is no finite number"),
        ({"p_bad": "", "p_good": 1.0}, "no value"),
        ({"p_bad": "much", "p_good": 1.0}, '"much" is no number'),
        ({"p_bad": "inf", "p_good": 1.0}, "inf is no finite number"),
        ({"answer": "[0.5, 0.25, 0.25]"}, "3 probabilities for 2 classes"),
        ({"answer": '{"good": 1.0}'}, 'no probability of "bad"'),
        ({"answer": '{"good": 0.5, "bad": 0.5, "ugly": 0}'}, '"ugly" is no class'),
        ({"answer": "good"}, '"good" is no JSON'),
        ({"answer": "0.7"}, "neither a list nor an object"),
        ({"answer": "[0.5, true]"}, '"true" is no number'),
        ({"answer": "[0.5, NaN]"}, "no value"),
    ],
)
def test_what_is_no_probability_is_refused_with_its_line(tmp_path: Path, cells: dict[str, Any], what: str) -> None:
    form, soft = ("columns", TWO) if "p_bad" in cells else ("list", JSON)
    rows = rows_as(form)
    rows[1] |= cells
    with pytest.raises(MbertError) as caught:
        loaded(write(tmp_path / "train.csv", rows), soft)
    error = caught.value
    assert error.code == "M385" and what in error.what and error.where.endswith("line 3")
    assert all((error.what, error.where, error.allowed, error.fix))


def test_a_sum_may_be_off_by_rounding(tmp_path: Path) -> None:
    rows = rows_as("columns")
    rows[0] |= {"p_bad": 0.333, "p_good": 0.6665}
    assert loaded(write(tmp_path / "train.csv", rows), TWO).soft[0] == (0.333, 0.6665)


def test_columns_that_do_not_fit_the_task(tmp_path: Path) -> None:
    file = write(tmp_path / "train.csv", rows_as("columns"))
    for names, code in ((("p_bad", "p_god"), "M253"), (("p_bad", "p_good", "text"), "M386")):
        with pytest.raises(MbertError) as caught:
            loaded(file, SoftColumns("data.label_probabilities", names))
        assert caught.value.code == code
    with pytest.raises(MbertError) as caught:
        loaded(file, SoftColumns("data.label_score", ("p_bad",)))
    assert caught.value.code == "M386"


def test_scores(tmp_path: Path) -> None:
    soft = SoftColumns("data.label_score", ("grade",))
    rows = [{"text": text, "label": p * 5, "grade": q * 5} for text, _, p, q in ROWS]
    task = own_task(write(tmp_path / "train.csv", rows), tmp_path / "train.csv", soft=soft)
    loaded_rows = load_split(task, "train", soft=soft)
    assert not task.kind.exclusive and loaded_rows.soft == [(4.5,), (1.25,), (2.5,)]
    np.testing.assert_array_equal(soft_logits(loaded_rows.soft, are_scores=True), np.float32([[4.5], [1.25], [2.5]]))


def test_logits_by_hand() -> None:
    logits = soft_logits([(0.1, 0.9), (0.0, 1.0)], are_scores=False)
    expected = [[math.log(0.1), math.log(0.9)], [math.log(1e-6), 0.0]]
    np.testing.assert_allclose(logits, expected, rtol=1e-6)
    np.testing.assert_allclose(torch.tensor(logits).softmax(-1)[0], [0.1, 0.9], rtol=1e-6)
    ask = table_ask(logits)
    batch = {"rows": torch.tensor([1, 0, 1])}
    answer = ask(batch, OutputRequest(logits=True)).logits
    np.testing.assert_array_equal(answer, logits[[1, 0, 1]])
    assert ask(batch, OutputRequest()).logits is None


def test_without_the_keys_the_identity_is_as_before() -> None:
    assert not {"label_probabilities", "label_score"} & Recipe().identity("data")["data"].keys()
    assert Recipe(data={"label_probabilities": "p"}).identity("data")["data"]["label_probabilities"] == "p"


TABLE = ('data.label_probabilities=["p", "q"]', 'stages=["task-distill"]', "task=sst2")


@pytest.mark.parametrize(
    ("sets", "code", "what"),
    [
        (("method=kd", "teacher.model=t"), "M145", "teacher.model"),
        (("method=kd", "augmented=a"), "M145", "augmented"),
        (("method=kd", "data.label_score=s"), "M145", "label_score"),
        (("method=tinybert",), "M146", "hidden_states"),
        (("method=kd", "phases.distillation.losses.cosine=1"), "M146", "cosine"),
    ],
)
def test_a_recipe_with_two_teachers_or_without_a_model_for_its_losses(sets: tuple[str, ...], code: str, what: str) -> None:
    with pytest.raises(MbertError) as caught:
        resolve(catalog=Catalog(), sets=[*TABLE, *sets], environment={})
    assert code in str(caught.value) and what in str(caught.value)


def test_methods_on_answers_are_fine() -> None:
    for method in ("kd", "compact", "soft-targets"):
        resolve(catalog=Catalog(), sets=[*TABLE, f"method={method}"], environment={})
