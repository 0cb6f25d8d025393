"""A recipe as ordered stages: skips what is up to date, and says why it runs the rest."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from microbert_cli import distributed
from microbert_cli.errors import MbertError
from microbert_cli.recipe.layers import flatten
from microbert_cli.recipe.registry import Catalog
from microbert_cli.reporter import SILENT, Reporter, TrackedReporter
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
        return step.stage.run(step.resolved.recipe, step.out, catalog=catalog, reporter=tracked, **step.inputs, **options)

    try:
        with cache.used_for(step.out), reporter.working(step.name), _tracked(step, catalog, reporter) as tracked:
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


def check_trackers(step: Step, catalog: Catalog) -> None:
    """Raises M530 where the package of one of the recipe's trackers is not installed."""
    for name in step.resolved.recipe.trackers:
        check_tracker(name, catalog.module("trackers", name).NEEDS, catalog)


def check_tracker(name: str, package: str, catalog: Catalog) -> None:
    """Raises M530 where a tracker's package is not installed."""
    if package and find_spec(package) is None:
        raise MbertError(
            "M530",
            f"the package {package} is not installed",
            where=f"trackers: {name}",
            allowed=f"A tracker whose package is there; known: {', '.join(catalog.names('trackers'))}.",
            fix=f"pip install {package}, or no tracker: --set 'trackers=[]'",
        )


@contextmanager
def _tracked(step: Step, catalog: Catalog, reporter: Reporter) -> Iterator[Reporter]:
    """Yields a reporter that sends numbers of training to the recipe's trackers, too, from the main process alone."""
    recipe = step.resolved.recipe
    if not (recipe.trackers and step.stage.trains and distributed.is_main()):
        yield reporter
        return
    check_trackers(step, catalog)
    values = {key: value for key, value in flatten(recipe.model_dump(mode="json")).items() if key in step.resolved.origins}
    folder = step.out.parent
    name = f"{folder.name}-{step.name}"
    makers = {each: partial(catalog.module("trackers", each).Tracker, name, folder, values) for each in recipe.trackers}
    tracked = TrackedReporter(reporter, makers)
    try:
        yield tracked
    finally:
        tracked.close()


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
