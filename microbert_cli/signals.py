"""Signals and standard streams of the process.

SIGINT and SIGTERM: training finishes and saves its step, all else stops at once; both can be resumed.

An exception raised while a module is imported may abort the process or come out as another error, since compiled modules call
Python where none is expected. There the process leaves by itself: as after SIGKILL, whatever was written can be resumed.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager, suppress

TYPE_CHECKING = False  # not from typing: this is the first file that `mbert` reads, and imports as little as it can
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType
    from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)
EXIT_CODE = 128  # and the number of the signal: 130, 143


class Interrupted(Exception):
    """The user or the system asked to stop; the step is finished and the state is saved."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = EXIT_CODE + number


class Halted(BaseException):
    """The same outside the training loop; a BaseException, so that no handler of errors swallows it."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = EXIT_CODE + number


class WorkInterrupted(Exception):
    """A signal interrupted work that need not be finished."""


class StopSignal:
    """The signal that asked to stop, 0 where there was none; a second one stops at once."""

    def __init__(self) -> None:
        self.number = 0
        self._may_raise = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self.number:  # the second signal: the user does not want to wait for the step
            _halt(number, frame)
        self.number = number
        if self._may_raise and not _imports(frame):
            raise WorkInterrupted

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Lets a signal interrupt the block; of several processes none is interrupted, since all must stop at one place."""
        from microbert_cli import distributed

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


class _Received:
    """The signal for which Halted was raised last, 0 for none."""

    number = 0


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """Raises Halted on both signals while the block runs, also where a library makes another error of it or swallows it."""
    _Received.number = 0
    report = sys.unraisablehook

    def leave_if_halted(unraisable: Any) -> None:
        """Python goes on after an exception in `__del__` or a weak reference's callback: the signal would be lost."""
        if isinstance(unraisable.exc_value, Halted):
            _leave(_Received.number)
        report(unraisable)

    sys.unraisablehook = leave_if_halted
    try:
        with _handled(_halt):
            yield
    except Exception as error:
        if _Received.number:
            raise Halted(_Received.number) from error
        raise
    finally:
        sys.unraisablehook = report


def leave_on_signal() -> None:
    """Lets the process leave on both signals from now on, wherever no block of this file handles them."""
    for number in NUMBERS:
        signal.signal(number, _leave)


def ignore_signals() -> None:
    """Ignores both signals from now on."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def _halt(number: int, frame: FrameType | None) -> None:
    if _imports(frame):
        _leave(number)
    _Received.number = number
    raise Halted(number)


def _leave(number: int, _: FrameType | None = None) -> None:
    """Says what happened and ends the process, without a step of Python in between."""
    if os.environ.get("RANK", "") in ("", "0"):  # of several processes the main one speaks
        with suppress(OSError):
            os.write(2, f"stopped by {signal.Signals(number).name}; the same command goes on from here\n".encode())
    os._exit(EXIT_CODE + number)


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported at this place of the program."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    try:
        before = {number: signal.signal(number, handler) for number in NUMBERS}
    except ValueError:  # not the main thread: whoever runs us handles signals
        yield
        return
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def open_closed_streams() -> None:
    """Opens closed standard streams (`<&-`) on the null device.

    Without that a file opened later would take the number of a stream, and messages of C libraries would go into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w", encoding="utf-8"))


def silence_broken_streams() -> None:
    """Sends what nobody reads, or no disk takes, to the null device: when Python ends it writes it again, and would fail."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
