"""The bytes of a file as text: unpacked within limits, of an encoding that is said or shown, and named where it is neither.

No byte is guessed or replaced. A byte-order mark shows UTF-8 or UTF-16; whatever else is not UTF-8 has to be said.
"""

import errno
import gzip
import re
import shlex
import zipfile
import zlib
from pathlib import Path

from microbert_cli.data.limits import check_zip, open_gzip
from microbert_cli.data.tables.table import damaged, not_one_table, unreadable
from microbert_cli.errors import MbertError
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.table_format import TABLE_SUFFIXES, format_option, unpacked_suffix

COLUMN_SUFFIXES = (".parquet", ".pq", ".arrow", ".feather")
UTF8_MARK = b"\xef\xbb\xbf"
MARKS = ((b"\xff\xfe\x00\x00", "UTF-32"), (b"\x00\x00\xfe\xff", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))
FORMATS = (  # how a file of another program begins, what it is, and what to do with it
    (b"\x1f\x8b", "gzip", "Give it the suffix that it is: mv {path} {path}.gz"),
    (b"PAR1", "Parquet", "Give it the suffix that it is: mv {path} {stem}.parquet"),
    (b"ARROW1", "Arrow", "Give it the suffix that it is: mv {path} {stem}.arrow"),
    (b"BZh", "bzip2", "Unpack it: bzip2 -dc {path} > {stem}-unpacked{suffix}"),
    (b"\xfd7zXZ\x00", "xz", "Unpack it: xz -dc {path} > {stem}-unpacked{suffix}"),
    (b"\x28\xb5\x2f\xfd", "zstd", "Unpack it: zstd -dc {path} > {stem}-unpacked{suffix}"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", 'Open it there and save it as "CSV UTF-8".'),
    (b"SQLite format 3", "a SQLite database", "Write the table out as CSV and name that."),
    (b"%PDF", "PDF", "Write its rows out as CSV and name that."),
)
UNDEFINED_1252 = frozenset(b"\x81\x8d\x8f\x90\x9d")
MOST_FOREIGN_SHARE = 0.3  # of the bytes beyond ASCII; Western texts have a few of a hundred
OTHER_ENCODINGS = ("shift_jis", "gb18030", "big5", "euc_kr", "cp1251", "koi8_r", "cp1253", "cp1255", "cp1256")


def read_bytes(path: Path) -> tuple[bytes | None, str]:
    """A file's bytes, unpacked where they are gzip or zip, and the suffix that says their format.

    None for a file of columns that is not packed: its reader opens it and reads columns alone.

    Raises M252 (not there), M356 (damaged), M371, M372 (an archive beyond limits), M268 (a zip of several tables).
    """
    suffix = unpacked_suffix(path)
    packing = path.suffix.lower()
    try:
        start = _first_bytes(path)
        if packing == ".zip":
            return _zip_member(path)
        # pandas writes to_parquet("a.parquet.gzip", compression="gzip"): that is Parquet with gzip inside
        if packing in (".gz", ".gzip") and start[:4] != b"PAR1":
            with open_gzip(path) as file:
                return file.read(), suffix
        if suffix in COLUMN_SUFFIXES:
            if not start.startswith((b"PAR1", b"ARROW1")):
                check_format(start, path)
            return None, suffix
        return path.read_bytes(), suffix
    except (gzip.BadGzipFile, zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise damaged(path, f"it cannot be unpacked: {error}") from None
    except (OSError, ValueError) as error:
        if packing == ".zip" and getattr(error, "errno", errno.EINVAL) == errno.EINVAL:  # offsets before the file's first byte
            raise damaged(path, f"it cannot be unpacked: {error}") from None
        raise unreadable(path, error) from None


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


def _zip_member(path: Path) -> tuple[bytes, str]:
    """The one table in a zip; what a Mac adds to it is no table."""
    with zipfile.ZipFile(path) as archive:
        check_zip(archive, path)
        members = [m for m in archive.infolist() if not m.is_dir() and not m.filename.startswith("__MACOSX/")]
        tables = [m for m in members if unpacked_suffix(m.filename) in TABLE_SUFFIXES]
        if "xl/workbook.xml" in archive.namelist():
            raise other_format(path, "an Excel workbook", 'Open it there and save it as "CSV UTF-8".')
        if len(tables) != 1:
            raise not_one_table(
                path,
                f"this zip holds {len(tables) or 'no'} tables, not one",
                allowed=f"One of {', '.join(TABLE_SUFFIXES)} in it; there are: "
                f"{', '.join(m.filename for m in members[:20]) or 'no files'}.",
                fix=f"Unpack it and name the table: unzip {path}",
            )
        member = tables[0]
        if unpacked_suffix(path) not in (".zip", unpacked_suffix(member.filename)):
            raise other_format(
                path,
                f"a zip of {Path(member.filename).name}",
                f"Rename it: mv {shlex.quote(str(path))} {shlex.quote(str(path.parent / 'table.zip'))}",
            )
        if member.filename.lower().endswith((".gz", ".gzip")):
            raise other_format(path, "a zip of a gzip", f"Unpack it and name the table: unzip {path}")
        return archive.read(member), unpacked_suffix(member.filename)


def decode(data: bytes, path: Path, encoding: str | None = None, *, reporter: Reporter = SILENT) -> str:
    """The text; a byte-order mark is dropped, and UTF-16 said aloud. Raises M353, or M383 for bytes that are no text."""
    check_format(data, path)
    if encoding is None:
        encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8-sig")
        if encoding != "utf-8-sig":
            reporter.note_once(f"{path}: its byte-order mark says {encoding}, and it is read so")
    elif encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        encoding = "utf-8-sig"
    if encoding == "utf-8-sig" and (unmarked := utf16_without_mark(data)):
        raise _undecodable(
            f"this is UTF-16 without a byte-order mark ({unmarked})",
            f"{path}, line 1",
            f"Say the encoding: {format_option('encoding', unmarked)}",
        )
    try:
        text = data.decode(encoding)
    except (UnicodeDecodeError, UnicodeError) as error:
        start = error.start if isinstance(error, UnicodeDecodeError) else 0
        if encoding == "utf-8-sig":
            raise not_utf8(data, path, start + (3 if data.startswith(UTF8_MARK) else 0)) from None
        line = data.count(b"\n", 0, start) + 1
        raise _undecodable(
            f"this is not {encoding}: byte 0x{data[start]:02x} at offset {start}" if data else f"this is not {encoding}",
            f"{path}, line {line}",
            f"Say the right one: {format_option('encoding', 'NAME')}, or leave it out for UTF-8.",
        ) from None
    return text.removeprefix("\ufeff")


def check_format(data: bytes, path: Path) -> None:
    """Raises M383 for bytes of another program, whatever the suffix says."""
    suffix = unpacked_suffix(path)
    quoted = shlex.quote(str(path))
    names = {"path": quoted, "stem": shlex.quote(str(path.with_suffix(""))), "suffix": suffix}
    for magic, name, fix in FORMATS:
        if data.startswith(magic):
            raise other_format(path, name, fix.format(**names))
    if data.startswith(b"PK\x03\x04"):
        excel = b"xl/" in data[:4096] or b"[Content_Types].xml" in data[:4096]
        fix = (
            'Open it there and save it as "CSV UTF-8".' if excel else f"Give it the suffix that it is: mv {quoted} {quoted}.zip"
        )
        raise other_format(path, "an Excel workbook" if excel else "zip", fix)


def other_format(path: Path, name: str, fix: str) -> MbertError:
    """The error for a file that is another thing than its name says."""
    return MbertError(
        "M383",
        f"this is {name} by its first bytes, under another name",
        where=str(path),
        allowed="A file whose suffix says what it is.",
        fix=fix,
    )


def utf16_without_mark(data: bytes) -> str | None:
    """ASCII in UTF-16 is valid UTF-8 too: every second byte is zero, which no text in UTF-8 has."""
    start = data[:4096]
    for offset, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        half = start[offset::2]
        if len(half) >= 4 and half.count(0) > 0.7 * len(half) and not start[1 - offset :: 2].count(0):
            return name
    return None


def not_utf8(data: bytes, path: Path, start: int, *, line: int = 1, offset: int = 0) -> MbertError:
    """The error for the byte at `start` of data that begin at `offset`, in that line, of a file or stream."""
    line += data.count(b"\n", 0, start)
    what = f"this is not UTF-8: byte 0x{data[start]:02x} at offset {offset + start}"
    where = f"{path}, line {line}"
    name, encoding = name_encoding(data, start)
    if encoding is None:
        fix = f"Mend line {line}, or say the encoding if the file has another one: {format_option('encoding', 'NAME')}"
    else:
        fix = f"Say the encoding: {format_option('encoding', encoding)}"
    return _undecodable(f"{what}; {name}", where, fix)


def _undecodable(what: str, where: str, fix: str) -> MbertError:
    return MbertError(
        "M353",
        what,
        where=where,
        allowed="UTF-8, with or without a byte-order mark, or an encoding that is said; no byte is guessed or left out.",
        fix=fix,
    )


def name_encoding(data: bytes, start: int) -> tuple[str, str | None]:
    """What bytes that are not UTF-8 may be, in words, and the name that a codec has; None where it cannot be told."""
    beyond = re.findall(rb"[\x80-\xff]+", data)
    count = sum(map(len, beyond))
    whole = sum(len(part) for part in beyond if _decodes(part, "utf-8"))
    if whole > count // 2:
        return "nearly all of the file is UTF-8, so it is damaged here", None
    letters = max(1, len(data) - data.count(b" ") - data.count(b"\n"))
    if count > MOST_FOREIGN_SHARE * letters:
        possible = [name for name in OTHER_ENCODINGS if _decodes(data, name)]
        return f"its script is not Latin; these encodings can read it: {', '.join(possible) or 'none that is known'}", None
    present = set(b"".join(beyond))
    if present & UNDEFINED_1252:
        return "it is not Windows-1252 either", None
    if any(byte < 0xA0 for byte in present):
        return "its bytes are those of Windows-1252", "cp1252"
    return "its bytes are those of Latin-1, of which Windows-1252 is the larger sister", "cp1252"


def conversion_command(data: bytes, start: int, name: str) -> str:
    """Returns the command that makes a file UTF-8, by those of its bytes that are not."""
    marked = "UTF-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else None
    encoding = marked or name_encoding(data, start)[1] or "ENCODING"
    return f"iconv -f {encoding} -t UTF-8 {shlex.quote(name)} > {shlex.quote(name + '.utf8')}"


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
