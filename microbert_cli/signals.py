"""SIGINT and SIGTERM: a training step is finished and saved first, all else stops where it is; both can be gone on from."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from microbert_cli import distributed
from microbert_cli.errors import Exit


class Interrupted(Exception):
    """The user or the system asked to stop; the step was finished and the state saved."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = _code(number)


class Halted(BaseException):
    """The same outside the training loop; what is open is closed on the way out, and nothing takes it for an error."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = _code(number)


def _code(number: int) -> Exit:
    return Exit.INTERRUPTED if number == signal.SIGINT else Exit.TERMINATED


class WorkInterrupted(Exception):
    """A signal in the midst of work that need not be finished."""


class StopSignal:
    """Which signal asked to stop, 0 where none did; the second one leaves at once."""

    def __init__(self) -> None:
        self.number = 0
        self._may_raise = False

    def receive(self, number: int, _: Any) -> None:
        if self.number:
            raise Halted(number)
        self.number = number
        if self._may_raise:
            raise WorkInterrupted

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Work that a signal may end in its midst; several processes go on to where all of them stop."""
        self._may_raise = distributed.world_size() == 1
        try:
            yield
        finally:
            self._may_raise = False


@contextmanager
def collected_signals() -> Iterator[StopSignal]:
    """Collects SIGINT and SIGTERM while the block runs."""
    stop = StopSignal()
    with _handled(stop.receive):
        yield stop


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """While the block runs, both signals raise Halted wherever the program is."""

    def halt(number: int, _: Any) -> None:
        raise Halted(number)

    with _handled(halt):
        yield


@contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    try:
        before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever runs us handles signals
        yield
        return
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
