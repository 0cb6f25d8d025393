"""What a model card says of the alternatives: the table of what a user would take instead, and the verdict."""

from collections.abc import Mapping, Sequence
from typing import Any

from microbert_cli.text import escape_markdown, format_cells, markdown_table

FORMATS = {
    "model": ("", ""),
    "score": ("dev {metric}", ".4f"),
    "retention": ("of the teacher", ".1%"),
    "above_floor": ("of the teacher, above the floor", ".1%"),
    "megabytes": ("MB", ".1f"),
    "latency_ms": ("ms a sequence", ".2f"),
}
FLOOR = "The floor is the score of the answer that looks at no text."


def alternatives_section(rows: Sequence[Mapping[str, Any]], verdict: Mapping[str, Any], metric: str) -> str:
    """Returns the verdict, the table and why some of its rows lack numbers."""
    headings = [heading.format(metric=metric) for heading, _ in FORMATS.values()]
    formats = {name: form for name, (_, form) in FORMATS.items()}
    table = markdown_table(headings, [format_cells(row, formats) for row in rows])
    notes = [f"{row['model']}: {row['note']}" for row in rows if row.get("note")]
    return "\n\n".join([escape_markdown(verdict["sentence"]), table, *map(escape_markdown, [*notes, FLOOR])])
