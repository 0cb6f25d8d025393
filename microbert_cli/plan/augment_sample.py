"""A trial of augmentation on a few rows: its queries, distinct copies and seconds, scaled to all rows.

A row's queries and their length both grow with the row, so time is scaled by squared lengths. The rows tried are spread evenly
over all lengths.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from microbert_cli.augmentation.algorithm import AugmentSettings, DatasetAugmenter
from microbert_cli.augmentation.word_vectors import WordTable, load_word_table
from microbert_cli.augmentation.words import Spelling, stop_words
from microbert_cli.data.examples import Examples
from microbert_cli.models.capture import ModelOutputs, OutputRequest, forward_outputs
from microbert_cli.models.load import load_model
from microbert_cli.plan.work import Workload
from microbert_cli.recipe.registry import Catalog

FEW, MANY = 24, 256  # rows tried at first, and if those went fast
FAST = 1.5  # seconds
WORDS = 20_000  # rows whose words are counted
HEAPS = 0.7  # distinct words grow with rows to this power


def try_augmentation(
    rows: Examples,
    lengths: np.ndarray,
    *,
    model: str | None,
    vectors: str | None,
    settings: AugmentSettings,
    catalog: Catalog,
    device: str,
    dev: Examples | None = None,
) -> dict[str, Any]:
    """Returns what augmenting all rows takes, estimated from a few of them.

    load_seconds    model and word vectors, and what is counted over all rows once
    model_seconds   in the masked language model; other_seconds: everything else, neighbours of words included
    shapes          its batches as [rows, length, how many], useful tokens
    rows_out        originals and distinct copies
    """
    started = time.perf_counter()
    loaded = load_model(model, "masked-lm", where="augment.masked_lm", new_head=True) if model else None
    if loaded:
        loaded.model.to(device).eval()
    table = load_word_table(vectors, limit=settings.vectors_limit) if vectors else None
    load_seconds = time.perf_counter() - started
    trial = _Trial(loaded, table, settings, catalog, dev)
    count = min(FEW, len(rows))
    trial.run(rows, _spread(lengths, count))  # warms up
    result = trial.run(rows, _spread(lengths, count))
    if (more := min(MANY, len(rows))) > count and result["seconds"] < FAST:
        result = trial.run(rows, _spread(lengths, more))
    scale = float((lengths.astype(float) ** 2).sum() / (lengths[result["rows"]].astype(float) ** 2).sum())
    load = Workload(result["shapes"], result["useful"]).times(scale)
    words = result["word_seconds"] / max(1, result["words"]) * _distinct_words(rows, loaded and loaded.tokenizer, settings)
    other_seconds = result["seconds"] - result["model_seconds"] - result["word_seconds"]
    return {
        "load_seconds": load_seconds + result["open_seconds"],
        "model_seconds": result["model_seconds"] * scale,
        "other_seconds": other_seconds * scale + words,
        "shapes": [[*shape, number] for shape, number in load.shapes.items()],
        "useful": load.useful,
        "rows_out": result["out"] * len(rows) / len(result["rows"]),
        "rows_tried": len(result["rows"]),
    }


def untried(rows: int, copies: int) -> dict[str, Any]:
    """Returns the same facts where nothing may be tried: no work, and the most rows there can be."""
    seconds = {"load_seconds": 0.0, "model_seconds": 0.0, "other_seconds": 0.0}
    return {**seconds, "shapes": [], "useful": 0, "rows_out": rows * (1 + copies), "rows_tried": 0}


class _Trial:
    """The augmenter with a model and a word table whose time is taken."""

    def __init__(self, loaded: Any, table: WordTable | None, settings: AugmentSettings, catalog: Catalog, dev: Any):
        self.loaded, self.table, self.settings, self.catalog, self.dev = loaded, table, settings, catalog, dev

    def run(self, rows: Examples, indices: np.ndarray) -> dict[str, Any]:
        model = _TimedModel(self.loaded.model if self.loaded else None)
        table = _TimedTable(self.table) if self.table is not None else None
        started = time.perf_counter()
        driver = DatasetAugmenter(  # of all rows: what makes new ones draws from them
            rows,
            tokenizer=self.loaded and self.loaded.tokenizer,
            masked_lm_model=model if self.loaded else None,
            vectors=table,  # type: ignore[arg-type]
            settings=self.settings,
            dev=self.dev,
            catalog=self.catalog,
        )
        opened = time.perf_counter()
        size = driver.chunk_size
        out = sum(len(driver.chunk(indices[start : start + size].tolist())) for start in range(0, len(indices), size))
        seconds = time.perf_counter() - opened
        facts: dict[str, Any] = {"seconds": seconds, "open_seconds": opened - started}
        facts |= {"rows": indices, "out": out, "shapes": dict(model.shapes), "useful": model.useful}
        table_facts = (table.seconds, table.words) if table is not None else (0.0, 0)
        return {**facts, "model_seconds": model.seconds, "word_seconds": table_facts[0], "words": table_facts[1]}


class _TimedModel:
    """A model that records its batches and their seconds; `forward_outputs` calls the method `look` where a model has one."""

    def __init__(self, model: Any):
        self._model = model
        self.seconds, self.useful = 0.0, 0
        self.shapes: Counter[tuple[int, int]] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def look(self, batch: Mapping[str, Any], want: OutputRequest) -> ModelOutputs:
        """Returns the model's outputs, and takes the time."""
        started = time.perf_counter()
        outputs = forward_outputs(self._model, batch, want)
        if outputs.token_logits is not None:
            outputs.token_logits.sum().item()  # waits for a GPU
        self.seconds += time.perf_counter() - started
        rows, length = batch["input_ids"].shape
        self.shapes[rows, length] += 1
        self.useful += int(batch["attention_mask"].sum())
        return outputs


class _TimedTable:
    """A word table that records how long it took to find neighbours, and of how many words."""

    def __init__(self, table: WordTable):
        self._table, self.seconds, self.words = table, 0.0, 0

    def neighbours(self, words: Sequence[str], count: int) -> list[list[str]]:
        """Returns the neighbours of every word, and takes the time."""
        started = time.perf_counter()
        neighbours = self._table.neighbours(words, count)
        self.seconds += time.perf_counter() - started
        self.words += len(words)
        return neighbours


def _spread(lengths: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices of `count` rows, spread evenly over the order of lengths: each stands for as many others."""
    order = np.argsort(lengths, kind="stable")
    indices: np.ndarray = np.sort(order[((np.arange(count) + 0.5) / count * len(order)).astype(int)])
    return indices


def _distinct_words(rows: Examples, tokenizer: Any, settings: AugmentSettings) -> float:
    """Estimates how many different words of all rows are looked up in the word vectors."""
    spelling, skipped = Spelling(tokenizer), stop_words(settings.stop_words)
    every = max(1, len(rows) // WORDS)
    sample = rows.texts[::every]
    words = {word for texts in sample for text in texts for word in spelling.splitter.split(text)}
    vectors_only = "masked_lm" not in settings.sources
    looked_up = [word for word in words if not skipped.keeps(word) and (vectors_only or len(spelling.pieces(word)) != 1)]
    return len(looked_up) * (len(rows) / max(1, len(sample))) ** HEAPS
