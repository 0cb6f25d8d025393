"""What a check says: it passes, it fails, a person should look, or it cannot be looked at yet."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from microbert_cli.errors import MbertError

State = Literal["pass", "later", "warn", "fail"]
STATES: tuple[State, ...] = ("pass", "later", "warn", "fail")  # the last one there is decides


class Later(Exception):
    """What is to be looked at is not there yet, and need not be: an earlier stage makes it, or the Hub gives it."""


@dataclass(frozen=True)
class Finding:
    """One line of a check: about a stage, a file or nothing in particular; `error` is why it fails, in four parts."""

    state: State
    what: str
    about: str = ""
    error: MbertError | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain: dict[str, Any] = {"state": self.state, "about": self.about, "what": self.what}
        return plain | ({"error": self.error.as_dict()} if self.error else {})


@dataclass(frozen=True)
class Result:
    """A check that was made: its number, its name, and what it found."""

    number: int
    name: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def state(self) -> State:
        """That of its worst finding."""
        return max((finding.state for finding in self.findings), key=STATES.index, default="pass")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        findings = [finding.as_dict() for finding in self.findings]
        return {"number": self.number, "name": self.name, "state": self.state, "findings": findings}


def attempt(about: str, look: Callable[..., Finding], *arguments: Any) -> Finding:
    """What a look at one thing finds; its error is a finding too, so that the next thing is looked at all the same."""
    try:
        return replace(look(*arguments), about=about)
    except Later as reason:
        return Finding("later", f"later: {reason}", about)
    except MbertError as error:
        return failed(error, about)


def failed(error: MbertError, about: str = "") -> Finding:
    """A cross."""
    return Finding("fail", error.what, about, error)


def passed(what: str) -> Finding:
    """A tick."""
    return Finding("pass", what)


def doubtful(what: str) -> Finding:
    """Neither: a person should look."""
    return Finding("warn", what)
