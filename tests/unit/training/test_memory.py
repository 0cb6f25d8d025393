"""Free memory goes back to the system where a process holds more than its first steps did, and then only."""

import ctypes
from types import SimpleNamespace

import pytest

from microbert_cli import distributed


@pytest.fixture
def process(monkeypatch):
    """A process that holds what the test says; counts how often memory was given back."""
    state = SimpleNamespace(held=100, released=0)

    def trim(_):
        state.released += 1

    monkeypatch.setattr(distributed, "_resident_bytes", lambda: state.held)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(malloc_trim=trim))
    monkeypatch.setattr(distributed, "_Held", type("_Held", (), dict(vars(distributed._Held))))
    distributed._Held.needed, distributed._Held.is_fresh = 0, True
    return state


def steps(process, *held):
    """Megabytes after each step."""
    for megabytes in held:
        process.held = megabytes * 2**20
        distributed.release_memory()
    return process.released


def test_more_than_a_fifth_above_the_first_step_goes_back(process):
    assert steps(process, 2000, 300, 2400, 2400) == 0
    assert steps(process, 2401) == 1


def test_of_a_small_process_a_fifth_is_not_worth_it(process):
    assert steps(process, 100, 356) == 0
    assert steps(process, 357) == 1


def test_the_step_after_it_says_whether_more_is_needed(process):
    assert steps(process, 1000, 2000) == 1
    assert steps(process, 3000, 3600, 1000, 3600) == 1
    assert steps(process, 3601) == 2


def test_a_small_step_after_it_does_not_make_a_large_one_too_much(process):
    assert steps(process, 3000, 3601) == 1
    assert steps(process, 100, 3600) == 1


def test_where_the_system_does_not_say_nothing_is_done(process):
    assert steps(process, *[0] * 20) == 0


def test_this_process_holds_memory():
    if held := distributed._resident_bytes():
        block = bytearray(b"x" * 50_000_000)
        assert distributed._resident_bytes() > held + 30_000_000
        del block
