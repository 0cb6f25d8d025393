"""TensorBoard: event files in the folder `tensorboard` beside the run's outputs; tensorboard --logdir RUN shows them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

NEEDS = "tensorboard"


class Tracker:
    """One run as event files, written by torch's own writer."""

    def __init__(self, name: str, folder: Path, values: Mapping[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard" / name))
        self._writer.add_text("recipe", "\n".join(f"    {key} = {value}" for key, value in values.items()))

    def log(self, phase: str, step: int, numbers: Mapping[str, float]) -> None:
        """Writes the numbers of a step."""
        for key, value in numbers.items():
            self._writer.add_scalar(f"{phase}/{key}", value, step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()
