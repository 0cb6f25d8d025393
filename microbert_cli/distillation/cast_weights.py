"""The weights of a frozen model's products in the number format of autocast, cast once instead of at every forward pass.

Autocast keeps what it cast within its context, but of weights that are trained alone. A frozen teacher, asked in pieces of
1,024 tokens, has all its weights cast for every piece, 85 M of BERT-base. The answers are the same, bit by bit, since the
weights are rounded the same way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from microbert_cli.models.capture import is_compiled

Parameters = dict[str, nn.Parameter | None]


class CastWeights:
    """Weights and biases of a frozen model's linear maps, cast when autocast first asks for them: 2 bytes a weight more."""

    def __init__(self, model: Any):
        self._model = model
        self._cast: list[tuple[nn.Linear, Parameters]] = []
        self._dtype: torch.dtype | None = None

    @contextmanager
    def used(self, device: torch.device) -> Iterator[None]:
        """Puts them in their places for a block that runs under autocast; elsewhere, and in a compiled model, does nothing."""
        if not torch.is_autocast_enabled(device.type) or is_compiled(self._model):
            yield
            return
        self._make(torch.get_autocast_dtype(device.type))
        originals = [(linear, dict(linear._parameters)) for linear, _ in self._cast]
        try:
            for linear, cast in self._cast:
                linear._parameters.update(cast)
            yield
        finally:
            for linear, parameters in originals:
                linear._parameters.update(parameters)

    def _make(self, dtype: torch.dtype) -> None:
        if self._dtype == dtype:
            return
        linears = [module for module in self._model.modules() if type(module) is nn.Linear and not _is_trained(module)]
        self._cast = [(linear, {name: _cast(value, dtype) for name, value in linear._parameters.items()}) for linear in linears]
        self._dtype = dtype


def _cast(value: torch.Tensor | None, dtype: torch.dtype) -> nn.Parameter | None:
    return None if value is None else nn.Parameter(value.detach().to(dtype), requires_grad=False)


def _is_trained(module: nn.Module) -> bool:
    return any(value.requires_grad for value in module.parameters())
