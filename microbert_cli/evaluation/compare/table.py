"""The comparison as text: one table a task, remarks below it, differences, and what grids tried."""

from collections.abc import Iterator, Mapping
from typing import Any

from microbert_cli.evaluation.alternatives.kinds import MAJORITY, STUDENT_INT8
from microbert_cli.evaluation.compare.fairness import verdict
from microbert_cli.evaluation.report_table import verdict_line
from microbert_cli.text import escape_markdown, format_cells, markdown_table

COLUMN_FORMATS = {
    "row": ("row", ""),
    "score": ("score", ".4f"),
    "spread": ("spread", ".4f"),
    "n": ("seeds", ""),
    "retention": ("retention", ".1%"),
    "above_floor": ("above floor", ".1%"),
    "parameters": ("parameters", ","),
    "megabytes": ("MB", ".1f"),
    "latency_ms": ("ms/row", ".2f"),
    "rows_per_second": ("rows/s", ",.0f"),
    "steps": ("steps", ","),
    "rows_seen": ("rows seen", ","),
    "seconds": ("train s", ",.1f"),
    "teacher_seconds": ("teacher s", ",.1f"),
}
COLUMNS = [heading for heading, _ in COLUMN_FORMATS.values()]
FORMATS = {name: form for name, (_, form) in COLUMN_FORMATS.items()}
AVERAGE_FORMATS = {"row": "", "score": ".4f", "spread": ".4f", "retention": ".1%", "tasks": ""}
AVERAGED = list(AVERAGE_FORMATS)
AVERAGE = "Spread: standard deviation over seeds of the mean over tasks, where all tasks have the same seeds."
DIFFERENCES = ["row", "against", "difference of means", "seed by seed: mean ± sd (seeds)", "which is"]


def title(task: str, section: Mapping[str, Any]) -> str:
    """Returns the heading of a task's table."""
    return f"{task}, {section['primary']} on dev"


def lines(section: Mapping[str, Any]) -> list[list[str]]:
    """Returns the rows of one task as text: those compared, their int8 files, the teacher, what else a user could take."""
    alternatives = section["alternatives"] or [{"row": "commonest class", "kind": MAJORITY, "score": section["majority"]}]
    students = [row for row in alternatives if row["kind"] == STUDENT_INT8]
    others = [row for row in alternatives if row["kind"] != STUDENT_INT8]
    teacher = [{**section["teacher"], "row": "teacher"}] if section["teacher"] else []
    return [_cells(row) for row in [*section["rows"], *students, *teacher, *others]]


def remarks(section: Mapping[str, Any]) -> list[str]:
    """Returns the lines below a table: the verdict on the best row, why rows lack numbers, what must be known."""
    verdict = [verdict_line(section["verdict"])] if section["verdict"] else []
    notes = [f"{row['row']}: {row['note']}" for row in section["alternatives"] if row.get("note")]
    if not section["conditions"]:  # of students that write, of which no floor and no int8 file is measured
        return [*notes, *section["remarks"]]
    lines = [
        "Above floor: (score - floor) / (teacher's score - floor); the floor is the score of the answer that looks at no text."
    ]
    if any(row["kind"] == STUDENT_INT8 for row in section["alternatives"]):
        lines.append("Scores of int8 files are those of one file, written of the best seed.")
    return [*verdict, *notes, *lines, *section["remarks"]]


def _cells(row: Mapping[str, Any]) -> list[str]:
    values = {**row, "n": len(row["by_seed"]) if "by_seed" in row else None}
    if row.get("chosen"):
        values["row"] = f"{row['row']} ({', '.join(f'{_short_key(key)} {value}' for key, value in row['chosen'].items())})"
    return format_cells(values, FORMATS)


def _short_key(key: str) -> str:
    """Returns the end of a recipe key that names it well enough: `learning_rate`, `soft_target.temperature` of a loss."""
    return key.partition(".losses.")[2] or key.rpartition(".")[2]


def average_lines(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Returns the means over tasks as text: of the rows, then of what a user could take instead."""
    rows = [*metrics["average"], *(metrics["average_alternatives"] or ())]
    return [format_cells(row, AVERAGE_FORMATS) for row in rows]


def differences_lines(section: Mapping[str, Any]) -> list[list[str]]:
    """Returns the differences between rows as text."""
    return [_difference_cells(difference) for difference in section["differences"]]


def _difference_cells(difference: Mapping[str, Any]) -> list[str]:
    paired = difference["paired"] or {}
    spread = "" if paired.get("spread") is None else f" ± {paired['spread']:.4f}"
    by_seed = f"{paired['mean']:+.4f}{spread} ({paired['seeds']})" if paired else ""
    return [difference["row"], difference["against"], f"{difference['difference']:+.4f}", by_seed, verdict(difference)]


def as_markdown(metrics: Mapping[str, Any]) -> str:
    """Returns the whole comparison in Markdown."""
    parts = ["# Comparison", *(part for task, section in metrics["tasks"].items() for part in _section(task, section))]
    if metrics["average"]:
        parts += ["## Mean over the tasks", markdown_table(AVERAGED, average_lines(metrics)), AVERAGE]
    if metrics["plot"]:
        parts.append(f"![Score against latency]({metrics['plot']})")
    return "\n\n".join(parts) + "\n"


def _section(task: str, section: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {escape_markdown(title(task, section))}"
    yield markdown_table(COLUMNS, lines(section))
    yield "\n".join(f"- {escape_markdown(remark)}" for remark in remarks(section))
    if section["differences"]:
        yield "### Differences"
        yield markdown_table(DIFFERENCES, differences_lines(section))
    trials = [_trial_cells(row, trial) for row in section["rows"] for trial in row["tried"]]
    if trials:
        yield "### What the grid tried"
        yield "On dev, with the first seed alone; the best of each row (the first of equals) was then run with all seeds."
        yield markdown_table(["row", "values", "dev", ""], trials)


def _trial_cells(row: Mapping[str, Any], trial: Mapping[str, Any]) -> list[str]:
    values = ", ".join(f"{key} = {value}" for key, value in trial["values"].items())
    score = "diverged" if trial["dev"] is None else f"{trial['dev']:.4f}"
    return [row["row"], values, score, "chosen" if trial["values"] == row["chosen"] else ""]
