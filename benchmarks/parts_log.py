"""What each term did to the student: gradient norms and the discriminator's accuracy over a phase, from log.jsonl.

    python benchmarks/parts_log.py runs/microbert/sst2/microbert/seed-* --phase all

Norms are there where the phase was trained with `gradient_norms`; rows are tenths of the phase, means over runs and steps.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean


def tenths(directory: Path, phase: str) -> dict[int, dict[str, list[float]]]:
    """Every number of the phase's log lines by tenth."""
    records = (json.loads(line) for line in (directory / "log.jsonl").read_text(encoding="utf-8").splitlines())
    lines = [line for line in records if line.get("phase") == phase and "loss" in line]
    last = max((line["step"] for line in lines), default=1)
    values: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        for name, value in line.items():
            if isinstance(value, int | float):
                values[min(9, (line["step"] - 1) * 10 // last)][name].append(float(value))
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directories", nargs="+", type=Path)
    parser.add_argument("--phase", default="all")
    asked = parser.parse_args()
    runs = [tenths(directory, asked.phase) for directory in asked.directories]
    names = sorted({name for run in runs for tenth in run.values() for name in tenth} - {"step", "lr"})
    shown = [name for name in names if name.endswith("_gradient") or name.startswith("discriminator")] or names
    print("| tenth | " + " | ".join(shown) + " |")
    print("|---" * (len(shown) + 1) + "|")
    for tenth in range(10):
        values = [[value for run in runs for value in run[tenth][name]] for name in shown]
        print(f"| {tenth + 1} | " + " | ".join(f"{mean(cell):.4f}" if cell else "" for cell in values) + " |")


if __name__ == "__main__":
    main()
