"""The report's table as text: light, so that an unchanged run can show it without loading anything."""

from collections.abc import Mapping, Sequence
from typing import Any

from microbert_cli.text import format_cells, markdown_table

FORMATS = {
    "model": "",
    "score": ".4f",
    "spread": ".4f",
    "seeds": "",
    "retention": ".1%",
    "parameters": ",",
    "megabytes": ".1f",
    "latency_ms": ".2f",
    "rows_per_second": ",.0f",
}
COLUMNS = tuple(FORMATS)


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table in Markdown."""
    return markdown_table(COLUMNS, map(cells, rows)) + "\n"


def cells(row: Mapping[str, Any]) -> list[str]:
    """Returns a row as text."""
    return format_cells(row, FORMATS)
