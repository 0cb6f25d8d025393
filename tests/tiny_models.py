"""Small models for tests, built in milliseconds: Hugging Face directories of a BERT with random weights.

    tiny_bert(path)     config.json, model.safetensors, vocab.txt, tokenizer.json
    tiny_glue(path)     and the data that goes with it: see tiny_glue.py

Everything follows from the arguments alone.
"""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_glue import WORDS, tiny_glue, tiny_glue_hub, tiny_rows

__all__ = ["WORDS", "tiny_bert", "tiny_glue", "tiny_glue_hub", "tiny_rows", "tiny_tokenizer", "vocabulary"]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CLASSES = {
    "classifier": "BertForSequenceClassification",
    "masked-lm": "BertForMaskedLM",
    "encoder": "BertModel",
}


def vocabulary(words: Sequence[str] = WORDS) -> list[str]:
    """Special tokens, the printable ASCII characters alone and as continuations, whole words: English tokenises."""
    characters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    inner = [f"##{character}" for character in string.ascii_lowercase + string.digits]
    return list(dict.fromkeys([*SPECIAL, *characters, *inner, *words]))


def tiny_tokenizer(path: Path, *, vocab: Sequence[str] = WORDS, max_length: int = 128) -> Any:
    """Writes vocab.txt and the files of a lower-casing BERT tokenizer into `path`, and returns the tokenizer."""
    from transformers import BertTokenizerFast

    path.mkdir(parents=True, exist_ok=True)
    (path / "vocab.txt").write_text("\n".join(vocabulary(vocab)) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast.from_pretrained(path, do_lower_case=True, model_max_length=max_length)
    tokenizer.save_pretrained(path)
    return tokenizer


def tiny_bert(
    path: Path | str,
    *,
    layers: int = 2,
    hidden: int = 16,
    heads: int = 2,
    intermediate: int | None = None,
    vocab: Sequence[str] = WORDS,
    positions: int = 128,
    num_labels: int = 2,
    labels: Sequence[str] | None = None,
    kind: str = "classifier",
    seed: int = 0,
    dropout: float = 0.1,
) -> Path:
    """A Hugging Face directory of a random BERT with its tokenizer; returns the directory.

    vocab       whole words beside the characters; another tuple is another vocabulary
    kind        classifier, masked-lm or encoder
    num_labels  1 is a regression; `labels`, where given, decides instead
    Weights have a spread of 0.1, not BERT's 0.02: at this width outputs would hardly depend on the input.
    """
    import torch
    import transformers

    path = Path(path)
    tokenizer = tiny_tokenizer(path, vocab=vocab, max_length=positions)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=intermediate or 2 * hidden,
        max_position_embeddings=positions,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.1,
        **(_head(num_labels, labels) if kind == "classifier" else {}),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, CLASSES[kind])(config)
    model.save_pretrained(path)
    return path


def _head(num_labels: int, labels: Sequence[str] | None) -> dict[str, Any]:
    names = list(labels) if labels is not None else [f"LABEL_{i}" for i in range(num_labels)]
    problem = "regression" if len(names) == 1 else "single_label_classification"
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": problem,
    }
