"""Text that is safe to show and record: without secrets, and without characters that steer a terminal or hide text."""

import ast
import json
import math
import os
import re
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

HIDDEN = "***"
MAX_PART_LENGTH = 4000  # characters of one part of an error
SECRET_NAME = re.compile(r"(?i)(token|secret|password|api_?key)$")
SECRET = re.compile(
    r"""(?ix) \bhf_[a-z0-9]{16,}                                # a token of the Hub
    | (?: (?<=://) | (?<=:/) ) [^/\s@"']+ (?=@)        # user:password of a URL; a path swallows one of its slashes
    | (?<=bearer[ ]) [\w.~+/=-]{8,}
    | (?: (?<=token=) | (?<=secret=) | (?<=password=) | (?<=api_key=) | (?<=apikey=) ) [^\s&"',]+
    """
)
# All control characters but tab and line feed, marks that turn the direction of writing, halves of characters.
CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
NUMBER_IN_TEXT = re.compile(r"[0-9]+")
WHOLE_NUMBER = re.compile(r"[+-]?\d+(\.0*)?")
LABEL_SEPARATOR = "|"  # of the labels in a cell that is no list
QUOTED = r"""(?:'[^'\\]*'|"[^"\\]*")"""
PYTHON_LIST = re.compile(rf"\[\s*{QUOTED}(?:\s*,\s*{QUOTED})*\s*\]")
SHORT_CELL = 80  # characters of a cell in an error


def safe_text(text: str) -> str:
    """Returns a text without secrets and with control characters escaped."""
    return escape_control_characters(without_secrets(text))


def escape_control_characters(text: str) -> str:
    """Returns the text with characters that steer a terminal written out: `\\x1b[2J`."""
    return CONTROL_CHARACTERS.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """The text on one line, whatever it holds: line feeds, tabs and all that steers a terminal are written out."""
    return escape_control_characters(text).replace("\n", "\\n").replace("\t", "\\t")


def dump_json(value: Any, **options: Any) -> str:
    """JSON that every reader takes: a number that is not finite is null, since JSON has no NaN and no Infinity."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, **options)


def json_line(value: Any) -> str:
    """A value as JSON on one line, whatever counts as the end of a line to who reads it; the strings stay what they were."""
    text = dump_json(value, default=str, ensure_ascii=False)
    return CONTROL_CHARACTERS.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key) if isinstance(key, float) else key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def without_secrets(text: str) -> str:
    """Returns the text without the secrets of the environment, and without what looks like one."""
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) >= 8:
            text = text.replace(value, HIDDEN)
    return SECRET.sub(HIDDEN, text)


def shortened(text: str) -> str:
    """Cuts a part of an error that data made long."""
    return text if len(text) <= MAX_PART_LENGTH else f"{text[: MAX_PART_LENGTH - 100]} ... ({len(text):,} characters)"


NOT_COUNTED = "not counted"  # of operations of a model whose type nobody can count
MARKDOWN_SYNTAX = re.compile(r"[\\`*\[\]|]")


def escape_markdown(text: str) -> str:
    """Returns the text on one line, with the syntax of Markdown and HTML escaped."""
    text = " ".join(safe_text(text).split())
    return MARKDOWN_SYNTAX.sub(r"\\\g<0>", text.replace("&", "&amp;").replace("<", "&lt;"))


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table; what the cells say means nothing in Markdown."""
    body = [columns, ["---"] * len(columns), *([escape_markdown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in body)


def format_cells(row: Mapping[str, Any], formats: Mapping[str, str]) -> list[str]:
    """Returns the values of a row as text, each by its format; what was not measured stays empty."""
    return ["" if row.get(name) is None else format(row[name], form) for name, form in formats.items()]


def natural_key(text: str) -> tuple[str, str]:
    """Returns a key that sorts numbers in texts by their size: `class 2` before `class 10`."""
    return NUMBER_IN_TEXT.sub(lambda match: match.group().zfill(18), text), text


def is_valid_text(text: str) -> bool:
    """Whether a text holds no lone surrogate, which no file and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


TIME_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
SIZE_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", re.IGNORECASE)


def parse_size(size: str) -> int:
    """Returns a size in bytes: "8GB" -> 8,000,000,000; raises ValueError for any other text."""
    match = SIZE.fullmatch(size)
    if not match:
        raise ValueError(f'"{size}" is no size such as 8GB or 500MB')
    return int(float(match[1]) * SIZE_UNITS[match[2].lower()])


def command_line() -> list[str]:
    """Returns the command as typed, with the program's bare name, and without secrets."""
    name = Path(sys.argv[0]).name
    return ["mbert" if name == "__main__.py" else name, *map(without_secrets, sys.argv[1:])]


def seconds_of(duration: str) -> float:
    """Returns the seconds of a duration, such as "90s", "20min", "1.5h"; raises ValueError for any other text."""
    if (match := re.match(r"(?i)^\s*(\d+(?:\.\d+)?)\s*(s|sec|min|m|h|d)\s*$", duration)) is None:
        raise ValueError("a number and its unit s, m, h or d, such as 30m or 1.5h")
    return float(match[1]) * TIME_UNITS[match[2].lower()]


def check_duration(duration: str) -> str:
    """Returns a duration as it is; raises ValueError where it is none."""
    seconds_of(duration)
    return duration


def labels_of_cell(cell: str, names: Container[str] = ()) -> list[str]:
    """Returns the labels that a cell names: `a|b`, or a list in JSON or as Python shows one; none of an empty cell.

    names  of the task, which a cell may well consist of although it looks like a list
    Raises ValueError, which says what is wrong, for a list that cannot be read and for a label without a name.
    """
    parts = [cell] if cell in names else [part.strip() for part in cell.split(LABEL_SEPARATOR)]
    if not cell or all(part in names for part in parts):
        return parts if cell else []
    if cell[0] not in "[{" and cell[-1] != "]":
        if "" in parts:
            raise ValueError(f"a label without a name: {cell[:SHORT_CELL]}")
        return parts
    return [_label_name(value, cell) for value in _list_of_labels(cell)]


def _list_of_labels(cell: str) -> list[Any]:
    try:
        values = json.loads(cell)
    except (ValueError, RecursionError):
        if not PYTHON_LIST.fullmatch(cell):  # as pandas writes lists to CSV
            raise ValueError(f"this is no list of labels in JSON: {cell[:SHORT_CELL]}") from None
        values = ast.literal_eval(cell)
    if not isinstance(values, list):
        raise ValueError(f"an object is no list of labels: {cell[:SHORT_CELL]}")
    return values


def _label_name(value: Any, cell: str) -> str:
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = str(value)
        return text.split(".")[0] if WHOLE_NUMBER.fullmatch(text) else text
    raise ValueError(f"a label in a list is a text or a number: {cell[:SHORT_CELL]}")


def label_cell(value: Any) -> str:
    """Returns a value of a label column as the text that `labels_of_cell` reads."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, list | tuple | set | dict):
        return json.dumps(sorted(value) if isinstance(value, set) else value, ensure_ascii=False, default=str)
    text = str(value).lower() if isinstance(value, bool) else str(value).strip()
    return text.split(".")[0] if WHOLE_NUMBER.fullmatch(text) else text


def counted(count: int, noun: str) -> str:
    """Returns `1 thread`, `2 threads`, `1,200 threads`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def first_of_rows(wrong: Mapping[int, str]) -> str:
    """Returns what is wrong with the first of some rows, and how many more are wrong."""
    more = len(wrong) - 1
    others = f", and {more:,} more row{'s are' if more > 1 else ' is'} wrong" if more else ""
    return wrong[min(wrong)] + others
