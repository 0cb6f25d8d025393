"""MLflow: a run of the experiment `mbert`, or of MLFLOW_EXPERIMENT_NAME, at MLFLOW_TRACKING_URI, else in the file mlflow.db."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NEEDS = "mlflow"
LONGEST = 500  # characters of a parameter's value


class Tracker:
    """One run, through the client, so that no run of the caller's is touched."""

    def __init__(self, name: str, folder: Path, values: Mapping[str, Any]):
        from mlflow import MlflowClient

        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'mlflow.db').absolute()}"
        self._client = MlflowClient(tracking_uri=place, registry_uri=place)
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "mbert")
        experiment = self._client.get_experiment_by_name(title)
        number = experiment.experiment_id if experiment else self._client.create_experiment(title)
        self._run = self._client.create_run(number, run_name=name).info.run_id
        for key, value in values.items():
            self._client.log_param(self._run, key, str(value)[:LONGEST])

    def log(self, phase: str, step: int, numbers: Mapping[str, float]) -> None:
        """Writes the numbers of a step."""
        for key, value in numbers.items():
            self._client.log_metric(self._run, f"{phase}/{key}", value, step=step)

    def close(self) -> None:
        """Ends the run."""
        self._client.set_terminated(self._run)
