"""The end of a comparison: every row's scores, spread, size, speed and cost beside each other, as table, JSON and plot."""

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from microbert_cli.data.task_data import load_task_data
from microbert_cli.evaluation.compare.costs import costs
from microbert_cli.evaluation.compare.fairness import differences, remarks
from microbert_cli.evaluation.compare.run import Entry
from microbert_cli.evaluation.compare.table import as_markdown
from microbert_cli.evaluation.compare_speed import BenchmarkModel, benchmark_models
from microbert_cli.models.config import read_json
from microbert_cli.recipe.multitask import named_inputs
from microbert_cli.recipe.phase_data import TRANSFER
from microbert_cli.recipe.registry import Catalog
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import atomic, manifest
from microbert_cli.runs.output_dir import stage_output
from microbert_cli.runs.stage_result import StageResult, read_metrics, up_to_date, write_results

NAME = "compare"
FORMAT = 4
TABLE, PLOT = "table.md", "plot.svg"
SHAPELESS_KEYS = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "id2label", "label2id", "problem_type")
Section = dict[str, Any]


def run(
    entries: Mapping[str, Sequence[Entry]],
    out: Path,
    *,
    catalog: Catalog,
    force: bool = False,
    resume: bool = True,
    reporter: Reporter = SILENT,
) -> StageResult:
    """Gathers the finished rows of every task (task -> entries), and measures one model of each shape in one interleaved run.

    metrics.json and table.md hold the same; plot.svg is drawn where matplotlib is installed, and said to be missing where not.
    """
    identity = {
        "format": FORMAT,
        "rows": {task: [[one.identity(), manifest.identify(one.out)] for one in rows] for task, rows in entries.items()},
        "plot": find_spec("matplotlib") is not None,
    }
    with stage_output(out, stage=NAME, identity=identity, force=force, resume=resume, renew=True, reporter=reporter) as work:
        if work.done:
            return up_to_date(NAME, out)
        tasks = {task: _task_section(rows, catalog, reporter) for task, rows in entries.items()}
        metrics: Section = {"tasks": tasks, "average": _average_rows(tasks), "plot": None}
        if identity["plot"]:
            from microbert_cli.evaluation.compare.plot import draw

            draw(metrics, work.path / PLOT)
            metrics["plot"] = PLOT
        else:
            reporter.note(
                'no plot: matplotlib is not installed; pip install "microbert-cli[plot]", then the same command again'
            )
        atomic.write_text(work.path / TABLE, as_markdown(metrics))
        sources = {f"{task}: {one.row.name}": str(one.out) for task, rows in entries.items() for one in rows}
        return write_results(
            work,
            stage=NAME,
            recipe={"rows": list(sources)},
            metrics=metrics,
            inputs={name: manifest.read(Path(place))["result"] for name, place in sources.items()},
            sources=sources,
        )


def _task_section(entries: Sequence[Entry], catalog: Catalog, reporter: Reporter) -> Section:
    """One task: the rows, their teacher, and what is to be said of them."""
    rows = [_table_row(one) for one in entries]
    measured = [read_metrics(one.out) for one in entries]
    primary = measured[0]["primary"]
    taught = next(((one, found) for one, found in zip(entries, measured, strict=True) if found.get("teacher")), None)
    places = {row["row"]: str(one.out) for row, one in zip(rows, entries, strict=True)}
    teacher: Section = {}
    raced = False
    if taught:
        entry, found = taught
        own = [place for _, place in named_inputs("teacher", entry.step.inputs["teacher"])]
        teacher = {"score": found["teacher"][primary], "directory": ", ".join(own)}
        places[""] = own[0]
        raced = len(own) == 1 and not entry.step.resolved.recipe.teacher.label_order  # a race knows no other order of outputs
    machine = _measure_speeds([*rows, *([teacher] if raced else [])], places, entries[0], catalog, reporter)
    for row in rows:
        row["retention"] = row["score"] / teacher["score"] if teacher and teacher["score"] > 0 else None
    return {
        "primary": primary,
        "majority": measured[0]["majority"],
        "teacher": teacher,
        "rows": rows,
        "differences": differences(rows),
        "remarks": remarks(rows, majority=measured[0]["majority"], machine=machine),
        "conditions": machine,
    }


