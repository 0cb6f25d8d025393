"""JSON: an object a line, or one array of objects. A key that a row lacks is wrong only where that key is asked for."""

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from microbert_cli.data.tables.table import Table, empty, rows_location
from microbert_cli.errors import MbertError


def read_objects(path: Path, text: str, *, skip_empty: bool = False) -> Table:
    """The rows of a JSON file as a table. Raises M355, M357; M355 also where a column is read that some rows lack.

    skip_empty  what a row lacks is None instead
    """
    stripped = text.lstrip("\ufeff \t\r\n")
    if not stripped:
        raise empty(path, "At least one row.")
    unit = "line"
    if stripped.startswith("["):
        lines, objects, unit = *_array(path, text), "row"
    elif _is_one_object(text):
        raise _one_object(path, json.loads(text))
    else:
        lines, objects = _lines(path, text)
    if not objects:
        raise empty(path, "At least one row.")
    names = tuple(dict.fromkeys(name for row in objects for name in row))
    table = Table(str(path), names, lines, lambda name: [row.get(name) for row in objects], unit=unit)

    def read(name: str) -> Sequence[Any]:
        lacking = [i for i, row in enumerate(objects) if name not in row]
        if lacking and not skip_empty:
            raise _not_json(
                table.where_all(lacking),
                f'this object has no key "{name}", others have',
                _look_at(path, lines[lacking[0]] if unit == "line" else None),
            )
        return table.read(name)

    return Table(str(path), names, lines, read, unit=unit)


def whole_objects(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the object of every line that is not blank, with the line's number. Raises M355."""
    return ((number, _parse_object(path, number, line)) for number, line in enumerate(lines, 1) if line.strip())


def _lines(path: Path, text: str) -> tuple[Sequence[int], list[dict[str, Any]]]:
    rows = list(whole_objects(path, text.split("\n")))
    return [number for number, _ in rows], [row for _, row in rows]


def _array(path: Path, text: str) -> tuple[Sequence[int], list[dict[str, Any]]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        what = f"this is not JSON: {error.msg} at column {error.colno}"
        raise _not_json(f"{path}, line {error.lineno}", what, _look_at(path, error.lineno)) from None
    except (ValueError, RecursionError) as error:  # too many digits, too many brackets
        raise _not_json(f"{path}, line 1", f"this is not JSON that can be read: {error}", _look_at(path, 1)) from None
    if wrong := [number for number, row in enumerate(rows, 1) if not isinstance(row, dict)]:
        raise _not_json(rows_location(str(path), "row", wrong), "this is JSON, but no object", _look_at(path))
    return range(1, len(rows) + 1), rows


def _parse_object(path: Path, number: int, line: str) -> dict[str, Any]:
    where = f"{path}, line {number}"
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise _not_json(where, f"this is not JSON: {error.msg} at column {error.colno}", _look_at(path, number)) from None
    except (ValueError, RecursionError) as error:  # too many digits, too many brackets
        raise _not_json(where, f"this is not JSON that can be read: {error}", _look_at(path, number)) from None
    if not isinstance(value, dict):
        raise _not_json(where, "this is JSON, but no object", _look_at(path, number))
    return value


def _is_one_object(text: str) -> bool:
    """Whether the whole file is one object over several lines, or a table written as one object of columns."""
    first, _, rest = text.strip().partition("\n")
    try:
        value = json.loads(text) if rest.strip() else json.loads(first)
    except (ValueError, RecursionError):
        return False
    if not isinstance(value, dict):
        return False
    return bool(rest.strip()) or bool(value) and all(isinstance(column, dict | list) for column in value.values())


def _one_object(path: Path, value: dict[str, Any]) -> MbertError:
    lists = [key for key, rows in value.items() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
    if lists:
        fix = f'Its rows are under the key "{lists[0]}": jq -c \'.["{lists[0]}"][]\' {path} > rows.jsonl'
    elif all(isinstance(column, dict) for column in value.values()):
        fix = f'pandas wrote its columns; write its rows: pandas.read_json("{path}").to_json("rows.jsonl", '
        fix += 'orient="records", lines=True)'
    else:
        fix = f'Write an object a row; of one object of lists: pandas.read_json("{path}").to_json("rows.jsonl", '
        fix += 'orient="records", lines=True)'
    return _not_json(str(path), "this is one JSON object, not one a row", fix)


def _look_at(path: Path, line: int | None = None) -> str:
    return f"Look at it: sed -n {line}p {shlex.quote(str(path))}" if line else f"Look at it: head {shlex.quote(str(path))}"


def _not_json(where: str, what: str, fix: str) -> MbertError:
    return MbertError(
        "M355",
        what,
        where=where,
        allowed='One JSON object a line, or an array of them, with the keys that are read: {"text": "...", "label": "..."}.',
        fix=fix,
    )
