"""The end of a comparison: every row's scores, spread, size, speed and cost beside each other, as table, JSON and plot."""

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from microbert_cli.data.task_data import TaskData, load_task_data
from microbert_cli.evaluation.compare.alternatives import ComparedAlternatives, judge
from microbert_cli.evaluation.compare.costs import costs
from microbert_cli.evaluation.compare.fairness import differences, remarks
from microbert_cli.evaluation.compare.run import Entry
from microbert_cli.evaluation.compare.table import as_markdown
from microbert_cli.evaluation.compare.texts import text_section
from microbert_cli.evaluation.compare_speed import BenchmarkModel, benchmark_models
from microbert_cli.models.config import read_json
from microbert_cli.recipe.multitask import named_inputs
from microbert_cli.recipe.phase_data import TRANSFER
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.task import writes_text
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import atomic, manifest
from microbert_cli.runs.output_dir import stage_output
from microbert_cli.runs.stage_result import StageResult, place_seen_from, read_metrics, up_to_date, write_results

NAME = "compare"
FORMAT = 6
TABLE, PLOT = "table.md", "plot.svg"
SHAPELESS_KEYS = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "id2label", "label2id", "problem_type")
Section = dict[str, Any]


def run(
    entries: Mapping[str, Sequence[Entry]],
    out: Path,
    *,
    catalog: Catalog,
    baselines: bool = True,
    force: bool = False,
    resume: bool = True,
    reporter: Reporter = SILENT,
) -> StageResult:
    """Gathers the finished rows of every task (task -> entries), and measures one model of each shape in one interleaved run.

    baselines  adds a linear model, and the int8 files of the teacher and of every row
    metrics.json and table.md hold the same; plot.svg is drawn where matplotlib is installed, and said to be missing where not.
    """
    identity = {
        "format": FORMAT,
        "rows": {task: [[entry.identity(), manifest.identify(entry.out)] for entry in rows] for task, rows in entries.items()},
        "plot": find_spec("matplotlib") is not None,
        "baselines": baselines,
    }
    with stage_output(out, stage=NAME, identity=identity, force=force, resume=resume, renew=True, reporter=reporter) as work:
        if work.done:
            return up_to_date(NAME, out)
        tasks = {task: _task_section(rows, out, catalog, baselines, reporter) for task, rows in entries.items()}
        metrics: Section = {"tasks": tasks, "average": _average_rows(tasks), "plot": None}
        metrics["average_alternatives"] = _average_lines(tasks)
        if identity["plot"] and any(section["conditions"] for section in tasks.values()):
            from microbert_cli.evaluation.compare.plot import draw

            draw(metrics, work.path / PLOT)
            metrics["plot"] = PLOT
        elif not identity["plot"]:
            reporter.note(
                'no plot: matplotlib is not installed; pip install "microbert-cli[plot]", then the same command again'
            )
        atomic.write_text(work.path / TABLE, as_markdown(metrics))
        sources = {f"{task}: {entry.row.name}": str(entry.out) for task, rows in entries.items() for entry in rows}
        return write_results(
            work,
            stage=NAME,
            recipe={"rows": list(sources)},
            metrics=metrics,
            inputs={name: manifest.read(Path(place))["result"] for name, place in sources.items()},
            sources=sources,
        )


