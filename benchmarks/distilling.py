"""Rows of the table: the two stages of task distillation, and the teacher's pass over the task's rows."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ceiling
import ours
import plain
import torch
from meter import TRAINING, Lap, Watch, compared, in_turns
from ours import INTERMEDIATE, PREDICTION, Pair
from shapes import TWO_CLASSES, Sample, Setup, Shape, bucketed, build, by_length, evenly, shuffled

from microbert_cli.data.batching import epoch_batches, non_padding_share
from microbert_cli.data.tokenized import tokenize_examples
from microbert_cli.evaluation.scoring import logits_of
from microbert_cli.models.capture import OutputRequest

Result = dict[str, Any]
BUCKETS = 8  # of mbert's batches to one of the plain code's, which all cost the same: 6 steps are about a pool of 50
PASS_ROWS = 256  # rows of the teacher's pass, for each step asked for
EPOCHS = 3


def intermediate(setup: Setup, steps: int, rounds: int) -> Result:
    """Intermediate stage, first epoch: the teacher is asked at every step, and no cache is written."""
    watch, pair, sample = Watch(), *_pair_and_sample(setup, steps)
    pair.watched(watch)
    sorted_rows, bare = by_length(sample), _ceiling(pair, watch)
    objective = pair.objective(INTERMEDIATE)
    contestants = {
        "plain": _plain_lap(pair, sample, steps, watch, plain.intermediate_step),
        "mbert": lambda: ours.training_lap(objective, sample.batch, len(sample.batches), watch),
        "ceiling": lambda: steps_lap(lambda i: bare.step(sorted_rows.batch(i)), sorted_rows, len(sample.batches), watch),
    }
    result = compared(in_turns(contestants, rounds=rounds), {"mbert / plain": 3.8, "mbert / ceiling": 0.9})
    return result | _epoch_share(setup)


def intermediate_cached(setup: Setup, steps: int, rounds: int) -> Result:
    """Intermediate stage, a cached epoch: hidden states and scores come from the cache, in fp16."""
    return _cached_row(setup, steps, rounds, INTERMEDIATE, plain.intermediate_step, 15.0)


def prediction_cached(setup: Setup, steps: int, rounds: int) -> Result:
    """Prediction stage, a cached epoch: logits come from the cache."""
    return _cached_row(setup, steps, rounds, PREDICTION, plain.prediction_step, 18.0)


def prediction_3_epochs(setup: Setup, steps: int, rounds: int) -> Result:
    """Prediction stage, 3 epochs together with the pass that fills the cache; the plain code asks at every step."""
    watch, pair, sample = Watch(), *_pair_and_sample(setup, steps)
    pair.watched(watch)
    turns = iter(range(10**9))
    contestants = {
        "plain": _plain_lap(pair, sample, steps, watch, plain.prediction_step),
        "mbert": lambda: _whole_stage(pair, sample, watch, next(turns)),
    }
    return compared(in_turns(contestants, rounds=rounds), {"mbert / plain": 9.0}) | {"epochs": EPOCHS}


def teacher_pass(setup: Setup, steps: int, rounds: int) -> Result:
    """The teacher's logits for task rows, once: executed FLOPs against the GEMM peak, and useful tokens.

    The speed is that of some rows, evenly drawn, whose batches are less even in length than those of all rows.
    """
    rows = setup.train.take(sorted(evenly(setup.encoded.lengths, PASS_ROWS * steps)[:, 0]))
    sample = Sample(tokenize_examples(rows, setup.tokenizer, setup.length, TWO_CLASSES), [], setup.pad_id)
    watch, pair, turns = Watch(), Pair(setup), iter(range(10**6, 10**9))  # no entry of another row
    watch.sees(pair.teacher.model.base_model)
    result = in_turns({"mbert": lambda: _pass_lap(pair, sample, watch, next(turns))}, rounds=rounds)
    reached = {
        "of_gemm_peak": (result["contestants"]["mbert"]["of_gemm_peak"], 0.85),
        "useful_tokens of the whole": (_whole_pass(setup), 0.92),
    }
    return result | {
        "ratios": {k: {"ratio": v, "target": t, "reached": v >= t} for k, (v, t) in reached.items()},
        "through": "teacher_cache.cached_ask" if ours.has_cache() else "scoring.logits_of (no teacher_cache here)",
    }


def steps_lap(step: Callable[[int], object], sample: Sample, steps: int, watch: Watch, *, warm: int = 1) -> Lap:
    """`steps` measured calls of a bare step function after `warm` that are not."""
    for number in range(warm):
        step(number)
    for number in range(steps):
        watch.start()
        step(number)
        watch.stop(len(sample.batches[number % len(sample.batches)]))
    return watch.lap()


def plain_pair(pair: Pair, watch: Watch) -> tuple[plain.Bert, plain.Bert, plain.BertAdam]:
    """The plain code's teacher and student with the weights of `pair`, and its optimiser; both in training mode."""
    teacher = plain.classifier_like(pair.teacher.model).train()
    student = plain.classifier_like(pair.student.model, pair.setup.teacher.width).train()
    watch.sees(teacher)
    watch.sees(student, TRAINING)
    return teacher, student, plain.bert_adam(student)


