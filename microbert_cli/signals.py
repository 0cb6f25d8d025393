"""SIGINT and SIGTERM: training finishes and saves its step, all else stops at once; both can be resumed."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from microbert_cli import distributed
from microbert_cli.errors import Exit


class Interrupted(Exception):
    """The user or the system asked to stop; the step is finished and the state is saved."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = _code(number)


class Halted(BaseException):
    """The same outside the training loop; a BaseException, so that no handler of errors swallows it."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = _code(number)


def _code(number: int) -> Exit:
    return Exit.INTERRUPTED if number == signal.SIGINT else Exit.TERMINATED


class WorkInterrupted(Exception):
    """A signal interrupted work that need not be finished."""


class StopSignal:
    """The signal that asked to stop, 0 where there was none; a second one stops at once."""

    def __init__(self) -> None:
        self.number = 0
        self._may_raise = False

    def receive(self, number: int, _: Any) -> None:
        if self.number:  # the second signal: the user does not want to wait for the step
            raise Halted(number)
        self.number = number
        if self._may_raise:
            raise WorkInterrupted

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Lets a signal interrupt the block; of several processes none is interrupted, since all must stop at one place."""
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
    """Raises Halted on both signals while the block runs."""

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
