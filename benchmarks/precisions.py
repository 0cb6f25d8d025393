"""General distillation and the teacher's pass in both precisions, against the plain code and each precision's own GEMM peak.

    OMP_NUM_THREADS=1 python benchmarks/precisions.py [--rounds 3] [--steps 1] [--precisions fp32,bf16] [--json FILE]

One process, contestants in turn, medians. Seconds are processor seconds, the system's included, which a busy machine stretches
far less than wall time. Of the plain code the teacher runs without autograd, and glibc's allocator as it is by itself. A whole
run has, beside its steps, five passes over held-out text (`evaluations = 4`, and one before), each of 2 % of the blocks: with
three epochs one held-out batch for every 30 steps.
"""

import argparse
import ctypes
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import general
import meter
import ours
import plain
import torch
from distilling import plain_pair, steps_lap
from meter import GEMM, Lap, Watch
from ours import INTERMEDIATE, Pair
from shapes import TWO_CLASSES, Sample, Setup, evenly, real_setup

from microbert_cli import distributed
from microbert_cli.data.batching import token_budget_batches
from microbert_cli.data.tokenized import TokenizedExamples, tokenize_examples
from microbert_cli.evaluation.benchmark import load_average
from microbert_cli.models.capture import OutputRequest, tokens_at_once
from microbert_cli.models.device import Precision

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
HELD_OUT = 5 * 0.02 / 3  # held-out batches for every training batch, of three epochs
PASS_ROWS = 128
DOCUMENTS = 300


def peak_gflops(dtype: torch.dtype, size: int = GEMM) -> float:
    """GFLOP/s of a product [size x size], by processor time: the best of three."""
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        left @ right
        best = min(best, time.process_time() - start)
    return 2 * size**3 / best / 1e9


@contextmanager
def as_by_itself() -> Iterator[None]:
    """Sets glibc's allocator to what it comes to by itself: blocks above 32 MB are the system's."""
    libc = ctypes.CDLL(None)
    libc.mallopt(distributed._MMAP_THRESHOLD, 32 * 2**20)
    libc.mallopt(distributed._TRIM_THRESHOLD, 64 * 2**20)
    try:
        yield
    finally:
        distributed.keep_memory()


def pass_lap(pair: Pair, rows: TokenizedExamples, watch: Watch, pad_id: int) -> Lap:
    """The teacher's logits of some rows of SST-2, in the batches that fill the cache."""
    lengths = rows.lengths
    order, tokens = lengths.argsort()[::-1], tokens_at_once("cpu", in_bfloat16=pair.numerics.precision == "bf16")
    groups = [order[group] for group in token_budget_batches(lengths[order], range(len(order)), tokens)]
    watch.start()
    with torch.inference_mode(), pair.numerics.forward():
        for group in groups:
            pair.asked.ask(rows.batch(group, pad_id=pad_id), OutputRequest(logits=True))
    watch.stop(len(rows))
    return watch.lap()


def held_lap(pair: Pair, sample: Sample, watch: Watch) -> Lap:
    """The losses of one held-out batch."""
    objective = pair.objective(INTERMEDIATE)
    objective.student.eval()
    watch.start()
    with torch.no_grad():
        objective(sample.batch(0))
    watch.stop(len(sample.batches[0]))
    objective.student.train()
    return watch.lap()


def contestants_of(
    setup: Setup, steps: int, precisions: list[str]
) -> tuple[dict[str, Callable[[], Lap]], dict[str, Callable[[], float]]]:
    """What is measured, by name, and the peaks."""
    blocks = general.blocks_of(setup, DOCUMENTS)
    sample = general.sample_of(setup, blocks, steps)
    rows = setup.train.take(sorted(evenly(setup.encoded.lengths, PASS_ROWS)[:, 0]))
    encoded = tokenize_examples(rows, setup.tokenizer, setup.length, TWO_CLASSES)
    laps: dict[str, Callable[[], Lap]] = {}
    for name in precisions:
        watch, pair, asked = Watch(), *(Pair(setup, kind=kind, numerics=Precision(name)) for kind in ("encoder", "classifier"))
        pair.watched(watch)
        pass_watch = Watch()
        pass_watch.sees(asked.teacher.model.base_model)
        laps[f"mbert {name}"] = lambda pair=pair, watch=watch: ours.training_lap(  # type: ignore[misc]
            pair.objective(INTERMEDIATE), sample.batch, steps, watch, warm=0
        )
        laps[f"held-out {name}"] = lambda pair=pair, watch=watch: held_lap(pair, sample, watch)  # type: ignore[misc]
        laps[f"pass {name}"] = lambda pair=asked, watch=pass_watch: pass_lap(pair, encoded, watch, setup.pad_id)  # type: ignore[misc]
    watch, pair = Watch(), Pair(setup, kind="encoder")
    teacher, student, optimiser = plain_pair(pair, watch)

    def step(number: int) -> float:
        batch = sample.batch(number, pad_to=setup.corpus_length)
        return plain.intermediate_step(teacher, student, optimiser, batch, autograd=False)

    def plain_lap() -> Lap:
        with as_by_itself():
            return steps_lap(step, sample, steps, watch, warm=0)

    laps["plain"] = plain_lap
    peaks = {name: lambda dtype=dtype: peak_gflops(dtype) for name, dtype in TYPES.items() if name in precisions}  # type: ignore[misc]
    return laps, peaks


def measure(setup: Setup, steps: int, rounds: int, precisions: list[str]) -> dict[str, Any]:
    """Medians over the rounds of CPU seconds a sample, and what they come to."""
    meter.user_seconds = time.process_time  # what `Watch` counts
    distributed.keep_memory()
    load, started = load_average(), time.perf_counter()
    laps, peaks = contestants_of(setup, steps, precisions)
    measured: dict[str, list[Lap]] = {name: [] for name in laps}
    gflops: dict[str, list[float]] = {name: [] for name in peaks}
    for _ in range(rounds):
        for name, peak in peaks.items():
            gflops[name].append(peak())
        for name, lap in laps.items():
            measured[name].append(lap())
    seconds = {name: median(lap.cpu / lap.samples for lap in each) for name, each in measured.items()}
    result: dict[str, Any] = {"load": [load, load_average()], "wall_seconds": round(time.perf_counter() - started)}
    result["cpu_seconds_a_sample"] = {name: round(value, 4) for name, value in seconds.items()}
    for name in precisions:
        whole = seconds[f"mbert {name}"] + HELD_OUT * seconds[f"held-out {name}"]
        peak = median(gflops[name])
        result[name] = {"gemm_gflops": round(peak, 1), "whole run / plain": round(seconds["plain"] / whole, 3)}
        result[name]["steps / plain"] = round(seconds["plain"] / seconds[f"mbert {name}"], 3)
        for what in ("mbert", "pass"):
            shares = [lap.flops / lap.cpu / 1e9 / peak for lap in measured[f"{what} {name}"]]
            result[name][f"{what}, of GEMM peak"] = round(median(shares), 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--precisions", default=",".join(TYPES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = measure(real_setup(), options.steps, options.rounds, options.precisions.split(","))
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
