"""Trackio: a local database that `trackio show` shows; the project `mbert`, or TRACKIO_PROJECT."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NEEDS = "trackio"


class Tracker:
    """One run."""

    def __init__(self, name: str, folder: Path, values: Mapping[str, Any]):
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", "mbert")
        self._run = trackio.init(project=project, name=name, config=dict(values), embed=False)

    def log(self, phase: str, step: int, numbers: Mapping[str, float]) -> None:
        """Writes the numbers of a step."""
        self._run.log({f"{phase}/step": step, **{f"{phase}/{key}": value for key, value in numbers.items()}})

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()
