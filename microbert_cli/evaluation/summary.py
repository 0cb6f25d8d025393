"""What a run came to: one table, one sentence, and one line a stage, from the metrics of its stages alone.

Light, since an unchanged run shows it without loading anything.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from microbert_cli.evaluation.alternatives.kinds import EXPORT, LINEAR, MAJORITY, STUDENT, STUDENT_INT8, TEACHER
from microbert_cli.evaluation.alternatives.rows import Row, over_seeds, table_row
from microbert_cli.text import format_cells

Metrics = Mapping[str, Any]
Section = dict[str, Any]
COLUMNS = {"model": "", "score": ".4f", "±": ".4f", "kept": ".1%", "MB": ".1f", "ms/row": ".2f", "rows/s": ",.0f"}
KEYS = {"±": "spread", "kept": "retention", "MB": "megabytes", "ms/row": "latency_ms", "rows/s": "rows_per_second"}
NO_BASELINE = "No linear baseline and no verdict: the stage report measures them, as the last of the recipe's `stages`."


def run_summary(stages: Sequence[tuple[str, str, Metrics]]) -> list[Section]:
    """Returns {"task", "primary", "table", "verdict"} of each task of a run; empty where no stage has scores on dev.

    stages  (name, kind, metrics) in the run's order
    The table is that of the last report, else that of the last export, else what the other stages say; only the first two
    measured what a user would take instead, and have a verdict.
    """
    by_kind = {kind: metrics for _, kind, metrics in stages}
    report, export = by_kind.get("report", {}), by_kind.get("export", {})
    if sections := [section for section in report.get("tasks", {"": report}).values() if section.get("table")]:
        return [_section(section, section["table"], section.get("verdict")) for section in sections]
    if export.get("alternatives"):
        return [_section(export, _with_files(export), export.get("verdict"))]
    scored = [(name, kind, metrics) for name, kind, metrics in stages if _is_scored(kind, metrics)]
    return [_section(scored[-1][2], _rows_without_report(scored, export), None)] if scored else []


def _section(metrics: Metrics, table: Sequence[Row], verdict: Metrics | None) -> Section:
    return {
        "task": metrics.get("task") or "task",
        "primary": metrics.get("primary") or "score",
        "table": [_whole_row(row) for row in table],
        "verdict": dict(verdict) if verdict else None,
    }


def _whole_row(row: Row) -> Row:
    """Returns a row with all columns and a kind: reports of earlier versions lack some."""
    name = str(row["model"])
    beginnings = {"commonest": MAJORITY, "mean score": MAJORITY, "linear": LINEAR, "teacher": TEACHER}
    beginnings |= {"export, int8-": EXPORT, "export, int8": STUDENT_INT8, "export": EXPORT}
    kind = next((kind for beginning, kind in beginnings.items() if name.startswith(beginning)), STUDENT)
    return {**table_row(name, kind, None, teacher=None, floor=None), **row}


def _is_scored(kind: str, metrics: Metrics) -> bool:
    return kind in ("finetune", "task-distill") and metrics.get("primary") in metrics.get("dev", {})


def _with_files(export: Metrics) -> list[Row]:
    """Returns the rows that an export measured, with those of its files that are not among them."""
    rows = list(export["alternatives"])
    names = {row["model"] for row in rows}
    return rows + [row for row in _file_rows(export, *_teacher_and_floor(rows)) if row["model"] not in names]


def _teacher_and_floor(rows: Sequence[Row]) -> tuple[float | None, float | None]:
    scores = {row["kind"]: row["score"] for row in reversed(rows)}
    return scores.get(TEACHER), scores.get(MAJORITY)


def _file_rows(export: Metrics, teacher: float | None, floor: float | None) -> Iterator[Row]:
    speeds = export.get("speed", {}).get("models", {})
    for form, measured in export.get("files", {}).items():
        score = (measured.get("scores") or {}).get(export.get("primary"))
        if form != "safetensors" and score is not None:
            speed = {**speeds.get(form, {}), "bytes": measured.get("bytes")}
            kind = STUDENT_INT8 if form == "int8" else EXPORT
            yield table_row(f"export, {form}", kind, score, teacher=teacher, floor=floor, speed=speed, seeds=1)


def _rows_without_report(scored: Sequence[tuple[str, str, Metrics]], export: Metrics) -> list[Row]:
    """Returns what the trainings of a run say themselves: the teacher as distillation measured it, then each of them."""
    last = scored[-1][2]
    primary, floor = last["primary"], last.get("majority")
    of_teacher = [(metrics.get("teacher") or {}).get(primary) for _, _, metrics in scored]
    teacher = next((score for score in of_teacher if score is not None), None)
    floor_name = "commonest text" if "signatures" in last else "commonest class"
    rows = [] if floor is None else [table_row(floor_name, MAJORITY, floor, teacher=teacher, floor=floor)]
    if teacher is not None:
        rows.append(table_row("teacher", TEACHER, teacher, teacher=teacher, floor=floor))
    for name, kind, metrics in scored:
        is_teacher = teacher is not None and kind == "finetune" and name == "finetune"
        if metrics["primary"] == primary and not is_teacher:
            size = {"parameters": metrics.get("parameters")}
            rows.append(table_row(name, STUDENT, **over_seeds(metrics, primary), teacher=teacher, floor=floor, speed=size))
    return [*rows, *_file_rows(export, teacher, floor)]


def cells(row: Row) -> list[str]:
    """Returns a row of the closing table as text, in the order of `COLUMNS`."""
    return format_cells({column: row.get(KEYS.get(column, column)) for column in COLUMNS}, COLUMNS)


def lacks_baseline(section: Section) -> bool:
    """Whether a table has no row of a linear model, so that nothing says what its students are worth."""
    return not any(row["kind"] == LINEAR for row in section["table"])


def remarks(section: Section) -> list[str]:
    """Returns the lines below the closing table: what the student is worth, and why rows lack numbers."""
    verdict = section["verdict"]
    lines = [f"{verdict['student']}: {verdict['sentence']}"] if verdict else [NO_BASELINE] if lacks_baseline(section) else []
    return lines + [f"{row['model']}: {row['note']}" for row in section["table"] if row.get("note")]


def result_line(kind: str, metrics: Metrics) -> str:
    """Returns what a stage came to, in a few words; empty where its metrics say nothing of it."""
    try:
        return _LINES[kind](metrics) if kind in _LINES else ""
    except (KeyError, TypeError, ValueError, IndexError):
        return ""  # an output of an earlier version may lack a number


def _training_line(metrics: Metrics) -> str:
    if isinstance(metrics.get("tasks"), dict):
        parts = ((name, {"primary": part["primary"], **part}) for name, part in metrics["tasks"].items())
        return ", ".join(f"{name} {part['dev'][part['primary']]:.4f}" for name, part in parts)
    primary = metrics["primary"]
    result = over_seeds(metrics, primary)
    text = f"{primary} {result['score']:.4f}" + (f" ± {result['spread']:.4f}" if result["spread"] else "") + " on dev"
    if result["seeds"] > 1:
        text += f", {result['seeds']} seeds"
    teacher = (metrics.get("teacher") or {}).get(primary)
    if teacher and teacher > 0:
        text += f"; {_percent(result['score'] / teacher)} of the teacher's {teacher:.4f}"
    return text


def _corpus_line(metrics: Metrics) -> str:
    heldout = metrics["heldout"]
    before = metrics.get("heldout_before", {}).get("loss")
    was = f", {before:.3f} before" if before is not None else ""
    return f"loss {heldout['loss']:.3f} on held-out text{was}; {metrics['steps']:,} steps"


def _evaluation_line(metrics: Metrics) -> str:
    return "; ".join(_split_line(split, scores) for split, scores in metrics["splits"].items())


def _split_line(split: str, scores: Metrics) -> str:
    agreement = scores.get("teacher", {}).get("agreement")
    text = f"{split}: {', '.join(f'{name} {value:.4f}' for name, value in scores['metrics'].items())}"
    return text if agreement is None else f"{text}, {_percent(agreement)} of the rows as the teacher"


def _export_line(metrics: Metrics) -> str:
    files = metrics["files"]
    smallest = min(files.values(), key=lambda measured: measured["bytes"])
    text = f"{len(files)} files, the smallest {smallest['file']} with {smallest['bytes'] / 1e6:.1f} MB"
    score = (smallest.get("scores") or {}).get(metrics.get("primary"))
    return text if score is None else f"{text}, {metrics['primary']} {score:.4f} on dev"


def _report_line(metrics: Metrics) -> str:
    sections = metrics.get("tasks", {"": metrics})
    return "; ".join(f"{section['task']}, {len(section['table'])} rows" for section in sections.values())


_LINES = {
    "pretrain": _corpus_line,
    "general-distill": _corpus_line,
    "finetune": _training_line,
    "task-distill": _training_line,
    "augment": lambda metrics: f"{metrics['rows_in']:,} rows became {metrics['rows_out']:,}",
    "trim": lambda metrics: f"{metrics['rows']['before']:,} tokens became {metrics['rows']['after']:,}",
    "evaluate": _evaluation_line,
    "export": _export_line,
    "report": _report_line,
}


def lead_sentence(section: Section, agreement: float | None = None) -> str:
    """Returns what the judged student is, in one sentence: score kept, size, speed, the linear model, agreement.

    agreement  share of the rows that the student answers as the teacher does
    Size and speed are those of the student's int8 file where there is one, else of the student itself.
    """
    rows = section["table"]
    by_kind = {row["kind"]: row for row in reversed(rows)}
    teacher, linear = by_kind.get(TEACHER, {}), by_kind.get(LINEAR, {})
    student = judged_row(section)
    if student is None:
        return ""
    small = by_kind.get(STUDENT_INT8) or student
    parts = [_kept(student, teacher, section["primary"])]
    if (size := _ratio(teacher.get("megabytes"), small.get("megabytes"))) is not None:
        which = "its int8 file has" if small is not student else "it has"
        parts.append(f"{which} {_share(size)} of the size ({small['megabytes']:.1f} MB of {teacher['megabytes']:.1f})")
    if (speed := _ratio(teacher.get("latency_ms"), small.get("latency_ms"))) is not None:
        parts.append(
            f"a row takes {small['latency_ms']:.2f} ms instead of {teacher['latency_ms']:.2f}: {_times(speed)} as fast"
        )
    if linear.get("score") is not None:
        parts.append(f"a linear model on counted words has {linear['score']:.4f}")
    if agreement is not None:
        parts.append(f"{_percent(agreement)} of the rows are answered as the teacher does")
    return "; ".join(parts) + "."


def judged_row(section: Section) -> Row | None:
    """Returns the row that the verdict is about; without a verdict the last student's."""
    name = (section["verdict"] or {}).get("student")
    students = [row for row in section["table"] if row["kind"] == STUDENT]
    named = next((row for row in section["table"] if row["model"] == name), None)
    return named or (students[-1] if students else None)


def _kept(student: Row, teacher: Row, primary: str) -> str:
    score = "no score" if student["score"] is None else f"{student['score']:.4f}"
    spread = f" ± {student['spread']:.4f}" if student.get("spread") else ""
    if student.get("retention") is None:
        return f"{student['model']} has {primary} {score}{spread} on dev"
    share = _percent(student["retention"])
    return f"{student['model']} keeps {share} of the teacher's {primary} ({score}{spread} of {teacher['score']:.4f} on dev)"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _ratio(teacher: float | None, student: float | None) -> float | None:
    return teacher / student if teacher and student else None


def _share(ratio: float) -> str:
    return f"1/{ratio:.0f}" if ratio >= 1.5 else _percent(1 / ratio)


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 10 else f"{ratio:.1f} times"