def _task_section(entries: Sequence[Entry], out: Path, catalog: Catalog, baselines: bool, reporter: Reporter) -> Section:
    """Returns the comparison on one task: rows, teacher, alternatives, verdict, differences, remarks, benchmark conditions."""
    rows = [_table_row(entry, out) for entry in entries]
    metrics = [read_metrics(entry.out) for entry in entries]
    primary = metrics[0]["primary"]
    distilled = next((pair for pair in zip(entries, metrics, strict=True) if pair[1].get("teacher")), None)
    directories = {row["row"]: str(entry.out) for row, entry in zip(rows, entries, strict=True)}
    if writes_text(entries[0].step.resolved.recipe, catalog):
        return text_section(rows, metrics, directories)
    teacher: Section = {}
    teacher_is_measured = False
    if distilled:
        entry, row_metrics = distilled
        teachers = [directory for _, directory in named_inputs("teacher", entry.step.inputs["teacher"])]
        teacher = {
            "score": row_metrics["teacher"][primary],
            "directory": ", ".join(place_seen_from(out, name) for name in teachers),
        }
        directories[""] = teachers[0]
        # The benchmark scores nothing, but it refuses a teacher whose outputs are in another order than the task's labels.
        teacher_is_measured = len(teachers) == 1 and not entry.step.resolved.recipe.teacher.label_order
    recipe = entries[0].step.resolved.recipe
    data = load_task_data(recipe, catalog, splits=("dev",), reporter=reporter)
    instead = None
    if baselines:
        only_teacher = directories[""] if teacher_is_measured else None
        instead = ComparedAlternatives(recipe, catalog, data, rows, directories, only_teacher, reporter)
    timed_rows = [*rows, *([teacher] if teacher_is_measured else [])]
    machine, speeds = _measure_speeds(timed_rows, directories, data, instead, reporter)
    for row in rows:
        row["retention"] = row["score"] / teacher["score"] if teacher and teacher["score"] > 0 else None
    lines = instead.lines(teacher.get("score"), speeds) if instead else []
    verdict = judge(rows, lines, teacher, metrics[0]["majority"], machine)
    return {
        "primary": primary,
        "majority": metrics[0]["majority"],
        "teacher": teacher,
        "rows": rows,
        "alternatives": lines,
        "verdict": verdict,
        "differences": differences(rows),
        "remarks": remarks(rows, majority=metrics[0]["majority"], machine=machine),
        "conditions": machine,
    }


def _table_row(entry: Entry, out: Path) -> Section:
    """Returns one row of the table, from the metrics and the manifest of its directory; places are as seen from `out`."""
    source = str(entry.step.inputs.get("student", entry.step.inputs.get("model")))
    metrics, record = read_metrics(entry.out), manifest.read(entry.out)
    primary, seeds = metrics["primary"], [int(seed) for seed in record["seeds"]]
    by_seed = metrics.get("seeds") or {str(metrics["seed"]): metrics["dev"]}
    start, initialised_from = record["inputs"].get("student", record["inputs"].get("model")), metrics.get("start")
    return {
        "row": entry.row.name,
        "kind": entry.step.kind,
        "method": entry.step.resolved.recipe.method if entry.step.stage.is_method else None,
        "of": entry.row.of,
        "without": entry.row.without,
        "score": metrics.get("mean", metrics["dev"])[primary],
        "spread": metrics.get("spread", {}).get(primary),
        "by_seed": {seed: scores[primary] for seed, scores in by_seed.items()},
        "mean": metrics.get("mean", metrics["dev"]),
        "spreads": metrics.get("spread"),
        "parameters": metrics["parameters"],
        **costs(entry.out, record, metrics["phases"], seeds),
        "chosen": entry.chosen,
        "tried": [{**trial, "directory": place_seen_from(out, trial["directory"])} for trial in entry.tried],
        "grid_tried": len(entry.tried),
        "grid_seconds": sum(_trial_seconds(Path(trial["directory"])) for trial in entry.tried),
        "directory": place_seen_from(out, str(entry.out)),
        "about": {
            "data": [record["identity"]["data"].get(key) for key in ("task", "max_length", "train", "dev")],
            "augmented": record["inputs"].get("augmented"),
            "transfer": _transfer_set(record, metrics),
            "teacher": {name: input_digest for name, input_digest in record["inputs"].items() if name.startswith("teacher")},
            "start": [start, initialised_from] if initialised_from else start,
            "from": " ".join([place_seen_from(out, source), *_start_words(initialised_from)]),
            "shape": _shape_digest(entry.out),
        },
    }


def _transfer_set(record: Mapping[str, Any], metrics: Mapping[str, Any]) -> Section | None:
    """Returns size and fingerprint of the transfer set that a row was trained on; None where no phase read one."""
    is_used = any(phase.get("split") == TRANSFER for phase in metrics["phases"].values())
    return {key: record["data"][TRANSFER][key] for key in ("rows", "fingerprint")} if is_used else None


def _start_words(began: dict[str, Any] | None) -> list[str]:
    return [f"{key} {value}" for key, value in (began or {}).items()]


