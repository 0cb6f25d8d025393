"""What is measured: true architectures with random weights, and rows of real data.

Batches of one length differ from those of another, so a handful taken at random says little about an epoch. Samples of rows
are therefore drawn evenly from the whole, in the order of their length or cost, and a sample is an epoch in small.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from microbert_cli.data.batching import epoch_batches
from microbert_cli.data.examples import Examples
from microbert_cli.data.load import load_split
from microbert_cli.data.tokenized import TokenizedExamples, tokenize_examples
from microbert_cli.models.capture import Batch
from microbert_cli.models.factory import build_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.task import load_task
from microbert_cli.recipe.task_kinds import kind_of_head

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Shape:
    """A BERT: layers, width, attention heads, width of the feed-forward block."""

    layers: int
    width: int
    heads: int
    inner: int

    @property
    def name(self) -> str:
        return f"{self.layers}x{self.width}"


TEACHER = Shape(12, 768, 12, 3072)
STUDENT = Shape(4, 312, 12, 1200)
TWO_CLASSES = kind_of_head(2, names=("LABEL_0", "LABEL_1"))


@dataclass(frozen=True)
class Setup:
    """What all rows of the table share.

    train, dev   rows of SST-2;  corpus, vectors   files, None where there are none
    length       to which the plain code pads task rows; corpus_length: and blocks of plain text
    """

    tokenizer: Any
    train: Examples
    dev: Examples
    corpus: Path | None = None
    vectors: Path | None = None
    teacher: Shape = TEACHER
    student: Shape = STUDENT
    length: int = 64
    corpus_length: int = 128
    batch_size: int = 32

    @cached_property
    def encoded(self) -> TokenizedExamples:
        """All training rows as token ids."""
        return tokenize_examples(self.train, self.tokenizer, self.length, TWO_CLASSES)

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)


@dataclass(frozen=True)
class Sample:
    """Some rows, and batches of them that stand for an epoch: lists of row numbers."""

    rows: TokenizedExamples
    batches: list[np.ndarray]
    pad_id: int = 0

    def batch(self, number: int, pad_to: int | None = None) -> Batch:
        """Batch `number`, counted round and round."""
        return self.rows.batch(self.batches[number % len(self.batches)], pad_to=pad_to, pad_id=self.pad_id)


def shared_folder() -> Path:
    """`MBERT_SHARED`, else the folder `shared` beside the repository."""
    return Path(os.environ.get("MBERT_SHARED") or ROOT.parent / "shared")


def real_setup() -> Setup:
    """SST-2, BERT's vocabulary, the Wikipedia corpus and the GloVe words of the shared folder, at the true sizes."""
    data = shared_folder() / "data"
    task = load_task(ROOT / "microbert_cli" / "catalog" / "tasks" / "sst2.toml")
    train, dev = (load_split(task, split, data_dir=data / "glue") for split in ("train", "dev"))
    return Setup(
        tokenizer=bert_tokenizer(data / "vocab" / "bert-base-uncased-vocab.txt"),
        train=train,
        dev=dev,
        corpus=data / "corpus" / "wiki_en.txt.gz",
        vectors=data / "vectors" / "glove.6B.50d.subset.txt",
    )


def bert_tokenizer(vocabulary: Path) -> Any:
    """A lower-casing WordPiece tokenizer of a vocabulary file."""
    from transformers import BertTokenizerFast

    words = vocabulary.read_text(encoding="utf-8").split("\n")
    vocab = {word: i for i, word in enumerate(words) if word}
    tokenizer = BertTokenizerFast(vocab=vocab, do_lower_case=True, model_max_length=512)
    assert len(tokenizer) == len(vocab), f"{len(tokenizer)} tokens of {len(vocab)} words"
    return tokenizer


def build(shape: Shape, kind: str, tokenizer: Any, *, seed: int, **changes: Any) -> Any:
    """A BERT of this shape with random weights, as mbert builds them: kind classifier, encoder or masked-lm."""
    description = {
        "model_type": "bert",
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.width,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.inner,
        **changes,
    }
    return build_model(description, kind=kind, tokenizer=tokenizer, seed=seed, head=TWO_CLASSES)


def catalog() -> Catalog:
    """mbert's own losses, methods and tasks."""
    return Catalog()


def evenly(cost: Sequence[float] | np.ndarray, count: int, *, beside: int = 1) -> np.ndarray:
    """[count, beside] positions, evenly spaced in the order of their cost, each with its nearest neighbours in that order."""
    order = np.argsort(np.asarray(cost), kind="stable")
    count, beside = min(count, len(order)), min(beside, len(order))
    middles = ((np.arange(count) + 0.5) * len(order) / count).astype(int)
    first = np.clip(middles - beside // 2, 0, len(order) - beside)
    return order[first[:, None] + np.arange(beside)]


def bucketed(setup: Setup, steps: int, *, seed: int = 0) -> Sample:
    """An epoch of mbert's in small: `steps` batches of rows evenly drawn by length.

    With as many batches as a pool has (50) its padding is that of the real thing; with fewer there is a little more.
    """
    picked = np.sort(evenly(setup.encoded.lengths, steps * setup.batch_size)[:, 0])
    encoded = tokenize_examples(setup.train.take(picked), setup.tokenizer, setup.length, TWO_CLASSES)
    batches = epoch_batches(encoded.lengths, batch_size=setup.batch_size, seed=seed, epoch=0, drop_last=True)
    return Sample(encoded, batches, setup.pad_id)


def shuffled(sample: Sample, *, seed: int = 0) -> Sample:
    """The same rows in batches put together at random, as the plain code does."""
    order = np.random.default_rng(seed).permutation(len(sample.rows))
    ends = np.cumsum([len(rows) for rows in sample.batches])
    return Sample(sample.rows, np.split(order, ends[:-1]), sample.pad_id)


def by_length(sample: Sample) -> Sample:
    """The same rows fully sorted by length."""
    order = np.argsort(sample.rows.lengths, kind="stable")
    ends = np.cumsum([len(rows) for rows in sample.batches])
    return Sample(sample.rows, np.split(order, ends[:-1]), sample.pad_id)
