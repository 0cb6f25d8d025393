"""The Hugging Face Hub: which names are ids of it, whether it may be asked, and which errors it raises."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from microbert_cli.errors import MbertError, first_line

# The variables and the words that huggingface_hub, datasets and transformers understand. Each library reads only some of these
# names; here any of them forbids the Hub to all of mbert.
NAMES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
TRUE = ("1", "true", "yes", "on")
TIMEOUTS = (2.0, 5.0, 5.0, 5.0)  # seconds for connecting, an answer's next bytes, sending, and a free connection
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
    return bool(is_id) and not os.path.lexists(source)


def hub_errors() -> tuple[type[Exception], ...]:
    """The exceptions of a Hub that cannot be reached, refuses, or has no such thing; of its local cache too."""
    from huggingface_hub import errors

    # A failed connection is raised as the HTTP client raises it, and which client that is depends on the version
    # (httpx2 in 2.x, httpx in 1.x). Its errors are no OSError. The ids and the cache raise ValueError.
    http_error: type[Exception] = vars(errors)["HTTPError"]
    return (http_error, OSError, ValueError)


def ask_hub(repository: str, kind: Literal["model", "dataset"], *, revision: str | None = None) -> Any:
    """Returns what the Hub says of a repository, after one request with a time limit; raises `hub_errors()`.

    Asked before a download: without it the libraries try five times after longer and longer waits, or wait for ever.
    """
    from huggingface_hub import HfApi

    timeout: Any = TIMEOUTS  # declared as one number, and given to the HTTP client, which takes four
    return HfApi().repo_info(repository, repo_type=kind, revision=revision, timeout=timeout)


def cached_dataset(name: str, config: str | None, split: str) -> Any:
    """Returns a split as the `datasets` library keeps it after an earlier download, else None; the network is not asked."""
    import datasets

    stem = re.escape(f"{name.split('/')[-1]}-{split}")
    pattern = re.compile(rf"{stem}(-\d+-of-\d+)?\.arrow")
    files = [file for file in dataset_cache(name).glob(f"{config or '*'}/**/*.arrow") if pattern.fullmatch(file.name)]
    if not files:
        return None
    newest = max({file.parent for file in files}, key=lambda folder: (folder.stat().st_mtime, str(folder)))
    parts = [datasets.Dataset.from_file(str(file)) for file in sorted(files) if file.parent == newest]
    return datasets.concatenate_datasets(parts)


def dataset_cache(name: str) -> Path:
    """Returns where the `datasets` library keeps a data set."""
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")


def unreachable(name: str, where: str, error: BaseException) -> MbertError:
    """The error for a model that neither the Hub nor its local cache gave."""
    return MbertError(
        "M204",
        f'"{name}" is no directory here, and the Hub did not give it: {first_line(error)}',
        where=where,
        allowed="A directory, or the id of a model that the Hub or its local cache has.",
        fix=hub_advice(error),
    )


def hub_advice(error: BaseException, otherwise: str = "") -> str:
    """Returns what to do about a Hub that gave nothing; `otherwise` names what may be done without it."""
    if is_offline():
        advice = f"{offline_name()} is set: unset it to ask the Hub"
    elif getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
        advice = "Check the spelling; if it is private or gated: hf auth login"
    else:
        advice = "Check the spelling and the connection"
    return f"{advice}, or {otherwise}." if otherwise else f"{advice}."


def offline_name() -> str:
    """The variable that forbids the Hub; the first of them where none does."""
    return next((name for name in NAMES if os.environ.get(name, "").lower() in TRUE), NAMES[0])
