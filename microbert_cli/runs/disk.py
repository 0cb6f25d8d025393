"""What a disk refuses, as errors with four parts, and how much room it has."""

import errno
import os
import re
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path

from microbert_cli import distributed
from microbert_cli.errors import MbertError
from microbert_cli.runs import atomic
from microbert_cli.text import command_line

STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
MAX_LINKS = 40  # as many as Linux follows
NEARLY_FULL = 2**20  # bytes
DISK_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.ENXIO,
    errno.EBADF,  # a stream that the shell opened for reading alone
)  # fmt: skip


def write_file(path: Path, parts: str | Iterable[str]) -> None:
    """Writes a result, or its parts as they come, where the user wants it; raises M220, M221.

    A plain file is there whole or not at all, with the mode that it had; of a link the target is written, and the link stays.
    Anything else, such as /dev/null, /dev/stdout or a FIFO, is written into.
    """
    if not distributed.is_main():
        return
    parts = [parts] if isinstance(parts, str) else parts
    try:
        target = _follow_links(path)
        if (stream := _stream_number(target)) is not None:
            target, opened = path, os.dup(stream)
        elif target.exists() and not target.is_file():
            opened = os.open(target, os.O_WRONLY)
        else:
            _replace(target, parts)
            return
        with open(opened, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(parts)
    except OSError as error:
        raise cannot_write(error, path) from error


def check_writable(path: Path) -> None:
    """Raises M221 where a result cannot be written, as far as that can be seen before the work."""
    try:
        target = _follow_links(path)
        if _stream_number(target) is not None:
            return
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not target.exists() and not target.parent.is_dir():
            missing = errno.ENOTDIR if target.parent.exists() else errno.ENOENT
            raise OSError(missing, os.strerror(missing), str(path))
        if not os.access(target if target.exists() else target.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    except OSError as error:
        raise cannot_write(error, path) from error


def is_standard_output(path: Path) -> bool:
    """Whether what is written there goes where the command's own output goes."""
    try:
        return _stream_number(_follow_links(path)) == 1
    except OSError:
        return False


def _follow_links(path: Path) -> Path:
    """What a link leads to at last, there or not; of a stream of this process the name that stands for it.

    `Path.resolve` would go on from /dev/stdout to the file behind it, which the shell has opened and others may write to.
    """
    for _ in range(MAX_LINKS):
        if _stream_number(path) is not None or not path.is_symlink():
            return path
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _stream_number(path: Path) -> int | None:
    """The number of the open file of this process that a path names: 1 for /dev/stdout; None for any other path."""
    name = os.path.normpath(path.absolute())
    if match := re.fullmatch(rf"(?:/dev|/proc/(?:self|{os.getpid()}))/fd/(\d+)", name):
        return int(match[1])
    return STREAMS.get(name)


def _replace(target: Path, parts: Iterable[str]) -> None:
    """Writes a plain file, atomically where its folder allows it."""
    before = target.stat() if target.exists() else None
    # A file that is ours in a folder that is not, or one that a container mounts by itself, can only be written into.
    into = () if before is None else (errno.EACCES, errno.EPERM, errno.EBUSY)
    opened = False
    try:
        with atomic.atomic_write(target, like=before, in_place=into) as temporary:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                opened = True
                file.writelines(parts)
    except OSError as error:
        if opened or error.errno not in into:
            raise
        with target.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(parts)


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


def path_refused(error: OSError) -> MbertError | None:
    """Returns the error for a path that the system refuses, to read or to write; None where it failed for another reason."""
    path = Path(os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ".").absolute()
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        is_long = error.errno == errno.ENAMETOOLONG
        return MbertError(
            "M224",
            f"this path cannot be opened: {os.strerror(error.errno)}",
            where=str(path),
            allowed="Names of at most 255 bytes, and paths of at most 4,096."
            if is_long
            else "Links that lead to a file or folder.",
            fix="Choose a shorter name." if is_long else f"Look where the link leads: ls -ld {shlex.quote(str(path))}",
        )
    if error.errno in (errno.EACCES, errno.EPERM) and (closed := unreadable_part(path)):
        return may_not_be_read(closed, str(path))
    return disk_refused(error.errno, str(path)) if error.errno in DISK_ERRORS else None


def may_not_be_read(closed: Path, where: str) -> MbertError:
    """Returns the error for a file or folder that this user may not read."""
    letter = "x" if closed.is_dir() else "r"
    return MbertError(
        "M225",
        f"{closed} may not be read: {os.strerror(errno.EACCES)}",
        where=where,
        allowed="Files that this user may read, in folders that this user may look into.",
        fix=f"Its owner can allow it: chmod u+{letter} {closed}, or for all users: chmod a+r{'x' * (letter == 'x')} {closed}",
    )


def unreadable_part(path: Path) -> Path | None:
    """Returns the first folder on the way that may not be looked into, or the file itself where it may not be read."""
    for folder in reversed(path.parents):
        if os.access(folder, os.F_OK) and not os.access(folder, os.X_OK):
            return folder
    return path if os.access(path, os.F_OK) and not os.access(path, os.R_OK) else None


def cannot_write(error: OSError, path: Path) -> MbertError:
    """Returns the error for a place that takes no file, whatever the reason."""
    link = next((part for part in (path, *path.parents) if part.is_symlink() and not os.path.exists(part)), None)
    if link is not None and error.errno != errno.ELOOP:
        return _nothing_written(f"the link {link} leads nowhere", f"-o {path}")
    return disk_refused(error.errno or errno.EIO, f"-o {path}")


def disk_refused(number: int, where: str) -> MbertError:
    """Returns the error for a disk that is full, failing, or not ours to write to."""
    if number in (errno.ENOSPC, errno.EDQUOT):
        return MbertError(
            "M220",
            f"the disk is full: {os.strerror(number)}",
            where=where,
            allowed="Nothing was lost: finished work is whole, begun work waits in the .partial directory beside.",
            fix=f"Make room, then the same command again: {shlex.join(command_line())}",
        )
    return _nothing_written(os.strerror(number), where)


def _nothing_written(reason: str, where: str) -> MbertError:
    place = Path(where.removeprefix("-o "))
    there = next((folder for folder in place.parents if folder.is_dir()), Path())
    return MbertError(
        "M221",
        f"nothing can be written here: {reason}",
        where=where,
        allowed="A place in a folder that is there, or can be made, and may be written to; finished work is not touched.",
        fix=f"Choose another -o, or look at the folder: ls -ld {shlex.quote(str(there))}",
    )


def free_bytes(path: Path) -> int:
    """Returns the free bytes on the disk that holds `path`."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
