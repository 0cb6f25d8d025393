"""What a disk refuses, as errors with four parts, and how much room it has."""

import errno
import os
import re
import shutil
from pathlib import Path

from microbert_cli.errors import MbertError
from microbert_cli.runs import atomic, manifest

NEARLY_FULL = 2**20  # bytes
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.ENXIO)


def write_file(path: Path, text: str) -> None:
    """Writes a result that the user asked for by name, whole or not at all; raises M220, M221."""
    try:
        atomic.write_text(path, text)
    except OSError as error:
        raise cannot_write(error, path) from error


def disk_error(error: BaseException, out: Path) -> int | None:
    """Returns the errno of an error of the disk (ENOSPC, EIO ...), None for any other error.

    safetensors says the number in words alone, torch not even that.
    """
    if isinstance(error, OSError):
        return error.errno if error.errno in DISK_ERRORS else None
    message = str(error)
    if match := re.search(r"os error (\d+)", message):
        return int(match[1])
    if any(phrase in message for phrase in ("PytorchStreamWriter", "inline_container", "iostream error")):
        return errno.ENOSPC if free_bytes(out) < NEARLY_FULL else errno.EIO
    return None


def cannot_write(error: OSError, path: Path) -> MbertError:
    """Returns the error for a place that takes no file, whatever the reason."""
    return disk_refused(error.errno or errno.EIO, f"-o {path}")


def disk_refused(number: int, where: str) -> MbertError:
    """Returns the error for a disk that is full, failing, or not ours to write to."""
    if number in (errno.ENOSPC, errno.EDQUOT):
        return MbertError(
            "M220",
            f"the disk is full: {os.strerror(number)}",
            where=where,
            allowed="Nothing was lost: finished work is whole, begun work waits in the .partial directory beside.",
            fix=f"Make room, then the same command again: {' '.join(manifest.command_line())}",
        )
    return MbertError(
        "M221",
        f"nothing can be written here: {os.strerror(number)}",
        where=where,
        allowed="A place in a folder that is there, or can be made, and may be written to; finished work is not touched.",
        fix=f"Choose another -o, or look at the folder: ls -ld {Path(where.removeprefix('-o ')).parent}",
    )


def free_bytes(path: Path) -> int:
    """Returns the free bytes on the disk that holds `path`."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
