"""SIGINT and SIGTERM: a training step is finished and saved first, all else stops where it is; both can be gone on from."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from microbert_cli import processes
from microbert_cli.errors import Exit


class Interrupted(Exception):
    """The user or the system asked to stop; the step was finished and the state saved."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = Exit.INTERRUPTED if number == signal.SIGINT else Exit.TERMINATED


class Terminated(KeyboardInterrupt):
    """SIGTERM outside the training loop: as Ctrl-C, with an exit code of its own."""

    exit_code = Exit.TERMINATED

    def __str__(self) -> str:
        return signal.SIGTERM.name


class StoppedAtOnce(Exception):
    """A signal in the midst of work that need not be finished."""


class Stop:
    """Which signal asked to stop, 0 where none did; the second one leaves at once."""

    def __init__(self) -> None:
        self.number = 0
        self._may_raise = False

    def receive(self, number: int, _: Any) -> None:
        if self.number:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        self.number = number
        if self._may_raise:
            raise StoppedAtOnce

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Work that a signal may end in its midst; several processes go on to where all of them stop."""
        self._may_raise = processes.world() == 1
        try:
            yield
        finally:
            self._may_raise = False


@contextmanager
def signals() -> Iterator[Stop]:
    """Collects SIGINT and SIGTERM while the block runs."""
    stop = Stop()
    try:
        before = {number: signal.signal(number, stop.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever runs us handles signals
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def terminate_cleanly() -> None:
    """From here on SIGTERM raises Terminated wherever the program is, so that whatever is open is closed."""

    def raising(number: int, _: Any) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, raising)
