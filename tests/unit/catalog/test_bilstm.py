"""The recurrent student: torch's own bidirectional LSTM, padding, pairs by hand, operations, files, ONNX and int8."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_tokenizer
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import AutoModel, AutoModelForSequenceClassification

from microbert_cli.catalog.students.bilstm import BiLSTMConfig, BiLSTMForSequenceClassification
from microbert_cli.errors import MbertError
from microbert_cli.models.factory import build_model
from microbert_cli.models.onnx import OnnxClassifier, quantise, write_onnx
from microbert_cli.models.size import count_parameters, forward_flops
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.student_shapes import read_student
from microbert_cli.training.freeze import part_of

IDS = torch.tensor([[2, 10, 11, 3, 12, 3, 0, 0], [2, 20, 3, 21, 22, 23, 24, 3], [2, 9, 3, 3, 0, 0, 0, 0]])
MASK = (IDS > 0).long()
SEGMENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0, 0, 0]])
BATCH = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": SEGMENTS}


def bilstm(**more: Any) -> BiLSTMForSequenceClassification:
    """Returns a small model with weights of a spread at which outputs differ."""
    torch.manual_seed(0)
    facts: dict[str, Any] = {"vocab_size": 200, "hidden_size": 8, "embedding_size": 12, "initializer_range": 2.0}
    return BiLSTMForSequenceClassification(BiLSTMConfig(**facts | {"separator_token_id": 3} | more)).eval()


def torch_lstm(model: BiLSTMForSequenceClassification) -> nn.LSTM:
    """Returns torch's bidirectional LSTM with a model's weights."""
    layer = model.bilstm.layers[0]
    twin = nn.LSTM(model.config.input_size, model.config.hidden_size, batch_first=True, bidirectional=True)
    weights = dict(layer.forward_lstm.state_dict())
    weights |= {f"{name}_reverse": value for name, value in layer.backward_lstm.state_dict().items()}
    twin.load_state_dict(weights)
    return twin


@pytest.mark.parametrize("channels", ["trainable", "static", "both"])
@torch.no_grad()
def test_it_is_torchs_bidirectional_lstm_of_packed_sequences(channels: str) -> None:
    model = bilstm(channels=channels)
    tables = model.bilstm.embeddings.tables
    embedded = torch.cat([table(IDS) for table in tables], dim=-1)
    assert len(tables) == (2 if channels == "both" else 1) and embedded.shape[-1] == 12 * len(tables)
    packed = pack_padded_sequence(embedded, MASK.sum(1), batch_first=True, enforce_sorted=False)
    states, (last, _) = torch_lstm(model)(packed)
    expected, _ = pad_packed_sequence(states, batch_first=True)
    output = model.bilstm(IDS, MASK)
    real = MASK[..., None].bool()
    assert torch.allclose(output.last_hidden_state.masked_fill(~real, 0), expected, atol=1e-6)
    assert torch.allclose(output.pooler_output, torch.cat([last[0], last[1]], dim=-1), atol=1e-6)
    largest = bilstm(channels=channels, pooling="max").bilstm(IDS, MASK).pooler_output
    assert torch.allclose(largest, expected.masked_fill(~real, -9).amax(1), atol=1e-6)


@pytest.mark.parametrize("siamese", [True, False])
@pytest.mark.parametrize("pooling", ["last", "max"])
@torch.no_grad()
def test_padding_changes_nothing(pooling: str, siamese: bool) -> None:
    model = bilstm(pooling=pooling, siamese=siamese, num_labels=3)
    rows = ({name: value[i : i + 1, : MASK[i].sum()] for name, value in BATCH.items()} for i in range(3))
    alone = torch.cat([model(**row).logits for row in rows])
    assert torch.allclose(model(**BATCH).logits, alone, atol=1e-6) and alone.std(0).min() > 1e-3
    for width in ((0, 40), (7, 0)):  # on the right, on the left
        wider = {name: nn.functional.pad(value, width) for name, value in BATCH.items()}
        assert torch.allclose(model(**wider).logits, alone, atol=1e-6)


@pytest.mark.parametrize("segments", [True, False])
@torch.no_grad()
def test_the_texts_of_a_pair_are_read_apart(segments: bool) -> None:
    model = bilstm(siamese=True, num_labels=2)
    texts = [([2, 10, 11, 3], [2, 12, 3]), ([2, 20, 3], [2, 21, 22, 23, 24, 3]), ([2, 9, 3], [2, 3])]
    a, b = (torch.cat([model.bilstm(torch.tensor([pair[side]])).pooler_output for pair in texts]) for side in (0, 1))
    head = model.classifier
    features = torch.cat([a, b, (a - b).abs(), a * b], dim=-1)
    assert features.shape == (3, 8 * 8)
    expected = head.out_proj(head.dense(features).relu())
    batch = BATCH if segments else {name: BATCH[name] for name in ("input_ids", "attention_mask")}
    assert torch.allclose(model(**batch).logits, expected, atol=1e-6)


def test_features_by_hand() -> None:
    model = bilstm(siamese=True, hidden_size=1, num_labels=1)
    model.classifier = nn.Identity()
    features = model.head(torch.tensor([[3.0, -1.0]]), torch.tensor([[1.0, 2.0]]))
    assert features.tolist() == [[3, -1, 1, 2, 2, 3, 3, -2]]


@pytest.mark.parametrize("loaded", [False, True], ids=["new", "loaded"])
def test_static_word_embeddings_have_no_gradient(loaded: bool, tmp_path: Path) -> None:
    model: Any = bilstm(channels="both", num_labels=2)
    model.save_pretrained(tmp_path)
    if loaded:
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    model.train()(**BATCH).logits.sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == ["bilstm.embeddings.static_embeddings.weight"]
    assert {part_of(name) for name, _ in model.named_parameters()} == {"embeddings", "layer.1", "head"}


def test_operations_by_hand() -> None:
    """Of 20 tokens: two directions of four gates, 150 wide over inputs of 384 and states of 150; a head of 300, 200 and 2."""
    single = BiLSTMConfig(hidden_size=150, embedding_size=384, num_labels=2)
    of_a_token = 2 * 4 * 2 * 150 * (384 + 150)
    assert of_a_token == 1_281_600
    assert forward_flops(single, 20) == 20 * of_a_token + 2 * 300 * 200 + 2 * 200 * 2
    pairs = BiLSTMConfig(hidden_size=150, embedding_size=384, num_labels=1, siamese=True)
    assert forward_flops(pairs, 20) == 21 * of_a_token + 2 * 1200 * 200 + 2 * 200
    both = BiLSTMConfig(hidden_size=150, embedding_size=384, num_labels=2, channels="both")
    assert forward_flops(both, 20) == 20 * 16 * 150 * (768 + 150) + 2 * 300 * 200 + 2 * 200 * 2


def test_parameters_by_hand() -> None:
    counts = count_parameters(bilstm(vocab_size=100, hidden_size=5, embedding_size=7, num_labels=2))
    lstm = 2 * (4 * 5 * (7 + 5) + 2 * 4 * 5)
    assert counts.embedding == 700 and counts.rest == lstm + (10 * 200 + 200) + (200 * 2 + 2)


def test_wrong_words_are_refused() -> None:
    for key, word in (("channels", "three"), ("pooling", "mean")):
        with pytest.raises(ValueError, match=key):
            bilstm(**{key: word})
        description = {"model_type": "mbert-bilstm", "hidden_size": 4, "embedding_size": 4, key: word}
        with pytest.raises(MbertError) as raised:
            build_model(description, kind="classifier", tokenizer=tiny_tokens(), seed=0)
        assert raised.value.code == "M042"


def tiny_tokens() -> Any:
    class Tokens:
        pad_token_id, sep_token_id, cls_token_id = 0, 3, 2

        def get_vocab(self) -> dict[str, int]:
            return {"a": 9}

    return Tokens()


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path / "tokens")
    first, again, other = (
        build_model(read_student("bilstm-6x8", Catalog()), kind="classifier", tokenizer=tokenizer, seed=seed).state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    bound = 6**-0.5
    weights = first["bilstm.layers.0.backward_lstm.weight_hh_l0"]
    assert weights.abs().max() <= bound and weights.abs().max() > 0.9 * bound


@pytest.mark.parametrize(
    "options",
    [{"channels": "both"}, {"pooling": "max", "siamese": True}, {"siamese": True}],
    ids=["two channels", "largest states of pairs", "last states of pairs"],
)
@pytest.mark.slow
@torch.no_grad()
def test_saved_and_loaded_and_as_onnx(options: dict[str, Any], tmp_path: Path) -> None:
    model = bilstm(num_labels=3, **options)
    model.save_pretrained(tmp_path)
    reread = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(reread(**BATCH).logits, model(**BATCH).logits)
    assert torch.equal(AutoModel.from_pretrained(tmp_path)(IDS, MASK).pooler_output, model.bilstm(IDS, MASK).pooler_output)
    write_onnx(reread, tmp_path / "model.onnx")
    quantise(tmp_path / "model.onnx", tmp_path / "model.int8.onnx")
    whole, small = (OnnxClassifier(tmp_path, precision=precision) for precision in ("fp32", "int8"))
    assert ("token_type_ids" in whole.input_names) == bool(options.get("siamese"))
    for rows in ([0], [1, 2], [0, 1, 2]):
        part = {name: value[rows] for name, value in BATCH.items()}
        expected = model(**part).logits.numpy()
        assert whole.logits(part) == pytest.approx(expected, abs=1e-5)
        wider = {name: nn.functional.pad(value, (0, 9)) for name, value in part.items()}
        assert whole.logits(wider) == pytest.approx(expected, abs=1e-5)
        assert np.abs(small.logits(wider) - expected).max() < 0.1
