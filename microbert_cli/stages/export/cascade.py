"""A cascade to ship: its files as they were checked, compared once more with their source, measured, with a card."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np

from microbert_cli.data.task_data import load_task_data
from microbert_cli.evaluation import scoring
from microbert_cli.exporting.cascade_card import cascade_card
from microbert_cli.exporting.cascade_directory import copy_cascade, file_names, latency, measure_speed
from microbert_cli.exporting.directory import FP32_TOLERANCE, refuse_difference
from microbert_cli.models.cascade.answers import PARTS, CascadeAnswers
from microbert_cli.models.predictor import open_predictor
from microbert_cli.models.size import weights_bytes
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import Reporter
from microbert_cli.runs import manifest
from microbert_cli.runs.output_dir import stage_output
from microbert_cli.runs.stage_result import (
    METRICS,
    StageResult,
    place_seen_from,
    read_metrics,
    up_to_date,
    write_results,
)
from microbert_cli.stages.export import STAGE

CHECKED = ("threshold", "temperature", "rows", "checked", "scores", "calibration_error")


def export_cascade(
    recipe: Recipe, out: Path, *, catalog: Catalog, model: str, reporter: Reporter, **controls: Any
) -> StageResult:
    """Copies a cascade's files and compares their answers on dev with those of `model`; raises M612 where they differ.

    The files are not made anew: the bound of the cascade is about them. What was checked is told as its metrics.json has it.
    """
    data = load_task_data(recipe, catalog, splits=STAGE.splits_of(recipe, catalog), reporter=reporter)
    identity = {
        "recipe": recipe.identity("task", "data"),
        "model": manifest.identify(model),
        "data": data.fingerprints(),
    }
    with stage_output(out, stage=STAGE.name, identity=identity, reporter=reporter, **controls) as work:
        if work.done:
            return up_to_date(STAGE.name, out)
        reporter.note("a cascade is shipped with the files that it was checked with; the keys export.* are for single models")
        source = Path(model)
        copy_cascade(source, work.path)
        before = open_predictor(model, data.task, where="export.model")
        after = open_predictor(str(work.path), data.task, where="export", in_the_making=True)
        logits = [scoring.predict_logits(data, "dev", each.answers, each) for each in (before, after)]
        difference = float(np.abs(logits[0] - logits[1]).max())
        refuse_difference(work.path, difference, FP32_TOLERANCE)
        answers: CascadeAnswers = after.answers
        sent = answers.share_sent()
        speeds = measure_speed(work.path, after, data, reporter)
        recorded = read_metrics(source) if (source / METRICS).is_file() else {}
        metrics: dict[str, Any] = {
            "task": data.task.name,
            "primary": data.task.primary,
            "model": place_seen_from(out, model),
            "files": file_names(work.path),
            "bytes": {part: weights_bytes(work.path / part / name) for part, name in file_names(work.path).items()},
            "parity": {"max_difference": difference, "tolerance": FP32_TOLERANCE, "rows": len(logits[0])},
            "threshold": answers.rule.threshold,
            "temperature": dict(answers.rule.temperature),
            **{name: recorded[name] for name in CHECKED if name in recorded},
            "dev": scoring.score(data.task, logits[1], data.rows["dev"]),
            "sent": sent,
            "latency_ms": latency(speeds, sent),
            "speed": speeds,
        }
        sources = {part: str(recorded.get(part, source / part)) for part in PARTS}
        (work.path / "README.md").write_text(cascade_card(out.name, data, metrics, sources, made_by(source)), encoding="utf-8")
        return write_results(
            work,
            stage=STAGE.name,
            recipe=recipe.keys(*STAGE.keys),
            metrics=metrics,
            inputs={"model": identity["model"]},
            sources={"model": model},
            data=data.facts(),
        )


def made_by(source: Path) -> str:
    """Returns the command line that made a cascade, as its manifest has it."""
    argv = manifest.read(source).get("argv", []) if (source / manifest.FILE).is_file() else []
    return shlex.join(map(str, argv))
