"""What the training loop asks of an object that makes the student smaller while it is trained."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch


class Pruner(Protocol):
    """Cuts a student in training; all it needs to go on after a stop is in its state."""

    @property
    def finished(self) -> bool:
        """Whether the student has its last shape; weights of an earlier one are never the best."""

    @property
    def record(self) -> dict[str, Any]:
        """What the record of the phase says of it."""

    def observe(self) -> None:
        """Sees the gradients of a step, before the optimiser's step."""

    def forget(self) -> None:
        """Drops what it saw of a step's forward passes, which are taken again."""

    def cut(self, step: int, steps: int, optimisers: Iterable[torch.optim.Optimizer]) -> None:
        """Cuts student and optimiser states after the optimiser's step number `step`."""

    def finish(self) -> None:
        """Makes the student a plain model after the phase."""

    def state_dict(self) -> dict[str, Any]:
        """Returns its state: tensors and plain values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Gives a student of the first shape the shape of a state; the weights are loaded afterwards."""
