"""What the proofs share: servers, and the undisturbed run beside which every trial is held."""

from collections.abc import Iterator

import pytest
from fork_server import Server, build_library, missing
from proofs import Crew
from small_run import Bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The small recipe, run once without disturbance; skipped where nothing can be injected."""
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("torture")
    with Server(folder / "server-1", build_library(folder)) as server:
        yield Bench(folder, server)


@pytest.fixture(scope="session")
def alone(bench: Bench) -> Crew:
    """One server."""
    return Crew([bench.server])


@pytest.fixture(scope="session")
def crew(bench: Bench) -> Iterator[Crew]:
    """Two servers, for two cores."""
    with Server(bench.folder / "server-2", bench.folder / "libfaults.so") as second:
        place = bench.place("warm-2")
        assert bench.run(place, server=second, learn=True).code == 0
        yield Crew([bench.server, second])
