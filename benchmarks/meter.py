"""Measuring: contestants in turn, A B C A B C, medians, and what they were worth in floating-point operations.

Wall time, user-CPU time, executed FLOPs and tokens are those of the measured steps alone, not of warming up. FLOPs are counted
as in `microbert_cli.counting`: matrix products only, a multiplication and an addition each as one operation, padding included;
a training step is three forward passes. What they are compared with is the speed of one large product on the same threads,
measured in every round of the same run.
"""

import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from microbert_cli.evaluation.benchmark import cores, load_average
from microbert_cli.models.size import batch_flops

QUIET = 2.3  # a run at a higher load says nothing: two threads that wait for a third process collapse
GEMM = 2048  # rows and columns of the product that stands for the machine's peak
FORWARD, TRAINING = 1, 3  # forward passes' worth of products


@dataclass
class Lap:
    """One turn of one contestant.

    samples   rows, sentences or blocks;  seconds, of each step;  cpu, user seconds of all threads
    flops, tokens, real   executed by the models that were watched; `real` leaves padding out
    """

    samples: int = 0
    seconds: list[float] = field(default_factory=list)
    cpu: float = 0.0
    flops: float = 0.0
    tokens: int = 0
    real: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.samples / sum(self.seconds)


class Watch:
    """Times steps, and counts what watched models execute while it runs."""

    def __init__(self) -> None:
        self.running = False
        self._lap = Lap()
        self._begun = self._cpu = 0.0

    def start(self) -> None:
        """A step begins."""
        self.running, self._cpu, self._begun = True, user_seconds(), time.perf_counter()

    def stop(self, samples: int = 0) -> None:
        """The step ends; nothing happens where none was begun."""
        if not self.running:
            return
        self._lap.seconds.append(time.perf_counter() - self._begun)
        self._lap.cpu += user_seconds() - self._cpu
        self._lap.samples += samples
        self.running = False

    def lap(self) -> Lap:
        """What was measured since the last lap."""
        done, self._lap = self._lap, Lap()
        return done

    def sees(self, encoder: Any, passes: int = FORWARD, *, heads: Callable[[int, int], float] | None = None) -> None:
        """Counts every forward pass of an encoder that is called with input_ids and attention_mask by name.

        passes  how many forward passes' worth of work a call is; heads  further FLOPs of a call, from rows and width
        """

        def count(_: Any, __: Any, given: Mapping[str, Any]) -> None:
            mask = given.get("attention_mask")
            if not self.running or mask is None:  # without a mask it is mbert's way to apply a head alone
                return
            rows, width = mask.shape
            single = type(encoder.encoder.layer[-1]).__name__ == "_FirstToken" if hasattr(encoder, "encoder") else False
            sizes = {"rows": rows, "tokens": rows * width, "squares": rows * width**2}
            self._lap.flops += passes * (batch_flops(encoder.config, **sizes, first_token=single) or 0)
            self._lap.flops += heads(rows, width) if heads else 0.0
            self._lap.tokens += rows * width
            self._lap.real += int(mask.sum())

        encoder.register_forward_pre_hook(count, with_kwargs=True)


def user_seconds() -> float:
    """User-CPU time of this process so far, all threads."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def peak_bytes() -> int:
    """The most memory this process has held; not `ru_maxrss`, which starts from the parent's."""
    for line in open("/proc/self/status", encoding="ascii"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def gemm_gflops(size: int, repeats: int = 5) -> float:
    """The best of some single-precision products [size x size], in GFLOP/s."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    out = left @ right
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def in_turns(contestants: Mapping[str, Callable[[], Lap]], *, rounds: int) -> dict[str, Any]:
    """`rounds` laps of every contestant, in turn; what came of it, by name, with the conditions."""
    load_before, start = load_average(), time.perf_counter()
    laps: dict[str, list[Lap]] = {name: [] for name in contestants}
    peaks = []
    for _ in range(rounds):
        peaks.append(gemm_gflops(GEMM))
        for name, call in contestants.items():
            laps[name].append(call())
    peak, load_after = median(peaks), load_average()
    return {
        "contestants": {name: summary(each, peak) for name, each in laps.items()},
        "gemm_gflops": round(peak, 1),
        "gemm_gflops_rounds": [round(each, 1) for each in peaks],
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "cores": cores(),
        "load_before": load_before,
        "load_after": load_after,
        "quiet": all(load is None or load < QUIET for load in (load_before, load_after)),
        "seconds": round(time.perf_counter() - start, 1),
    }


def summary(laps: list[Lap], peak: float) -> dict[str, Any]:
    """The numbers of one contestant: medians over its laps, and every lap's rate."""
    seconds = sum(sum(lap.seconds) for lap in laps)
    samples = sum(lap.samples for lap in laps)
    steps = [each for lap in laps for each in lap.seconds]
    numbers: dict[str, Any] = {
        "rate": _short(median(lap.rate for lap in laps)),
        "rates": [_short(lap.rate) for lap in laps],
        "whole_rate": _short(samples / seconds),
        "step_seconds": _short(median(steps)),
        "steps": len(steps),
        "samples": samples,
        "user_cpu_per_sample": _short(sum(lap.cpu for lap in laps) / samples),
        "user_cpu_seconds": round(sum(lap.cpu for lap in laps), 2),
        "user_cpu_per_wall": round(sum(lap.cpu for lap in laps) / seconds, 2),
    }
    if tokens := sum(lap.tokens for lap in laps):
        gflops = sum(lap.flops for lap in laps) / seconds / 1e9
        numbers |= {
            "gflops": float(f"{gflops:.4g}"),
            "of_gemm_peak": float(f"{gflops / peak:.3g}"),
            "tokens_per_second": round(tokens / seconds),
            "useful_tokens": round(sum(lap.real for lap in laps) / tokens, 4),
        }
    facts = {key: value for lap in laps for key, value in lap.facts.items()}
    return numbers | facts


def compared(result: dict[str, Any], targets: Mapping[str, float]) -> dict[str, Any]:
    """`found` with the ratios of rates that have a target, such as "mbert / plain"."""
    rates = {name: each["rate"] for name, each in result["contestants"].items()}
    ratios = {}
    for pair, target in targets.items():
        first, second = pair.split(" / ")
        if first in rates and second in rates:
            ratio = rates[first] / rates[second]
            ratios[pair] = {"ratio": round(ratio, 3), "target": target, "reached": ratio >= target}
    return result | {"ratios": ratios}


def _short(value: float) -> float:
    return float(f"{value:.4g}")
