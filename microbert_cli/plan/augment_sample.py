"""Augmentation tried on a few rows: how many queries, how many distinct copies, how long; scaled to all rows.

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
    model: str,
    vectors: str | None,
    settings: AugmentSettings,
    catalog: Catalog,
    device: str,
) -> dict[str, Any]:
    """Facts about augmenting all rows, from a few of them.

    load_seconds    model and word vectors
    model_seconds   in the masked language model; other_seconds: everything else, neighbours of words included
    shapes          its batches as [rows, length, how many], useful tokens
    rows_out        originals and distinct copies
    """
    begun = time.perf_counter()
    loaded = load_model(model, "masked-lm", where="augment.masked_lm", new_head=True)
    loaded.model.to(device).eval()
    table = load_word_table(vectors, limit=settings.vectors_limit) if vectors else None
    load_seconds = time.perf_counter() - begun
    tried = _Trial(loaded, table, settings, catalog)
    count = min(FEW, len(rows))
    tried.run(rows, _spread(lengths, count))  # warms up
    found = tried.run(rows, _spread(lengths, count))
    if (more := min(MANY, len(rows))) > count and found["seconds"] < FAST:
        found = tried.run(rows, _spread(lengths, more))
    scale = float((lengths.astype(float) ** 2).sum() / (lengths[found["rows"]].astype(float) ** 2).sum())
    load = Workload(found["shapes"], found["useful"]).times(scale)
    words = found["word_seconds"] / max(1, found["words"]) * _distinct_words(rows, loaded.tokenizer, settings)
    own = found["seconds"] - found["model_seconds"] - found["word_seconds"]
    return {
        "load_seconds": load_seconds,
        "model_seconds": found["model_seconds"] * scale,
        "other_seconds": own * scale + words,
        "shapes": [[*shape, number] for shape, number in load.shapes.items()],
        "useful": load.useful,
        "rows_out": found["out"] * len(rows) / len(found["rows"]),
        "rows_tried": len(found["rows"]),
    }


def untried(rows: int, copies: int) -> dict[str, Any]:
    """The same facts where nothing may be tried: no work, and the most rows there can be."""
    seconds = {"load_seconds": 0.0, "model_seconds": 0.0, "other_seconds": 0.0}
    return {**seconds, "shapes": [], "useful": 0, "rows_out": rows * (1 + copies), "rows_tried": 0}


class _Trial:
    """The driver with a model and a word table that are watched."""

    def __init__(self, loaded: Any, table: WordTable | None, settings: AugmentSettings, catalog: Catalog):
        self.loaded, self.table, self.settings, self.catalog = loaded, table, settings, catalog

    def run(self, rows: Examples, chosen: np.ndarray) -> dict[str, Any]:
        model = _Watched(self.loaded.model)
        table = _WatchedTable(self.table) if self.table is not None else None
        driver = DatasetAugmenter(
            rows.take(chosen),
            tokenizer=self.loaded.tokenizer,
            masked_lm_model=model,
            vectors=table,  # type: ignore[arg-type]
            settings=self.settings,
            catalog=self.catalog,
        )
        begun = time.perf_counter()
        out = sum(len(driver.shard(number)) for number in range(driver.shards()))
        seconds = time.perf_counter() - begun
        watched = {"seconds": seconds, "rows": chosen, "out": out, "shapes": dict(model.shapes), "useful": model.useful}
        told = (table.seconds, table.words) if table is not None else (0.0, 0)
        return {**watched, "model_seconds": model.seconds, "word_seconds": told[0], "words": told[1]}


class _Watched:
    """A model that notes what it is asked and for how long; `capture.look` gives way to its own `look`."""

    def __init__(self, model: Any):
        self._model = model
        self.seconds, self.useful = 0.0, 0
        self.shapes: Counter[tuple[int, int]] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def look(self, batch: Mapping[str, Any], want: OutputRequest) -> ModelOutputs:
        """What the model shows, timed."""
        begun = time.perf_counter()
        seen = forward_outputs(self._model, batch, want)
        if seen.token_logits is not None:
            seen.token_logits.sum().item()  # waits for a GPU
        self.seconds += time.perf_counter() - begun
        rows, length = batch["input_ids"].shape
        self.shapes[rows, length] += 1
        self.useful += int(batch["attention_mask"].sum())
        return seen


class _WatchedTable:
    """A word table that notes how long it took to find neighbours, and of how many words."""

    def __init__(self, table: WordTable):
        self._table, self.seconds, self.words = table, 0.0, 0

    def neighbours(self, words: Sequence[str], count: int) -> list[list[str]]:
        """The table's answer, timed."""
        begun = time.perf_counter()
        found = self._table.neighbours(words, count)
        self.seconds += time.perf_counter() - begun
        self.words += len(words)
        return found


def _spread(lengths: np.ndarray, count: int) -> np.ndarray:
    """The places of `count` rows, evenly over the order of lengths: each stands for as many others."""
    order = np.argsort(lengths, kind="stable")
    chosen: np.ndarray = np.sort(order[((np.arange(count) + 0.5) / count * len(order)).astype(int)])
    return chosen


def _distinct_words(rows: Examples, tokenizer: Any, settings: AugmentSettings) -> float:
    """Different words that word vectors are asked for, in all rows."""
    spelling, kept = Spelling(tokenizer), stop_words(settings.stop_words)
    every = max(1, len(rows) // WORDS)
    looked = rows.texts[::every]
    words = {word for texts in looked for text in texts for word in spelling.splitter.split(text)}
    alone = "masked_lm" not in settings.sources
    asked = [word for word in words if not kept.keeps(word) and (alone or len(spelling.pieces(word)) != 1)]
    return len(asked) * (len(rows) / max(1, len(looked))) ** HEAPS
