"""A recipe as ordered stages: skips what is up to date, and says why it runs the rest."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from microbert_cli import distributed
from microbert_cli.recipe.registry import Catalog
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import cache
from microbert_cli.runs.manifest import FILE, partial_path
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.runs.stage_result import StageResult


def run_step(
    step: Step, *, catalog: Catalog, reporter: Reporter = SILENT, tries: int = cache.TRIES, **options: Any
) -> StageResult:
    """Runs one stage with its inputs; `options` are force, resume, renew, and what only that stage takes.

    Of several processes all run it together, or the main one alone where the stage is not distributed.
    """
    distributed.keep_memory()
    distributed.initialise(step.resolved.recipe.device)
    reporter.note(f"{step.name}: {_format_inputs(step)}")

    def run() -> StageResult:
        return step.stage.run(step.resolved.recipe, step.out, catalog=catalog, reporter=reporter, **step.inputs, **options)

    try:
        with cache.used_for(step.out), reporter.working(step.name):
            result = run() if step.stage.distributed else distributed.on_main_process(run)
    except Exception as error:
        if tries <= 1 or distributed.world_size() > 1 or not cache.was_deleted(error):
            raise
        # What was done lies in the stage's begun output, so the stage goes on from there with a new entry of the cache.
        cache.discard_deleted(error)
        reporter.warn(f"{step.name}: the cache was deleted while it was in use; it is made again")
        again = {**options, "force": False, "resume": True}
        return run_step(step, catalog=catalog, reporter=reporter, tries=tries - 1, **again)
    return replace(result, out=step.out)  # as it was named, whether it was made or found


def run_steps(
    steps: list[Step], *, catalog: Catalog, reporter: Reporter = SILENT, force: bool = False, resume: bool = True
) -> Iterator[StageResult]:
    """Runs the stages in order. A stage whose keys or inputs changed is made anew, the old one moved aside."""
    for step in steps:
        yield run_step(step, catalog=catalog, reporter=reporter, force=force, resume=resume, renew=True)


def step_state(step: Step) -> str:
    """Returns new, begun, done, or changed: done with other values of the keys that decide the output."""
    manifest = step.out / FILE
    if not manifest.is_file():
        return "begun" if partial_path(step.out).is_dir() else "new"
    try:
        keys = json.loads(manifest.read_text(encoding="utf-8"))["identity"]["recipe"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return "changed"
    return "done" if keys == recorded_keys(step) else "changed"


def recorded_keys(step: Step) -> dict[str, Any]:
    """Returns the recipe keys that decide the output of a step, as its manifest has them."""
    keys: dict[str, Any] = json.loads(json.dumps(step.resolved.recipe.identity(*step.stage.keys)))
    return keys


def _format_inputs(step: Step) -> str:
    return ", ".join(f"{key} {Path(value)}" for key, value in step.places.items())
