"""The int8 copy of a teacher: near it, written once, and asked for logits alone."""

import pytest
import torch
from tiny_models import tiny_bert

from microbert_cli.data.examples import Examples
from microbert_cli.data.tokenized import tokenize_examples
from microbert_cli.distillation.int8_teacher import LOGITS, Int8Teacher
from microbert_cli.distillation.teacher import Teacher
from microbert_cli.distillation.teacher_cache import CacheSettings, cached_ask
from microbert_cli.models.capture import OutputRequest
from microbert_cli.models.load import load_model
from microbert_cli.runs import cache

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = [pytest.mark.usefixtures("own_cache"), pytest.mark.slow]
TEXTS = ["a good film", "bad", "the plot of this film is not bad at all but long", "good"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    path = tiny_bert(tmp_path_factory.mktemp("teacher"), layers=2, num_labels=3, labels=["x", "y", "z"], seed=1)
    return load_model(path, "classifier", where="teacher")


@pytest.fixture(scope="module")
def int8(loaded, rows):
    return Int8Teacher(Teacher(loaded, [2, 0, 1]), weights={"weights": "w"}, rows=rows)


@pytest.fixture(scope="module")
def rows(loaded):
    return tokenize_examples(Examples([(text,) for text in TEXTS]), loaded.tokenizer, 32)


def test_logits_are_near_and_in_the_tasks_order(loaded, int8, rows):
    batch = rows.batch(range(4))
    near, exact = int8.ask(batch, LOGITS).logits, Teacher(loaded, [2, 0, 1]).ask(batch, LOGITS).logits
    assert 0 < (near - exact).abs().max() < 0.2 * exact.abs().max() + 0.02


def test_more_than_logits_is_exact(loaded, int8, rows):
    batch, want = rows.batch(range(4)), OutputRequest(logits=True, hidden=frozenset({1}))
    near, exact = int8.ask(batch, want), Teacher(loaded, [2, 0, 1]).ask(batch, want)
    assert torch.equal(near.logits, exact.logits) and torch.equal(near.hidden[1], exact.hidden[1])


def test_the_copy_is_written_once(loaded, int8, rows, monkeypatch):
    monkeypatch.setattr("microbert_cli.models.onnx.write_onnx", lambda *_: pytest.fail("written again"))
    Int8Teacher(Teacher(loaded), weights={"weights": "w"}, rows=rows)
    (entry,) = (cache.root() / "int8").glob("*/complete")
    names = sorted(path.relative_to(entry.parent).as_posix() for path in entry.parent.rglob("*") if path.is_file())
    assert names == ["complete", "config.json", "onnx/model_quantized.onnx"]


def test_its_answers_are_kept_apart_from_the_exact_ones(loaded, int8, rows):
    def kept(teacher, kind):
        identity = {"weights": "w", "teacher": kind}
        ask = cached_ask(teacher, rows, LOGITS, identity=identity, pad_id=0, settings=CacheSettings())
        return ask(rows.batch(range(4)), LOGITS).logits

    near, exact = kept(int8, "Int8Teacher"), kept(Teacher(loaded, [2, 0, 1]), "Teacher")
    assert not torch.equal(near, exact)
    assert torch.equal(near, kept(int8, "Int8Teacher"))
