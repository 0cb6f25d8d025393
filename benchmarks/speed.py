"""mbert against a plain implementation, a waste-free ceiling and, where it is installed, TextBrewer: one interleaved run.

On a machine that does nothing else (load below 2.3 on 2 cores; 24 GiB for the published way of general distillation):

    OMP_NUM_THREADS=2 .venv/bin/python benchmarks/speed.py --json benchmarks/results/speed.json

    --only NAME[,NAME]   some rows of the table: see ROWS below, or --list
    --steps N            steps of the plain code a lap (others take more, since they are faster); --rounds N laps of each
    --autograd-teacher   auto, yes or no: whether the plain code's teacher runs under autograd in general distillation, as
                         published (16.8 GiB); auto = where 20 GiB are free
    --json FILE          writes the results, nothing else does; row by row, so that a run that is stopped keeps what it has
    --page FILE          writes the page of them as well: docs/speed.md (`make bench`)

Architectures are true (teacher 12 x 768, student 4 x 312), weights random, rows are those of SST-2 and of the Wikipedia corpus
in the shared folder (MBERT_SHARED, default ../shared). Rates are medians over the laps of samples per second of measured steps.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")  # TextBrewer's bars

import augmenting
import distilling
import evaluating
import general
import inference
import peer_textbrewer
import speed_page
from ours import NoCache
from shapes import Setup, real_setup, shared_folder

from microbert_cli.evaluation.benchmark import load_average
from microbert_cli.version import __version__

Row = Callable[[Setup, int, int], dict[str, Any]]
ROWS: dict[str, Row] = {
    "intermediate": distilling.intermediate,
    "intermediate-cached": distilling.intermediate_cached,
    "prediction-cached": distilling.prediction_cached,
    "prediction-3-epochs": distilling.prediction_3_epochs,
    "teacher-pass": distilling.teacher_pass,
    "general": general.general,
    "augment-with-original": augmenting.with_original,
    "augment-alone": augmenting.alone,
    "evaluate": evaluating.evaluate,
    "general-memory": general.general_memory,
    "inference": inference.inference,
    "textbrewer": peer_textbrewer.textbrewer,
}
UNITS = {"augment-with-original": "sentences/s", "augment-alone": "sentences/s"}


def measure(names: list[str], setup: Setup, *, steps: int, rounds: int, rows: dict[str, Row] | None = None) -> dict[str, Any]:
    """The rows of these names, one after another; a row that cannot be measured here says why instead."""
    results: dict[str, Any] = {}
    for name in names:
        results[name] = _measured(name, (rows or ROWS)[name], setup, steps, rounds)
        print(table_of(name, results[name]), flush=True)
    return results


def _measured(name: str, row: Row, setup: Setup, steps: int, rounds: int) -> dict[str, Any]:
    what = (getattr(row, "func", row).__doc__ or name).strip().split("\n")[0]
    if name == peer_textbrewer.NAME and not peer_textbrewer.is_there():
        return {"what": what, "skipped": f"not installed: pip install textbrewer=={peer_textbrewer.VERSION}"}
    try:
        when = {"date": time.strftime("%Y-%m-%d"), "commit": commit()}
        return {"what": what, "unit": UNITS.get(name, "samples/s"), **when, **row(setup, steps, rounds)}
    except NoCache as error:
        return {"what": what, "skipped": str(error)}


def table_of(name: str, row: dict[str, Any]) -> str:
    """A row as text."""
    lines = [f"\n{name}: {row['what']}"]
    if "skipped" in row:
        return "\n".join([*lines, f"  skipped: {row['skipped']}"])
    for who, each in row["contestants"].items():
        extra = {
            key: each[key]
            for key in ("latency_ms", "mb", "of_gemm_peak", "useful_tokens", "user_cpu_per_wall", "peak_gib")
            if key in each
        }
        lines.append(f"  {who:<12}{each['rate']:>10} {row['unit']:<12} {_plainly(extra)}")
    for pair, each in row.get("ratios", {}).items():
        lines.append(f"  {pair:<24} {each['ratio']:.3f}  target {each['target']}  {'ok' if each['reached'] else 'MISSED'}")
    facts = ("load_before", "load_after", "gemm_gflops", "threads", "seconds")
    return "\n".join([*lines, f"  {_plainly({key: row[key] for key in facts if key in row})}"])


def _plainly(numbers: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in numbers.items())


def commit() -> str:
    """The commit that is measured, with a + where files differ from it; "" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "mbert": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default=",".join(ROWS), help="rows, separated by commas")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--autograd-teacher", choices=["auto", "yes", "no"], default="auto")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    given = parser.parse_args(argv)
    given.names = [name.strip() for name in given.only.split(",")]
    if given.page and not given.json:
        parser.error("--page is made of the results: give --json as well")
    if unknown := [name for name in given.names if name not in ROWS]:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    return given


def main(argv: list[str] | None = None) -> int:
    """Measures, prints, and writes where asked."""
    given = arguments(argv)
    if given.list:
        print("\n".join(ROWS))
        return 0
    if not shared_folder().is_dir():
        print(f"nothing to measure on: no folder {shared_folder()}; MBERT_SHARED=DIR names another", file=sys.stderr)
        return 0
    rows = ROWS | {"general": partial(general.general, autograd=given.autograd_teacher)}
    whole: dict[str, Any] = {"machine": machine(), "load_at_start": load_average(), "steps": given.steps, "rows": {}}
    whole["some_rows"] = set(given.names) != set(ROWS)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["MBERT_CACHE"] = cache
        setup = real_setup()
        for name in given.names:
            whole["rows"] |= measure([name], setup, steps=given.steps, rounds=given.rounds, rows=rows)
            if given.json:
                _write(given.json, whole)
            if given.json and given.page:
                speed_page.write(given.json, given.page)
    return 0


def _write(path: Path, whole: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
