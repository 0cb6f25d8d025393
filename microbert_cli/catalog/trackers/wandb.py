"""Weights & Biases: a run of the project `mbert`, or of WANDB_PROJECT; WANDB_MODE=offline keeps it on this machine."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NEEDS = "wandb"


class Tracker:
    """One run; steps are those of each phase."""

    def __init__(self, name: str, folder: Path, values: Mapping[str, Any]):
        import wandb

        project = os.environ.get("WANDB_PROJECT", "mbert")
        self._run = wandb.init(project=project, name=name, dir=str(folder), config=dict(values), reinit="create_new")
        self._phases: set[str] = set()

    def log(self, phase: str, step: int, numbers: Mapping[str, float]) -> None:
        """Sends the numbers of a step."""
        if phase not in self._phases:
            self._phases.add(phase)
            self._run.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
        self._run.log({f"{phase}/step": step, **{f"{phase}/{key}": value for key, value in numbers.items()}})

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()
