"""What a new head starts with: the log odds of labels, the log shares of tags; trained heads and other kinds stay."""

from math import log
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

from microbert_cli.catalog.losses.hard_label import hard_label
from microbert_cli.recipe.task_kinds import kind_class
from microbert_cli.training.heads.bias import start_head_bias

NAMES = ("a", "b", "c")
SEVERAL = kind_class("labels")(NAMES)
WORDS = kind_class("token_classification")(("O", "B-X", "I-X"))
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}
SMALL_DISTILBERT = {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8, "vocab_size": 20}


def model_of(model_type: str, *, words: bool = False, **fields: Any) -> Any:
    torch.manual_seed(0)
    automatic: Any = AutoModelForTokenClassification if words else AutoModelForSequenceClassification
    return automatic.from_config(AutoConfig.for_model(model_type, num_labels=3, pad_token_id=0, **fields))


def test_log_odds_of_labels() -> None:
    labels = [(1, 0, 0), (1, 1, 0), (0, 0, 0), (1, 0, 0), None]
    assert SEVERAL.head_bias(labels, None) == pytest.approx((log(3.5 / 1.5), log(1.5 / 3.5), log(0.5 / 4.5)))
    weighted = SEVERAL.head_bias(labels, (1.0, 2.0, 4.0))
    assert weighted == pytest.approx((log(3.5 / 1.5), log(3 / 3.5), log(2 / 4.5)))


def test_log_shares_of_tags() -> None:
    labels = [(0, 0, 1, 2), (0, 0), None]
    assert WORDS.head_bias(labels, None) == pytest.approx((log(4.5 / 7.5), log(1.5 / 7.5), log(1.5 / 7.5)))
    assert WORDS.head_bias(labels, (1.0, 3.0, 1.0)) == pytest.approx((log(4.5 / 10.5), log(4.5 / 10.5), log(1.5 / 10.5)))


def test_classes_and_scores_start_at_zero() -> None:
    assert kind_class("classes")(NAMES).head_bias([0, 0, 0, 1], None) is None
    assert kind_class("score")().head_bias([0.5, 2.0], None) is None


def test_the_first_loss_is_that_of_the_shares() -> None:
    """A head that sees nothing yet loses the entropy of each label, as the best constant answer does; from 0 it loses log 2."""
    generator = np.random.default_rng(1)
    labels_NC = (generator.random((2000, 3)) < [0.5, 0.1, 0.02]).astype("float32")
    bias_C = SEVERAL.head_bias([tuple(row) for row in labels_NC], None)
    shares = labels_NC.mean(0)
    entropy = float(-(shares * np.log(shares) + (1 - shares) * np.log(1 - shares)).mean())
    logits_NC = torch.tensor(bias_C).expand(2000, 3)
    assert float(hard_label(logits_NC, torch.tensor(labels_NC))) == pytest.approx(entropy, abs=1e-5)
    assert entropy < 0.4 < log(2)


@pytest.mark.parametrize(
    ("model_type", "fields", "layer"),
    [
        ("bert", SMALL, "classifier"),
        ("roberta", SMALL, "classifier.out_proj"),
        ("electra", SMALL | {"embedding_size": 8}, "classifier.out_proj"),
        ("distilbert", SMALL_DISTILBERT, "classifier"),
    ],
)
def test_the_head_of_every_architecture(model_type: str, fields: dict[str, Any], layer: str) -> None:
    model = model_of(model_type, **fields)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    start_head_bias(model, (1.0, -2.0, 3.0))
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {f"{layer}.bias"}
    assert model.get_submodule(layer).bias.tolist() == [1.0, -2.0, 3.0]


def test_the_head_of_words() -> None:
    model = model_of("bert", words=True, **SMALL)
    start_head_bias(model, (1.0, -2.0, 3.0))
    assert model.classifier.bias.tolist() == [1.0, -2.0, 3.0]


def test_a_trained_head_stays() -> None:
    model = model_of("bert", **SMALL)
    with torch.no_grad():
        model.classifier.bias[1] = 0.25
    start_head_bias(model, (1.0, -2.0, 3.0))
    assert model.classifier.bias.tolist() == [0.0, 0.25, 0.0]


def test_no_bias_to_start_with() -> None:
    model = model_of("bert", **SMALL)
    start_head_bias(model, None)
    assert not model.classifier.bias.any()
