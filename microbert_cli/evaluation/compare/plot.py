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
    """Draws the plot and saves it in the format of `path`'s suffix. Needs matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    tasks = metrics["tasks"]
    most = max(len(section["rows"]) for section in tasks.values())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, len(tasks) * max(3.4, 1.5 + 0.24 * most)), layout="constrained")
        panels = figure.subplots(len(tasks), 1, squeeze=False)
        for (panel,), (task, section) in zip(panels, tasks.items(), strict=True):
            _panel(panel, task, section)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)  # no date: equal bytes


def _panel(panel: Any, task: str, section: Mapping[str, Any]) -> None:
    rows, teacher = section["rows"], section["teacher"]
    latencies = [row["latency_ms"] for row in [*rows, *([teacher] if teacher else [])] if row.get("latency_ms")]
    width = 1.12 * max(latencies)
    band = _band(latencies, width)
    points = _points(rows, band)
    styles = _styles(rows)
    for row, (x, y), style in zip(rows, points, styles, strict=True):
        panel.errorbar(x, y, yerr=row["spread"] or None, capsize=3, markersize=7, elinewidth=1.2, zorder=3, **style)
    labels = [(row["row"], point, style["color"]) for row, point, style in zip(rows, points, styles, strict=True)]
    if teacher.get("latency_ms"):
        point = (teacher["latency_ms"], teacher["score"])
        panel.plot(*point, marker="*", markersize=12, color="black", linestyle="", zorder=3)
        labels.append(("teacher", point, "black"))
    panel.set_xlim(0, width)
    _score_axis(panel, rows, teacher, section["majority"], width)
    _write_names(panel, labels, width)
    _label_axes(panel, task, section, latencies, width)
    for latency in {row["latency_ms"] for row in rows}:
        panel.axvspan(latency - band / 2, latency + band / 2, color="#f4f4f4", zorder=0)


def _band(latencies: Sequence[float], width: float) -> float:
    """Returns the width over which rows of one shape are spread without meeting those of another."""
    distinct = sorted({*latencies})
    gaps = [right - left for left, right in zip(distinct[:-1], distinct[1:], strict=True)]
    return min([BAND * width, 1.8 * distinct[0], *(0.85 * gap for gap in gaps)])


def _points(rows: Sequence[Mapping[str, Any]], band: float) -> list[Point]:
    """Returns the point of each row: rows of one latency side by side around it, in the order of the table."""
    points = []
    for row in rows:
        same_latency = [other["row"] for other in rows if other["latency_ms"] == row["latency_ms"]]
        offset = (same_latency.index(row["row"]) + 0.5) / len(same_latency) - 0.5
        points.append((row["latency_ms"] + offset * band * min(0.9, len(same_latency) / 5), row["score"]))
    return points


def _styles(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the style of each row: an ablation has the colour of its row, hollow; a fine-tuned row is a square."""
    colours_of = list(dict.fromkeys(row["of"] or row["row"] for row in rows))
    styles = []
    for row in rows:
        colour = f"C{colours_of.index(row['of'] or row['row']) % 10}"
        marker = "s" if row["method"] is None else "D" if row["of"] else "o"
        styles.append({"color": colour, "marker": marker, "linestyle": "", "markerfacecolor": "white" if row["of"] else colour})
    return styles


def _score_axis(
    panel: Any, rows: Sequence[Mapping[str, Any]], teacher: Mapping[str, Any], majority: float, width: float
) -> None:
    """Sets the range of scores, and draws the commonest class, or notes that it lies below."""
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


def _write_names(panel: Any, points: Sequence[tuple[str, Point, str]], width: float) -> None:
    """Writes the names in a column at the right, far enough apart to be read, each joined to its point."""
    bottom, top = panel.get_ylim()
    gap = (top - bottom) / max(17, len(points) + 1)
    labels = sorted(points, key=lambda label: label[1][1])
    heights = _spread_out([point[1] for _, point, _ in labels], gap, bottom + gap / 2, top - gap / 2)
    for (name, (x, y), colour), height in zip(labels, heights, strict=True):
        panel.plot(
            [x, width, 1.03 * width], [y, height, height], color=colour, alpha=0.35, linewidth=0.7, clip_on=False, zorder=1
        )
        panel.text(1.04 * width, height, name, color=colour, va="center", clip_on=False)


def _spread_out(desired: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Returns the heights, in order, moved until neighbours are `gap` apart and all lie between `low` and `high`."""
    count = len(desired)
    heights = [min(max(height, low + i * gap), high - (count - 1 - i) * gap) for i, height in enumerate(desired)]
    for _ in range(50 * count):  # each pass moves overlapping neighbours apart by half the overlap each
        overlapping = [i for i in range(count - 1) if heights[i + 1] - heights[i] < 0.999 * gap]
        if not overlapping:
            break
        for i in overlapping:
            push = (gap - (heights[i + 1] - heights[i])) / 2
            heights[i] = max(heights[i] - push, low + i * gap)
            heights[i + 1] = min(heights[i + 1] + push, high - (count - 2 - i) * gap)
    return heights


def _label_axes(panel: Any, task: str, section: Mapping[str, Any], latencies: Sequence[float], width: float) -> None:
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
