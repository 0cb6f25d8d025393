"""Results of checks: pass, fail, warn (a person should look), or later (it cannot be checked yet)."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from microbert_cli.errors import MbertError

State = Literal["pass", "later", "warn", "fail"]
STATES: tuple[State, ...] = ("pass", "later", "warn", "fail")  # from best to worst; the worst finding decides


class Later(Exception):
    """Raised for an input that does not exist yet, and need not: an earlier stage makes it, or the Hub gives it."""


@dataclass(frozen=True)
class Finding:
    """One line of a check, about a stage, a file or nothing in particular; `error` says in four parts why it fails."""

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
    """The result of a check: its number, its name, and its findings."""

    number: int
    name: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def state(self) -> State:
        """The state of its worst finding."""
        return max((finding.state for finding in self.findings), key=STATES.index, default="pass")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        findings = [finding.as_dict() for finding in self.findings]
        return {"number": self.number, "name": self.name, "state": self.state, "findings": findings}


def attempt(about: str, check: Callable[..., Finding], *arguments: Any) -> Finding:
    """Calls a check of one thing and returns its finding; an error becomes a finding too, so that the next thing is checked."""
    try:
        return replace(check(*arguments), about=about)
    except Later as reason:
        return Finding("later", f"later: {reason}", about)
    except MbertError as error:
        return failed(error, about)


def failed(error: MbertError, about: str = "") -> Finding:
    """Returns a failed finding."""
    return Finding("fail", error.what, about, error)


def passed(what: str) -> Finding:
    """Returns a passed finding."""
    return Finding("pass", what)


def doubtful(what: str) -> Finding:
    """Returns a warning: a person should look."""
    return Finding("warn", what)
