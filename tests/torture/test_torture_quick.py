"""A few trials of each proof in every `make test`; the long proofs are `make torture`."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fork_server import HERE, build_library, environment, missing
from proofs import calls_to_fail, damaged, damages, failing, killed, kills_in_calls, kills_in_time, scenes, terminated, unsynced
from small_run import STAGES, spread

WRITERS = {
    "Python": r"run/finetune.partial/log\.jsonl",
    "torch": r"run/finetune.partial/resume/phases/finetune/.*",
    "safetensors": r"run/finetune.partial/(.*/)?(\.tmp\w{6}|model\.safetensors)",
    "pyarrow": r"run/evaluate.partial/predictions\.parquet",
}


@pytest.mark.slow
def test_two_undisturbed_runs_are_equal(bench):
    """The Bench itself compares them; and every stage was seen at work."""
    assert {event.stage for event in bench.calls} == set(STAGES)
    assert bench.problems(bench.reference) == []
    assert bench.undisturbed.seconds < 60


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
def test_the_library_sees_what_is_written(bench, writer):
    """By Python, C++, Rust and Arrow, all of it: the bytes of a file are those that were counted."""
    seen = [event.call for event in bench.calls if event.call.kind == "w" and re.fullmatch(WRITERS[writer], event.call.path)]
    size = sum(call.bytes for call in seen)
    finished = {
        "Python": "finetune/log.jsonl",
        "safetensors": "finetune/model.safetensors",
        "pyarrow": "evaluate/predictions.parquet",
    }
    if writer in finished:
        assert size == (bench.reference / "run" / finished[writer]).stat().st_size
    assert size > 1000


@pytest.mark.skipif(bool(missing()), reason=str(missing()))
def test_one_call_fails_once(tmp_path):
    """Also in a process that was started, not forked: how a finding is seen again by hand."""
    variables = environment(build_library(tmp_path)) | {"MBERT_FAULTS": f"{tmp_path}|b*|w|2|4|28|0|{tmp_path}/log"}
    program = f"""
import os
for name in ("a", "b1", "b2"):
    with open(r"{tmp_path}/" + name, "wb", buffering=0) as file:
        for _ in range(2):
            try:
                file.write(b"four")
            except OSError as error:
                print(name, error.errno)
"""
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout == "b1 28\n"
    assert [(tmp_path / name).stat().st_size for name in ("a", "b1", "b2")] == [8, 4, 8]


@pytest.mark.slow
def test_what_gets_its_name_is_on_the_disk(bench):
    assert unsynced(bench) == []


@pytest.mark.slow
def test_killed_and_gone_on(bench, alone):
    kills = spread(kills_in_time(bench, 16, signal.SIGKILL), 2)
    report = killed(bench, alone, kills, inside=kills_in_calls(bench, 3))
    print(report)
    assert not report.failures, report


@pytest.mark.slow
def test_asked_to_stop(bench, alone):
    report = terminated(bench, alone, spread(kills_in_time(bench, 16, signal.SIGTERM, seed=1), 3))
    print(report)
    assert not report.failures, report


@pytest.mark.slow
def test_calls_that_fail(bench, alone):
    report = failing(bench, alone, spread(calls_to_fail(bench, 0), 4))
    print(report)
    assert not report.failures, report


@pytest.mark.torture  # the long proofs beside; tests/commands/test_integrity.py is quicker
def test_damaged_files(bench, alone):
    """One in each category, in folders with little left to do."""
    stopped = scenes(bench, bench.server, after=("augment",), within=("general-distill", "task-distill"), shares=(0.7,))
    report = damaged(bench, alone, damages(stopped, 6, 2))
    print(report)
    assert not report.failures, report


@pytest.mark.torture
def test_memory(tmp_path):
    """Sixteen times as long in `make torture`, and closer."""
    assert_flat(tmp_path, steps=600, slack=0.05)


def assert_flat(folder: Path, steps: int, slack: float) -> None:
    """Resident memory of the second half within `slack` of the first, and no more files open at the end than before."""
    words = [sys.executable, str(HERE / "memory_run.py"), str(folder), str(steps)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    held = json.loads(done.stdout.splitlines()[-1])
    half = len(held["resident"]) // 2
    first, second = (sum(part) / len(part) for part in (held["resident"][:half], held["resident"][half:]))
    grown = second / first - 1
    print(f"Memory: {steps} steps, {first / 1e6:.1f} MB in the first half, {second / 1e6:.1f} MB in the second ({grown:+.2%}),")
    print(f"    open files {min(held['open'])} to {max(held['open'])}")
    assert abs(grown) <= slack
    assert max(held["open"][1:]) == min(held["open"][1:])
