"""The geometry of the page's charts: values to places in an SVG. What they look like is in the template and its CSS.

One unit is a pixel of a chart that is WIDTH wide; the page scales it to its column.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

WIDTH, HEIGHT = 440, 270
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 14, 44
LABEL_WIDTH, LABEL_HEIGHT = 16, 13  # of the number beside a mark
SMALLEST, LARGEST = 4.0, 15.0  # radius of a mark
CROWDED, TALL = 12, 460  # a chart of more points is taller
FAR = 4.0  # distances from the best score to the lower quartile: a point that is further below it is left out


@dataclass(frozen=True)
class Scale:
    """An axis: values from `low` to `high` go to places from `start` to `end`, evenly or by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Returns the place of a value, rounded to a tenth of a unit."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = (at - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, count: int = 5) -> list[float]:
        """Returns round values on the axis, at most about `count`."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
            inside = [value for value in values if self.low <= value <= self.high]
            if len(inside) >= 2:
                return inside if len(inside) <= 2 * count else [value for value in inside if f"{value:e}"[0] == "1"]
        step = _round_step((self.high - self.low) / max(1, count))
        first = math.ceil(self.low / step - 1e-9)
        return [round(number * step, 10) for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    return power * next(digit for digit in (1, 2, 5, 10) if digit * power >= rough - 1e-12)


@dataclass(frozen=True)
class Line:
    """A line through points; `style` is a CSS class, `title` what a reader of the screen hears."""

    points: str
    style: str
    title: str = ""


@dataclass(frozen=True)
class Mark:
    """A point: place, radius, CSS class, a title, and a number beside it at (`label_x`, `label_y`)."""

    x: float
    y: float
    radius: float
    style: str
    title: str
    label: str = ""
    label_x: float = 0.0
    label_y: float = 0.0


@dataclass(frozen=True)
class Chart:
    """A chart ready to be drawn: `title` and `description` are read aloud, ticks are (place, text)."""

    title: str
    description: str
    x_label: str
    y_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Line] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    borders: list[tuple[float, str]] = field(default_factory=list)
    legend: list[tuple[str, str]] = field(default_factory=list)
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM
    note: str = ""


def _padded(values: Sequence[float], *, log: bool = False) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        return low / 1.35, high * 1.35
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _ticks(scale: Scale, count: int = 5) -> list[tuple[float, str]]:
    values = scale.ticks(count)
    step = min((after - before for before, after in pairwise(values)), default=1.0)
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    texts = [f"{value:g}" if scale.log else f"{value:,.{digits}f}" for value in values]
    return [(scale(value), text) for value, text in zip(values, texts, strict=True)]


def curve_chart(
    title: str,
    y_label: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    starts: Sequence[tuple[str, int]],
    *,
    chosen: str = "",
) -> Chart | None:
    """Returns a chart of a value over steps, a line a seed; None where there is nothing to draw.

    starts  (phase, step before its first one): borders are drawn between phases
    chosen  the seed whose weights were kept
    """
    drawn = {seed: points for seed, points in series.items() if points}
    if not drawn:
        return None
    everything = [point for points in drawn.values() for point in points]
    y = Scale(*_padded([value for _, value in everything]), HEIGHT - BOTTOM, TOP)
    x = Scale(0.0, max(step for step, _ in everything), LEFT, WIDTH - RIGHT)
    lines, marks, words = [], [], []
    for number, (seed, points) in enumerate(drawn.items()):
        name = f"seed {seed}" if seed else "the training"
        words.append(f"{name}: from {points[0][1]:.4g} to {points[-1][1]:.4g}")
        style = f"s{number % 4}" + (" chosen" if seed == chosen and len(drawn) > 1 else "")
        lines.append(Line(" ".join(f"{x(step)},{y(value)}" for step, value in points), style, name))
        if len(points) <= 40:
            marks += [Mark(x(step), y(value), 2.6, style, f"{name}, step {step:,.0f}: {value:.4f}") for step, value in points]
    legend = [(line.style, line.title) for line in lines] if len(lines) > 1 else []
    borders = [(x(start), phase) for phase, start in starts] if len(starts) > 1 else []
    return Chart(
        title, "; ".join(words) + ".", "steps", y_label, _ticks(x, 4), _ticks(y), lines, marks, borders, legend
    )  # fmt: skip


def front_chart(title: str, score: str, points: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Returns score against latency; None where fewer than two points have both.

    points  {"name", "label", "style", "score", "latency_ms", "megabytes"}: the area of a mark grows with the size
    The line joins the points that no other one beats in both. Points far below all others are left out, and said to be.
    """
    timed = [p for p in points if p["score"] is not None and p["latency_ms"]]
    lowest = _lowest([p["score"] for p in timed if p["style"] != "linear"])
    shown = [p for p in timed if p["score"] >= lowest or p["style"] == "linear"]
    if len(shown) < 2:
        return None
    height = HEIGHT if len(shown) <= CROWDED else TALL
    x = Scale(*_padded([p["latency_ms"] for p in shown], log=True), LEFT, WIDTH - RIGHT, True)
    y = Scale(*_padded([p["score"] for p in shown]), height - BOTTOM, TOP)
    best = _front(shown)
    lines = [Line(" ".join(f"{x(p['latency_ms'])},{y(p['score'])}" for p in best), "front", "the front")] if best[1:] else []
    words = ", ".join(f"{p['name']} ({p['score']:.4f}, {p['latency_ms']:.2f} ms)" for p in best)
    description = f"Up is better, left is faster; the area is the size. Not beaten in both: {words}."
    below = [f"{p['label']} {p['name']} ({p['score']:.4f})" for p in timed if p not in shown]
    return Chart(
        title, description, "ms a row, one at a time (logarithmic)", score, _ticks(x), _ticks(y), lines,
        _numbered_marks(score, shown, x, y), height=height, bottom=height - BOTTOM,
        note=f"Below the chart: {', '.join(below)}." if below else "",
    )  # fmt: skip


