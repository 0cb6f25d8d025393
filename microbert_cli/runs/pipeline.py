"""A recipe as ordered stages: skips what is up to date, and says why it runs the rest."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from microbert_cli import distributed
from microbert_cli.recipe.registry import Catalog
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.runs.stage_result import StageResult

SPLIT = ("pretrain", "finetune", "general-distill", "augment", "task-distill", "evaluate")  # among several processes


def run_step(step: Step, *, catalog: Catalog, reporter: Reporter = SILENT, **options: Any) -> StageResult:
    """Runs one stage with its inputs; `options` are force, resume, renew, and what only that stage takes.

    Of several processes all run it together, or the main one alone where it is a stage that is not split.
    """
    distributed.keep_memory()
    distributed.initialise(step.resolved.recipe.device)
    stage: Callable[..., StageResult] = import_module(f"microbert_cli.stages.{step.kind.replace('-', '_')}").run
    reporter.note(f"{step.name}: {_inputs(step)}")

    def run() -> StageResult:
        return stage(step.resolved.recipe, step.out, catalog=catalog, reporter=reporter, **step.inputs, **options)

    result = run() if step.kind in SPLIT else distributed.on_main_process(run)
    return replace(result, out=step.out)  # as it was named, whether it was made or found


def run_steps(
    steps: list[Step], *, catalog: Catalog, reporter: Reporter = SILENT, force: bool = False, resume: bool = True
) -> Iterator[StageResult]:
    """Runs the stages in order. A stage whose keys or inputs changed is made anew, the old one moved aside."""
    for step in steps:
        yield run_step(step, catalog=catalog, reporter=reporter, force=force, resume=resume, renew=True)


def _inputs(step: Step) -> str:
    return ", ".join(f"{key} {Path(value)}" for key, value in step.places.items())
