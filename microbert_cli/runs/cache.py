"""What may be thrown away: tokenised corpora, word tables, a teacher's answers. `MBERT_CACHE` names the place."""

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from microbert_cli.errors import MbertError
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import atomic
from microbert_cli.signals import Interrupted, WorkInterrupted

COMPLETE = "complete"
USERS = ".users"  # beside an entry: the outputs that were made with it, one a line
DIGESTS = "digests"
SETTLED_NS = 2 * 10**9  # a file changed later than that may change again without a new time of change
TRIES = 3


class CacheDeletedError(MbertError):
    """Somebody deleted an entry of the cache while a run made it or read it."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            "M226",
            f"the cache was deleted while it was in use: {path} is gone",
            where=f"MBERT_CACHE {root()}",
            allowed="A cache that nobody clears while mbert runs; between two runs it may be deleted at any time.",
            fix="Run the same command again: it goes on from here.",
        )


def root() -> Path:
    """Returns `MBERT_CACHE`, else `mbert` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mbert"
    return Path(os.environ.get("MBERT_CACHE") or default)


def find(kind: str, key: str) -> Path | None:
    """Returns the directory of an entry if it is complete and undamaged; creates nothing, waits for nothing."""
    directory = entry_path(kind, key)
    return directory if (directory / COMPLETE).is_file() and not _damaged_files(directory) else None


_output: ContextVar[Path | None] = ContextVar("_output", default=None)


@contextmanager
def used_for(output: Path) -> Iterator[None]:
    """Within the block, entries that are made or read are noted as those of this output."""
    token = _output.set(output)
    try:
        yield
    finally:
        _output.reset(token)


@contextmanager
def entry(kind: str, key: str, *, resumable: bool = False, reporter: Reporter = SILENT) -> Iterator[tuple[Path, bool]]:
    """Yields (directory, ready): where `ready` is False the block fills the directory, which is kept if the block ends well.

    Two runs that want the same entry wait for each other; a directory without its mark is never read, and one whose files are
    no longer what the mark says is made anew.
    resumable  one that was left half-filled is handed on as it is, since the block knows what of it is good
    """
    directory = entry_path(kind, key)
    with _locked(directory):
        ready = False
        try:
            ready = _is_ready(directory, resumable, reporter)
            _note_user(directory)
            yield directory, ready
            if not ready:
                _mark_complete(directory)
        except BaseException as error:
            is_stopped = not isinstance(error, Exception) or isinstance(error, Interrupted | WorkInterrupted)
            is_gone = not is_stopped and not directory.is_dir()
            if not ready and not resumable:
                shutil.rmtree(directory, ignore_errors=True)
            if was_deleted(error) or is_gone:
                raise CacheDeletedError(directory) from error
            raise


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds the lock of an entry for the block."""
    from filelock import FileLock

    for attempt in range(TRIES):
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory.with_suffix(".lock"))
        try:
            lock.acquire()
            break
        except FileNotFoundError:  # the folder was deleted between the two lines above
            if attempt == TRIES - 1:
                raise
    try:
        yield
    finally:
        lock.release()


def _is_ready(directory: Path, resumable: bool, reporter: Reporter) -> bool:
    """Whether an entry is whole; where it is not, a folder to fill is there afterwards."""
    if (directory / COMPLETE).is_file():
        if not (damage := _damaged_files(directory)):
            _touch(directory)
            return True
        reporter.warn(f"{directory}: {damage[0]}; this entry of the cache is made anew")
        (directory / COMPLETE).unlink()
        shutil.rmtree(directory, ignore_errors=True)
    if not resumable:
        shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    return False


def was_deleted(error: BaseException) -> bool:
    """Whether an error says that a file of the cache is gone that was there, or was being written."""
    return isinstance(error, CacheDeletedError) or _missing_entry(error) is not None


def discard_deleted(error: BaseException) -> None:
    """Takes the mark of completeness from the entry that lacks a file, so that the next run makes it anew."""
    if entry_directory := _missing_entry(error):
        (entry_directory / COMPLETE).unlink(missing_ok=True)


def _missing_entry(error: BaseException) -> Path | None:
    """The entry whose file is not there, if that is what an error says."""
    name = error.filename if isinstance(error, FileNotFoundError) else None
    place = Path(os.fsdecode(name)).absolute() if isinstance(name, str | bytes | os.PathLike) else None
    if place is None or not place.is_relative_to(root().absolute()):
        return None
    return root().joinpath(*place.relative_to(root().absolute()).parts[:2])


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


def _note_user(directory: Path) -> None:
    """Adds the output at work to the users of an entry; a memory that cannot be written costs nothing."""
    if (output := _output.get()) is None:
        return
    line = str(output.absolute())
    with suppress(OSError):
        if line not in users_of(directory):
            with directory.with_suffix(USERS).open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def users_of(directory: Path) -> list[str]:
    """Returns the outputs that were made with an entry, the first one first."""
    try:
        return directory.with_suffix(USERS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


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


@dataclass(frozen=True)
class Entry:
    """One entry of the cache: its bytes, when it was last used (seconds since 1970), the outputs that were made with it."""

    kind: str
    directory: Path
    size: int
    used: float
    users: list[str]


def entries() -> list[Entry]:
    """Returns the entries of the cache by kind, complete or begun; creates nothing."""
    listed = []
    for folder in sorted(path for path in root().glob("*/*") if path.is_dir() or path.suffix == ".json"):
        files = [folder] if folder.is_file() else [file for file in folder.rglob("*") if file.is_file()]
        with suppress(FileNotFoundError):  # another process may clean up at the same time
            stats = [file.stat() for file in files]
            used = max((stat.st_mtime for stat in stats), default=folder.stat().st_mtime)
            listed.append(Entry(folder.parent.name, folder, sum(stat.st_size for stat in stats), used, users_of(folder)))
    return listed


def remove(entry: Entry) -> bool:
    """Removes an entry; False where a run is making it or reading it in at this moment."""
    from filelock import FileLock, Timeout

    lock = FileLock(entry.directory.with_suffix(".lock"), timeout=0)
    try:
        lock.acquire()
    except (Timeout, FileNotFoundError):
        return False
    try:
        (entry.directory / COMPLETE).unlink(missing_ok=True)  # first: a folder without its mark is never read
        shutil.rmtree(entry.directory) if entry.directory.is_dir() else entry.directory.unlink(missing_ok=True)
        entry.directory.with_suffix(USERS).unlink(missing_ok=True)
    finally:
        lock.release()
    return True


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
