"""Measures how much a task's loss depends on every neuron of a BERT's feed-forward networks.

    I_j = sum over examples  | w1_j . dL/dw1_j + w2_j . dL/dw2_j |

w1_j [d] the neuron's incoming weights without its bias, w2_j [d] its outgoing ones, L an example's own task loss. With
u = w1 x + b1 and a = act(u) over its tokens t, the two products are sum_t (u - b1) dL/du and sum_t a dL/da, so that the
gradients of activations of a whole batch give every example's value, and no gradient of a weight is made.

Source: MoEBERT (Zuo et al., NAACL 2022), importance scores of its released code: absolute value per example, then the sum.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from microbert_cli.models.architectures import input_names
from microbert_cli.models.windows.pooling import pool_logits


def importance(
    model: Any, batches: Iterable[Mapping[str, Tensor]], layers: Sequence[int], *, columns: Sequence[int] | None = None
) -> dict[int, Tensor]:
    """Returns I [F] of each layer (from 1), in float64, over batches with `labels`; dropout is off.

    model    a fine-tuned BERT classifier, or one of a score; also one whose weights are frozen
    columns  label c is the model's output columns[c]; None = as they are
    """
    training, requires_grad = model.training, [parameter.requires_grad for parameter in model.parameters()]
    importance_by_layer: dict[int, Tensor] = {}
    # Gradients of activations need a graph, which frozen weights would not make.
    model.eval().requires_grad_(True)
    for batch in batches:
        with _recorded_activations(model, layers) as activations:
            inputs = {name: batch[name].to(model.device) for name in input_names(model) if name in batch}
            logits_BC = pool_logits(model(**inputs).logits, {name: value.to(model.device) for name, value in batch.items()})
            loss = _loss(logits_BC if columns is None else logits_BC[..., list(columns)], batch["labels"].to(model.device))
        tensors = [value for pair in activations.values() for value in pair]
        gradients = iter(torch.autograd.grad(loss, tensors))
        for layer, (before_BTF, after_BTF) in activations.items():
            bias_F = model.base_model.encoder.layer[layer - 1].intermediate.dense.bias
            value_BTF = (before_BTF - bias_F) * next(gradients) + after_BTF * next(gradients)
            importance_by_layer[layer] = importance_by_layer.get(layer, torch.zeros(())) + value_BTF.detach().double().sum(
                1
            ).abs().sum(0)
    model.train(training)
    for parameter, flag in zip(model.parameters(), requires_grad, strict=True):
        parameter.requires_grad_(flag)
    return {layer: value.cpu() for layer, value in importance_by_layer.items()}


def has_neurons(model: Any) -> bool:
    """Whether a model has feed-forward networks in the places where `importance` measures them: BERT's."""
    layers: Sequence[Any] = getattr(getattr(model.base_model, "encoder", None), "layer", None) or ()
    return len(layers) > 0 and hasattr(getattr(layers[0], "intermediate", None), "dense")


def _loss(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    if labels_B.is_floating_point() and labels_B.dim() == 2:  # several labels a row
        return F.binary_cross_entropy_with_logits(logits_BC, labels_B.to(logits_BC.dtype), reduction="sum")
    if logits_BC.shape[-1] == 1:
        return F.mse_loss(logits_BC[:, 0], labels_B.to(logits_BC.dtype), reduction="sum")
    # Of words logits are [B, T, C] and labels [B, T], -100 where none begins, which cross-entropy leaves out.
    return F.cross_entropy(logits_BC.flatten(0, -2), labels_B.flatten(), reduction="sum")


@contextmanager
def _recorded_activations(model: Any, layers: Sequence[int]) -> Iterator[dict[int, list[Tensor]]]:
    """Records input and output of the activation function of these layers during a pass."""
    activations: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    hooks = []
    for layer in layers:
        inner = model.base_model.encoder.layer[layer - 1].intermediate
        for module in (inner.dense, inner):
            hooks.append(module.register_forward_hook(lambda _, __, out, layer=layer: activations[layer].append(out)))
    try:
        yield activations
    finally:
        for hook in hooks:
            hook.remove()
