"""Prints the tables of docs/results.md for folders that `mbert compare` made: a row a stage, a column a task, seed by seed.

    python benchmarks/methods_table.py runs/methods/sst2 runs/methods-small/mrpc [--order methods.toml] [--against kd]

Scores are the primary metric on dev: mean +- standard deviation over the seeds, the seeds in brackets; `--against` adds the
difference to that row, paired by seed. A row that a folder does not have is left open.
"""

import argparse
import json
import statistics
import tomllib
from pathlib import Path


def scores_of(folder: Path) -> dict[str, list[float]]:
    """Returns the primary score of every seed by the row's name."""
    rows = {}
    for file in sorted(folder.glob("*/metrics.json")):
        metrics = json.loads(file.read_text())
        rows[file.parent.name] = [seed[metrics["primary"]] for seed in metrics["seeds"].values()]
    return rows


def spread(values: list[float]) -> str:
    """Returns mean +- standard deviation."""
    return f"{statistics.mean(values):.4f} +- {statistics.stdev(values):.4f}"


def cell(values: list[float] | None, others: list[float] | None) -> str:
    """Returns what a table says of a row."""
    if values is None:
        return ""
    text = f"{spread(values)} ({', '.join(f'{value:.4f}' for value in values)})"
    if others is None or others is values:
        return text
    differences = [100 * (value - other) for value, other in zip(values, others, strict=True)]
    return f"{text}; {statistics.mean(differences):+.1f} +- {statistics.stdev(differences):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--order", type=Path, help="a recipe, whose `stages` give the order")
    parser.add_argument("--against")
    options = parser.parse_args()
    tables = {folder.name: scores_of(folder) for folder in options.folders}
    names = tomllib.loads(options.order.read_text())["stages"] if options.order else []
    names += sorted({name for rows in tables.values() for name in rows} - set(names))
    print(f"| | {' | '.join(tables)} |\n|---|{'---|' * len(tables)}")
    for name in names:
        cells = [cell(rows.get(name), rows.get(options.against) if options.against else None) for rows in tables.values()]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
