"""Cuts parameters to what is kept, together with what optimisers remember of them, and keeps the modules' sizes in step.

A structure that is cut is gone: the model that goes on training is the smaller one, and is faster from then on. It answers
what the model with that structure masked does: with neurons and heads that give 0, with hidden columns that no LayerNorm
counts. Of a head that loses dimensions the queries are scaled by sqrt(e' / e), e and e' its width before and after, since
attention divides by the root of the width.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from microbert_cli.distillation.pruning.importance import Key, Tensors
from microbert_cli.models.architectures import architecture_of
from microbert_cli.models.capture import is_skipped, skip_layer


@torch.no_grad()
def cut(tensors: Tensors, kept: Mapping[Key, Tensor], optimisers: Iterable[torch.optim.Optimizer] = ()) -> None:
    """Keeps the indices `kept` of every axis that is named, of all parameters and of their state in the optimisers."""
    optimisers = list(optimisers)
    for parameter, keys, _ in tensors:
        axes = [(dimension, kept[key].to(parameter.device)) for dimension, key in enumerate(keys) if key in kept]
        if not axes:
            continue
        before = parameter.shape
        parameter.data = _selected(parameter.data, axes)
        for optimiser in optimisers:
            # A running mean of a matrix has its shape; anything else, such as a count of steps, is no tensor of its axes.
            state = optimiser.state.get(parameter, {})
            state |= {
                name: _selected(value, axes)
                for name, value in state.items()
                if torch.is_tensor(value) and value.shape == before
            }


def _selected(value: Tensor, axes: Iterable[tuple[int, Tensor]]) -> Tensor:
    for dimension, indices in axes:
        value = value.index_select(dimension, indices)
    return value.contiguous()


@torch.no_grad()
def rescale_queries(tensors: Tensors, factor: float) -> None:
    """Multiplies all queries by a factor."""
    for parameter, _, name in tensors:
        if ".attention.self.query." in name:
            parameter.mul_(factor)


def refresh_modules(model: Any, head_width: int) -> None:
    """Sets the sizes that modules keep beside their parameters."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.normalized_shape = tuple(module.weight.shape)
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.Embedding):
            module.num_embeddings, module.embedding_dim = module.weight.shape
        elif hasattr(module, "attention_head_size"):
            _resize_heads(module, head_width)


def _resize_heads(attention: Any, width: int) -> None:
    rows = next(module.weight.shape[0] for module in attention.children() if isinstance(module, nn.Linear))
    attention.attention_head_size, attention.scaling = width, width**-0.5
    sizes = {"all_head_size": rows, "dim": rows, "num_attention_heads": rows // width, "n_heads": rows // width}
    for name, value in sizes.items():
        if hasattr(attention, name):
            setattr(attention, name, value)


def layers_of_model(model: Any) -> nn.ModuleList:
    """Returns the encoder's list of layers."""
    part = model.base_model
    for name in (architecture_of(model.config).stack or "").split("."):
        part = getattr(part, name)
    return part


def skip_layers(model: Any, layers: Iterable[int]) -> None:
    """Makes layers, from 0, hand on what they get; they keep their places until `remove_skipped_layers`."""
    modules = layers_of_model(model)
    for layer in layers:
        skip_layer(modules[layer])


def remove_skipped_layers(model: Any) -> None:
    """Removes the layers that only hand on what they get, and numbers the others anew."""
    modules = layers_of_model(model)
    for layer in reversed(range(len(modules))):
        if is_skipped(modules[layer]):
            del modules[layer]
    for number, module in enumerate(modules):
        for part in module.modules():
            if hasattr(part, "layer_idx"):
                setattr(part, "layer_idx", number)  # noqa: B010
