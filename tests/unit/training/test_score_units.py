"""Scores are learnt in standardised units, and every model answers in the table's."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_bert

from microbert_cli.catalog.kinds.score import Kind
from microbert_cli.distillation.teacher import line_into_units
from microbert_cli.models.capture import ModelOutputs, OutputRequest, forward_outputs
from microbert_cli.models.load import load_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.task_kinds import Standardisation
from microbert_cli.training.heads.score_units import ScoreUnits, output_layer
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.objective import Objective

SCALE = Standardisation(mean=50.0, std=20.0)
BATCH = {"input_ids": torch.tensor([[2, 7, 8, 3]] * 3), "attention_mask": torch.ones(3, 4, dtype=torch.long)}


@pytest.fixture
def model(tmp_path):
    return load_model(tiny_bert(tmp_path / "m", num_labels=1, seed=1), "classifier", where="m").model.eval()


def logits(model):
    with torch.no_grad():
        return forward_outputs(model, BATCH, OutputRequest(logits=True)).logits


def test_a_new_head_learns_in_units_of_the_spread(model):
    raw = logits(model)
    units = ScoreUnits(model, {"t": SCALE})
    torch.testing.assert_close(logits(model), raw, rtol=0, atol=0)
    with units.plain():
        torch.testing.assert_close(logits(model), raw * 20 + 50)
    assert torch.equal(logits(model), raw), "bit-equal after the block"
    units.restore()
    torch.testing.assert_close(logits(model), raw * 20 + 50)


def test_a_trained_head_answers_as_before(model):
    torch.nn.init.constant_(model.classifier.bias, 60.0)
    before = logits(model)
    units = ScoreUnits(model, {"t": SCALE})
    torch.testing.assert_close(logits(model), (before - 50) / 20)
    units.restore()
    torch.testing.assert_close(logits(model), before)


def test_a_head_that_was_made_anew_is_in_no_units_whatever_its_bias(model):
    torch.nn.init.constant_(model.classifier.bias, 0.3)
    before = logits(model)
    ScoreUnits(model, {"t": SCALE}, ["classifier.weight", "classifier.bias"])
    assert torch.equal(logits(model), before)


def test_classes_are_left_alone(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    units = ScoreUnits(model, {"t": None})
    units.restore()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_head_without_a_bias_is_refused(model):
    model.classifier = torch.nn.Linear(16, 1, bias=False)
    with pytest.raises(Exception) as caught:
        output_layer(model, "t")
    assert caught.value.code == "M315"


@pytest.mark.parametrize(("slope", "shift"), [(100.0, 0.0), (0.01, -3.0), (1000.0, 5000.0)])
def test_the_loss_does_not_depend_on_the_tables_units(model, slope, shift):
    terms = make_terms({"soft_target": (1.0, {}), "hard_label": (0.5, {})}, Catalog())
    gold, taught = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([[0.2], [0.4], [0.8]])

    def loss(labels, teacher):
        scale = Kind().standardisation(labels.tolist())
        objective = Objective(terms, model, ask_teacher=lambda *_: ModelOutputs(logits=teacher), standardise=[scale], classes=1)
        return objective({**BATCH, "labels": labels, "augmented": torch.zeros(3, dtype=torch.bool)}).item()

    assert loss(gold * slope + shift, taught * slope + shift) == pytest.approx(loss(gold, taught), rel=2e-3)


def test_scores_that_are_all_alike_have_no_spread_to_divide_by():
    assert Kind().standardisation([3.0, 3.0]) == Standardisation(3.0, 1.0)
    assert Kind().standardisation([]) is None


def test_a_teacher_of_other_units_is_told_from_a_weak_one():
    gold = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    assert line_into_units(gold + 0.3, gold) is None
    assert line_into_units(gold / 5, gold) == pytest.approx((5.0, 0.0)), "scores from 0 to 1 of a table from 0 to 5"
    assert line_into_units(gold * 20 + 7, gold) == pytest.approx((0.05, -0.35))
    assert line_into_units(np.array([9.0, -9, 9, -9, 9]), gold) is None
    assert line_into_units(np.full(5, 100.0), gold) is None
