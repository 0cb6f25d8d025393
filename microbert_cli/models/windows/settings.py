"""How a model reads a text that is longer than its windows; its config.json says so, and every export of it.

    "mbert_windows": {"pool": "mean", "max_length": 128, "stride": 32}

transformers keeps the entry and does not act on it. Nothing here loads torch or transformers.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from microbert_cli.errors import MbertError

FIELD = "mbert_windows"
POOLS = ("mean", "max")
OVERLAP = 4  # a window shares a quarter of its tokens with the one before, where nobody says how many


@dataclass(frozen=True)
class WindowSettings:
    """Windows of `max_length` tokens, special ones included, and how their logits become those of the row.

    pool    mean or max, of each logit by itself
    stride  tokens that a window shares with the one before; as `stride` of transformers' tokenizers
    """

    pool: str
    max_length: int
    stride: int

    def of_length(self, max_length: int) -> "WindowSettings":
        """Returns the settings for windows of another length, in which the stride has to fit."""
        if max_length == self.max_length:
            return self
        return replace(self, max_length=max_length, stride=min(self.stride, max_length // OVERLAP))


def windows_of_model(config: Any, *, where: str = "model") -> WindowSettings | None:
    """Returns how a model reads long texts; None where it reads their beginning. Raises M480 for an entry that says neither."""
    entry = getattr(config, FIELD, None)
    if entry is None:
        return None
    if isinstance(entry, Mapping):
        pool, length, stride = (entry.get(name) for name in ("pool", "max_length", "stride"))
        if pool in POOLS and type(length) is int and type(stride) is int and 0 <= stride < length:
            return WindowSettings(pool, length, stride)
    raise MbertError(
        "M480",
        f"config.json says in {FIELD} how long texts are read, and this is no such entry: {entry}",
        where=where,
        allowed='{"pool": "mean" or "max", "max_length": tokens of a window, "stride": fewer tokens}.',
        fix=f"Take {FIELD} out of config.json: long texts are then cut.",
    )


def mark_windows(config: Any, settings: WindowSettings | None) -> None:
    """Writes into a configuration how the model reads long texts; None = it reads their beginning."""
    if settings is not None:
        setattr(config, FIELD, asdict(settings))
    elif hasattr(config, FIELD):
        delattr(config, FIELD)


def no_windows(what: str, allowed: str, fix: str) -> MbertError:
    """Returns the error for long texts in windows where there can be none."""
    return MbertError(
        "M482",
        f"long texts are to be read in windows, and {what} reads their beginning",
        where="data.windows",
        allowed=allowed,
        fix=fix,
    )
