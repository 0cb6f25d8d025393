"""Speed of several models: latency of one sequence and throughput of batches, measured in turn.

A machine's speed changes from minute to minute: heat, other processes, other virtual machines. So models are not measured one
after another: in every round each runs once, A B C A B C, and all medians were measured under the same conditions.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microbert_cli.models.exported.session import thread_count
from microbert_cli.models.windows.pooling import row_count
from microbert_cli.reporter import SILENT, Reporter

Batch = Mapping[str, Any]
WARMUP_ROUNDS, WARMUP_PASSES = 3, 1  # not counted
BUSY = 0.5  # load per core before the measurement, above which a warning is given, unless it was this process that made it
MOST_OTHERS = 0.25  # threads of other processes per core that may run beside it: on 2 cores one is too many
SAMPLES, SAMPLE_SECONDS = 10, 0.02  # of the threads that run


@dataclass(frozen=True)
class TimedModel:
    """A model to time: `answer` runs it on a batch, which its own tokenizer made from the same texts, or on those as "texts".

    single   batches of one row, for latency
    batches  larger ones, for throughput
    """

    answer: Callable[[Batch], object]
    single: Sequence[Batch]
    batches: Sequence[Batch]


@dataclass(frozen=True)
class Speed:
    """The speed of one model.

    latency_ms      median time of one sequence, in milliseconds; latency_p90_ms: nine in ten are faster
    latency_mean_ms the mean, which counts where some rows take longer than others
    throughput      sequences a second, of the median pass over all batches
    throughput_low, throughput_high   of the slowest and the fastest pass
    """

    latency_ms: float
    latency_p90_ms: float
    latency_mean_ms: float
    throughput: float
    throughput_low: float
    throughput_high: float


@dataclass(frozen=True)
class Timings:
    """Speeds by name, and the conditions: threads, cores, sizes, and the load average (1 minute) before and after."""

    speeds: dict[str, Speed]
    threads: int
    cores: int
    rows: int
    batch_size: int
    rounds: int
    passes: int
    load_before: float | None
    load_after: float | None


def in_turn(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = WARMUP_ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Runs all calls in turn, A B C A B C, and returns each one's seconds of every round after the warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warmup + rounds):
        for name, call in calls.items():
            start = clock()
            call()
            elapsed = clock() - start
            if number >= warmup:
                seconds[name].append(elapsed)
    return seconds


def time_interleaved(
    models: Mapping[str, TimedModel],
    *,
    rounds: int = 50,
    passes: int = 5,
    warmup: int = WARMUP_ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
    reporter: Reporter = SILENT,
) -> Timings:
    """Measures latency and throughput of all models in one interleaved run.

    rounds   times each model answers a single row: the same row for all models in a round, rows repeated where they run out
    passes   times each model answers all its batches
    warmup   rounds before that are not measured; of passes it is always one
    Raises ValueError if there is nothing to run, or if models do not answer equally many rows.
    """
    rows = _row_count(models)
    load_before = load_average()
    others = threads_of_others() if load_before is not None and load_before > BUSY * cores() else 0.0
    # The first pass also warms allocators and thread pools for the widest batches, so it comes before the short calls.
    pass_seconds = in_turn(
        {name: _batch_pass(model) for name, model in models.items()}, rounds=passes, warmup=WARMUP_PASSES, clock=clock
    )
    row_seconds = in_turn(
        {name: _single_row(model) for name, model in models.items()}, rounds=rounds, warmup=warmup, clock=clock
    )
    first = next(iter(models.values()))
    timings = Timings(
        speeds={name: _speed(row_seconds[name], pass_seconds[name], rows) for name in models},
        threads=thread_count(),
        cores=cores(),
        rows=rows,
        batch_size=max(_rows_of(batch) for batch in first.batches),
        rounds=rounds,
        passes=passes,
        load_before=load_before,
        load_after=load_average(),
    )
    _warn_if_busy(timings, others, reporter)
    return timings


def load_average() -> float | None:
    """Returns the load average over one minute; None where the system has none."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def cores() -> int:
    """Returns the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _batch_pass(model: TimedModel) -> Callable[[], object]:
    def call() -> None:
        for batch in model.batches:
            model.answer(batch)

    return call


def _single_row(model: TimedModel) -> Callable[[], object]:
    turn = iter(range(10**9))
    return lambda: model.answer(model.single[next(turn) % len(model.single)])


def _speed(short: Sequence[float], whole: Sequence[float], rows: int) -> Speed:
    return Speed(
        latency_ms=1000 * statistics.median(short),
        latency_mean_ms=1000 * statistics.fmean(short),
        latency_p90_ms=1000 * sorted(short)[-(-9 * len(short) // 10) - 1],
        throughput=rows / statistics.median(whole),
        throughput_low=rows / max(whole),
        throughput_high=rows / min(whole),
    )


def _rows_of(batch: Batch) -> int:
    return len(batch["texts"]) if "texts" in batch else row_count(batch)


def threads_of_others() -> float | None:
    """Returns how many threads of other processes run on the machine, a mean over a fifth of a second; None if not known.

    The load average looks back a minute, in which this process may have trained.
    """
    counts = []
    try:
        for _ in range(SAMPLES):
            running = Path("/proc/loadavg").read_text(encoding="ascii").split()[3]
            counts.append(int(running.partition("/")[0]) - 1)  # without the thread that reads
            time.sleep(SAMPLE_SECONDS)
    except (OSError, ValueError, IndexError):
        return None
    return statistics.mean(counts)


def _row_count(models: Mapping[str, TimedModel]) -> int:
    counts = {sum(map(_rows_of, each.batches)) for each in models.values()}
    singles = {len(each.single) for each in models.values()}
    if len(counts) != 1 or len(singles) != 1 or 0 in counts | singles:
        raise ValueError(f"models must answer the same rows; they have {sorted(counts)} in batches, {sorted(singles)} single")
    return counts.pop()


def _warn_if_busy(timings: Timings, others: float | None, reporter: Reporter) -> None:
    """Warns of a busy machine: of a load that was high, and not by what this process has just done.

    others  threads of others that ran when the measurement began, see `threads_of_others`

    On 2 cores, one of them taken by another process, torch answered with a 3 x 312 model in 4 ms on one thread and in
    260 to 390 ms on two, which wait for each other by spinning (10 ms under OMP_WAIT_POLICY=PASSIVE).
    """
    if others is None or others > MOST_OTHERS * timings.cores:
        one_thread = "" if os.environ.get("OMP_NUM_THREADS") == "1" else ", or with OMP_NUM_THREADS=1"
        reporter.warn(
            f"the machine was busy when the measurement began (load {timings.load_before} on {timings.cores} cores): "
            f"torch's times may be many times too long; measure again when it is idle{one_thread}"
        )
