"""The last layer of a classifier's head, and the order of its outputs."""

from typing import Any

import torch
from torch import nn


def last_linear(model: Any, outputs: int) -> nn.Linear | None:
    """Returns the last linear layer outside the encoder that has so many outputs; None where there is none."""
    encoder = f"{getattr(model, 'base_model_prefix', '')}."
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == outputs and not name.startswith(encoder)
    ]
    return layers[-1] if layers else None


@torch.no_grad()
def reorder_head(model: Any, columns: list[int]) -> None:
    """Puts the rows of a classifier's last layer into another order, in place."""
    if branches := getattr(model, "output_layers", None):  # of a model with exits
        reorder_head(model.backbone, columns)
    for layer in branches or [last_linear(model, len(columns))]:
        for weights in layer.parameters() if layer is not None else ():
            weights.copy_(weights[columns].clone())
