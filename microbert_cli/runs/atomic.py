"""Files that are there whole or not at all, also after a power cut; and whether they still are what was written."""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from microbert_cli import distributed
from microbert_cli.text import dump_json

if TYPE_CHECKING:
    import numpy as np


CHECKSUM_KEY = "checksum"
NAME_DIGITS = 32  # digits of a checksum in a file's name
FileStamp = tuple[int, int, int]
LARGE_FILE = 8 * 2**20  # bytes; a smaller one is read in no time, so that its checksum need not be remembered

_digests: dict[Path, tuple[str, FileStamp]] = {}


@contextmanager
def atomic_write(path: Path, *, like: os.stat_result | None = None, in_place: Collection[int] = ()) -> Iterator[Path]:
    """Yields a temporary path beside `path`; when the block ends well the file is synced and renamed to `path`.

    The file gets the mode that the umask says, or owner and mode of `like`, the file that it replaces.
    in_place  numbers of the system's errors by which a file that cannot be replaced is written into instead
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # two runs may write the same file at once
    try:
        yield temporary
        if like is None:
            apply_umask(temporary)
        else:
            with suppress(OSError, AttributeError):  # only root can give a file away, and Windows not at all
                os.chown(temporary, like.st_uid, like.st_gid)
            temporary.chmod(stat.S_IMODE(like.st_mode))
        fsync(temporary)
        try:
            temporary.replace(path)
        except OSError as error:
            if error.errno not in in_place:
                raise
            shutil.copyfile(temporary, path)
            temporary.unlink()
        fsync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def apply_umask(path: Path) -> None:
    """Gives a file or folder the permissions that the process's umask leaves to a new one; takes none away.

    safetensors writes its files with mode 0600, and temporary folders have 0700, whatever the umask says.
    """
    if os.name == "nt":
        return
    os.umask(umask := os.umask(0o077))  # it can only be read by setting it
    mode = path.stat().st_mode & 0o7777
    wanted = mode | ((0o777 if path.is_dir() else 0o666) & ~umask)
    if mode != wanted:
        path.chmod(wanted)


def remove_stale_temporaries(path: Path) -> None:
    """Removes what writers of this one file that were killed left beside it; one that still lives keeps its own."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        if distributed.is_main() and not _is_running(temporary.name.split(".")[-2]):
            temporary.unlink(missing_ok=True)


def _is_running(number: str) -> bool:
    """Whether a process of this number runs here; where that cannot be asked without harm, it does."""
    try:
        if os.name == "posix":
            os.kill(int(number), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return True


def remove_all_temporaries(directory: Path) -> None:
    """Removes what writers that were killed left half-written, in a directory that nobody else writes to."""
    for path in directory.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all; of several processes the main one does."""
    if not distributed.is_main():
        return
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def fsync(path: Path) -> None:
    """Waits until a file's content, or a directory's names, are on the disk."""
    if os.name == "nt":  # Windows opens no directory, and flushes no file that is open for reading alone
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(value: Any) -> str:
    """Returns the sha256 of a JSON-able value, independent of key order."""
    text = json.dumps(value, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_stamp(path: Path) -> FileStamp:
    """Returns what tells a file from its later self without reading it: size, time of change, inode."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def file_digest(path: Path) -> str:
    """Returns the sha256 of a file's bytes; a large one is read once in a process, unless its stamp says that it changed."""
    stamp = file_stamp(path)
    digest, stamp_before = _digests.get(path, ("", None))
    if stamp_before != stamp:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if stamp[0] >= LARGE_FILE:
            _digests[path] = digest, stamp
    return digest


def rename_by_checksum(path: Path, stem: str, suffix: str) -> Path:
    """Syncs a file and gives it a name with its checksum in it, beside: STEM-CHECKSUM.SUFFIX."""
    fsync(path)
    named = path.with_name(f"{stem}-{file_digest(path)[:NAME_DIGITS]}{suffix}")
    path.replace(named)
    fsync(named.parent)
    return named


def matches_name_checksum(path: Path) -> bool:
    """Whether a file is what the checksum in its name says."""
    return path.stem.rpartition("-")[2] == file_digest(path)[:NAME_DIGITS]


def file_digests(directory: Path, names: Iterable[str]) -> dict[str, str]:
    """Returns the sha256 of files of a directory, by their names in it."""
    return {name: file_digest(directory / name) for name in names}


def damaged_files(directory: Path, digests: Mapping[str, str], digest_of: Callable[[Path], str] = file_digest) -> list[str]:
    """Returns which of these files are gone or damaged, a message each; `digest_of` reads a file, or remembers it."""
    damage = []
    for name, expected in digests.items():
        path = directory / name
        if not path.is_file():
            damage.append(f"{name} is gone")
        elif digest_of(path) != expected:
            damage.append(f"{name} is damaged")
    return damage


def dump_with_checksum(values: Mapping[str, Any]) -> str:
    """Returns a JSON object that carries its own checksum, as text."""
    plain = json.loads(dump_json(values, default=str))
    return json.dumps({**plain, CHECKSUM_KEY: digest(plain)}, indent=2) + "\n"


def load_with_checksum(text: str) -> dict[str, Any]:
    """Returns what `dump_with_checksum` was given; raises ValueError where a bit of it has changed."""
    try:
        values: dict[str, Any] = json.loads(text)
    except RecursionError:
        raise ValueError("lists lie in lists without end") from None
    if not isinstance(values, dict) or values.pop(CHECKSUM_KEY, None) != digest(values):
        raise ValueError("its checksum does not match")
    return values


def memory_map(path: Path, shape: tuple[int, ...], dtype: str, mode: Literal["r", "r+"]) -> "np.memmap":
    """Opens a file as an array, with all its room allocated: a full disk fails here, not in the middle of a write."""
    import numpy as np

    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if mode == "r+" and (not path.is_file() or path.stat().st_size != size):
        with path.open("wb") as file:
            _allocate(file.fileno(), size)
    return np.memmap(path, dtype=dtype, mode=mode, shape=shape)


def _allocate(handle: int, size: int) -> None:
    if hasattr(os, "posix_fallocate") and size:
        os.posix_fallocate(handle, 0, size)
    os.ftruncate(handle, size)
