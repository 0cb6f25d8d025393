"""Limits on packed and long input, so that a small file cannot fill the memory.

    .gz, .zip  may unpack to RATIO times their size, and to FREE bytes in any case; GloVe unpacks to 3 times its size
    .zip       no member whose name leaves its folder, no links; nothing is ever extracted, one member is read as a stream
    a line     LINE bytes;  a text of a row  TEXT characters

Tables are held in memory whole anyway: their lines end with the file.
"""

import gzip
import io
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from microbert_cli.errors import MbertError

MIN_UNPACKED_BYTES = 2**26
MAX_UNPACK_RATIO = 200
MAX_MEMBERS = 10_000
MAX_LINE_BYTES = 4_000_000
MAX_TEXT_LENGTH = 1_000_000


def open_gzip(path: Path) -> IO[bytes]:
    """Opens a gzipped file as a stream that raises M371 where it unpacks to too much."""
    return io.BufferedReader(_LimitedGzip(path))


class _LimitedGzip(io.RawIOBase):
    """Counts the unpacked bytes; the size in a gzip header cannot be trusted."""

    def __init__(self, path: Path):
        self._path, self._file, self._read = path, gzip.open(path, "rb"), 0
        self._most = _max_unpacked(path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._read += count
        if self._read > self._most:
            raise _unpacks_too_large(str(self._path), self._most)
        return count

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def check_zip(archive: zipfile.ZipFile, path: Path) -> None:
    """Checks a zip by its table: M372 for untrusted members, M371 where it unpacks to too much.

    zipfile reads no more of a member than the table says, so the table may be believed.
    """
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise _untrusted_archive(path, f"it has {len(members):,} members")
    for member in members:
        parts = member.filename.replace("\\", "/").split("/")
        if ".." in parts or not parts[0] and len(parts) > 1 or parts[0].endswith(":"):
            raise _untrusted_archive(path, f'the name of its member "{member.filename}" leads out of the folder')
        if stat.S_ISLNK(member.external_attr >> 16):
            raise _untrusted_archive(path, f'its member "{member.filename}" is a link')
    packed = min(path.stat().st_size, sum(member.compress_size for member in members))
    if sum(member.file_size for member in members) > _max_unpacked(packed):
        raise _unpacks_too_large(str(path), _max_unpacked(packed))


def bounded_lines(stream: IO[bytes], location: str) -> Iterator[bytes]:
    """Yields the lines of a stream with their ends; raises M373 for one beyond MAX_LINE_BYTES, which is never read whole."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise _too_long(f"this line has more than {MAX_LINE_BYTES:,} bytes", f"{location}, line {number}")
        yield line


def check_text(text: str, where: str) -> None:
    """Raises M373 for a text beyond MAX_TEXT_LENGTH characters."""
    if len(text) > MAX_TEXT_LENGTH:
        raise _too_long(f"this text has {len(text):,} characters", where)


def _max_unpacked(packed: int) -> int:
    return max(MIN_UNPACKED_BYTES, MAX_UNPACK_RATIO * packed)


def _unpacks_too_large(location: str, most: int) -> MbertError:
    return MbertError(
        "M371",
        f"this unpacks to more than {most:,} bytes, which no text does",
        where=location,
        allowed=f"What unpacks to at most {MAX_UNPACK_RATIO} times its size.",
        fix="Look where it comes from; one that is trusted can be unpacked by hand and named as it is.",
    )


def _untrusted_archive(path: Path, what: str) -> MbertError:
    return MbertError(
        "M372",
        f"this archive is not to be trusted: {what}",
        where=str(path),
        allowed=f"A zip of at most {MAX_MEMBERS:,} plain files in plain folders.",
        fix="Fetch it from its source, or unpack the vectors by hand and name the text file.",
    )


def _too_long(what: str, where: str) -> MbertError:
    return MbertError(
        "M373",
        what,
        where=where,
        allowed=f"A text of at most {MAX_TEXT_LENGTH:,} characters, a line of at most {MAX_LINE_BYTES:,} bytes; "
        "a model reads a few hundred words.",
        fix="Split or drop it; in one endless line the line feeds may be missing.",
    )
