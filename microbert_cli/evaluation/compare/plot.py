"""The plot of a comparison: score against latency, a panel a task, standard deviation over seeds as bars.

Rows of one shape have one latency; they stand side by side in a band around it, and are named in a column at the right.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BAND = 0.2  # of the width of a panel, at most, for rows of one shape
GREY = "#8a8a8a"
STYLE = {
    "svg.hashsalt": "mbert", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
Point = tuple[float, float]


def draw(metrics: Mapping[str, Any], path: Path) -> None:
    """Writes the plot; the ending of `path` says in which form. Needs matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    tasks = metrics["tasks"]
    most = max(len(section["rows"]) for section in tasks.values())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, len(tasks) * max(3.4, 1.5 + 0.24 * most)), layout="constrained")
        panels = figure.subplots(len(tasks), 1, squeeze=False)
        for (panel,), (task, section) in zip(panels, tasks.items(), strict=True):
            _panel(panel, task, section)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)


def _panel(panel: Any, task: str, section: Mapping[str, Any]) -> None:
    rows, teacher = section["rows"], section["teacher"]
    latencies = [row["latency_ms"] for row in [*rows, *([teacher] if teacher else [])] if row.get("latency_ms")]
    width = 1.12 * max(latencies)
    band = _band(latencies, width)
    points = _places(rows, band)
    looks = _looks(rows)
    for row, (x, y), look in zip(rows, points, looks, strict=True):
        panel.errorbar(x, y, yerr=row["spread"] or None, capsize=3, markersize=7, elinewidth=1.2, zorder=3, **look)
    named = [(row["row"], point, look["color"]) for row, point, look in zip(rows, points, looks, strict=True)]
    if teacher.get("latency_ms"):
        at = (teacher["latency_ms"], teacher["score"])
        panel.plot(*at, marker="*", markersize=12, color="black", linestyle="", zorder=3)
        named.append(("teacher", at, "black"))
    panel.set_xlim(0, width)
    _heights(panel, rows, teacher, section["majority"], width)
    _name(panel, named, width)
    _axes(panel, task, section, latencies, width)
    for latency in {row["latency_ms"] for row in rows}:
        panel.axvspan(latency - band / 2, latency + band / 2, color="#f4f4f4", zorder=0)


def _band(latencies: Sequence[float], width: float) -> float:
    """How wide the rows of one shape may spread without meeting those of another."""
    known = sorted({*latencies})
    apart = [right - left for left, right in zip(known[:-1], known[1:], strict=True)]
    return min([BAND * width, 1.8 * known[0], *(0.85 * each for each in apart)])


def _places(rows: Sequence[Mapping[str, Any]], band: float) -> list[Point]:
    """Where each row is drawn: rows of one latency side by side around it, in the order of the table."""
    found = []
    for row in rows:
        alike = [other["row"] for other in rows if other["latency_ms"] == row["latency_ms"]]
        share = (alike.index(row["row"]) + 0.5) / len(alike) - 0.5
        found.append((row["latency_ms"] + share * band * min(0.9, len(alike) / 5), row["score"]))
    return found


def _looks(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A colour for each row, and for its ablations the same one, hollow; labels alone are squares."""
    heads = list(dict.fromkeys(row["of"] or row["row"] for row in rows))
    looks = []
    for row in rows:
        colour = f"C{heads.index(row['of'] or row['row']) % 10}"
        marker = "s" if row["method"] is None else "D" if row["of"] else "o"
        looks.append({"color": colour, "marker": marker, "linestyle": "", "markerfacecolor": "white" if row["of"] else colour})
    return looks


def _heights(panel: Any, rows: Sequence[Mapping[str, Any]], teacher: Mapping[str, Any], majority: float, width: float) -> None:
    """The range of scores; the commonest class where it lies near, else said to be below."""
    spans = [(row["score"] - (row["spread"] or 0), row["score"] + (row["spread"] or 0)) for row in rows]
    low, high = min(span[0] for span in spans), max(span[1] for span in spans)
    high = max(high, teacher["score"]) if teacher else high
    room = max(high - low, 0.01)
    near = majority >= low - room
    if near:
        low = min(low, majority)
        panel.axhline(majority, color=GREY, linestyle="--", linewidth=0.9, zorder=1)
        panel.text(0.99 * width, majority, "commonest class", color=GREY, fontsize=8, va="bottom", ha="right")
    else:
        panel.text(
            0.99, 0.01, f"commonest class: {majority:.3f}, below", color=GREY, fontsize=8, ha="right", transform=panel.transAxes
        )
    panel.set_ylim(low - 0.12 * room, high + 0.12 * room)


def _name(panel: Any, named: Sequence[tuple[str, Point, str]], width: float) -> None:
    """Names in a column at the right, far enough apart to be read, each joined to its point."""
    bottom, top = panel.get_ylim()
    gap = (top - bottom) / max(17, len(named) + 1)
    order = sorted(named, key=lambda one: one[1][1])
    heights = _apart([point[1] for _, point, _ in order], gap, bottom + gap / 2, top - gap / 2)
    for (name, (x, y), colour), height in zip(order, heights, strict=True):
        panel.plot(
            [x, width, 1.03 * width], [y, height, height], color=colour, alpha=0.35, linewidth=0.7, clip_on=False, zorder=1
        )
        panel.text(1.04 * width, height, name, color=colour, va="center", clip_on=False)


def _apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The wanted heights, in order, moved until neighbours are `gap` apart and all lie between `low` and `high`."""
    count = len(wanted)
    found = [min(max(height, low + i * gap), high - (count - 1 - i) * gap) for i, height in enumerate(wanted)]
    for _ in range(50 * count):  # neighbours that are too near give way by half each, again and again
        near = [i for i in range(count - 1) if found[i + 1] - found[i] < 0.999 * gap]
        if not near:
            break
        for i in near:
            push = (gap - (found[i + 1] - found[i])) / 2
            found[i] = max(found[i] - push, low + i * gap)
            found[i + 1] = min(found[i + 1] + push, high - (count - 2 - i) * gap)
    return found


def _axes(panel: Any, task: str, section: Mapping[str, Any], latencies: Sequence[float], width: float) -> None:
    ticks = [0.0]
    for latency in sorted(set(latencies)):
        if latency - ticks[-1] > 0.05 * width:
            ticks.append(latency)
    panel.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    panel.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    panel.set_axisbelow(True)
    seeds = sorted({len(row["by_seed"]) for row in section["rows"]})
    panel.set_title(f"{task}; bars: standard deviation over {' or '.join(map(str, seeds))} seeds", loc="left", fontsize=9)
    panel.set_xlabel("latency of one row, ms (rows of one shape side by side)")
    panel.set_ylabel(f"{section['primary']} on dev")
