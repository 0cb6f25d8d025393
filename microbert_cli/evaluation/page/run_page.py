"""What the page of one run shows: results, lineage, curves, answers, costs, commands."""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microbert_cli.errors import MbertError
from microbert_cli.evaluation.alternatives.kinds import LINEAR, MAJORITY, STUDENT_INT8, TEACHER, TEACHER_INT8
from microbert_cli.evaluation.compare.costs import seconds_by_phase, steps_by_phase
from microbert_cli.evaluation.page.charts import Chart, curve_chart, front_chart
from microbert_cli.evaluation.page.curves import LOG, read_curves
from microbert_cli.evaluation.page.run_folder import (
    RunFolder,
    StageOutput,
    evaluations_of,
    judged_output,
    read_output,
    sources_of,
)
from microbert_cli.evaluation.page.split_part import SplitPart, split_parts
from microbert_cli.evaluation.summary import NO_BASELINE, lacks_baseline, lead_sentence, result_line
from microbert_cli.recipe.registry import Catalog
from microbert_cli.runs import manifest

STYLES = {TEACHER: "teacher", TEACHER_INT8: "teacher-int8", LINEAR: "linear", MAJORITY: "floor", STUDENT_INT8: "export"}
Row = dict[str, Any]


@dataclass
class TaskPart:
    """The results on one task: the table's rows with their number in the chart, the sentences, the splits."""

    task: str
    primary: str
    rows: list[Row]
    front: Chart | None
    lead: str
    verdict: Mapping[str, Any] | None
    notes: list[str] = field(default_factory=list)
    splits: list[SplitPart] = field(default_factory=list)


@dataclass
class Training:
    """The curves of one stage."""

    stage: str
    kind: str
    charts: list[Chart]
    notes: list[str]


@dataclass
class Node:
    """Something that a model was made from: its role, what it is, facts about it, and what it was made from itself."""

    role: str
    name: str
    kind: str
    facts: list[str]
    children: list["Node"] = field(default_factory=list)


@dataclass(frozen=True)
class Cost:
    """The cost of one stage; `share` is that of the run's wall clock."""

    stage: str
    kind: str
    wall: float | None
    steps: int | None
    training: float | None
    share: float
    line: str


def run_context(run: RunFolder, *, rows: int, catalog: Catalog) -> dict[str, Any]:
    """Returns what the template of a run's page takes; `rows` is how many differing rows are shown at most."""
    return {
        "title": run.name,
        "tasks": [_task_part(run, section, rows, catalog) for section in run.sections],
        "lineage": _lineage(run),
        "trainings": _trainings(run),
        "without_log": [stage.name for stage in run.stages if stage.metrics.get("phases") and not _logs(stage.out)],
        "costs": _costs(run.stages),
        "commands": _commands(run.stages),
        "problems": run.problems,
        "versions": _versions(run.stages),
        "finished": max((str(stage.record.get("finished")) for stage in run.stages), default=""),
    }


def numbered_rows(table: Sequence[Row]) -> list[Row]:
    """Returns a table's rows with `label`, the number that the chart uses, and `style`, their CSS class."""
    return [{**row, "label": str(number), "style": STYLES.get(row["kind"], row["kind"])} for number, row in enumerate(table, 1)]


def front_of(task: str, primary: str, rows: Sequence[Row]) -> Chart | None:
    """Returns the chart of score against latency of a table's numbered rows."""
    points = [{**row, "name": row["model"]} for row in rows]
    return front_chart(f"{task}: score, latency and size", f"{primary} on dev", points)


def _task_part(run: RunFolder, section: dict[str, Any], rows: int, catalog: Catalog) -> TaskPart:
    splits: list[SplitPart] = []
    for evaluation in evaluations_of(run, section["task"]):
        if not any(part.evaluation != evaluation.name for part in splits):  # a second one scores the same model again
            splits += split_parts(evaluation, rows=rows, catalog=catalog)
    table = numbered_rows(section["table"])
    agreement = next((part.agreement for part in splits if part.agreement is not None), None)
    notes = [f"{row['model']}: {row['note']}" for row in table if row.get("note")]
    if lacks_baseline(section):
        notes.append(NO_BASELINE)
    if not splits:
        notes.append("No stage evaluated the student: no confusion matrices, calibration and rows answered differently.")
    front = front_of(section["task"], section["primary"], table)
    lead = lead_sentence(section, agreement)
    return TaskPart(section["task"], section["primary"], table, front, lead, section["verdict"], notes, splits)


