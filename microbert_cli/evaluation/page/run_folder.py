"""What lies in a run's folder: its finished stages, what they were made from, and which evaluation shows the student."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from microbert_cli.errors import MbertError
from microbert_cli.evaluation.summary import judged_row, run_summary
from microbert_cli.runs import manifest
from microbert_cli.runs.stage_result import METRICS, read_metrics

COMPARISON = "comparison"
DIGEST_LENGTH = 64  # of a sha256 in hexadecimal: an input that was a file or directory


@dataclass(frozen=True)
class StageOutput:
    """A finished output of a stage: its folder's name, the kind of the stage, manifest and metrics."""

    name: str
    kind: str
    out: Path
    record: Mapping[str, Any]
    metrics: Mapping[str, Any]

    @property
    def wall_seconds(self) -> float | None:
        """Returns the seconds from its last start to its end; None where the manifest does not say."""
        try:
            times = [datetime.fromisoformat(str(self.record[key])) for key in ("started", "finished")]
        except (KeyError, ValueError):
            return None
        return (times[1] - times[0]).total_seconds()


@dataclass(frozen=True)
class RunFolder:
    """A run: its stages in order, and what could not be read.

    sections  the tables of results, one a task, as `run_summary` gives them
    """

    root: Path
    stages: list[StageOutput]
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.root.absolute().name

    @property
    def sections(self) -> list[dict[str, Any]]:
        return run_summary([(stage.name, stage.kind, stage.metrics) for stage in self.stages])

    def stage(self, name: str | None) -> StageOutput | None:
        """Returns the stage of this name."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def page_place(self) -> Path:
        """Returns where its page lies: in the output of its stage `report`, else in the folder itself."""
        report = next((stage.out for stage in reversed(self.stages) if stage.kind == "report"), self.root)
        return report / manifest.PAGE


def read_run(root: Path) -> RunFolder:
    """Reads the finished stages of a run, in the order in which they were made."""
    stages, problems = [], []
    for path in sorted(root.glob(f"*/{manifest.FILE}")):
        if path.parent.name.startswith(".") or ".old-" in path.parent.name or path.parent.name.endswith(".partial"):
            continue
        try:
            stages.append(read_output(path.parent))
        except MbertError as error:
            problems.append(f"{path.parent.name}: {error.what}")
    return RunFolder(root, _in_order(stages), problems)


def read_output(out: Path) -> StageOutput:
    """Reads one finished output; raises M210, M301 and M305 where it is unfinished or damaged."""
    record = manifest.read(out)
    metrics = read_metrics(out) if (out / METRICS).is_file() else {}
    return StageOutput(out.absolute().name, str(record.get("stage")), out, record, metrics)


def run_of(place: Path) -> Path | None:
    """Returns the run's folder that a path names: itself, or the folder of one of its stages; None for any other place."""
    if (place / manifest.FILE).is_file():
        return place.absolute().parent if place.absolute().parent != place.absolute() else None
    return place if any(place.glob(f"*/{manifest.FILE}")) else None


def comparison_of(place: Path) -> Path | None:
    """Returns the output of `mbert compare` that a path names: itself, or the folder around it; None for any other place."""
    for path in (place, place / COMPARISON):
        if (path / manifest.FILE).is_file() and manifest.read(path).get("stage") == "compare":
            return path
    return None


def _in_order(stages: Sequence[StageOutput]) -> list[StageOutput]:
    """Returns stages by their end, to the second, and each behind those of the run that it was made from."""
    waiting = sorted(stages, key=lambda stage: (str(stage.record.get("finished")), stage.name))
    places = {stage.out.resolve() for stage in waiting}
    ordered: list[StageOutput] = []
    while waiting:
        behind = {stage.out.resolve() for stage in ordered}
        ready = [stage for stage in waiting if _own_sources(stage, places) <= behind] or waiting  # no circle holds it up
        ordered.append(ready[0])
        waiting.remove(ready[0])
    return ordered


def _own_sources(stage: StageOutput, places: set[Path]) -> set[Path]:
    return {path.resolve() for _, _, path in sources_of(stage) if path is not None} & places


def sources_of(output: StageOutput) -> Iterator[tuple[str, str, Path | None]]:
    """Yields (role, name, directory) of everything that an output was made from; no directory for what is not here."""
    sources = output.record.get("sources", {})
    inputs = output.record.get("inputs", {})
    for role in dict.fromkeys([*sources, *inputs]):
        if role in sources:
            path = Path(os.path.normpath(output.out.absolute() / str(sources[role])))
            yield role, str(sources[role]), path if path.exists() else None
        elif isinstance(inputs[role], str) and len(inputs[role]) != DIGEST_LENGTH:
            yield role, inputs[role], None


def judged_output(run: RunFolder, section: Mapping[str, Any]) -> StageOutput | None:
    """Returns the output of the student that a table's verdict is about; None where the row is no stage of this run."""
    row = judged_row(dict(section))
    if row is None:
        return None
    if (stage := run.stage(row["model"])) is not None:
        return stage
    distilled = [stage for stage in run.stages if stage.kind == "task-distill"]
    return distilled[-1] if distilled else None


def evaluations_of(run: RunFolder, task: str) -> list[StageOutput]:
    """Returns the evaluations on a task; those with a teacher's answers first."""
    stages = [stage for stage in run.stages if stage.kind == "evaluate" and stage.metrics.get("task", task) == task]
    return sorted(stages, key=lambda stage: not any("teacher" in scores for scores in stage.metrics["splits"].values()))
