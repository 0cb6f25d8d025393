"""The comparison as text: one table a task, what it leaves open in lines below, differences, and what grids tried."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from microbert_cli.evaluation.compare.fairness import verdict
from microbert_cli.text import escape_markdown

FORMS = {
    "row": ("row", ""),
    "score": ("score", ".4f"),
    "spread": ("spread", ".4f"),
    "n": ("seeds", ""),
    "retention": ("retention", ".1%"),
    "parameters": ("parameters", ","),
    "megabytes": ("MB", ".1f"),
    "latency_ms": ("ms/row", ".2f"),
    "rows_per_second": ("rows/s", ",.0f"),
    "steps": ("steps", ","),
    "rows_seen": ("rows seen", ","),
    "seconds": ("train s", ",.1f"),
    "teacher_seconds": ("teacher s", ",.1f"),
}
COLUMNS = [title for title, _ in FORMS.values()]
AVERAGED = ["row", "score", "spread", "retention", "tasks"]


def title(task: str, section: Mapping[str, Any]) -> str:
    """What a table is about."""
    return f"{task}, {section['primary']} on dev"


def lines(section: Mapping[str, Any]) -> list[list[str]]:
    """The rows of one task as text: those compared, the teacher, the commonest class."""
    last: list[dict[str, Any]] = [{"row": "commonest class", "score": section["majority"]}]
    if section["teacher"]:
        last.insert(0, {**section["teacher"], "row": "teacher"})
    return [_cells(row) for row in [*section["rows"], *last]]


def _cells(row: Mapping[str, Any]) -> list[str]:
    """A row as text; what was not measured stays empty."""
    values = {**row, "n": len(row["by_seed"]) if "by_seed" in row else None}
    if row.get("chosen"):
        values["row"] = f"{row['row']} ({', '.join(f'{_short(key)} {value}' for key, value in row['chosen'].items())})"
    return ["" if values.get(key) is None else format(values[key], form) for key, (_, form) in FORMS.items()]


def _short(key: str) -> str:
    """What a person calls a key: `learning_rate`, and of a loss `soft_target.temperature`."""
    return key.partition(".losses.")[2] or key.rpartition(".")[2]


def average_lines(average: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The mean over tasks as text."""
    forms = {"row": "", "score": ".4f", "spread": ".4f", "retention": ".1%", "tasks": ""}
    return [["" if row.get(k) is None else format(row[k], form) for k, form in forms.items()] for row in average]


def differences_lines(section: Mapping[str, Any]) -> list[list[str]]:
    """Differences as text."""
    found = []
    for one in section["differences"]:
        paired = one["paired"] or {}
        spread = "" if paired.get("spread") is None else f" ± {paired['spread']:.4f}"
        told = f"{paired['mean']:+.4f}{spread} ({paired['seeds']})" if paired else ""
        found.append([one["row"], one["against"], f"{one['difference']:+.4f}", told, verdict(one)])
    return found


DIFFERENCES = ["row", "against", "difference of means", "seed by seed: mean ± sd (seeds)", "which is"]


def as_markdown(metrics: Mapping[str, Any]) -> str:
    """The whole comparison."""
    parts = ["# Comparison", *(part for task, section in metrics["tasks"].items() for part in _section(task, section))]
    if metrics["average"]:
        parts += ["## Mean over the tasks", _markdown(AVERAGED, average_lines(metrics["average"])), AVERAGE]
    if metrics["plot"]:
        parts.append(f"![Score against latency]({metrics['plot']})")
    return "\n\n".join(parts) + "\n"


AVERAGE = "Spread: standard deviation over seeds of the mean over tasks, where all tasks have the same seeds."


def _section(task: str, section: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {escape_markdown(title(task, section))}"
    yield _markdown(COLUMNS, lines(section))
    yield "\n".join(f"- {escape_markdown(remark)}" for remark in section["remarks"])
    if section["differences"]:
        yield "### Differences"
        yield _markdown(DIFFERENCES, differences_lines(section))
    tried = [(row, one) for row in section["rows"] for one in row["tried"]]
    if tried:
        yield "### What the grid tried"
        yield "On dev, with the first seed alone; the best of each row (the first of equals) was then run with all seeds."
        yield _markdown(["row", "values", "dev", ""], [_trial(row, one) for row, one in tried])


def _trial(row: Mapping[str, Any], one: Mapping[str, Any]) -> list[str]:
    values = ", ".join(f"{key} = {value}" for key, value in one["values"].items())
    score = "diverged" if one["dev"] is None else f"{one['dev']:.4f}"
    return [row["row"], values, score, "chosen" if one["values"] == row["chosen"] else ""]


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = [columns, ["---"] * len(columns), *([escape_markdown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in body)
