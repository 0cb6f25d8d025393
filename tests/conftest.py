"""What every test shares: a quiet, offline, deterministic process, and the way to the shared folder."""

import os

# Read by libraries when they are imported, so they are set before any of them is.
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE"  # without bfloat16 products, so that every processor says the same
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: a second thread costs more than it brings

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from untraced import load_libraries

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """A worker that measures coverage does not measure libraries."""
    if hasattr(config, "workerinput") and config.getoption("cov_source", None):
        load_libraries()


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference numbers, models and data; a test that asks for it is skipped where there is none."""
    path = Path(os.environ.get("MBERT_SHARED") or ROOT.parent / "shared")
    if not path.is_dir():
        pytest.skip(f"no shared folder at {path}; MBERT_SHARED=DIR names another")
    return path


def is_loopback(address: Any) -> bool:
    """Whether a socket address stays on this machine. Paths of Unix sockets do; names that need a look-up do not."""
    if not isinstance(address, tuple):
        return True
    host = str(address[0])
    return host in ("localhost", "::1", "") or host.startswith("127.")


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests cache stays out of the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MBERT_CACHE", str(tmp_path_factory.mktemp("mbert-cache")))
        yield


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache that the tests of one module share, for modules that ask for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MBERT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Connections that leave this machine fail at once: no test, and nothing it calls, may need the network."""

    def guarded(original: Any) -> Any:
        def connect(self: socket.socket, address: Any) -> Any:
            if not is_loopback(address):
                raise OSError(f"a test tried to connect to {address[0]}; only loopback is allowed")
            return original(self, address)

        return connect

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
        yield
