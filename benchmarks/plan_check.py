"""Predicted and measured seconds of every stage: `mbert plan`, then the stages themselves, each run in a process of its own.

python benchmarks/plan_check.py recipes/quickstart.toml -o runs/plan-check --runs 3

Measured is the wall time of a stage inside a run, reading and hashing of inputs included, the start of the program not; of
several runs the median. Plan and runs have caches of their own under the output folder, so that nothing is left from before.
--cpu compares processor time instead, on both sides: it says something on a busy machine, with one thread.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

WITHIN = 0.25


def main() -> None:
    """Plans, runs, compares; leaves with 1 if a stage was missed by more than WITHIN."""
    options = arguments()
    if options.child:
        child(options)
        return
    options.out = options.out or next(str(path) for n in range(1, 1000) if not (path := Path(f"runs/plan-check-{n}")).exists())
    planned = planning(options)
    runs = [running(options, number) for number in range(1, options.runs + 1)]
    rows = compared(planned, runs, options)
    print_table(rows, planned)
    if options.json:
        facts = {"recipe": options.recipe, "basis": planned["basis"], "cpu": options.cpu, "runs": options.runs, "stages": rows}
        Path(options.json).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    sys.exit(any(abs(row["ratio"] - 1) > WITHIN for row in rows))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="recipes/quickstart.toml")
    parser.add_argument("-o", "--out", help="a folder for plan, runs, caches; default: a new one in runs/")
    parser.add_argument("--stages", help="only these, with commas between; what they need is run before them")
    parser.add_argument("--task")
    parser.add_argument("--data")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--cpu", action="store_true", help="processor time instead of wall time")
    parser.add_argument("--json", help="a file for the numbers")
    parser.add_argument("--child", choices=("plan", "run"), help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    return parser.parse_args()


def planning(options: argparse.Namespace) -> dict:
    """What `mbert plan --json` says."""
    return json.loads(called(options, "plan", Path(options.out) / "plan"))


def running(options: argparse.Namespace, number: int) -> dict:
    """Seconds and peak memory by stage of one run."""
    root = Path(options.out) / f"run-{number}"
    if root.exists():
        sys.exit(f"{root} exists: name another folder, so that every stage really runs")
    return json.loads(called(options, "run", root).splitlines()[-1])


def called(options: argparse.Namespace, kind: str, root: Path) -> str:
    """The stdout of this script as plan or as run."""
    words = [sys.executable, __file__, *sys.argv[1:], "--child", kind, "--root", str(root)]
    env = os.environ | {"MBERT_CACHE": str(root / "cache"), "GOMP_SPINCOUNT": "1000"}
    return subprocess.run(words, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout


def child(options: argparse.Namespace) -> None:
    """Plans or runs, in a process of its own."""
    if options.cpu:
        time.perf_counter = time.process_time
    if options.child == "plan":
        plan_here(options)
    else:
        run_here(options)


def plan_here(options: argparse.Namespace) -> None:
    """`mbert plan` as typed."""
    from microbert_cli.cli.main import main as mbert

    words = [pair for key in ("task", "data") if getattr(options, key) for pair in (f"--{key}", getattr(options, key))]
    sets = [word for value in options.set for word in ("--set", value)]
    sys.argv = ["mbert", "plan", options.recipe, "-o", options.root, "--json", *words, *sets]
    mbert()


def run_here(options: argparse.Namespace) -> None:
    """The stages one by one, up to the last that is asked for; one JSON object on stdout."""
    import microbert_cli.plan.stages  # noqa: F401 -- imports what the shell would have imported by now
    from microbert_cli.cli.console import ConsoleReporter
    from microbert_cli.recipe.registry import Catalog
    from microbert_cli.recipe.resolve import resolve
    from microbert_cli.runs.pipeline import run_step
    from microbert_cli.runs.stage_inputs import steps

    catalog = Catalog()
    flags = {"task": options.task, "data.folder": options.data}
    resolved = resolve(catalog=catalog, recipe=options.recipe, sets=options.set, flags=flags)
    results, asked = {}, (options.stages or "").split(",")
    last = max((number for number, name in enumerate(resolved.recipe.stages) if name in asked), default=None)
    for step in steps(resolved, Path(options.root), catalog)[: None if last is None else last + 1]:
        begun = time.perf_counter()
        run_step(step, catalog=catalog, reporter=ConsoleReporter(), renew=True)
        seconds, peak = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        results[step.name] = {"seconds": seconds, "peak": peak}
    print(json.dumps(results))


def compared(planned: dict, runs: list[dict], options: argparse.Namespace) -> list[dict]:
    """One row a stage: predicted, measured, and their ratio."""
    wanted = options.stages.split(",") if options.stages else list(runs[0])
    rows = []
    for stage in planned["stages"]:
        if stage["name"] not in wanted:
            continue
        measured = statistics.median(run[stage["name"]]["seconds"] for run in runs)
        predicted = stage["seconds"] or 0.0
        row = {"stage": stage["name"], "predicted": predicted, "measured": measured, "ratio": predicted / measured}
        row |= {"memory_predicted": stage["memory"], "peak_so_far": max(run[stage["name"]]["peak"] for run in runs)}
        rows.append({**row, "parts": {part["what"]: part["seconds"] for part in stage["parts"]}})
    return rows


def print_table(rows: list[dict], planned: dict) -> None:
    """A table on stdout."""
    print(planned["basis"])
    print(f"{'stage':<24}{'predicted':>11}{'measured':>11}{'ratio':>8}{'memory':>10}{'peak':>10}")
    for row in rows:
        missed = "" if abs(row["ratio"] - 1) <= WITHIN else "  missed"
        sizes = f"{row['memory_predicted'] / 1e9:>7.2f} GB{row['peak_so_far'] / 1e9:>7.2f} GB"
        print(f"{row['stage']:<24}{row['predicted']:>9.1f} s{row['measured']:>9.1f} s{row['ratio']:>8.2f}{sizes}{missed}")


if __name__ == "__main__":
    main()
