"""The race: whose turn it is, what counts, what medians come out - with a clock that the test moves."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recording import RecordingReporter

from microbert_cli.evaluation import benchmark
from microbert_cli.evaluation.benchmark import TimedModel, _speed, in_turn, time_interleaved


class Clock:
    """Stands still until a model works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def rows(count: int) -> dict[str, Any]:
    return {"input_ids": [[1, 2]] * count}


def worker(clock: Clock, seconds: float, diary: list[str], name: str) -> Callable[[Any], None]:
    """A model that needs `seconds` a row."""

    def answer(batch: dict[str, Any]) -> None:
        clock.now += seconds * len(batch["input_ids"])
        diary.append(name)

    return answer


def test_everyone_has_a_turn_in_every_round() -> None:
    diary: list[str] = []
    calls = {name: (lambda name=name: diary.append(name)) for name in "ABC"}
    turns = in_turn(calls, rounds=2, warmup=1)
    assert "".join(diary) == "ABCABCABC"
    assert {name: len(seconds) for name, seconds in turns.items()} == {"A": 2, "B": 2, "C": 2}


def test_warm_up_does_not_count() -> None:
    clock = Clock()
    costs = iter([100.0, 50.0, 1.0, 2.0, 3.0])

    def call() -> None:
        clock.now += next(costs)

    assert in_turn({"A": call}, rounds=3, warmup=2, clock=clock) == {"A": [1.0, 2.0, 3.0]}


def test_race_numbers() -> None:
    clock, diary = Clock(), []
    contestants = {
        name: TimedModel(worker(clock, cost, diary, name), single=[rows(1)], batches=[rows(4), rows(3)])
        for name, cost in {"slow": 0.010, "fast": 0.002}.items()
    }
    result = time_interleaved(contestants, rounds=5, passes=3, warmup=2, clock=clock)
    slow, fast = result.speeds["slow"], result.speeds["fast"]
    assert slow.latency_ms == pytest.approx(10) and fast.latency_ms == pytest.approx(2)
    assert slow.throughput == pytest.approx(100) and fast.throughput == pytest.approx(500)
    assert fast.throughput_low == pytest.approx(fast.throughput_high)
    assert (result.rows, result.batch_size, result.rounds, result.passes) == (7, 4, 5, 3)
    assert diary == ["slow", "slow", "fast", "fast"] * 4 + ["slow", "fast"] * 7


def test_p90() -> None:
    speed = _speed([0.001] * 9 + [5.0], [1.0, 2.0, 4.0], rows=8)
    assert (speed.latency_ms, speed.latency_p90_ms) == (1.0, 1.0)
    assert (speed.throughput, speed.throughput_low, speed.throughput_high) == (4.0, 2.0, 8.0)
    assert _speed([0.001] * 8 + [5.0] * 2, [1.0], rows=1).latency_p90_ms == 5000.0


def test_single_rows_are_gone_through_in_step() -> None:
    seen: dict[str, list[int]] = {"A": [], "B": []}

    def answer(name: str) -> Callable[[Any], None]:
        return lambda batch: seen[name].append(batch["input_ids"][0][0])

    single = [{"input_ids": [[number]]} for number in range(3)]
    contestants = {name: TimedModel(answer(name), single, [{"input_ids": [[9]]}]) for name in seen}
    time_interleaved(contestants, rounds=5, passes=1, warmup=0)
    assert seen["A"] == seen["B"] == [9, 9, 0, 1, 2, 0, 1]


@pytest.mark.parametrize("other", [TimedModel(print, [rows(1)], [rows(5)]), TimedModel(print, [rows(1)] * 2, [rows(4)])])
def test_unequal_work_is_refused(other: TimedModel) -> None:
    with pytest.raises(ValueError, match="same rows"):
        time_interleaved({"A": TimedModel(print, [rows(1)], [rows(4)]), "B": other})


def test_nothing_to_run_is_refused() -> None:
    with pytest.raises(ValueError):
        time_interleaved({})
    with pytest.raises(ValueError):
        time_interleaved({"A": TimedModel(print, [], [])})


def test_a_busy_machine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = RecordingReporter()
    monkeypatch.setattr(benchmark, "cores", lambda: 2)
    contestants = {"A": TimedModel(lambda batch: None, [rows(1)], [rows(1)])}
    # A load of this process's own training is none when the measurement begins; where it cannot be told, it is said.
    for load, others, warnings in ((0.2, 1.0, 0), (3.5, 1.0, 1), (3.5, 0.1, 1), (3.5, None, 2)):
        monkeypatch.setattr(benchmark, "load_average", lambda load=load: load)
        monkeypatch.setattr(benchmark, "threads_of_others", lambda others=others: others)
        assert time_interleaved(contestants, rounds=1, passes=1, reporter=reporter).load_before == load
        assert len(reporter.warnings) == warnings
    assert "load 3.5 on 2 cores" in reporter.warnings[0]


@pytest.mark.skipif(not Path("/proc/loadavg").is_file(), reason="the system does not say what runs")
def test_threads_that_run_beside_this_one_are_counted() -> None:
    before = benchmark.threads_of_others()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        time.sleep(0.5)
        beside = benchmark.threads_of_others()
        other.kill()
    assert before is not None and before >= 0 and beside is not None and beside >= 0.9
