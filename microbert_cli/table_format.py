"""Files of rows: their suffixes, and what a user may say of their encoding, delimiter, header and quotes."""

import codecs
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator

COLUMN_FILES = (".conll", ".iob", ".iob2", ".bio", ".bioes")  # a word a line
TABLE_SUFFIXES = (
    ".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json", ".parquet", ".pq", ".arrow", ".feather", *COLUMN_FILES,
)  # fmt: skip
PACKED_SUFFIXES = (".gz", ".gzip", ".zip")
SPLIT_NAMES = {"train", "training", "dev", "test", "valid", "validation", "eval", "data", "dataset", "datasets"}
NAMED_DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}
TABLE_FILES = f"{', '.join(TABLE_SUFFIXES)} (.gz or .zip after it is fine), or a folder written by save_to_disk"


def unpacked_suffix(name: str | Path) -> str:
    """Returns a file's suffix in lower case, without that of its compression; of a bare zip ".zip", its member has its own."""
    path = Path(str(name).lower())
    if path.suffix in PACKED_SUFFIXES and Path(path.stem).suffix in (*TABLE_SUFFIXES, ".txt"):
        return Path(path.stem).suffix
    return path.suffix


def is_table(name: str | Path) -> bool:
    """Returns whether a file is one of rows, by its suffix; whether a folder may hold a saved data set."""
    return unpacked_suffix(name) in (*TABLE_SUFFIXES, ".zip") or Path(name).is_dir()


def is_column_file(name: str | Path) -> bool:
    """Returns whether a file has a word a line, by its suffix."""
    return unpacked_suffix(name) in COLUMN_FILES


def format_option(key: str, value: str) -> str:
    """Returns how a command is told what a file does not show itself."""
    return f"--set data.{key}={value}"


def _delimiter(value: Any) -> Any:
    delimiter = NAMED_DELIMITERS.get(value, value) if isinstance(value, str) else value
    if delimiter is not None and (not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n\0'):
        raise ValueError('it must be one character, such as ";", or one of: tab, comma, semicolon, pipe, space')
    return delimiter


def _encoding(value: str | None) -> str | None:
    try:
        # Codecs such as base64 or rot13 are no encodings of text, though codecs.lookup knows them.
        if value is not None and not codecs.lookup(value)._is_text_encoding:
            raise LookupError
    except (LookupError, ValueError):
        raise ValueError("it must be the name of an encoding of text, such as utf-8, cp1252, utf-16 or gb18030") from None
    return value


Delimiter = Annotated[str | None, BeforeValidator(_delimiter)]
Encoding = Annotated[str | None, AfterValidator(_encoding)]


def name_of_files(path: str | Path) -> str:
    """Returns what a task of a user's own files is called: the file's stem, or where that says "train" the folder's name."""
    absolute = Path(path).absolute()
    candidates = [absolute.name.split(".")[0], *(parent.name for parent in list(absolute.parents)[:2])]
    names = [re.sub(r"^[^A-Za-z0-9]+|[^\w.-]+", "-", candidate).strip("-.") for candidate in candidates]
    return next((name for name in names if name and name.lower() not in SPLIT_NAMES), names[0] or "task")


class TableFormat(BaseModel):
    """What is said of a user's own files where they do not show it themselves.

    encoding    of text files; None: UTF-8, or UTF-16 where a byte-order mark says so
    delimiter   between the cells of CSV and TSV; None: as the header shows
    header      whether the first row names the columns; without, they are called 0, 1, ...
    quoting     whether "..." encloses a cell; None: in CSV yes, in TSV where every such cell is closed in its line
    skip_empty  passes over rows without a text or label, counted aloud
    repair_tags of words whose tags break BIO or BIOES: takes the entities as conlleval reads them, such as those of IOB1
    """

    encoding: Encoding = None
    delimiter: Delimiter = None
    header: bool = True
    quoting: bool | None = None
    skip_empty: bool = False
    repair_tags: bool = False
