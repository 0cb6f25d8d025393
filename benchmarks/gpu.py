"""On a GPU: losses held against the CPU's, then speed against the card's own matrix rate and against the plain code.

    .venv/bin/python benchmarks/gpu.py --json benchmarks/results/gpu.json          (`make gpu`)

    --device NAME   cuda; with cpu everything is done by the CPU, which tries the script and says nothing about a GPU
    --steps N       measured steps of mbert a row (500 for the extrapolated run); the plain code does a tenth of them
    --only NAME[,NAME]   of agreement, general, sizes, intermediate, augment, run
    --json FILE     writes the results

Architectures are true, weights random, rows are those of SST-2 and the Wikipedia corpus (MBERT_SHARED, default ../shared).
"share" is executed FLOPs, padding included, over the rate of one large bfloat16 matrix product on this device in this run.
The row `run` is a whole SST-2 distillation with MiniLM's shapes, extrapolated from the rates of its stages.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import augmenting
import general
import ours
import plain
from distilling import plain_pair, steps_lap
from meter import Lap, Watch
from ours import INTERMEDIATE, PREDICTION, Pair
from shapes import TWO_CLASSES, Sample, Setup, Shape, bucketed, build, evenly, real_setup, shared_folder, shuffled

from microbert_cli.data.batching import epoch_batches
from microbert_cli.data.tokenized import tokenize_examples
from microbert_cli.models.capture import Batch
from microbert_cli.models.device import Precision, choose_precision

MINILM, SMALL = Shape(6, 384, 12, 1536), Shape(3, 312, 12, 1200)
PRECISIONS = ("fp32", "bf16")
COPIES, INTERMEDIATE_EPOCHS, PREDICTION_EPOCHS, TEACHER_EPOCHS = 20, 10, 3, 3
TOKENS, BLOCKS, QUERIES = 16_384, 256, 1024  # of mbert: tokens and blocks a batch, queries a pass
Result = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where and how much is measured; `rate` is the device's bfloat16 matrix rate in FLOP/s."""

    setup: Setup
    device: str
    steps: int
    rate: float
    tokens: int = TOKENS
    blocks: int = BLOCKS

    @property
    def plain_steps(self) -> int:
        return max(2, self.steps // 10)

    def numerics(self, precision: str) -> Precision:
        return choose_precision(self.device, precision=precision)

    def carry(self, batch: Batch) -> Batch:
        return {name: value.to(self.device) for name, value in batch.items()}

    def figures(self, lap: Lap) -> Result:
        seconds = sum(lap.seconds)
        return {
            "rate": round(lap.rate, 2),
            "tokens_per_second": round(lap.tokens / seconds),
            "share": round(lap.flops / seconds / self.rate, 4),
            "steps": len(lap.seconds),
            **lap.facts,
        }


def agreement(bench: Bench) -> Result:
    """Losses of one batch on this device against float32 on the CPU, each part's relative difference; dropout off."""
    sample = bucketed(bench.setup, 2)
    result: Result = {}
    for losses in (INTERMEDIATE, PREDICTION):
        expected = _parts(Pair(bench.setup), losses, sample.batch(0))
        for precision in PRECISIONS:
            parts = _parts(Pair(bench.setup, numerics=bench.numerics(precision)), losses, bench.carry(sample.batch(0)))
            result |= {f"{name}, {precision}": abs(parts[name] / expected[name] - 1) for name in expected}
    result["reached"] = all(value < (1e-4 if name.endswith("fp32") else 5e-2) for name, value in result.items())
    return result


def general_distillation(bench: Bench) -> Result:
    """General distillation at 128 tokens; a step of mbert has more blocks than the published 32."""
    blocks = general.blocks_of(bench.setup, general.DOCUMENTS)
    few, many = (_blocks(bench.setup, blocks, size) for size in (bench.setup.batch_size, bench.blocks))
    length = bench.setup.corpus_length
    return _compared(bench, "encoder", plain.intermediate_step, INTERMEDIATE, few, many, length)


def by_size(bench: Bench) -> Result:
    """General distillation in bfloat16 by blocks a step: where a step stops costing the same, and memory of the card."""
    blocks, rows = general.blocks_of(bench.setup, general.DOCUMENTS), {}
    for size in (bench.blocks // 8, bench.blocks // 2, bench.blocks, 4 * bench.blocks):
        if bench.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        lap = _our_lap(bench, "encoder", INTERMEDIATE, _blocks(bench.setup, blocks, size), "bf16")
        gib = torch.cuda.max_memory_allocated() / 2**30 if bench.device.startswith("cuda") else 0.0
        milliseconds = 1e3 * sorted(lap.seconds)[len(lap.seconds) // 2]
        rows[f"{size} blocks"] = bench.figures(lap) | {"median_step_ms": round(milliseconds, 2), "gib": round(gib, 2)}
    return rows


def intermediate(bench: Bench) -> Result:
    """Intermediate stage at SST-2's lengths; mbert's batches are filled to a budget of tokens."""
    few = shuffled(bucketed(bench.setup, 16))
    many = budgeted(bench.setup, bench.tokens)
    return _compared(bench, "classifier", plain.intermediate_step, INTERMEDIATE, few, many, bench.setup.length)


def augmentation(bench: Bench) -> Result:
    """Augmentation, queries with the original sentence, by a masked language model of BERT-base's size."""
    setup, watch = bench.setup, Watch()
    model = build(setup.teacher, "masked-lm", setup.tokenizer, seed=3).to(bench.device)
    table, _ = augmenting.vectors_of(setup)
    groups = augmenting.sentences_of(setup, max(2, bench.plain_steps))
    everything = [text for group in groups for text in group]
    vectors = (table.words, table.vectors_WD) if table else None
    slow = plain.Augmenter(
        plain.masked_lm_like(model).to(bench.device), augmenting.Spelling(setup.tokenizer), augmenting.stop_words(), vectors
    )
    watch.sees(model.base_model, heads=lambda rows, width: rows * augmenting.head_flops(model.config))
    result = {"plain, fp32": bench.figures(augmenting.plain_lap(slow, [group[0] for group in groups], watch))}
    for precision in PRECISIONS:
        with bench.numerics(precision).forward():
            lap = augmenting.our_lap(setup, model, table, everything, "with-original", watch, QUERIES)
        result[f"mbert, {precision}"] = bench.figures(lap)
    return _ratios(result)


def whole_run(bench: Bench) -> Result:
    """A complete SST-2 run with MiniLM's shapes: stages measured, the whole extrapolated. N_a = 20, 10 + 3 epochs."""
    setup = replace(bench.setup, teacher=_or_small(bench.setup.teacher, MINILM), student=_or_small(bench.setup.student, SMALL))
    small = replace(bench, setup=setup)
    many, rows = budgeted(setup, bench.tokens), len(setup.train)
    model = build(setup.teacher, "masked-lm", setup.tokenizer, seed=3).to(bench.device)
    table, _ = augmenting.vectors_of(setup)
    texts = [text for group in augmenting.sentences_of(setup, max(2, bench.plain_steps)) for text in group]
    # In float32, as the stage does it.
    varied = augmenting.our_lap(setup, model, table, texts, "with-original", Watch(), QUERIES)
    augmented = rows * varied.facts["rows_per_sentence"]
    rates = {name: _our_lap(small, "classifier", losses, many, "bf16").rate for name, losses in STAGES.items()}
    seconds = {
        "teacher, 3 epochs": TEACHER_EPOCHS * rows / _labels_lap(small, many).rate,
        "augmentation": rows / varied.rate,
        "intermediate, 10 epochs": INTERMEDIATE_EPOCHS * augmented / rates["intermediate"],
        "prediction, 3 epochs": PREDICTION_EPOCHS * augmented / rates["prediction"],
    }
    minutes = round(sum(seconds.values()) / 60, 2)
    took = {name: round(value, 1) for name, value in seconds.items()}
    return {"extrapolated": True, "steps": bench.steps, "augmented_rows": round(augmented), "seconds": took, "minutes": minutes}


STAGES = {"intermediate": INTERMEDIATE, "prediction": PREDICTION}
ROWS: dict[str, Callable[[Bench], Result]] = {
    "agreement": agreement,
    "general": general_distillation,
    "sizes": by_size,
    "intermediate": intermediate,
    "augment": augmentation,
    "run": whole_run,
}


def budgeted(setup: Setup, tokens: int, batches: int = 24) -> Sample:
    """Batches of mbert's as an epoch has them, filled to `tokens` tokens; rows evenly drawn by length."""
    count = round(batches * tokens / float(setup.encoded.lengths.mean()))
    picked = sorted(evenly(setup.encoded.lengths, count)[:, 0])
    encoded = tokenize_examples(setup.train.take(picked), setup.tokenizer, setup.length, TWO_CLASSES)
    return Sample(encoded, epoch_batches(encoded.lengths, batch_size=1, seed=0, epoch=0, tokens=tokens), setup.pad_id)


def _blocks(setup: Setup, blocks: Any, size: int) -> Sample:
    return general.sample_of(replace(setup, batch_size=size), blocks, max(1, min(16, len(blocks) // size)))


def matrix_rate(device: str, dtype: torch.dtype, size: int, repeats: int = 20) -> float:
    """FLOP/s of the product of two [size x size] matrices."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        _finished(device)
        begun = time.perf_counter()
        left @ right
        _finished(device)
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def _compared(
    bench: Bench, kind: str, step: Callable[..., float], losses: Mapping[str, float], few: Sample, many: Sample, length: int
) -> Result:
    result = {}
    for precision in PRECISIONS:
        result[f"plain, {precision}"] = bench.figures(_plain_lap(bench, kind, step, few, length, precision))
        result[f"mbert, {precision}"] = bench.figures(_our_lap(bench, kind, losses, many, precision))
    return _ratios(result)


def _ratios(result: Result) -> Result:
    best = result["mbert, bf16"]["rate"]
    return result | {"mbert bf16 / " + name: round(best / each["rate"], 2) for name, each in result.items() if "plain" in name}


def _our_lap(bench: Bench, kind: str, losses: Mapping[str, float], sample: Sample, precision: str) -> Lap:
    watch, pair = Watch(), Pair(bench.setup, kind=kind, numerics=bench.numerics(precision))
    pair.watched(watch)
    return ours.training_lap(pair.objective(losses), lambda i: bench.carry(sample.batch(i)), bench.steps, watch, warm=3)


def _labels_lap(bench: Bench, sample: Sample) -> Lap:
    """Fine-tuning the teacher on labels."""
    setup = replace(bench.setup, student=bench.setup.teacher)
    pair = Pair(setup, numerics=bench.numerics("bf16"))
    objective = pair.objective({"hard_label": 1.0})
    return ours.training_lap(objective, lambda i: bench.carry(sample.batch(i)), bench.steps, Watch(), warm=3)


def _plain_lap(bench: Bench, kind: str, step: Callable[..., float], sample: Sample, length: int, precision: str) -> Lap:
    watch = Watch()
    teacher, student, optimiser = plain_pair(Pair(bench.setup, kind=kind, numerics=bench.numerics("fp32")), watch)
    teacher.to(bench.device), student.to(bench.device)

    def train_step(number: int) -> float:
        with bench.numerics(precision).forward():
            return step(teacher, student, optimiser, bench.carry(sample.batch(number, pad_to=length)))

    return steps_lap(train_step, sample, bench.plain_steps, watch, warm=2)


def _parts(pair: Pair, losses: Mapping[str, float], batch: Batch) -> dict[str, float]:
    torch.manual_seed(0)
    objective = pair.objective(losses)
    pair.student.model.eval()
    if objective.projection is not None:
        weights = torch.randn(objective.projection.weight.shape, generator=torch.Generator().manual_seed(1)) * 0.02
        objective.projection.weight.data.copy_(weights)
    with torch.no_grad():
        _, _, parts = next(objective.losses(batch))
    return {name: float(value) for name, value in parts.items()}


def _or_small(shape: Shape, wanted: Shape) -> Shape:
    """A miniature stays one."""
    return wanted if shape.width >= wanted.width else shape


def _finished(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measure(
    setup: Setup, device: str, *, steps: int, names: list[str], size: int = 8192, **sizes: int
) -> Iterator[tuple[str, Result]]:
    """The rows of these names, the machine first."""
    rates = {name: matrix_rate(device, getattr(torch, name), size) for name in ("float32", "bfloat16")}
    card = torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"
    throughputs = {f"{name} TFLOP/s": round(value / 1e12, 2) for name, value in rates.items()}
    yield "machine", {"device": card, "torch": torch.__version__, **throughputs}
    bench = Bench(setup, device, steps, rates["bfloat16"], **sizes)
    for row in names:
        begun = time.perf_counter()
        yield row, ROWS[row](bench) | {"took": round(time.perf_counter() - begun, 1)}


def main(argv: list[str] | None = None) -> int:
    """Measures, prints, and writes where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--only", default=",".join(ROWS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(argv)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here, so nothing was measured; --device cpu tries the script", file=sys.stderr)
        return 0
    if not shared_folder().is_dir():
        print(f"nothing to measure on: no folder {shared_folder()}; MBERT_SHARED=DIR names another", file=sys.stderr)
        return 0
    results: Result = {}
    for row, result in measure(real_setup(), given.device, steps=given.steps, names=given.only.split(",")):
        results[row] = result
        print(row, json.dumps(result, indent=1), flush=True)
        if given.json:
            given.json.parent.mkdir(parents=True, exist_ok=True)
            given.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
