"""Starts a new head with what labels alone say, of kinds of task whose answers are mostly alike."""

from collections.abc import Sequence
from typing import Any

import torch

from microbert_cli.models.heads.layers import last_linear


@torch.no_grad()
def start_head_bias(model: Any, bias_C: Sequence[float] | None) -> None:
    """Sets the bias of a head that was never trained, which is one whose bias is still 0, to `TaskKind.head_bias`.

    None, or a head that does not end in a linear layer with so many outputs and a bias: the head stays as it is.
    """
    layer = None if bias_C is None else last_linear(model, len(bias_C))
    if layer is not None and layer.bias is not None and not layer.bias.any():
        layer.bias.copy_(torch.tensor(bias_C))
