"""The report's table as text: light, so that an unchanged run can show it without loading anything."""

from typing import Any

from microbert_cli.text import escape_markdown

COLUMNS = ("model", "score", "spread", "seeds", "retention", "parameters", "megabytes", "latency_ms", "rows_per_second")


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The table in Markdown."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(map(escape_markdown, cells(row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def cells(row: dict[str, Any]) -> list[str]:
    """A row as text; what was not measured stays empty."""
    forms = {
        "score": ".4f",
        "spread": ".4f",
        "retention": ".1%",
        "parameters": ",",
        "megabytes": ".1f",
        "latency_ms": ".2f",
    }
    forms |= {"rows_per_second": ",.0f"}
    return ["" if row.get(name) is None else format(row[name], forms.get(name, "")) for name in COLUMNS]