def _table_row(one: Entry) -> Section:
    """What a finished row's own files say of it."""
    metrics, made = read_metrics(one.out), manifest.read(one.out)
    primary, seeds = metrics["primary"], [int(seed) for seed in made["seeds"]]
    by_seed = metrics.get("seeds") or {str(metrics["seed"]): metrics["dev"]}
    start, began = made["inputs"].get("student", made["inputs"].get("model")), metrics.get("start")
    return {
        "row": one.row.name,
        "kind": one.step.kind,
        "method": one.step.resolved.recipe.method if one.step.stage.is_method else None,
        "of": one.row.of,
        "without": one.row.without,
        "score": metrics.get("mean", metrics["dev"])[primary],
        "spread": metrics.get("spread", {}).get(primary),
        "by_seed": {seed: scores[primary] for seed, scores in by_seed.items()},
        "mean": metrics.get("mean", metrics["dev"]),
        "spreads": metrics.get("spread"),
        "parameters": metrics["parameters"],
        **costs(one.out, made, metrics["phases"], seeds),
        "chosen": one.chosen,
        "tried": one.tried,
        "grid_tried": len(one.tried),
        "grid_seconds": sum(_trial_seconds(Path(trial["directory"])) for trial in one.tried),
        "directory": str(one.out),
        "about": {
            "data": [made["identity"]["data"].get(key) for key in ("task", "max_length", "train", "dev")],
            "augmented": made["inputs"].get("augmented"),
            "transfer": _transfer_set(made, metrics),
            "teacher": {name: found for name, found in made["inputs"].items() if name.startswith("teacher")},
            "start": [start, began] if began else start,
            "from": " ".join([str(one.step.inputs.get("student", one.step.inputs.get("model"))), *_start_words(began)]),
            "shape": _shape_digest(one.out),
        },
    }


def _transfer_set(made: Mapping[str, Any], metrics: Mapping[str, Any]) -> Section | None:
    """The transfer set of a row, by rows and content; None where no phase of it took one."""
    taken = any(phase.get("split") == TRANSFER for phase in metrics["phases"].values())
    return {key: made["data"][TRANSFER][key] for key in ("rows", "fingerprint")} if taken else None


def _start_words(began: dict[str, Any] | None) -> list[str]:
    return [f"{key} {value}" for key, value in (began or {}).items()]


def _trial_seconds(out: Path) -> float:
    """What trying one choice of a grid took; 0 for one that diverged, and so left no output."""
    if not (out / manifest.FILE).is_file():
        return 0.0
    metrics, made = read_metrics(out), manifest.read(out)
    return costs(out, made, metrics["phases"], made["seeds"])["seconds_in_all"] or 0.0


def _shape_digest(model: Path) -> str:
    """What decides a model's speed: its configuration without names."""
    config = read_json(model / "config.json", where=str(model))
    return atomic.digest({key: value for key, value in config.items() if key not in SHAPELESS_KEYS and "dropout" not in key})


def _measure_speeds(
    rows: Sequence[Section], places: Mapping[str, str], some: Entry, catalog: Catalog, reporter: Reporter
) -> Section:
    """One model of each shape in one interleaved run; what was measured of it goes to all rows of its shape."""
    shapes = {row.get("row", ""): row["about"]["shape"] if "about" in row else places[""] for row in rows}
    firsts: dict[str, str] = {}
    for name, shape in shapes.items():
        firsts.setdefault(shape, name)
    data = load_task_data(some.step.resolved.recipe, catalog, splits=("dev",), reporter=reporter)
    entrants = [BenchmarkModel(name, places[name], "torch") for name in firsts.values()]
    found = benchmark_models(entrants, data, reporter=reporter)
    for row in rows:
        first = firsts[shapes[row.get("row", "")]]
        speed = found["models"][first]
        row |= {
            "parameters": speed.get("parameters", row.get("parameters")),
            "megabytes": speed["bytes"] / 1e6 if speed.get("bytes") else None,
            "flops": speed["flops"],
            "latency_ms": speed["latency_ms"],
            "rows_per_second": speed["throughput"],
            "raced": first or "teacher",
        }
    conditions: Section = json.loads(json.dumps(found["conditions"]))
    return conditions


def _average_rows(tasks: Mapping[str, Section]) -> list[Section] | None:
    """Means over the tasks, row by row; None for a single task. Rows that not all tasks have are left out."""
    if len(tasks) < 2:
        return None
    by_task = [{row["row"]: row for row in section["rows"]} for section in tasks.values()]
    shared = [name for name in by_task[0] if all(name in rows for rows in by_task)]
    return [_mean_row(name, [rows[name] for rows in by_task]) for name in shared]


def _mean_row(name: str, rows: Sequence[Section]) -> Section:
    retained = [row["retention"] for row in rows if row["retention"] is not None]
    seeds = list(rows[0]["by_seed"])
    alike = all(list(row["by_seed"]) == seeds for row in rows)
    each = [mean(row["by_seed"][seed] for row in rows) for seed in seeds] if alike else []
    return {
        "row": name,
        "score": mean(row["score"] for row in rows),
        "spread": stdev(each) if len(each) > 1 else None,
        "by_seed": dict(zip(seeds, each, strict=True)) if alike else None,
        "retention": mean(retained) if len(retained) == len(rows) else None,
        "tasks": len(rows),
    }
