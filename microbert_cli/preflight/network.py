"""Whether the Hub may be asked. A look before the run never asks it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


def is_offline() -> bool:
    """Whether the user forbade the network to the libraries of the Hub."""
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in NAMES)


@contextmanager
def without_network() -> Iterator[None]:
    """Forbids it for the block. Some of those libraries look once, when they are imported, so that should happen inside."""
    before = {name: os.environ.get(name) for name in NAMES}
    os.environ.update(dict.fromkeys(NAMES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