def _pair_and_sample(setup: Setup, steps: int) -> tuple[Pair, Sample]:
    return Pair(setup), bucketed(setup, BUCKETS * steps)


def _plain_lap(pair: Pair, sample: Sample, steps: int, watch: Watch, step: Callable[..., float]) -> Callable[[], Lap]:
    teacher, student, optimiser = plain_pair(pair, watch)
    rows = shuffled(sample)

    def train_step(number: int) -> float:
        return step(teacher, student, optimiser, rows.batch(number, pad_to=pair.setup.length))

    return lambda: steps_lap(train_step, rows, steps, watch)


def _ceiling(pair: Pair, watch: Watch) -> ceiling.Ceiling:
    """On a student of its own: the loop's must not be trained by two."""
    student = build(pair.setup.student, pair.kind, pair.setup.tokenizer, seed=2)
    bare = ceiling.Ceiling(pair.teacher.model, student, pair.map_layers[1:])
    watch.sees(bare.teacher)
    watch.sees(bare.student, TRAINING)
    return bare


def _cached_row(
    setup: Setup, steps: int, rounds: int, losses: dict[str, float], step: Callable[..., float], target: float
) -> Result:
    watch, pair, sample = Watch(), *_pair_and_sample(setup, steps)
    start = time.perf_counter()
    objective = pair.objective(losses, ours.cached(pair, sample, losses))
    filling = time.perf_counter() - start
    pair.watched(watch)
    contestants = {
        "plain": _plain_lap(pair, sample, steps, watch, step),
        "mbert": lambda: ours.training_lap(objective, sample.batch, len(sample.batches), watch),
    }
    result = compared(in_turns(contestants, rounds=rounds), {"mbert / plain": target})
    return result | {"fill_seconds": round(filling, 2), "cached_rows": len(sample.rows)}


def _whole_stage(pair: Pair, sample: Sample, watch: Watch, turn: int) -> Lap:
    """Filling the cache, then three epochs; one step of warming up is not measured, the pass is measured from its start."""
    watch.start()
    ask = ours.cached(pair, sample, PREDICTION, turn=turn)
    watch.stop()
    objective = pair.objective(PREDICTION, ask)
    lap = ours.training_lap(objective, sample.batch, EPOCHS * len(sample.batches), watch, learning_rate=3e-5)
    lap.facts["pass_share"] = round(lap.seconds[0] / sum(lap.seconds), 3)
    return lap


def _pass_lap(pair: Pair, sample: Sample, watch: Watch, turn: int) -> Lap:
    with torch.inference_mode():  # warm up on the widest rows
        widest = sample.rows.lengths.argsort()[-2:]
        pair.asked.ask(sample.rows.batch(widest, pad_id=sample.pad_id), OutputRequest(logits=True))
    watch.start()
    if ours.has_cache():
        ours.cached(pair, sample, PREDICTION, turn=turn)
    else:
        logits_of(pair.asked, sample.rows, pad_id=sample.pad_id)
    watch.stop(len(sample.rows))
    return watch.lap()


def _whole_pass(setup: Setup) -> float:
    """Useful tokens of a pass over all training rows: batches are the same whatever the teacher, so a dwarf will do."""
    dwarf = Shape(1, 12, 1, 12)
    watch, pair = Watch(), Pair(replace(setup, teacher=dwarf, student=dwarf))
    watch.sees(pair.teacher.model.base_model)
    lap = _pass_lap(pair, Sample(setup.encoded, [], setup.pad_id), watch, 0)
    return round(lap.real / lap.tokens, 4)


def _epoch_share(setup: Setup) -> Result:
    """Useful tokens over one whole epoch of the task, not only in the sample."""
    batches = epoch_batches(setup.encoded.lengths, batch_size=setup.batch_size, seed=0, epoch=0)
    return {"epoch_useful_tokens": round(non_padding_share(setup.encoded.lengths, batches), 4)}
