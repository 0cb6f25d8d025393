"""A model with exits at several speeds: one entrant of a benchmark each, and the plot of what leaving early gains and costs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from microbert_cli.errors import MbertError
from microbert_cli.evaluation.compare_speed import BenchmarkModel
from microbert_cli.models.exits.speed import has_exits
from microbert_cli.models.exported.files import exits_file
from microbert_cli.models.find import find_model, is_cascade

PLOT = "speed.svg"
STYLE = {
    "svg.hashsalt": "mbert", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
AXES = {"flops": ("MFLOPs a row", 1e-6), "throughput": ("rows a second, in batches", 1.0)}


def at_speeds(entrants: Sequence[BenchmarkModel], speeds: Sequence[float]) -> list[BenchmarkModel]:
    """Returns the entrants, those with exits once for each speed, and as they are the others, which answer whole.

    Raises M160 where none has exits.
    """
    answering = [(entrant, _can_leave(entrant)) for entrant in entrants]
    if not any(leaves for _, leaves in answering):
        raise MbertError(
            "M160",
            "none of these models has exits, so that no row can leave them early",
            where="--speed",
            allowed="A model with exits, such as the method fastbert makes, or its export.",
            fix="Leave the speeds out, or put exits in: mbert task-distill --teacher MODEL --set method=fastbert -o OUT",
        )
    rows = []
    for entrant, leaves in answering:
        named = [replace(entrant, name=speed_name(entrant.name, speed), speed=speed) for speed in speeds]
        rows += named if leaves else [entrant]
    return rows


def speed_name(name: str, speed: float) -> str:
    """Returns the name of an entrant at a speed."""
    return f"{name}, speed {speed:g}"


def _can_leave(entrant: BenchmarkModel) -> bool:
    """Whether rows can leave this entrant early: a model with exits, or an export's file for that, listed as fp32."""
    if is_cascade(Path(entrant.source)):
        return False  # has a threshold of its own
    if entrant.precision in ("auto", "torch"):
        from microbert_cli.models.config import read_config  # loads transformers

        return has_exits(read_config(find_model(entrant.source, where=entrant.where), where=entrant.where))
    return entrant.precision == "fp32" and exits_file(Path(entrant.source)).is_file()


def points(entrants: Sequence[BenchmarkModel], measured: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Returns what was measured at each speed, by the model: speed, score, flops, throughput, latency_ms, layers."""
    scores = {row["model"]: row["score"] for row in measured.get("rows", ())}
    curves: dict[str, list[dict[str, Any]]] = {}
    for entrant in entrants:
        if entrant.speed is not None:
            result = measured["models"][entrant.name]
            facts = {key: result.get(key) for key in ("flops", "throughput", "latency_ms", "layers", "left")}
            name = entrant.name.removesuffix(speed_name("", entrant.speed))
            curves.setdefault(name, []).append({"speed": entrant.speed, "score": scores.get(entrant.name), **facts})
    return curves


def draw(curves: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, *, score: str) -> None:
    """Draws score against operations and against rows a second, a line a model, its speeds written beside. Needs matplotlib.

    score  the name of the score, such as "accuracy on dev"
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 3.6), layout="constrained")
        for panel, (key, (label, unit)) in zip(figure.subplots(1, len(AXES)), AXES.items(), strict=True):
            for number, (name, rows) in enumerate(curves.items()):
                shown = [row for row in rows if row[key] is not None and row["score"] is not None]
                across, up = [row[key] * unit for row in shown], [row["score"] for row in shown]
                panel.plot(across, up, marker="o", color=f"C{number % 10}", label=name)
                for row, x, y in zip(shown, across, up, strict=True):
                    panel.annotate(f"{row['speed']:g}", (x, y), textcoords="offset points", xytext=(4, 4), fontsize=8)
            panel.set_xlim(left=0)
            panel.set_xlabel(label)
            panel.set_ylabel(score)
            panel.grid(color="#e6e6e6", linewidth=0.7)
            panel.set_axisbelow(True)
        figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)  # no date: equal bytes
