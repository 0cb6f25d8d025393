"""Whether the Hub may be asked. A look before the run never asks it."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from microbert_cli.errors import MbertError, first_line

NAMES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


def is_offline() -> bool:
    """Whether the user forbade the network to the libraries of the Hub."""
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in NAMES)


@contextmanager
def no_network() -> Iterator[None]:
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


HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w.-]+)?")


def is_hub_id(source: str) -> bool:
    """Whether this can only be a name on the Hub: `owner/name` or `name`, and nothing of that path here."""
    looks = HUB_ID.fullmatch(source) and not source.startswith(("./", "../", "runs/"))
    return bool(looks) and not Path(source).exists()


def unreachable(name: str, where: str, error: BaseException) -> MbertError:
    """The error for a model that neither the Hub nor its local cache gave."""
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    return MbertError(
        "M204",
        f'"{name}" is no directory here, and the Hub did not give it: {first_line(error)}',
        where=where,
        allowed="A directory, or the id of a model that the Hub or its local cache has.",
        fix="HF_HUB_OFFLINE is set: unset it to ask the Hub." if offline else "Check the spelling and the connection.",
    )