def _lowest(scores: Sequence[float]) -> float:
    """Returns the score below which a point would squeeze all others into a stripe."""
    if not scores:
        return 0.0
    quarter = sorted(scores)[len(scores) // 4]
    return quarter - FAR * (max(scores) - quarter)


def _numbered_marks(score: str, points: Sequence[Mapping[str, Any]], x: Scale, y: Scale) -> list[Mark]:
    largest = max((p["megabytes"] or 0.0 for p in points), default=0.0)
    ordered = sorted(points, key=lambda p: -(p["megabytes"] or 0.0))  # small marks are drawn over large ones
    circles = [(x(p["latency_ms"]), y(p["score"]), _radius(p["megabytes"], largest)) for p in ordered]
    taken: list[tuple[float, float]] = []
    marks = []
    for point, circle in zip(ordered, circles, strict=True):
        size = f", {point['megabytes']:,.1f} MB" if point["megabytes"] else ""
        text = f"{point['label']}: {point['name']}, {score} {point['score']:.4f}, {point['latency_ms']:.2f} ms{size}"
        label = _free_place(circle, circles, taken, y.start)
        marks.append(Mark(*circle, point["style"], text, point["label"], *label))
    return marks


def _radius(megabytes: float | None, largest: float) -> float:
    share = (megabytes or 0.0) / largest if largest else 0.0
    return round(SMALLEST + (LARGEST - SMALLEST) * math.sqrt(share), 1)


def _front(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    front: list[Mapping[str, Any]] = []
    for point in sorted(points, key=lambda p: (p["latency_ms"], -p["score"])):
        if not front or point["score"] > front[-1]["score"]:
            front.append(point)
    return front


def _free_place(
    mark: tuple[float, float, float],
    circles: Sequence[tuple[float, float, float]],
    taken: list[tuple[float, float]],
    bottom: float,
) -> tuple[float, float]:
    """Returns a place for the number of a mark, around it, where it covers the fewest other numbers and marks."""
    x, y, radius = mark
    angles = [math.radians(angle) for angle in (0, 180, 270, 90, 315, 225, 45, 135)]
    rings = [radius + 9, radius + 20]
    places = [(x + ring * math.cos(angle), y + ring * math.sin(angle)) for ring in rings for angle in angles]
    inside = [(px, py) for px, py in places if LEFT + 6 < px < WIDTH - RIGHT - 4 and TOP + 4 < py < bottom - 6]

    def covered(place: tuple[float, float]) -> int:
        numbers = sum(abs(place[0] - a) < LABEL_WIDTH and abs(place[1] - b) < LABEL_HEIGHT for a, b in taken)
        return 3 * numbers + sum(math.hypot(place[0] - a, place[1] - b) < r + 6 for a, b, r in circles)

    best = min(inside or places, key=covered)  # of equal ones the first: right of the mark
    taken.append(best)
    return round(best[0], 1), round(best[1], 1)


def reliability_chart(title: str, curves: Mapping[str, Sequence[tuple[float, float, int]]]) -> Chart:
    """Returns a reliability chart: share of right answers over confidence, by bins; the diagonal is a calibrated model.

    curves  who -> (mean confidence, share of right answers, rows) of each bin
    """
    x = Scale(0.0, 1.0, LEFT, WIDTH - RIGHT)
    y = Scale(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    lines = [Line(f"{x(0)},{y(0)} {x(1)},{y(1)}", "guide", "a calibrated model")]
    marks = []
    for who, points in curves.items():
        rows = sum(count for _, _, count in points)
        lines.append(Line(" ".join(f"{x(a)},{y(b)}" for a, b, _ in points), who, f"the {who}"))
        marks += [
            Mark(x(a), y(b), round(2.5 + 6 * math.sqrt(n / rows), 1), who, f"{who}: {n:,} rows, sure {a:.3f}, right {b:.3f}")
            for a, b, n in points
        ]  # fmt: skip
    description = "Points below the diagonal are rows that a model is too sure of. The area is the number of rows."
    legend = [(who, who) for who in curves]
    return Chart(
        title, description, "confidence", "share of right answers", _ticks(x), _ticks(y), lines, marks, [], legend
    )  # fmt: skip


def scatter_chart(title: str, pairs: Sequence[tuple[float, float]], style: str) -> Chart:
    """Returns predicted scores over the labels; pairs  (label, prediction)."""
    values = [value for pair in pairs for value in pair]
    low, high = _padded(values)
    x, y = Scale(low, high, LEFT, WIDTH - RIGHT), Scale(low, high, HEIGHT - BOTTOM, TOP)
    marks = [Mark(x(a), y(b), 2.2, f"{style} faint", "") for a, b in pairs]
    guide = Line(f"{x(low)},{y(low)} {x(high)},{y(high)}", "guide", "equal")
    return Chart(
        title, f"{len(pairs):,} rows; on the diagonal the prediction is the label.", "label", "prediction",
        _ticks(x), _ticks(y), [guide], marks,
    )  # fmt: skip
