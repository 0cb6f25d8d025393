"""The long proofs: `make torture`, an hour or less on two cores. Their counts are printed, for docs/reliability.md.

MBERT_TORTURE_KILLS, _TERMS, _FAULTS (of each group of kinds), _FLIPS, _CUTS and _STEPS change the numbers of trials.
"""

import os
import signal

import pytest
from proofs import calls_to_fail, damaged, damages, failing, killed, kills_in_calls, kills_in_time, scenes, terminated
from small_run import spread
from test_torture_quick import assert_flat

pytestmark = pytest.mark.torture


def number(name: str, default: int) -> int:
    return int(os.environ.get(f"MBERT_TORTURE_{name}", default))


@pytest.fixture
def tell(capfd):
    """Shows a report at once, whether the test passes or not."""

    def show(report):
        with capfd.disabled():
            print(f"\n{report}", flush=True)
        assert not report.failures, f"{len(report.failures)} failures, see above"

    return show


def test_kills(bench, crew, tell):
    """At least three in ten of them inside a write, an fsync or a rename."""
    wanted = number("KILLS", 200)
    inside = -(-wanted * 35 // 100)
    report = killed(
        bench,
        crew,
        kills_in_time(bench, wanted - inside, signal.SIGKILL),
        inside=kills_in_calls(bench, inside),
    )
    tell(report)
    done = sum(count for name, count in report.ended.items() if name.startswith(("in time", "inside")))
    assert done >= 0.9 * wanted and sum(c for n, c in report.ended.items() if n.startswith("inside")) >= 0.3 * wanted


def test_terms(bench, crew, tell):
    report = terminated(bench, crew, kills_in_time(bench, number("TERMS", 50), signal.SIGTERM, seed=3))
    tell(report)
    limit = 3 * report.numbers["longest step with its save, s"] + 0.25  # two trials share the machine
    assert report.numbers["slowest to leave, s"] <= limit


@pytest.mark.parametrize("kinds", ["wfr", "ct"])
def test_faults(bench, crew, tell, kinds):
    """Every kind of call of every stage; and beyond what writes: new files and changes of size."""
    indices = calls_to_fail(bench, 150 if kinds == "wfr" else 0, kinds)
    indices = spread(indices, number("FAULTS", len(indices)))
    report = failing(bench, crew, indices, modes=("fail", "fail", "fail", "half, then fail") if kinds == "wfr" else ("fail",))
    report.title += f" ({len(indices)} of the {sum(e.call.kind in kinds for e in bench.calls)} of kinds {kinds} in a run)"
    tell(report)


def test_damage(bench, crew, tell):
    stopped = scenes(bench, bench.server)
    tell(damaged(bench, crew, damages(stopped, number("FLIPS", 500), number("CUTS", 100))))


def test_memory(tmp_path, capfd):
    with capfd.disabled():
        assert_flat(tmp_path, number("STEPS", 10_000), 0.02)
