"""A frozen teacher's weights are cast once for bfloat16, and its answers stay the same bit by bit."""

import pytest
import torch
from tiny_models import tiny_bert

from microbert_cli.distillation.cast_weights import CastWeights
from microbert_cli.distillation.teacher import Teacher
from microbert_cli.models.capture import OutputRequest, forward_outputs
from microbert_cli.models.device import PLAIN, Precision
from microbert_cli.models.load import load_model

REQUEST = OutputRequest(logits=True, hidden=frozenset({0, 1, 2}), scores=frozenset({1}))
CPU = torch.device("cpu")


@pytest.fixture
def teacher(tmp_path):
    tiny_bert(tmp_path / "teacher", layers=2, hidden=32)
    return Teacher(load_model(tmp_path / "teacher", "classifier", where="teacher"))


@pytest.fixture
def batch():
    ids = torch.randint(5, 50, (3, 7), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def values(outputs):
    return [outputs.logits, *outputs.hidden.values(), *outputs.scores.values()]


@pytest.mark.parametrize("numerics", [PLAIN, Precision("bf16")])
def test_answers_are_the_same(teacher, batch, numerics):
    with torch.no_grad(), numerics.forward():
        expected = forward_outputs(teacher.model, batch, REQUEST)
        for _ in range(2):
            answers = teacher.ask(batch, REQUEST)
            assert all(torch.equal(*pair) for pair in zip(values(answers), values(expected), strict=True))
    assert all(weight.dtype == torch.float32 for weight in teacher.model.parameters())


def test_weights_are_cast_once_and_only_under_autocast(teacher):
    cast, linear = CastWeights(teacher.model), teacher.model.bert.encoder.layer[0].attention.self.query
    original = linear.weight
    with cast.used(CPU):
        assert linear.weight is original
    seen = []
    for _ in range(2):
        with Precision("bf16").forward(), cast.used(CPU):
            assert linear.weight.dtype == linear.bias.dtype == torch.bfloat16
            seen.append(linear.weight)
    assert seen[0] is seen[1] and linear.weight is original


def test_weights_return_after_an_error(teacher):
    linear = teacher.model.classifier
    original = linear.weight
    with pytest.raises(ZeroDivisionError), Precision("bf16").forward(), CastWeights(teacher.model).used(CPU):
        raise ZeroDivisionError
    assert linear.weight is original


def test_weights_in_training_are_left_to_autocast(teacher):
    teacher.model.requires_grad_(True)
    linear = teacher.model.classifier
    with Precision("bf16").forward(), CastWeights(teacher.model).used(CPU):
        assert linear.weight.dtype == torch.float32
