"""Draws score against the latency of one row, of what `mbert bench --json` measured: a point a model; the best are joined.

    mbert bench MODEL... --task sst2 --json > bench.json
    python benchmarks/front.py bench.json [--label NAME=TEXT ...] -o front.svg

`--label` says what a model is called in the plot; with it, models that have no label are left out. Needs matplotlib.
"""

import argparse
import json
from pathlib import Path
from typing import Any

STYLE = {"svg.hashsalt": "mbert", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
Point = tuple[str, float, float]


def points_of(measured: dict[str, Any], labels: dict[str, str]) -> list[Point]:
    """Returns label, mean milliseconds a row, and score of every model that has both."""
    points = []
    for row in measured["rows"]:
        name = row["model"]
        latency = measured["models"].get(name, {}).get("latency_mean_ms")  # the mean: some rows leave early, or are sent on
        if latency and row.get("score") is not None and (not labels or name in labels):
            points.append((labels.get(name, name), latency, row["score"]))
    return sorted(points, key=lambda point: point[1])


def front_of(points: list[Point]) -> list[Point]:
    """Returns the points that no faster one is as good as; `points` are sorted by latency."""
    best = []
    for point in points:
        if not best or point[2] > best[-1][2]:
            best.append(point)
    return best


def draw(points: list[Point], path: Path, score: str) -> None:
    """Draws the points, the front among them joined by a line."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    front = front_of(points)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 4.2), layout="constrained")
        panel = figure.subplots()
        panel.step([x for _, x, _ in front], [y for *_, y in front], where="post", color="#8a8a8a", linewidth=1.0, zorder=1)
        for number, (label, x, y) in enumerate(points, start=1):
            colour = "C0" if (label, x, y) in front else "#8a8a8a"
            panel.plot(x, y, marker="o", color=colour, linestyle="", zorder=2, label=f"{number}  {label}")
            panel.annotate(str(number), (x, y), textcoords="offset points", xytext=(4, 4), fontsize=8)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel("milliseconds for one row, mean (logarithmic)")
        panel.set_ylabel(score)
        panel.grid(color="#e6e6e6", linewidth=0.7)
        panel.set_axisbelow(True)
        figure.legend(loc="outside right upper", frameon=False, handlelength=1.0)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)  # no date: equal bytes


def main() -> None:
    """Reads the arguments and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path)
    parser.add_argument("--label", action="append", default=[], metavar="NAME=TEXT")
    parser.add_argument("--score", default="accuracy on dev")
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    labels: dict[str, str] = dict(item.rsplit("=", 1) for item in given.label)
    draw(points_of(json.loads(given.measured.read_text()), labels), given.out, given.score)


if __name__ == "__main__":
    main()
