"""What may be thrown away: tokenised corpora, word tables, a teacher's answers. `MBERT_CACHE` names the place."""

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import atomic

COMPLETE = "complete"
DIGESTS = "digests"
SETTLED_NS = 2 * 10**9  # a file changed later than that may change again without a new time of change


def root() -> Path:
    """Returns `MBERT_CACHE`, else `mbert` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mbert"
    return Path(os.environ.get("MBERT_CACHE") or default)


def find(kind: str, key: str) -> Path | None:
    """Returns the directory of an entry if it is complete and undamaged; creates nothing, waits for nothing."""
    directory = entry_path(kind, key)
    return directory if (directory / COMPLETE).is_file() and not _damaged_files(directory) else None


@contextmanager
def entry(kind: str, key: str, *, resumable: bool = False, reporter: Reporter = SILENT) -> Iterator[tuple[Path, bool]]:
    """Yields (directory, ready): where `ready` is False the block fills the directory, which is kept if the block ends well.

    Two runs that want the same entry wait for each other; a directory without its mark is never read, and one whose files are
    no longer what the mark says is made anew.
    resumable  one that was left half-filled is handed on as it is, since the block knows what of it is good
    """
    from filelock import FileLock

    directory = entry_path(kind, key)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_suffix(".lock")):
        if (directory / COMPLETE).is_file():
            if not (damage := _damaged_files(directory)):
                _touch(directory)
                yield directory, True
                return
            reporter.warn(f"{directory}: {damage[0]}; this entry of the cache is made anew")
            (directory / COMPLETE).unlink()
            shutil.rmtree(directory, ignore_errors=True)
        if not resumable:
            shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(exist_ok=True)
        try:
            yield directory, False
        except BaseException:
            if not resumable:
                shutil.rmtree(directory, ignore_errors=True)
            raise
        _mark_complete(directory)


def _mark_complete(directory: Path) -> None:
    """Writes the mark of a complete entry with the checksums of its files, once they are on the disk."""
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    for name in names:
        atomic.apply_umask(directory / name)
        atomic.fsync(directory / name)
    atomic.write_text(directory / COMPLETE, atomic.dump_with_checksum({"files": atomic.file_digests(directory, names)}))
    _touch(directory)


def _damaged_files(directory: Path) -> list[str]:
    """Returns which files of a complete entry are damaged."""
    try:
        return atomic.damaged_files(
            directory, atomic.load_with_checksum((directory / COMPLETE).read_text(encoding="utf-8"))["files"]
        )
    except (OSError, ValueError, KeyError):
        return [f"{COMPLETE} is damaged"]


def _touch(directory: Path) -> None:
    """Sets when the entry was last used; by our clock, since the file system has a coarse one."""
    os.utime(directory / COMPLETE, ns=(time.time_ns(), time.time_ns()))


def entry_path(kind: str, key: str) -> Path:
    """Returns the directory of an entry, whether it exists or not."""
    return root() / kind / key[:32]


def remembered_digest(path: Path) -> str:
    """Returns the sha256 of a file; that of a large one is remembered by path, size, time of change and inode.

    A memory that is damaged, or cannot be written, costs nothing but the time to read the file.
    """
    stamp = atomic.file_stamp(path)
    if stamp[0] < atomic.LARGE_FILE:
        return atomic.file_digest(path)
    name = str(path.resolve())
    entry = root() / DIGESTS / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, KeyError):
        memory = atomic.load_with_checksum(entry.read_text(encoding="utf-8"))
        if (memory["path"], memory["stamp"]) == (os.fsencode(name).hex(), list(stamp)):
            return str(memory["sha256"])
    checksum = atomic.file_digest(path)
    if stamp == atomic.file_stamp(path) and time.time_ns() - stamp[1] > SETTLED_NS:
        with suppress(OSError):
            entry.parent.mkdir(parents=True, exist_ok=True)
            memory = {"path": os.fsencode(name).hex(), "stamp": stamp, "sha256": checksum}
            atomic.write_text(entry, atomic.dump_with_checksum(memory))
    return checksum


def free_bytes() -> int:
    """Returns the free bytes on the disk of the cache."""
    return shutil.disk_usage(_existing_folder()).free


def is_writable() -> bool:
    """Whether anything can be kept there: a service without a home folder may have none."""
    return os.access(_existing_folder(), os.W_OK)


def _existing_folder() -> Path:
    folder = root()
    while not folder.exists():
        folder = folder.parent
    return folder


def used_bytes(kind: str, key: str = "") -> int:
    """Returns the bytes of one entry, or of all entries of a kind."""
    folder = entry_path(kind, key) if key else root() / kind
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def evict(kind: str, room: int, *, keep: str) -> list[Path]:
    """Removes whole entries of a kind, the least recently used first, until the others take at most `room` bytes.

    `keep` is never removed. Whoever has a removed one open goes on reading it.
    """
    marks = [mark for mark in (root() / kind).glob(f"*/{COMPLETE}") if mark.parent != entry_path(kind, keep)]
    sizes = {mark: used_bytes(kind, mark.parent.name) for mark in sorted(marks, key=lambda mark: mark.stat().st_mtime_ns)}
    removed = []
    for mark in sizes:
        if sum(size for entry_mark, size in sizes.items() if entry_mark.parent not in removed) <= room:
            break
        mark.unlink()
        shutil.rmtree(mark.parent, ignore_errors=True)
        removed.append(mark.parent)
    return removed
