"""What may be thrown away: tokenised corpora, word tables. `MBERT_CACHE` names the place; made whole or not at all."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def root() -> Path:
    """`MBERT_CACHE`, else `mbert` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mbert"
    return Path(os.environ.get("MBERT_CACHE") or default)


def find(kind: str, key: str) -> Path | None:
    """The entry's directory if it is there whole; nothing is made, nothing waited for."""
    directory = root() / kind / key[:32]
    return directory if (directory / "complete").is_file() else None


@contextmanager
def entry(kind: str, key: str) -> Iterator[tuple[Path, bool]]:
    """(directory, ready): where `ready` is False the block fills the directory, and it is kept if the block ends well.

    Two runs that want the same entry wait for each other; a directory without its `complete` mark is never read.
    """
    directory = root() / kind / key[:32]
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (directory / "complete").is_file():
            yield directory, True
            return
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        try:
            yield directory, False
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        (directory / "complete").touch()
