"""The Hugging Face Hub: which names are ids of it, whether it may be asked, and which errors it raises."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from microbert_cli.errors import MbertError, first_line

# The variables and the words that huggingface_hub, datasets and transformers understand. Each library reads only some of these
# names; here any of them forbids the Hub to all of mbert.
NAMES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
TRUE = ("1", "true", "yes", "on")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w.-]+)?")


def is_offline() -> bool:
    """Whether the user forbade the network to the libraries of the Hub."""
    return any(os.environ.get(name, "").lower() in TRUE for name in NAMES)


@contextmanager
def no_network() -> Iterator[None]:
    """Forbids the network for the block. The libraries read the variables at import, so that should happen inside."""
    before = {name: os.environ.get(name) for name in NAMES}
    os.environ.update(dict.fromkeys(NAMES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def is_hub_id(source: str) -> bool:
    """Whether this can only be a name on the Hub: `owner/name` or `name`, and nothing of that path here."""
    is_id = HUB_ID.fullmatch(source) and not source.startswith(("./", "../", "runs/"))
    return bool(is_id) and not Path(source).exists()


def hub_errors() -> tuple[type[Exception], ...]:
    """The exceptions of a Hub that cannot be reached, refuses, or has no such thing; of its local cache too."""
    from huggingface_hub import errors

    # A failed connection is raised as the HTTP client raises it, and which client that is depends on the version
    # (httpx2 in 2.x, httpx in 1.x). Its errors are no OSError. The ids and the cache raise ValueError.
    http_error: type[Exception] = vars(errors)["HTTPError"]
    return (http_error, OSError, ValueError)


def unreachable(name: str, where: str, error: BaseException) -> MbertError:
    """The error for a model that neither the Hub nor its local cache gave."""
    return MbertError(
        "M204",
        f'"{name}" is no directory here, and the Hub did not give it: {first_line(error)}',
        where=where,
        allowed="A directory, or the id of a model that the Hub or its local cache has.",
        fix=f"{offline_name()} is set: unset it to ask the Hub." if is_offline() else "Check the spelling and the connection.",
    )


def offline_name() -> str:
    """The variable that forbids the Hub; the first of them where none does."""
    return next((name for name in NAMES if os.environ.get(name, "").lower() in TRUE), NAMES[0])
