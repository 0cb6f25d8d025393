"""TOML files as nested tables, with errors that help."""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from microbert_cli.errors import MbertError
from microbert_cli.text import is_valid_text

EXAMPLES = {"recipes": "own-data", "tasks": "rte", "methods": "tinybert", "students": "tinybert-4l-312", "machines": "h200"}
MAX_DEPTH = 32  # tables and lists inside each other
MAX_INTEGER_BITS = 64  # bits of a whole number, as in TOML
LONG_KEY = re.compile(r"""^[ \t]*(?:\[{1,2}[ \t]*)?(?:[\w"'-]+[ \t]*\.[ \t]*){1000}""", re.MULTILINE)  # of a thousand parts


def read_toml(path: Path, kind: str = "recipes") -> dict[str, Any]:
    """Reads a file of a catalogued kind; raises M001 (not TOML, not UTF-8), M201 (no file), M051 (not readable), M050, M052."""
    try:
        text = ""
        text = path.read_bytes().decode("utf-8-sig")
        if LONG_KEY.search(text):  # tomllib takes time with the square of a key's parts
            raise RecursionError
        values = tomllib.loads(text)
    except FileNotFoundError:
        raise MbertError(
            "M201",
            "there is no such file",
            where=str(path),
            allowed=f"An existing TOML file, or a name of the catalogue's {kind}.",
            fix=f"See them: mbert list {kind}",
        ) from None
    except OSError as error:
        raise MbertError(
            "M051",
            f"this cannot be read: {error.strerror or error}",
            where=str(path),
            allowed=f"A TOML file, or a name of the catalogue's {kind}.",
            fix=f"Check the path: ls -ld {shlex.quote(str(path))}",
        ) from None
    except RecursionError:
        raise _too_deep(str(path)) from None
    except ValueError as error:  # beside those of TOML: bytes that are not UTF-8, numbers of thousands of digits
        key = _key_defined_twice(str(error), text)
        there = f'; "{key}" is there already' if key else ""
        once = f"Keep one of the places that set it: grep -n {shlex.quote(key)} {shlex.quote(str(path))}"
        raise MbertError(
            "M001",
            f"this is not valid TOML: {error}{there}",
            where=str(path),
            allowed='TOML 1.0 in UTF-8: key = "text", key = 1.5, key = [1, 2], [table].',
            fix=once if key else f"Correct that place; a file that is right: mbert copy {kind} {EXAMPLES[kind]}",
        ) from None
    check_values(values, str(path))
    return values


def _key_defined_twice(message: str, text: str) -> str:
    """Returns the key of a line that sets it a second time, by tomllib's message, which gives the line alone; or ""."""
    position = re.match(r"Cannot (?:overwrite|declare|mutate|redefine).*\(at line (\d+)", message)
    lines = text.splitlines()
    if position is None or int(position[1]) > len(lines):
        return ""
    key = re.match(r"[\s\[]*([^\]=#]+)", lines[int(position[1]) - 1])
    return key[1].strip() if key else ""


def parse_value(text: str) -> Any:
    """Parses a TOML scalar or list; anything else is taken as text, so that `--set task=sst2` needs no quotes."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return table["value"] if len(table) == 1 else text


def check_values(values: Any, where: str) -> None:
    """Checks values that TOML allows and a recipe cannot use: M050 for tables nested too deep, M052 for other values."""
    level = [values]  # breadth first: a recursion would hit Python's limit on the very files that this rejects
    for _ in range(MAX_DEPTH):
        tables = [value for value in level if isinstance(value, Mapping)]
        level = [inner for value in level if isinstance(value, Mapping | list | tuple) for inner in _children(value)]
        for value in [*level, *(key for table in tables for key in table)]:
            if isinstance(value, int) and value.bit_length() >= MAX_INTEGER_BITS:
                raise _invalid_value("a whole number here is too large", where)
            if isinstance(value, str) and ("\0" in value or not is_valid_text(value)):
                raise _invalid_value(f"{value[:80]!r} holds a zero byte, or half a character", where)
        if not level:
            return
    raise _too_deep(where)


def _children(value: Any) -> Any:
    return value.values() if isinstance(value, Mapping) else value


def _too_deep(where: str) -> MbertError:
    return MbertError(
        "M050",
        "tables or lists lie too deep inside each other",
        where=where,
        allowed=f"At most {MAX_DEPTH} levels.",
        fix="Correct it; every key with its default: mbert list keys",
    )


def _invalid_value(what: str, where: str) -> MbertError:
    return MbertError(
        "M052",
        what,
        where=where,
        allowed=f"Whole numbers of {MAX_INTEGER_BITS} bits, texts in UTF-8.",
        fix="Correct the value, or leave it out.",
    )


BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(values: Mapping[str, Any]) -> str:
    """Writes nested tables as TOML, one dotted key a line; keys without a value are left out."""
    lines = [f"{key} = {_value(value)}" for key, value in _leaves(values) if value not in (None, {})]
    return "\n".join(lines) + "\n"


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{_key(key)}.")
        else:
            yield prefix + _key(key), value


def _key(key: str) -> str:
    return key if BARE_KEY.fullmatch(key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # the one character TOML escapes and JSON does not
