"""Rows of the table: augmentation of SST-2 sentences by a masked language model of BERT-base's size and GloVe words.

The plain code varies a few sentences, one word at a time; mbert gets the neighbours of each as well, since it works on
hundreds of sentences at once and would have nothing to batch otherwise. Neighbours cost about the same: sentences are ordered
by what their queries cost, and drawn evenly. On the sentences that both have, the candidates must be the same sets of words;
where two logits at the last place differ by less than rounding, either is right, and such a difference is counted as a tie.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plain
import torch
from meter import Lap, Watch, compared, in_turns
from shapes import Setup, build, evenly

from microbert_cli.augmentation.algorithm import AugmentSettings, DatasetAugmenter
from microbert_cli.augmentation.interface import Slot
from microbert_cli.augmentation.word_vectors import WordTable, load_word_table
from microbert_cli.augmentation.words import Spelling, stop_words
from microbert_cli.data.examples import Examples

BESIDE = 8  # sentences of mbert to one of the plain code
SENTENCES = 2  # of the plain code, for each step asked for
POOL = 6_000  # training rows looked at
TIE = 2e-4  # in logits
Result = dict[str, Any]


def with_original(setup: Setup, steps: int, rounds: int) -> Result:
    """Augmentation, queries with the original sentence beside the masked one, as published."""
    return _row(setup, steps, rounds, "with-original", 2.2)


def alone(setup: Setup, steps: int, rounds: int) -> Result:
    """Augmentation, queries of the masked sentence alone, against the published way."""
    return _row(setup, steps, rounds, "alone", 4.5)


def _row(setup: Setup, steps: int, rounds: int, query: str, target: float) -> Result:
    watch, model = Watch(), build(setup.teacher, "masked-lm", setup.tokenizer, seed=3)
    table, loading = vectors_of(setup)
    groups = sentences_of(setup, SENTENCES * steps)
    vectors = (table.words, table.vectors_WD) if table else None
    slow = plain.Augmenter(plain.masked_lm_like(model), Spelling(setup.tokenizer), stop_words(), vectors)
    watch.sees(slow.model.bert, heads=lambda rows, width: rows * width * head_flops(model.config))
    watch.sees(model.base_model, heads=lambda rows, width: rows * head_flops(model.config))
    contestants = {
        "plain": lambda: plain_lap(slow, [group[len(group) // 2] for group in groups], watch),
        "mbert": lambda: our_lap(setup, model, table, [text for group in groups for text in group], query, watch),
    }
    result = compared(in_turns(contestants, rounds=rounds), {"mbert / plain": target}) | {"vectors": loading}
    if query == "with-original":
        result["candidates"] = same_candidates(setup, model, slow, [group[len(group) // 2] for group in groups][:20])
        result["ratios"]["identical candidates"] = {
            "ratio": result["candidates"]["same"] / max(1, result["candidates"]["words"]),
            "target": 1.0,
            "reached": not result["candidates"]["different"],
        }
    return result


def same_candidates(setup: Setup, model: Any, slow: plain.Augmenter, sentences: Sequence[str]) -> dict[str, int]:
    """Compares the candidates of every word that the masked language model serves, mbert's against the plain code's."""
    driver = _driver(setup, model, None, sentences, "with-original")
    (chooser,) = driver._choosers
    splits = [slow.spelling.splitter.split(text) for text in sentences]
    slots = [Slot(tuple(words), i, tuple(words)) for words in splits for i, word in enumerate(words) if _served(slow, word)]
    counts = {"words": len(slots), "same": 0, "ties": 0, "different": 0}
    for slot, top in zip(slots, chooser.candidates(slots), strict=True):
        expected = slow._for(slot.words, slot.position, 15)
        kind = "same" if set(expected) == set(top) else "ties" if _tied(slow, slot, set(expected) ^ set(top)) else "different"
        counts[kind] += 1
    return counts | {"same": counts["same"] + counts["ties"]}


def _served(slow: plain.Augmenter, word: str) -> bool:
    return not slow.stop_words.keeps(word) and len(slow.spelling.pieces(word)) == 1


def _tied(slow: plain.Augmenter, slot: Slot, words: set[str]) -> bool:
    """Whether all words in dispute are as likely as the last candidate, but for rounding."""
    with torch.no_grad():
        logits = slow.logits(slot.words, slot.position)
    last = logits.topk(15).values[-1]
    vocabulary = slow.spelling.words
    return all(abs(float(logits[vocabulary.index(word)] - last)) < TIE for word in words)


def plain_lap(slow: plain.Augmenter, sentences: Sequence[str], watch: Watch) -> Lap:
    slow.candidates(slow.spelling.splitter.split(sentences[0]))
    before = slow.forwards
    for number, text in enumerate(sentences):
        watch.start()
        slow.vary(text, seed=number)
        watch.stop(1)
    lap = watch.lap()
    lap.facts["forwards_per_sentence"] = round((slow.forwards - before) / len(sentences), 2)
    return lap


def our_lap(
    setup: Setup, model: Any, table: WordTable | None, sentences: Sequence[str], query: str, watch: Watch, batch_size: int = 64
) -> Lap:
    """All sentences at once, with an empty memo; the same driver warms up on the first of them."""
    _driver(setup, model, table, sentences[:1], query).shard(0)
    driver = _driver(setup, model, table, sentences, query, batch_size)
    watch.start()
    rows = driver.shard(0, size=len(sentences))
    watch.stop(len(sentences))
    lap = watch.lap()
    lap.facts["rows_per_sentence"] = round(len(rows) / len(sentences), 2)
    return lap


def _driver(
    setup: Setup, model: Any, table: WordTable | None, sentences: Sequence[str], query: str, batch_size: int = 64
) -> DatasetAugmenter:
    rows = Examples([(text,) for text in sentences], [0] * len(sentences))
    settings = AugmentSettings(query=query, candidates="once", batch_size=batch_size)
    return DatasetAugmenter(rows, tokenizer=setup.tokenizer, masked_lm_model=model, vectors=table, settings=settings)


def vectors_of(setup: Setup) -> tuple[WordTable | None, Mapping[str, float]]:
    """The word vectors, and how long it took to read them: the first time, and from mbert's cache."""
    if setup.vectors is None:
        return None, {}
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        table = load_word_table(setup.vectors)
        seconds.append(round(time.perf_counter() - start, 3))
    return table, {"words": len(table), "first_seconds": seconds[0], "cached_seconds": seconds[1]}


def sentences_of(setup: Setup, count: int) -> list[list[str]]:
    """Sentences that may be varied, each among neighbours of like cost: words to replace times pieces in a query."""
    spelling, stops = Spelling(setup.tokenizer), stop_words()
    step = max(1, len(setup.train) // POOL)
    texts = [texts[0] for texts in setup.train.texts[::step]]
    cost = [_cost(spelling, stops, text) for text in texts]
    kept = np.flatnonzero(cost)
    picked = evenly(np.asarray(cost)[kept], count, beside=BESIDE)
    return [[texts[kept[i]] for i in group] for group in picked]


def _cost(spelling: Spelling, stops: Any, text: str) -> int:
    words = spelling.splitter.split(text)
    pieces = sum(len(spelling.pieces(word)) for word in words)
    return (2 * pieces + 3) * sum(not stops.keeps(word) and len(spelling.pieces(word)) == 1 for word in words)


def head_flops(config: Any) -> float:
    """FLOPs of the vocabulary head at one position."""
    return 2.0 * config.hidden_size * (config.hidden_size + config.vocab_size)
