"""Rows of the table: general distillation at 128 tokens, and the memory it takes.

Every lap is a process of its own, since peak memory can be measured only once in a process; so a lap also shows what a run
costs from its first step on. `python benchmarks/general.py NAME ...` is such a process: it prints one JSON object and is
called by `speed.py`, not by hand.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ours
import plain
import torch
from distilling import plain_pair, steps_lap
from meter import Lap, Watch, compared, in_turns, peak_bytes
from ours import INTERMEDIATE, Pair
from shapes import Sample, Setup, evenly, real_setup

from microbert_cli import distributed
from microbert_cli.data.corpus.blocks import Blocks, BlockSettings, make_blocks
from microbert_cli.evaluation.benchmark import load_average
from microbert_cli.models.device import choose_precision

NEEDED = 20 * 2**30  # bytes free: the published way, with the teacher under autograd, peaks at 16.8 GiB
DOCUMENTS = 1_500  # of the corpus, for the rate: blocks of one text are like those of another
SHORT, TIMES = 5_000, 4  # documents of the short corpus, and how much longer the long one is
AUTO = "mbert, precision auto"  # bfloat16 where the processor multiplies in it, else float32 again
Result = dict[str, Any]


def general(setup: Setup, steps: int, rounds: int, *, autograd: str = "auto") -> Result:
    """General distillation, 128 tokens, batches of 32: steady and whole-run rates, and peak memory."""
    under_autograd = autograd == "yes" or (autograd == "auto" and free_bytes() >= NEEDED)
    flags = ["--autograd"] if under_autograd else []
    contestants = {
        "plain": lambda: child("plain", "--steps", str(steps), *flags),
        "mbert": lambda: child("mbert", "--steps", str(steps)),
        AUTO: lambda: child("mbert", "--steps", str(steps), "--precision", "auto"),
    }
    result = in_turns(contestants, rounds=rounds)
    for each in result["contestants"].values():
        each["steady_rate"] = round(setup.batch_size / each["step_seconds"], 3)
    result = compared(result, {"mbert / plain": 2.0, f"{AUTO} / plain": 2.5})
    return result | steady(result) | {"teacher_under_autograd": under_autograd} | ({} if under_autograd else _note())


def steady(result: Result) -> Result:
    """The targets beside the ratio of whole runs: steady rate or share of the GEMM peak, and memory."""
    of_mbert, of_plain = (result["contestants"][name] for name in ("mbert", "plain"))
    ratio = round(of_mbert["steady_rate"] / of_plain["steady_rate"], 3)
    share, peak = of_mbert.get("of_gemm_peak", 0.0), of_mbert["peak_gib"]
    added = {
        "steady, mbert / plain": {"ratio": ratio, "target": 1.25, "reached": ratio >= 1.25 or share >= 0.85},
        "of_gemm_peak": {"ratio": share, "target": 0.85, "reached": ratio >= 1.25 or share >= 0.85},
        "peak_gib": {"ratio": peak, "target": 3.0, "reached": peak <= 3.0},
    }
    return {"ratios": result["ratios"] | added}


def general_memory(setup: Setup, steps: int, rounds: int) -> Result:
    """mbert's peak memory in general distillation, for a corpus and one four times as long; each with an empty cache."""
    result: Result = {"contestants": {}, "load_before": load_average()}
    for name, documents in (("1x", SHORT), (f"{TIMES}x", SHORT * TIMES)):
        lap = child("mbert", "--steps", str(steps), "--documents", str(documents), "--fresh")
        result["contestants"][name] = {"rate": round(lap.rate, 3), **lap.facts}
    result["load_after"] = load_average()
    short, long = (each["peak_gib"] for each in result["contestants"].values())
    before, after = (each["blocks_gib"] for each in result["contestants"].values())
    ratios = {"peak": long / short, "peak of making blocks": after / before}
    result["ratios"] = {k: {"ratio": round(v, 3), "target": 1.1, "reached": v <= 1.1} for k, v in ratios.items()}
    return result


