"""What every stage does around its own work: what it returns, and the files each output directory has."""

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microbert_cli.errors import MbertError
from microbert_cli.recipe.toml import to_toml
from microbert_cli.runs import atomic, manifest
from microbert_cli.runs.atomic import write_text
from microbert_cli.runs.output_dir import OutputDirectory
from microbert_cli.text import command_line, dump_json

METRICS = "metrics.json"
RECIPE = "recipe.resolved.toml"


@dataclass(frozen=True)
class StageResult:
    """What a stage made: where, what it measured, and whether there was anything to do."""

    stage: str
    out: Path
    metrics: dict[str, Any] = field(default_factory=dict)
    up_to_date: bool = False


def up_to_date(stage: str, out: Path) -> StageResult:
    """Returns the result of a stage that had been run before."""
    return StageResult(stage, out, read_metrics(out), up_to_date=True)


def read_metrics(directory: Path) -> dict[str, Any]:
    """Returns an output's metrics.json; raises M305 where it is damaged or gone."""
    path = directory / METRICS
    try:
        metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(metrics, dict) or _was_changed(directory):
            raise ValueError("it is not what the stage wrote")
    except (OSError, ValueError, RecursionError) as error:
        raise MbertError(
            "M305",
            f"this file of scores cannot be read: {error}",
            where=str(path),
            allowed="The JSON object that the stage wrote.",
            fix=f"Make the output anew, the old one is moved aside: {shlex.join(command_line())} --force",
        ) from None
    return metrics


def _was_changed(directory: Path) -> bool:
    written = manifest.read(directory)["outputs"].get(METRICS) if (directory / manifest.FILE).is_file() else None
    return written is not None and atomic.file_digest(directory / METRICS) != written


def place_seen_from(out: Path, source: str) -> str:
    """A file or directory as seen from OUT, so that equal runs in two places write equal files; a Hub id as it is."""
    return os.path.relpath(Path(source).absolute(), out.absolute()) if Path(source).exists() else source


def write_results(
    work: OutputDirectory,
    *,
    stage: str,
    recipe: Mapping[str, Any],
    metrics: dict[str, Any],
    sources: Mapping[str, str | None] | None = None,
    **facts: Any,
) -> StageResult:
    """Writes metrics.json and recipe.resolved.toml, and hands the manifest its facts.

    sources  what it was made from: files and directories are recorded as seen from OUT, so that a whole tree may be moved
    """
    write_text(work.path / METRICS, dump_json(metrics, indent=2) + "\n")
    write_text(work.path / RECIPE, to_toml(recipe))
    there = {name: source for name, source in (sources or {}).items() if source and Path(source).exists()}
    paths = {name: place_seen_from(work.out, source) for name, source in there.items()}
    work.facts |= {"recipe": dict(recipe), "sources": paths, **facts}
    return StageResult(stage, work.out, metrics)
