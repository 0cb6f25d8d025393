"""The bi-encoder: the two texts of a pair as transformers' BERT reads each alone, features by hand, files and ONNX."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_tokenizer
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification, BertModel

from microbert_cli.catalog.students.bi_encoder import BiEncoderConfig, BiEncoderForSequenceClassification
from microbert_cli.errors import MbertError
from microbert_cli.models.factory import build_model
from microbert_cli.models.onnx import OnnxClassifier, write_onnx
from microbert_cli.models.size import forward_flops
from microbert_cli.models.tokenizers import separate
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.student_shapes import read_student

TEXTS = [
    ("the baker sold the boat", "a sailor"),
    ("it is lovely", "the gardener mended the kettle near the harbour because it is broken"),
    ("why", "why"),
]


def bi_encoder(tokenizer: Any = None, **more: Any) -> BiEncoderForSequenceClassification:
    """Returns a small model with weights of a spread at which outputs differ."""
    torch.manual_seed(0)
    facts: dict[str, Any] = {"vocab_size": 200, "pad_token_id": 0, "separator_token_id": 3, "initializer_range": 0.3}
    if tokenizer is not None:
        facts |= {"vocab_size": len(tokenizer), "separator_token_id": tokenizer.sep_token_id}
    shape = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    return BiEncoderForSequenceClassification(BiEncoderConfig(**facts | shape | more)).eval()


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    return tiny_tokenizer(tmp_path / "tokens")


def pairs(tokenizer: Any) -> dict[str, torch.Tensor]:
    return dict(tokenizer(*map(list, zip(*TEXTS, strict=True)), padding=True, return_tensors="pt"))


def alone(model: Any, tokenizer: Any, text: str) -> torch.Tensor:
    """Returns the mean of a text's tokens by transformers' own BERT, of a row without padding."""
    encoder = BertModel(model.config, add_pooling_layer=False).eval()
    encoder.load_state_dict(model.bert.state_dict())
    return encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1)[0]


@pytest.mark.parametrize("segments", [True, False])
@torch.no_grad()
def test_each_text_is_read_as_if_alone(tokenizer: Any, segments: bool) -> None:
    model, batch = bi_encoder(tokenizer, features=["first", "second"], num_labels=2), pairs(tokenizer)
    model.classifier = torch.nn.Identity()
    if not segments:
        del batch["token_type_ids"]
    vectors_B2d = model(**batch).logits.unflatten(-1, (2, -1))
    expected = torch.stack([torch.stack([alone(model, tokenizer, text) for text in pair]) for pair in TEXTS])
    assert torch.allclose(vectors_B2d, expected, atol=1e-6)
    assert not torch.allclose(vectors_B2d[0, 0], vectors_B2d[1, 0], atol=1e-2)
    ids = tokenizer([first for first, _ in TEXTS], padding=True, return_tensors="pt")
    assert torch.allclose(model.encode(**ids), expected[:, 0], atol=1e-6)
    assert model(**batch, output_hidden_states=True).hidden_states[0].shape[0] == 6


def test_a_text_begins_with_the_first_token_and_ends_with_the_separator() -> None:
    ids = torch.tensor([[2, 10, 11, 3, 12, 3, 0, 0], [2, 20, 3, 21, 22, 23, 24, 3], [2, 9, 3, 3, 0, 0, 0, 0]])
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0, 0, 0]])
    texts, mask = separate(ids, (ids > 0).long(), segments, separator=None, pad=0)
    first = [[2, 10, 11, 3, 0, 0], [2, 20, 3, 0, 0, 0], [2, 9, 3, 0, 0, 0]]
    second = [[2, 12, 3, 0, 0, 0], [2, 21, 22, 23, 24, 3], [2, 3, 0, 0, 0, 0]]
    assert texts.tolist() == first + second
    assert torch.equal(mask, (texts > 0).long())
    by_separator = separate(ids, (ids > 0).long(), None, separator=3, pad=0)
    assert by_separator[0].tolist() == first + second and torch.equal(by_separator[1], mask)


def test_roberta_has_two_separators_between_texts() -> None:
    ids = torch.tensor([[0, 10, 11, 2, 2, 12, 13, 2], [0, 20, 2, 2, 2, 1, 1, 1]])
    texts, mask = separate(ids, (ids != 1).long(), None, separator=2, pad=1)
    assert texts.tolist() == [[0, 10, 11, 2], [0, 20, 2, 1], [0, 12, 13, 2], [0, 2, 1, 1]]
    assert mask.sum(1).tolist() == [4, 3, 4, 2]


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_nothing(tokenizer: Any, side: str) -> None:
    model, batch = bi_encoder(tokenizer, num_labels=3), pairs(tokenizer)
    expected = model(**batch).logits
    fills = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0}
    width = (5, 0) if side == "left" else (0, 5)
    wider = {name: torch.nn.functional.pad(value, width, value=fills[name]) for name, value in batch.items()}
    assert torch.allclose(model(**wider).logits, expected, atol=1e-6)


def test_features_by_hand() -> None:
    u, v = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    by_hand = {
        "first": [3.0, 4.0], "second": [4.0, 3.0], "difference": [1.0, 1.0], "product": [12.0, 12.0], "cosine": [24 / 25],
    }  # fmt: skip
    for features in (["cosine"], ["difference", "product"], ["first", "second", "difference"], list(by_hand)):
        model = bi_encoder(features=features)
        assert model.classifier.in_features == sum(1 if name == "cosine" else 16 for name in features)
        model.classifier = torch.nn.Identity()
        expected = torch.tensor([[value for name in features for value in by_hand[name]]])
        assert torch.allclose(model.head(u, v), expected)


def test_a_score_grows_with_the_cosine_from_the_start() -> None:
    model = bi_encoder(num_labels=1, features=["product", "cosine"])
    assert model.classifier.weight[0, 16] == 4 and model.classifier.weight[0, :16].abs().max() < 2
    assert model.classifier.bias == -2
    same = torch.ones(1, 16)
    assert bi_encoder(num_labels=1, features=["cosine"], classifier_dropout=0.9).train().head(
        same, same
    ).item() == pytest.approx(4 - 2)
    assert (bi_encoder(num_labels=2, features=["product", "cosine"]).classifier.weight != 4).all()


def test_wrong_features_and_pooling_are_refused() -> None:
    assert bi_encoder(num_labels=2).config.head_features == ("difference", "product")
    assert bi_encoder(num_labels=1).config.head_features == ("difference", "product")
    with pytest.raises(ValueError, match="they are some of first"):
        bi_encoder(features=["sum"])
    with pytest.raises(ValueError, match="pooling"):
        bi_encoder(pooling="max")
    with pytest.raises(ValueError, match="separator_token_id"):
        bi_encoder(separator_token_id=None)(torch.ones(1, 4, dtype=torch.long))


@torch.no_grad()
@pytest.mark.slow
def test_saved_and_loaded_and_as_onnx(tokenizer: Any, tmp_path: Path) -> None:
    batch = pairs(tokenizer)
    for features in (["cosine"], ["difference", "product"]):
        model = bi_encoder(
            tokenizer, features=features, num_labels=len(features), pooling="first" if len(features) > 1 else "mean"
        )
        place = tmp_path / features[0]
        model.save_pretrained(place)
        reread = AutoModelForSequenceClassification.from_pretrained(place).eval()
        expected = model(**batch).logits
        assert torch.allclose(reread(**batch).logits, expected, atol=1e-7) and reread.config.features == features
        write_onnx(reread, place / "model.onnx")
        session = OnnxClassifier(place)
        assert session.input_names == ("input_ids", "attention_mask", "token_type_ids")
        for rows in ([0], [1, 2], [0, 1, 2]):  # shorter and longer than what was exported
            part = {name: value[rows] for name, value in batch.items()}
            assert session.logits(part) == pytest.approx(model(**part).logits.numpy(), abs=1e-5)
    plain = BertModel.from_pretrained(place, add_pooling_layer=False).eval()  # its names are BERT's
    texts = tokenizer("the baker", return_tensors="pt")
    assert torch.allclose(plain(**texts).last_hidden_state[:, 0], model.encode(**texts), atol=1e-6)


def test_operations_of_texts_of_one_length() -> None:
    model = bi_encoder(num_labels=2)
    model.set_attn_implementation("eager")
    ids = torch.tensor([[2, 10, 11, 12, 3, 12, 13, 14, 3]])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids, torch.ones_like(ids), torch.tensor([[0] * 5 + [1] * 4]))
    assert forward_flops(model.config, ids.shape[1]) == counter.get_total_flops()


def test_a_tokenizer_without_separators_is_refused(tokenizer: Any) -> None:
    tokenizer.sep_token = None
    with pytest.raises(MbertError) as raised:
        build_model(read_student("bi-2x16x32", Catalog()), kind="classifier", tokenizer=tokenizer, seed=0, like=None)
    assert raised.value.code == "M325"