def _trial_seconds(out: Path) -> float:
    """Returns the seconds of one trial of a grid; 0 for one that diverged, and so left no output."""
    if not (out / manifest.FILE).is_file():
        return 0.0
    metrics, record = read_metrics(out), manifest.read(out)
    return costs(out, record, metrics["phases"], record["seeds"])["seconds_in_all"] or 0.0


def _shape_digest(model: Path) -> str:
    """Returns a digest of what decides a model's speed: its configuration without names."""
    config = read_json(model / "config.json", where=str(model))
    return atomic.digest({key: value for key, value in config.items() if key not in SHAPELESS_KEYS and "dropout" not in key})


def _measure_speeds(
    rows: Sequence[Section],
    directories: Mapping[str, str],
    data: TaskData,
    instead: ComparedAlternatives | None,
    reporter: Reporter,
) -> tuple[Section, Section]:
    """Measures one model of each shape in one interleaved run, and gives its numbers to all rows of that shape.

    Returns the conditions, and the speeds by the name of what was measured.
    """
    shapes = {row.get("row", ""): row["about"]["shape"] if "about" in row else directories[""] for row in rows}
    firsts: dict[str, str] = {}
    for name, shape in shapes.items():
        firsts.setdefault(shape, name)
    entrants = [BenchmarkModel(name, directories[name], "torch") for name in firsts.values()]
    entrants += instead.entrants() if instead else []
    linear = instead.alternatives.linear_models() if instead else {}
    measured = benchmark_models(entrants, data, linear=linear, reporter=reporter)
    for row in rows:
        first = firsts[shapes[row.get("row", "")]]
        speed = measured["models"][first]
        row |= {
            "parameters": speed.get("parameters", row.get("parameters")),
            "megabytes": speed["bytes"] / 1e6 if speed.get("bytes") else None,
            "flops": speed["flops"],
            "latency_ms": speed["latency_ms"],
            "rows_per_second": speed["throughput"],
            "raced": first or "teacher",
        }
    conditions: Section = json.loads(json.dumps(measured["conditions"]))
    return conditions, measured["models"]


def _average_rows(tasks: Mapping[str, Section]) -> list[Section] | None:
    """Returns means over the tasks, row by row; None for a single task. Rows that not all tasks have are left out."""
    if len(tasks) < 2:
        return None
    by_task = [{row["row"]: row for row in section["rows"]} for section in tasks.values()]
    shared = [name for name in by_task[0] if all(name in rows for rows in by_task)]
    return [_mean_row(name, [rows[name] for rows in by_task]) for name in shared]


def _average_lines(tasks: Mapping[str, Section]) -> list[Section] | None:
    """Returns means over the tasks of the alternatives that all tasks have scores of; None for a single task."""
    if len(tasks) < 2:
        return None
    lines = [{line["row"]: line for line in section["alternatives"]} for section in tasks.values()]
    scored = [name for name in lines[0] if all(rows.get(name, {}).get("score") is not None for rows in lines)]
    return [_mean_line(name, [rows[name] for rows in lines]) for name in scored]


def _mean_line(name: str, lines: Sequence[Section]) -> Section:
    """Returns the mean of an alternative, which has no seeds."""
    retained = [line["retention"] for line in lines if line["retention"] is not None]
    return {
        "row": name,
        "score": mean(line["score"] for line in lines),
        "retention": mean(retained) if len(retained) == len(lines) else None,
        "tasks": len(lines),
    }


def _mean_row(name: str, rows: Sequence[Section]) -> Section:
    retained = [row["retention"] for row in rows if row["retention"] is not None]
    seeds = list(rows[0]["by_seed"])
    alike = all(list(row["by_seed"]) == seeds for row in rows)
    means = [mean(row["by_seed"][seed] for row in rows) for seed in seeds] if alike else []
    return {
        "row": name,
        "score": mean(row["score"] for row in rows),
        "spread": stdev(means) if len(means) > 1 else None,
        "by_seed": dict(zip(seeds, means, strict=True)) if alike else None,
        "retention": mean(retained) if len(retained) == len(rows) else None,
        "tasks": len(rows),
    }
