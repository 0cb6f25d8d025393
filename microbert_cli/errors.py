"""Every failure a user can cause, with a stable code, an exit code and four parts.

The hundreds of a code decide the exit code, so a new error needs no second table:

    M0xx recipe invalid (3)     M1xx usage (2)               M2xx input missing (4)
    M3xx data corrupt (5)       M4xx diverged (6)            M5xx optional dependency (7)
    M6xx a check failed (1)
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from itertools import islice
from typing import Any

from microbert_cli.text import safe_text, shortened

MAX_ERRORS = 20  # shown at once; thousands of wrong keys take as long to explain as nobody waits
MAX_CANDIDATES = 1000  # names that are compared with a wrong one, to guess which was meant
MAX_COMPARED = 100  # characters of them


class Exit(IntEnum):
    """Exit codes of the `mbert` command."""

    DONE = 0
    CHECK_FAILED = 1
    USAGE = 2
    RECIPE = 3
    INPUT = 4
    CORRUPT = 5
    DIVERGED = 6
    DEPENDENCY = 7
    BUG = 70
    INTERRUPTED = 130
    TERMINATED = 143
    BROKEN_PIPE = 141


FAMILIES = {
    "0": Exit.RECIPE,
    "1": Exit.USAGE,
    "2": Exit.INPUT,
    "3": Exit.CORRUPT,
    "4": Exit.DIVERGED,
    "5": Exit.DEPENDENCY,
    "6": Exit.CHECK_FAILED,
}


class MbertError(Exception):
    """An error that a user can mend, in four parts.

    what     what was wrong, with the offending value
    where    where it came from: `file:key`, `file, line 12`, or an option
    allowed  what is allowed, nearest match first
    fix      the command or edit that mends it
    details  what was measured before a check failed

    The parts quote what users and files say, so they are made harmless here, once for terminal, JSON and Python.
    """

    details: Mapping[str, Any] = {}  # on the class, so that an error without any needs no argument

    def __init__(self, code: str, what: str, *, where: str, allowed: str, fix: str):
        self.code = code
        parts = (safe_text(shortened(part)) for part in (what, where, allowed, fix))
        self.what, self.where, self.allowed, self.fix = parts
        super().__init__(self.what)

    @property
    def exit_code(self) -> Exit:
        return FAMILIES[self.code[1]]

    def __str__(self) -> str:
        pad = "\n" + " " * (len(self.code) + 3)
        return f"[{self.code}] {self.where}: {self.what}{pad}{self.allowed}{pad}{self.fix}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "exit_code": int(self.exit_code),
            "what": self.what,
            "where": self.where,
            "allowed": self.allowed,
            "fix": self.fix,
        }


class DivergedError(MbertError):
    """Training came to a loss or a gradient that is no finite number: M401. Who tries several values goes on with the next."""

    def __init__(self, what: str, *, where: str, allowed: str, fix: str):
        super().__init__("M401", what, where=where, allowed=allowed, fix=fix)


class RowsMissingError(MbertError):
    """The rows of a task lie nowhere on this machine: M250. They may still come from the Hub."""

    def __init__(self, what: str, *, where: str, allowed: str, fix: str):
        super().__init__("M250", what, where=where, allowed=allowed, fix=fix)


class ManyErrors(MbertError):
    """All errors of a recipe at once, or its first ones and that there are more; its code is that of the first."""

    def __init__(self, errors: Sequence[MbertError], *, more: bool = False):
        first = errors[0]
        super().__init__(first.code, first.what, where=first.where, allowed=first.allowed, fix=first.fix)
        self.errors = list(errors)
        self.more = more

    def __str__(self) -> str:
        text = "\n".join(str(error) for error in self.errors)
        return f"{text}\nThere are more; these {len(self.errors)} come first." if self.more else text

    def as_dict(self) -> dict[str, Any]:
        return super().as_dict() | {"errors": [error.as_dict() for error in self.errors], "more_errors": self.more}


def combine_errors(errors: Iterable[MbertError]) -> MbertError:
    """Returns a single error itself, or the first MAX_ERRORS as one; of an iterator it takes no more than it must."""
    first = list(islice(errors, MAX_ERRORS + 1))
    return first[0] if len(first) == 1 else ManyErrors(first[:MAX_ERRORS], more=len(first) > MAX_ERRORS)


def key_location(origin: str, key: str) -> str:
    """Returns where a key was set: `mine.toml, finetune.epochs`; for `--set finetune.epochs` the option alone."""
    return origin if origin.split(" ")[-1] == key else f"{origin}, {key}"


def key_of_location(where: str) -> str:
    """Returns the key in a location made by `key_location`."""
    return where.rpartition(", ")[2].removeprefix("--set ")


def nearest(name: str, options: Iterable[str], unlisted: Iterable[str] = ()) -> str:
    """Returns the allowed names and the most similar one: `a, b, c. Did you mean "b"?`

    unlisted  names that may be meant, too, and are not listed
    """
    options = sorted(options)
    candidates = [option for option in (*options, *unlisted) if len(option) <= MAX_COMPARED]
    if len(candidates) > MAX_CANDIDATES:  # who mistypes a name mostly begins it right
        candidates = [option for option in candidates if option[:1] == name[:1]][:MAX_CANDIDATES]
    close = difflib.get_close_matches(name[:MAX_COMPARED], candidates, n=1, cutoff=0.6)
    hint = f' Did you mean "{close[0]}"?' if close else ""
    return f"{', '.join(options) or '(none)'}.{hint}"


def first_line(error: BaseException) -> str:
    """Returns the first line of another library's message, or the name of its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def unreadable_model(path: object, where: str, error: BaseException) -> MbertError:
    """The error for a model that is there but cannot be read."""
    return MbertError(
        "M302",
        f"this model cannot be read: {first_line(error)}",
        where=f"{where} {path}",
        allowed="A whole Hugging Face directory: config.json, tokenizer files, model.safetensors of full length.",
        fix=f"Compare its files with their source; one made by mbert is checked against {path}/manifest.json.",
    )
