"""How long a command says nothing: python benchmarks/silence.py [--tty] [--json FILE] -- mbert general-distill ...

Runs the command, notes when it writes to stdout or stderr, and prints the seconds to the first output, the longest silence
and what was written before it. `--tty` gives the command a terminal of 100 columns, on which bars are drawn.
"""

import argparse
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def opened(command: list[str], *, tty: bool) -> tuple[subprocess.Popen[bytes], int]:
    """Starts a command; returns its process and a descriptor that all of its output can be read from."""
    if not tty:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        return process, process.stdout.fileno()
    descriptor, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    return process, descriptor


def outputs(descriptor: int) -> Iterator[bytes]:
    """Yields what is written until nobody can write any more."""
    while True:
        try:
            text = os.read(descriptor, 65536)
        except OSError:  # how a terminal says that its other end is closed
            return
        if not text:
            return
        yield text


def silences(command: list[str], *, tty: bool) -> dict[str, Any]:
    """Returns seconds to the first output, the longest silence after it, and the last line before that."""
    begun = last = time.monotonic()
    process, descriptor = opened(command, tty=tty)
    first, longest, line, before = 0.0, 0.0, "", ""
    for text in outputs(descriptor):
        now = time.monotonic()
        if not first:
            first = now - begun
        elif now - last > longest:
            longest, before = now - last, line
        last, line = now, text.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1][-120:]
        sys.stderr.buffer.write(text)
        sys.stderr.flush()
    status = process.wait()
    return {
        "tty": tty,
        "exit": status,
        "seconds": round(time.monotonic() - begun, 1),
        "first output after, s": round(first, 2),
        "longest silence, s": round(longest, 2),
        "last line before it": before,
        "load": os.getloadavg(),
    }


def main(argv: list[str] | None = None) -> int:
    """Runs, measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tty", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args(argv)
    result = silences(given.command, tty=given.tty)
    print(json.dumps(result, indent=1))
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(result["exit"])


if __name__ == "__main__":
    sys.exit(main())