def free_bytes() -> int:
    """Memory that could be had without swapping, in bytes."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def child(*arguments: str) -> Lap:
    """Runs this file as a process of its own and reads what it measured."""
    command = [sys.executable, __file__, *arguments, "--threads", str(torch.get_num_threads())]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | threads)
    return Lap(**json.loads(done.stdout.splitlines()[-1]))


def lap_of(name: str, setup: Setup, blocks: Blocks, steps: int, *, autograd: bool = False, precision: str = "fp32") -> Lap:
    """`steps` steps from the first on, none of them for warming up; mbert's in a precision, which may be auto."""
    watch, pair = Watch(), Pair(setup, kind="encoder", numerics=choose_precision("cpu", precision=precision))
    sample = sample_of(setup, blocks, steps)
    if name == "mbert":
        distributed.keep_memory()
        pair.watched(watch)
        return ours.training_lap(pair.objective(INTERMEDIATE), sample.batch, steps, watch, warm=0)
    teacher, student, optimiser = plain_pair(pair, watch)

    def train_step(number: int) -> float:
        batch = sample.batch(number, pad_to=setup.corpus_length)
        return plain.intermediate_step(teacher, student, optimiser, batch, autograd=autograd)

    return steps_lap(train_step, sample, steps, watch, warm=0)


def blocks_of(setup: Setup, documents: int) -> Blocks:
    """Training blocks of a corpus that has only the first `documents` of the setup's."""
    assert setup.corpus is not None
    settings = BlockSettings(format="pairs", max_length=setup.corpus_length)
    with tempfile.TemporaryDirectory() as place:
        short = Path(place) / "corpus.txt.gz"
        with gzip.open(short, "wt", encoding="utf-8", compresslevel=1) as file:
            file.writelines(first_documents(setup.corpus, documents))
        return make_blocks(str(short), setup.tokenizer, settings)[0]


def first_documents(corpus: Path, count: int) -> Iterator[str]:
    """The lines of the first documents of a text file, plain or .gz; a blank line ends a document."""
    opened = gzip.open if corpus.suffix == ".gz" else open
    with opened(corpus, "rt", encoding="utf-8") as file:
        for line in file:
            yield line
            count -= not line.strip()
            if not count:
                return


def sample_of(setup: Setup, blocks: Blocks, steps: int) -> Sample:
    """Blocks evenly drawn by length: most are full, a tenth is shorter."""
    rows = evenly(blocks.lengths, steps * setup.batch_size)[:, 0].reshape(steps, -1, order="F")
    return Sample(_Sorted(blocks), list(rows))  # type: ignore[arg-type]


class _Sorted:
    """Blocks as rows that a sample can batch."""

    def __init__(self, blocks: Blocks):
        self.blocks, self.lengths = blocks, blocks.lengths

    def batch(self, rows: Any, pad_to: int | None = None, pad_id: int = 0) -> Any:
        return self.blocks.batch(rows, pad_to)


def _note() -> Result:
    return {"note": "the teacher ran without autograd here: less than 20 GiB were free; the published code holds 16.8 GiB"}


def main() -> None:
    """One lap in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=["plain", "mbert"])
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--precision", default="fp32", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--autograd", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as cache:
        if given.fresh:
            os.environ["MBERT_CACHE"] = cache
        setup = real_setup()
        blocks = blocks_of(setup, given.documents)
        facts = {"blocks": len(blocks), "blocks_gib": round(peak_bytes() / 2**30, 3)}
        lap = lap_of(given.name, setup, blocks, given.steps, autograd=given.autograd, precision=given.precision)
    lap.facts |= facts | {"peak_gib": round(peak_bytes() / 2**30, 3)}
    print(json.dumps(vars(lap)))


if __name__ == "__main__":
    main()
