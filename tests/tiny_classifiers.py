"""Tiny random classifiers of several families in memory, and rows for them: what tests of exports share."""

from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, BertTokenizerFast

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(195))]
POSITIONS = 72
# Weights of this spread make every token and every mask matter; with BERT's 0.02 a tiny model answers all alike.
SPREAD = 0.3
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
DISTILBERT = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {**BERT, "num_labels": 3},
    "roberta": {**BERT, "num_labels": 2, "type_vocab_size": 1, "pad_token_id": 1},
    "distilbert": {**DISTILBERT, "num_labels": 1},
    "electra": {**BERT, "num_labels": 2, "embedding_size": 16},
}


def tiny(family: str, **changes: Any) -> Any:
    fields = {"vocab_size": 200, "max_position_embeddings": POSITIONS, "initializer_range": SPREAD, **FAMILIES[family]}
    config = AutoConfig.for_model(family, **{**fields, **changes})
    torch.manual_seed(7)
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()


def tokenizer() -> Any:
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(WORDS)}, model_max_length=POSITIONS)


def rows(count: int, segments: bool = True) -> list[dict[str, list[int]]]:
    """Rows of 3 to 40 tokens, as a tokenizer gives them: [CLS] a [SEP] b [SEP], not padded."""
    random = np.random.default_rng(3)
    table = []
    for number in range(count):
        ids = [2, *random.integers(5, 200, 1 + number * 37 // count).tolist(), 3]
        row = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        table.append(row | ({"token_type_ids": [int(place > len(ids) // 2) for place in range(len(ids))]} if segments else {}))
    return table


def batch(rows: int, length: int, config: Any) -> dict[str, torch.Tensor]:
    """Random ids; every row but the first has padding, as far as the length allows; two segments if there are two."""
    source = torch.Generator().manual_seed(rows * 1000 + length)
    ids = torch.randint(5, 200, (rows, length), generator=source)
    lengths = torch.tensor([max(1, length - 3 * row) for row in range(rows)])
    mask = (torch.arange(length) < lengths[:, None]).long()
    ids[mask == 0] = config.pad_token_id
    second = (torch.arange(length) > length // 2).long() * mask * (getattr(config, "type_vocab_size", 1) > 1)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": second,
    }
