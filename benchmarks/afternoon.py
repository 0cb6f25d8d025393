"""A new user's afternoon: one command from a table to a student, then an answer; commands, minutes and scores.

    python benchmarks/afternoon.py TABLE DEV [--label label] [--base runs/minilm] [-o runs/afternoon] [MBERT OPTION ...]

What is typed is what README says; no key is set. Options that this script does not know go to `mbert distill`. A command whose
work is done already takes no time, so the minutes are those of a first run; `--json FILE` keeps them.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MBERT = [sys.executable, "-m", "microbert_cli"]


def timed(arguments: list[str], **options: Any) -> tuple[str, float]:
    """Returns what a command printed, and the minutes that it took; its progress goes to the screen."""
    print("$ mbert", " ".join(arguments), flush=True)
    begun = time.perf_counter()
    done = subprocess.run([*MBERT, *arguments], stdout=subprocess.PIPE, text=True, check=True, **options)
    return done.stdout, (time.perf_counter() - begun) / 60


def main(argv: list[str] | None = None) -> int:
    """Runs the two commands and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("table")
    parser.add_argument("dev")
    parser.add_argument("--label", default="label")
    parser.add_argument("--base", default="runs/minilm")
    parser.add_argument("-o", "--out", default="runs/afternoon")
    parser.add_argument("--json", type=Path)
    given, others = parser.parse_known_args(argv)
    distill = ["distill", given.table, "--dev-file", given.dev, "--label", given.label, "--base", given.base]
    printed, minutes = timed([*distill, "-o", given.out, *others, "--json"])
    (task,) = json.loads(printed)["summary"]["tasks"]
    text = "Return the day of the week.\n"
    answer, answering = timed(["predict", str(Path(given.out) / "export")], input=text)
    result = {
        "commands": 2,
        "minutes": {"distill": round(minutes, 1), "predict": round(answering, 3)},
        "load": os.getloadavg(),
        "answer": answer.strip(),
        **task,
    }
    print(json.dumps(result, indent=1))
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
