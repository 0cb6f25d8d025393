"""The report's table as text: light, so that an unchanged run can show it without loading anything."""

from collections.abc import Mapping, Sequence
from typing import Any

from microbert_cli.text import escape_markdown, format_cells, markdown_table

FORMATS = {
    "model": "",
    "score": ".4f",
    "spread": ".4f",
    "seeds": "",
    "retention": ".1%",
    "above_floor": ".1%",
    "parameters": ",",
    "megabytes": ".1f",
    "latency_ms": ".2f",
    "rows_per_second": ",.0f",
}
COLUMNS = tuple(FORMATS)
ABOUT = (
    "retention: score / teacher's; above_floor: (score - floor) / (teacher's - floor), where the floor is the score of "
    "the answer that looks at no text; latency_ms: one sequence."
)


def as_markdown(rows: Sequence[Mapping[str, Any]], verdict: Mapping[str, Any] | None = None) -> str:
    """Returns the table in Markdown, and what is said of it below."""
    parts = [markdown_table(COLUMNS, map(cells, rows)), *map(escape_markdown, remarks(rows, verdict))]
    return "\n\n".join(parts) + "\n"


def cells(row: Mapping[str, Any]) -> list[str]:
    """Returns a row as text."""
    return format_cells(row, FORMATS)


def remarks(rows: Sequence[Mapping[str, Any]], verdict: Mapping[str, Any] | None) -> list[str]:
    """Returns the lines below a table: the verdict, why rows lack numbers, what the columns say."""
    lines = [verdict_line(verdict)] if verdict else []
    lines += [f"{row['model']}: {row['note']}" for row in rows if row.get("note")]
    return [*lines, ABOUT] if verdict else lines


def verdict_line(verdict: Mapping[str, Any]) -> str:
    """Returns the verdict with the name of the student that it is about."""
    return f"{verdict['student']}: {verdict['sentence']}"
