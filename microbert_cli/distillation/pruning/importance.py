"""How much each structure of a model matters to its loss: sensitivities, summed per structure, as a running mean.

    S_j = sum over the weights w of structure j of  |w dL/dw|          I_j <- b I_j + (1 - b) S_j,   I_j = 0 at first

w dL/dw is, to first order, what the loss changes by when w becomes 0; gradients are those that training computes anyway.

    neuron       its row of W1, its entry of b1, its column of W2
    dimension    of a head: its rows of Wq and Wk for scores; its row of Wv and column of Wo for values;  a head: all of its own
    column       of the hidden states: its entries in all embeddings, LayerNorms, and in the rows or columns of all matrices
    layer        a gate on what it adds to its input (`gates.py`)

Source: sensitivity as a running mean as in PLATON (Zhang et al. 2022) and HomoDistil (Liang et al. 2023), without the factor
for its uncertainty; sums per structure are this toolkit's.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from microbert_cli.distillation.pruning.shape import axes, plain_name
from microbert_cli.models.architectures import layer_index

Key = str  # "hidden", "pooled", "inner.3", "scores.3", "values.3", "layer.3": layers from 0


def key_of(axis: str, layer: int | None) -> Key:
    """Returns the key of an axis: of a layer's own with its number, of hidden and pooled columns without."""
    return axis if layer is None or axis == "hidden" else f"{axis}.{layer}"


class Tensors:
    """The parameters that pruning cuts, each with the keys of its axes; "" is an axis that is never cut.

    model       the student
    projection  its map to the teacher's width, where a loss has one
    """

    def __init__(self, model: Any, projection: nn.Linear | None = None):
        self.entries: list[tuple[Tensor, tuple[Key, ...], str]] = []
        for name, parameter in model.named_parameters():
            plain, layer = plain_name(name, model), layer_index(name)
            keys = tuple("" if axis == "rows" else key_of(axis, layer) for axis in axes(plain)[: parameter.dim()])
            self.entries.append((parameter, keys, plain))
        if projection is not None:
            self.entries.append((projection.weight, ("", "hidden"), "projection.weight"))

    def __iter__(self) -> Iterator[tuple[Tensor, tuple[Key, ...], str]]:
        return iter(self.entries)


@torch.no_grad()
def sensitivities(tensors: Tensors, keys: set[Key]) -> dict[Key, Tensor]:
    """Returns S of the structures under `keys`, from the gradients that are there; parameters without one count nothing."""
    sums: dict[Key, Tensor] = {}
    for parameter, axis_keys, _ in tensors:
        counted = [(dimension, key) for dimension, key in enumerate(axis_keys) if key in keys]
        if parameter.grad is None or not counted:
            continue
        product = (parameter * parameter.grad).abs()
        for dimension, key in counted:
            others = [other for other in range(product.dim()) if other != dimension]
            value = product.sum(others) if others else product
            sums[key] = sums[key] + value if key in sums else value
    return sums


@torch.no_grad()
def update(means: dict[Key, Tensor], sums: Mapping[Key, Tensor], decay: float) -> None:
    """Moves every running mean towards the sums of this step."""
    for key, value in sums.items():
        means[key] = decay * means.get(key, torch.zeros_like(value)) + (1 - decay) * value
