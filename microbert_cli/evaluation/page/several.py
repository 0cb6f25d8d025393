"""What the page of several runs, or of a comparison, shows: one table and one chart a task."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from microbert_cli.evaluation.alternatives.kinds import EXPORT, MAJORITY, STUDENT, STUDENT_INT8, TEACHER
from microbert_cli.evaluation.compare import table
from microbert_cli.evaluation.page.run_folder import RunFolder, StageOutput
from microbert_cli.evaluation.page.run_page import front_of, numbered_rows
from microbert_cli.evaluation.summary import lead_sentence

Row = dict[str, Any]
NAMES = (
    "model",
    "kind",
    "score",
    "spread",
    "seeds",
    "retention",
    "above_floor",
    "parameters",
    "megabytes",
    "latency_ms",
    "rows_per_second",
)


def several_context(runs: Sequence[RunFolder], comparisons: Sequence[StageOutput], page: Path) -> dict[str, Any]:
    """Returns what the template takes of runs and comparisons.

    Of runs the students and exports, and once what is the same for all of them; of comparisons all their rows.
    page  where the page will lie, so that it can point to the pages of the runs
    """
    by_task: dict[tuple[str, str], list[tuple[RunFolder, dict[str, Any]]]] = {}
    for run in runs:
        for section in run.sections:
            by_task.setdefault((section["task"], section["primary"]), []).append((run, section))
    names = names_of(runs)
    without = [names[run.root] for run in runs if not run.sections]
    parts = [_task(task, primary, entries, names, page) for (task, primary), entries in by_task.items()]
    averages: list[dict[str, Any]] = []
    for comparison in comparisons:
        tasks, means = _comparison_parts(comparison, named=bool(runs) or len(comparisons) > 1)
        parts, averages = [*parts, *tasks], [*averages, *means]
    return {
        "title": ", ".join([*names.values(), *map(_folder_of, comparisons)]),
        "tasks": parts,
        "problems": [f"{name}: no stage has scores on dev" for name in without]
        + [f"{names[run.root]}: {problem}" for run in runs for problem in run.problems],
        "averages": averages,
    }


def names_of(runs: Sequence[RunFolder]) -> dict[Path, str]:
    """Returns a name for each run: its folder's, with as many of the folders above as tell it from the others."""
    paths = {run.root: run.root.absolute().parts for run in runs}
    depth = 1
    while depth < 4 and len({parts[-depth:] for parts in paths.values()}) < len(paths):
        depth += 1
    return {root: "/".join(parts[-depth:]) for root, parts in paths.items()}


def _task(
    task: str, primary: str, entries: Sequence[tuple[RunFolder, dict[str, Any]]], names: Mapping[Path, str], page: Path
) -> dict[str, Any]:
    rows: list[Row] = []
    sentences = []
    for run, section in entries:
        name = names[run.root]
        students = [row for row in section["table"] if row["kind"] in (STUDENT, STUDENT_INT8, EXPORT)]
        shared = [row for row in section["table"] if row not in students]
        rows += [{**row, "model": f"{name}: {row['model']}", "run": name} for row in students]
        for row in shared:
            same = next((other for other in rows if other["kind"] == row["kind"] and other["score"] == row["score"]), None)
            if same is None:
                rows.append({**row, "run": name})
        sentences.append({"run": name, "lead": lead_sentence(section), "verdict": section["verdict"], "page": _link(run, page)})
    numbered = numbered_rows(rows)
    return {
        "task": task,
        "primary": primary,
        "rows": numbered,
        "front": front_of(task, primary, numbered),
        "sentences": sentences,
        "notes": ["Speeds of different runs were measured at different times: compare them with care."],
        "tables": [],
    }


def _link(run: RunFolder, page: Path) -> str:
    """Returns the run's own page as seen from this one; empty where it has none."""
    place = run.page_place()
    return quote(Path(os.path.relpath(place.absolute(), page.absolute().parent)).as_posix()) if place.is_file() else ""


def _comparison_parts(output: StageOutput, *, named: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the parts of a comparison, from its metrics: one a task, and the means over them; `named` = by its folder."""
    metrics, before = output.metrics, f"{_folder_of(output)}: " if named else ""
    parts = [_compared(f"{before}{task}", section) for task, section in metrics["tasks"].items()]
    if not metrics.get("average"):
        return parts, []
    title = f"{before}mean over the tasks"
    means = {"title": title, "columns": table.AVERAGED, "rows": table.average_lines(metrics), "note": table.AVERAGE}
    return parts, [means]


def _folder_of(output: StageOutput) -> str:
    return output.out.absolute().parent.name


def _compared(task: str, section: Mapping[str, Any]) -> dict[str, Any]:
    students = [_row({**row, "kind": STUDENT, "seeds": len(row.get("by_seed") or ())}) for row in section["rows"]]
    teacher = [_row({**section["teacher"], "row": "teacher", "kind": TEACHER, "retention": 1.0})] if section["teacher"] else []
    others = section.get("alternatives") or [{"row": "commonest class", "kind": MAJORITY, "score": section["majority"]}]
    rows = numbered_rows([*students, *teacher, *map(_row, others)])
    costs: dict[str, Any] = {
        "title": "What the rows cost",
        "columns": ["row", "steps", "rows seen", "train s", "teacher s"],
        "rows": [_cost_cells(row) for row in section["rows"]],
    }
    tables = [costs]
    if section["differences"]:
        differing = {"columns": table.DIFFERENCES, "rows": table.differences_lines(section)}
        tables.append({"title": "Differences", **differing})
    verdict = section.get("verdict")
    return {
        "task": task,
        "primary": section["primary"],
        "rows": rows,
        "front": front_of(task, section["primary"], rows),
        "sentences": [{"run": verdict["student"], "lead": "", "verdict": verdict, "page": ""}] if verdict else [],
        "notes": [str(remark) for remark in section["remarks"]],
        "tables": tables,
    }


def _row(row: Mapping[str, Any]) -> Row:
    values = {name: row.get(name) for name in NAMES}
    return values | {"model": row["row"], "note": row.get("note")}


def _cost_cells(row: Mapping[str, Any]) -> list[str]:
    formats = {"row": "", "steps": ",", "rows_seen": ",", "seconds": ",.1f", "teacher_seconds": ",.1f"}
    return ["" if row.get(name) is None else format(row[name], form) for name, form in formats.items()]
