"""The table of a comparison of students that write: python benchmarks/texts_table.py DIRECTORY

DIRECTORY is what `mbert compare` wrote. Means over seeds, standard deviations, of dev rows written greedily; below it
the signature, how well the teacher fills in, and what its answers took: seconds, rows a second, bytes of the cache.
"""

import json
import sys
from pathlib import Path
from typing import Any

METRICS = ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "perplexity")


def lines(folder: Path) -> list[str]:
    """Returns the table in Markdown, and what stands below it."""
    (section,) = json.loads((folder / "comparison" / "metrics.json").read_text(encoding="utf-8"))["tasks"].values()
    table = [f"| row | {' | '.join(METRICS)} | seeds | steps | train s |", "|---" * (len(METRICS) + 4) + "|"]
    notes = [f"Signature: {section['signatures']['bleu']}"]
    for row in section["rows"]:
        cells = [_mean(row, name) for name in METRICS]
        table.append(
            f"| {row['row']} | {' | '.join(cells)} | {len(row['by_seed'])} | {row['steps']:,} | {row['seconds']:.0f} |"
        )
        home = folder / "comparison" / row["directory"]
        facts = json.loads((home / "metrics.json").read_text(encoding="utf-8"))
        if foresight := facts.get("teacher_sees_the_future"):
            notes.append(f"{row['row']}: teacher {foresight}, which sees what comes after a hidden token")
        notes += _answers(row["row"], home / "teacher.jsonl")
    return [*table, "", *notes]


def _mean(row: dict[str, Any], name: str) -> str:
    spread = (row["spreads"] or {}).get(name)
    return f"{row['mean'][name]:.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def _answers(name: str, log: Path) -> list[str]:
    """Returns what each phase's answers of a teacher took, where it was asked before training."""
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    return [
        f"{name}: {entry['asked']:,} rows asked in {entry['took']:.0f} s, {entry['asked'] / entry['took']:.1f} rows/s; "
        f"{entry['bytes'] / 1e6:.2f} MB"
        for entry in entries
        if entry["kept"]
    ]


if __name__ == "__main__":
    print("\n".join(lines(Path(sys.argv[1]))))