def _trainings(run: RunFolder) -> list[Training]:
    trainings = []
    for stage in run.stages:
        if (curves := read_curves(stage.out, stage.metrics)) is None:
            continue
        chosen = str(stage.metrics.get("seed", ""))
        charts = [
            curve_chart("Loss", "loss", curves.loss, curves.starts, chosen=chosen),
        ]
        is_curve = any(len(points) > 1 for points in curves.dev.values())
        if is_curve:
            charts.append(curve_chart(f"{curves.measure} on dev", curves.measure, curves.dev, curves.starts, chosen=chosen))
        notes = [] if is_curve else ["It was scored on held-out rows once at most: no curve of that."]
        trainings.append(Training(stage.name, stage.kind, [chart for chart in charts if chart], notes))
    return trainings


def _lineage(run: RunFolder) -> list[Node]:
    """Returns the exports of a run's students, or else its students, each with what it was made from."""
    judged = [stage for section in run.sections if (stage := judged_output(run, section))]
    students = {stage.out.resolve() for stage in judged}
    exports = [stage for stage in run.stages if stage.kind == "export"]
    of_students = [stage for stage in exports if any(path and path.resolve() in students for _, _, path in sources_of(stage))]
    tops = of_students or judged or exports or run.stages[-1:]
    seen: set[Path] = set()
    return [_node("", stage, seen) for stage in tops if stage.out.resolve() not in seen]


def _node(role: str, output: StageOutput, seen: set[Path]) -> Node:
    is_repeated = output.out.resolve() in seen
    seen.add(output.out.resolve())
    facts = [fact for fact in (_fact_line(output), str(output.record.get("finished", ""))[:10]) if fact]
    node = Node(role, output.name, output.kind, ["see above"] if is_repeated else facts)
    for child_role, name, path in () if is_repeated else sources_of(output):
        child = None
        if path is not None and (path / manifest.FILE).is_file():
            with suppress(MbertError):
                child = _node(child_role, read_output(path), seen)
        node.children.append(child or Node(child_role, path.name if path else name, "", [] if path else ["not here"]))
    return node


def _fact_line(output: StageOutput) -> str:
    files = output.metrics.get("files", {}) if output.kind == "export" else {}
    return ", ".join(str(measured["file"]) for measured in files.values()) or result_line(output.kind, output.metrics)


def _logs(out: Path) -> list[Path]:
    return [path for path in (out / LOG, *sorted(out.glob(f"seed-*/{LOG}"))) if path.is_file()]


def _costs(stages: Sequence[StageOutput]) -> list[Cost]:
    in_all = sum(stage.wall_seconds or 0.0 for stage in stages)
    costs = []
    for stage in stages:
        steps, training = None, None
        with suppress(ValueError, KeyError, TypeError):  # a log that is damaged
            logs = _logs(stage.out)
            steps = sum(sum(steps_by_phase(log).values()) for log in logs) if logs else None
            training = sum(sum(seconds_by_phase(log).values()) for log in logs) if logs else None
        wall, line = stage.wall_seconds, result_line(stage.kind, stage.metrics)
        costs.append(Cost(stage.name, stage.kind, wall, steps, training, (wall or 0.0) / in_all if in_all else 0.0, line))
    return costs


def _commands(stages: Sequence[StageOutput]) -> list[tuple[str, list[str]]]:
    """Returns the commands that made the stages, each once, with the names of what it made."""
    commands: dict[str, list[str]] = {}
    for stage in stages:
        if argv := stage.record.get("argv"):
            commands.setdefault(shlex.join(map(str, argv)), []).append(stage.name)
    return list(commands.items())


def _versions(stages: Sequence[StageOutput]) -> dict[str, str]:
    versions: dict[str, str] = {}
    for stage in stages:
        versions |= stage.record.get("versions", {})
    return versions
