"""stdin, stdout and stderr as whoever starts a command leaves them: closed, or broken while it runs."""

import os
import sys


def open_closed() -> None:
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


def silence_broken() -> None:
    """Sends what nobody reads, or no disk takes, to the null device: when Python ends it writes it again, and would fail."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
