"""The state of torch's random generators, saved and restored for an exact resume."""

from typing import Any

import torch

RandomState = dict[str, Any]


def random_state() -> RandomState:
    """The generators' state, on the CPU and on every GPU."""
    return {"cpu": torch.get_rng_state(), "gpu": torch.cuda.get_rng_state_all()}


def set_random_state(state: RandomState) -> None:
    """Puts the generators back."""
    torch.set_rng_state(state["cpu"])
    torch.cuda.set_rng_state_all(state["gpu"])
