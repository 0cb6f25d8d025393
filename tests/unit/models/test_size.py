"""Parameters and operations, against torch's own counter and published figures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForSequenceClassification

from microbert_cli.catalog.students import inverted_bottleneck
from microbert_cli.models.size import batch_flops, count_parameters, forward_flops, weights_bytes

LENGTH = 19
BLOCK = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intra_bottleneck_size": 8, "intermediate_size": 20,
    "embedding_size": 12,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 56},
    "roberta": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40},
    "electra": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56},
    "distilbert": {"dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 56},
    "mobilebert": {**BLOCK, "num_feedforward_networks": 3},
    inverted_bottleneck.MODEL_TYPE: {**BLOCK, "intra_bottleneck_size": 32, "classifier_activation": False},
}


def tiny(model_type: str, **more: Any) -> Any:
    config = AutoConfig.for_model(model_type, vocab_size=50, num_labels=3, **SHAPES[model_type], **more)
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()


@pytest.mark.parametrize("model_type", SHAPES)
def test_flops_are_those_that_torch_counts(model_type: str) -> None:
    narrow = {"embedding_size": 12} if model_type == "electra" else {}
    model = tiny(model_type, **narrow)
    ids = torch.randint(2, 50, (1, LENGTH))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert forward_flops(model.config, LENGTH) == counter.get_total_flops()


def test_flops_of_published_models() -> None:
    base = AutoConfig.for_model("bert")
    small = AutoConfig.for_model("bert", hidden_size=312, num_hidden_layers=4, num_attention_heads=12, intermediate_size=1200)
    assert forward_flops(base, 128) == pytest.approx(22.5e9, rel=0.01)
    assert round((forward_flops(small, 128) or 0) / 1e9, 1) == 1.2


@pytest.mark.parametrize("model_type", ["albert", "modernbert", "deberta-v2"])
def test_flops_of_another_shape_are_counted_by_torch(model_type: str) -> None:
    sizes = {**SHAPES["bert"], "embedding_size": 12, "pad_token_id": 0, "relative_attention": True, "num_labels": 3}
    special = {f"{name}_token_id": 1 for name in ("bos", "eos", "cls", "sep")}
    config = AutoConfig.for_model(model_type, vocab_size=50, **sizes, **special)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    ids = torch.randint(2, 50, (1, LENGTH))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert forward_flops(config, LENGTH) == counter.get_total_flops() > 1000


def test_flops_of_an_architecture_that_does_not_run_are_not_guessed() -> None:
    config = AutoConfig.for_model("reformer", vocab_size=50, attn_layers=[])
    assert forward_flops(config, LENGTH) is None


def test_parameters_by_hand() -> None:
    d, f, layers = 24, 56, 3
    count = count_parameters(tiny("bert", max_position_embeddings=40))
    embedding = (50 + 40 + 2) * d
    layer = 4 * (d * d + d) + d * f + f + f * d + d + 4 * d
    assert count.embedding == embedding
    assert count.total == embedding + 2 * d + layers * layer + d * d + d + 3 * d + 3
    assert count.rest == count.total - embedding


def test_shared_weights_count_once() -> None:
    model = torch.nn.Module()
    model.words = torch.nn.Embedding(10, 4)
    model.decoder = torch.nn.Linear(4, 10)
    model.decoder.weight = model.words.weight
    assert (count_parameters(model).total, count_parameters(model).embedding) == (50, 40)


def test_weights_bytes(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 7)
    (tmp_path / "tokenizer.json").write_bytes(b"x" * 100)
    assert weights_bytes(tmp_path) == 7
    (tmp_path / "model-1.safetensors").write_bytes(b"x" * 3)
    (tmp_path / "model-2.safetensors").write_bytes(b"x" * 2)
    assert weights_bytes(tmp_path) == 5
    assert weights_bytes(tmp_path / "tokenizer.json") == 100
    with pytest.raises(FileNotFoundError):
        weights_bytes(tmp_path / "nothing")


def test_the_first_token_at_the_top_spares_most_of_a_layer():
    from transformers import BertConfig

    config = BertConfig(num_hidden_layers=4, hidden_size=312, num_attention_heads=12, intermediate_size=1200, num_labels=2)
    T, d, F = 20, 312, 1200
    whole, some = (batch_flops(config, rows=3, tokens=3 * T, squares=3 * T * T, first_token=first) for first in (False, True))
    done = 4 * T * d * d + 4 * d * d + 4 * T * d + 4 * d * F  # keys and values of all; query, output, scores, block of one
    assert whole - some == 3 * (8 * T * d * d + 4 * T * T * d + 4 * T * d * F - done)
