"""Lines of text one by one, of files and streams that are longer than memory.

Only a line feed ends a line, as in tables: texts hold other separators. A file or stream of another form than plain UTF-8 is
left to `content.py`, which reads it whole and says what is wrong with it.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from microbert_cli.data.tables.content import MARKS, check_format, not_utf8, utf16_without_mark
from microbert_cli.errors import MbertError
from microbert_cli.table_format import PACKED_SUFFIXES

HEAD_BYTES = 4096  # by which another program's file or another encoding shows


def file_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a file in UTF-8; raises UnicodeDecodeError at a line that is none."""
    with path.open("rb") as file:
        yield from _decoded(file)


def is_plain(path: Path, encoding: str | None) -> bool:
    """Whether a file can be read line by line: not packed, and by its first bytes UTF-8."""
    if path.suffix.lower() in PACKED_SUFFIXES or not path.is_file():
        return False
    with path.open("rb") as file:
        return _is_utf8_text(file.read(HEAD_BYTES), path, encoding)


def begins_plain(lines: Iterable[bytes], path: Path, encoding: str | None) -> bool:
    """Whether the first lines of a stream are whole UTF-8; path: the stream's name."""
    data = b"".join(lines)
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return _is_utf8_text(data[:HEAD_BYTES], path, encoding)


def stream_lines(lines: Iterable[bytes], name: str) -> Iterator[str]:
    """Yields the lines of a stream in UTF-8; raises M353 at the first that is none, after those before it."""
    offset = number = 0

    def counted() -> Iterator[bytes]:
        nonlocal offset, number
        for line in lines:
            number += 1
            yield line
            offset += len(line)

    counting = counted()
    try:
        yield from _decoded(counting)
    except UnicodeDecodeError as error:
        raise not_utf8(error.object, Path(name), error.start, line=number, offset=offset) from None


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    is_first = True
    for raw in lines:
        line = raw.decode()
        if is_first:  # as `content.decode` does: the mark of utf-8-sig, and one that is left
            line, is_first = line.removeprefix("\ufeff").removeprefix("\ufeff"), False
        if line.endswith("\n"):
            yield line[:-1].removesuffix("\r")
        elif line:
            yield line.removesuffix("\r")


def _is_utf8_text(head: bytes, path: Path, encoding: str | None) -> bool:
    if encoding is not None and encoding.lower().replace("_", "-") not in ("utf-8", "utf8"):
        return False
    try:
        check_format(head, path)
    except MbertError:
        return False
    return utf16_without_mark(head) is None and not any(head.startswith(mark) for mark, _ in MARKS)


def first_lines(stream: IO[bytes], most: int) -> list[bytes]:
    """Returns the first lines of a stream, at most so many; with the last of them the stream may go on."""
    lines: list[bytes] = []
    while len(lines) < most and (line := stream.readline()):
        lines.append(line)
    return lines
