"""docs/speed.md out of one run: python benchmarks/speed_page.py benchmarks/results/speed.json docs/speed.md

Every row stands with its date, commit, machine and load, and a row that the run does not have is not on the page. Rows of a
GPU come from results/gpu.json beside the file, if it is there.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from microbert_cli.text import counted

Result = Mapping[str, Any]
HEAD = """# Speed

What `make bench` measured, written by it. Architectures are true, weights random, rows are those of SST-2 and of Wikipedia;
"plain" is [benchmarks/plain.py](../benchmarks/plain.py), which does what the published code does. Contestants of a row take
turns in one run, rates are medians over {rounds} turns. A row is quiet where the machine had nothing else to do; in the others
only the ratios say something.

| | |
|---|---|
| command | `make bench STEPS={steps} ROUNDS={rounds}`{rows} |
| machine | {processor}, {cores} cores, threads: {threads} |
| software | mbert {mbert}, Python {python}, torch {torch} |
"""


def page(speed: Result, gpu: Result | None = None) -> str:
    """Returns the page in Markdown."""
    rows = {name: row for name, row in speed["rows"].items() if "contestants" in row}
    rounds = max((row["rounds"] for row in rows.values() if "rounds" in row), default="?")
    only = f" with `ROWS={','.join(speed['rows'])}`" if speed.get("some_rows") else ""
    parts = [HEAD.format(**speed["machine"], steps=speed["steps"], rounds=rounds, rows=only)]
    training = {name: row for name, row in rows.items() if name != "inference"}
    if training:
        parts += ["## Training, augmentation, evaluation\n", table(HEADERS, list(_training_rows(training))), ""]
        parts += ["Aims that a row has, and what came of them:\n", table(AIMS, list(_aims(rows))), ""]
    if "inference" in rows:
        parts += ["## Answering\n", _inference(rows["inference"]), ""]
    if skipped := [f"- {name}: {row['skipped']}" for name, row in speed["rows"].items() if "skipped" in row]:
        parts += ["## Not measured in this run\n", *skipped, ""]
    if gpu:
        parts += ["## One GPU\n", _gpu(gpu), ""]
    return "\n".join(parts).rstrip("\n") + "\n"


HEADERS = ("", "unit", "plain", "mbert", "ratio", "share of the matrix peak", "peak GiB", "load", "date, commit")
AIMS = ("row", "what", "measured", "aim", "")


def _training_rows(rows: Mapping[str, Result]) -> Any:
    for row in rows.values():
        contestants = row["contestants"]
        mbert_name = next((name for name in contestants if name.startswith("mbert")), next(reversed(contestants)))
        other = next((name for name in contestants if name != mbert_name), None)
        ratio = "" if other is None else f"**{contestants[mbert_name]['rate'] / contestants[other]['rate']:.1f}**"
        label = "" if other in (None, "plain") else f" ({other})"
        yield (
            row["what"].rstrip("."),
            row["unit"],
            "" if other is None else f"{contestants[other]['rate']:g}{label}",
            f"{contestants[mbert_name]['rate']:g}" + ("" if mbert_name == "mbert" else f" ({mbert_name})"),
            ratio,
            f"{contestants[mbert_name].get('of_gemm_peak', '')}",
            f"{contestants[mbert_name].get('peak_gib', '')}",
            _load(row),
            f"{row.get('date', '')}, {row.get('commit', '')}",
        )


def _aims(rows: Mapping[str, Result]) -> Any:
    for name, row in rows.items():
        for what, each in row.get("ratios", {}).items():
            yield name, what, f"{each['ratio']:g}", f"{each['target']:g}", "" if each["reached"] else "missed"


def _inference(row: Result) -> str:
    contestants = row["contestants"]
    student = contestants["student, ONNX int8"]
    body = [
        (
            name,
            f"{each['latency_ms']:.2f}",
            f"{each['latency_ms'] / student['latency_ms']:.1f}",
            f"{each['rate']:,.0f}",
            f"{each['mb']:.1f}",
        )
        for name, each in contestants.items()
    ]
    when = f"{row.get('date', '')}, {row.get('commit', '')}"
    what = f"{row['what']} {row['rows']} rows, {counted(row['threads'], 'thread')}, load {_load(row)}, {when}."
    return what + "\n\n" + table(("", "ms a row", "times the student's", "rows/s", "MB"), body)


def _gpu(gpu: Result) -> str:
    machine = gpu["machine"]
    peak = f"{machine['bfloat16 TFLOP/s']:g} TFLOP/s in bfloat16"
    head = f"{machine['device']}, torch {machine['torch']}, {peak}; `make gpu`, [more](scale.md#measured-on-one-gpu).\n"
    body = []
    for name in ("general", "intermediate", "augment"):
        for who, each in gpu.get(name, {}).items():
            if isinstance(each, Mapping):
                body.append((name, who, f"{each['rate']:,.0f}", f"{each['share']:.3f}"))
    return head + "\n" + table(("row", "", "samples/s", "share of the matrix peak"), body)


def _load(row: Result) -> str:
    return f"{row['load_before']:g}-{row['load_after']:g}" + ("" if row.get("quiet") else ", not quiet")


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def write(speed: Path, target: Path) -> None:
    """Writes the page of a run's results."""
    gpu = speed.parent / "gpu.json"
    other = json.loads(gpu.read_text(encoding="utf-8")) if gpu.is_file() else None
    target.write_text(page(json.loads(speed.read_text(encoding="utf-8")), other), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
