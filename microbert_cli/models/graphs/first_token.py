"""The top layer of an exported classifier computes the first token alone, and keys and values of no token at all.

Where the head reads the first token x_1 only, the top layer needs one query. Then neither K = X W_K nor V = X W_V need be
computed for every token, since products can be taken in another order (for one head; b_K cancels in the softmax, and weights
sum to 1, so that b_V is added once):

    scores   q K^T = (q W_K^T) X^T              q = x_1 W_Q + b_Q
    context  p V   = (p X) W_V + b_V            p = softmax(scores s + mask)

For A heads, q is laid out as [A, d] with zeros outside a head's own columns, so that one product with the whole W_K^T serves
all of them, and of (p X) W_V every head keeps its own columns. The layer costs 2 A + 2 products of a vector with a
d x d matrix besides the feed-forward network of one token, where all T tokens cost 4 T and T networks. It is the same function
up to the rounding of float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from microbert_cli.models.capture import first_token_layer, replaced


class FirstTokenLayer(nn.Module):
    """A BERT layer whose output is the first token's alone: X [B, T, d] -> [B, 1, d]."""

    def __init__(self, layer: Any):
        super().__init__()
        self.layer = layer
        attention = layer.attention.self
        width, head = attention.query.out_features, attention.attention_head_size
        columns_Ad = torch.eye(width // head).repeat_interleave(head, dim=1)
        scale = getattr(attention, "scaling", head**-0.5)
        self.register_buffer("scaled_columns_Ad", columns_Ad * scale, persistent=False)
        self.register_buffer("columns_Ad", columns_Ad, persistent=False)

    def forward(self, hidden_BTd: Tensor, mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        """Returns the layer's output for the first token; mask as transformers hands it to its layers."""
        layer: Any = self.layer
        attention, first_Bd = layer.attention.self, hidden_BTd[:, 0]
        query_BAd = attention.query(first_Bd)[:, None] * self.scaled_columns_Ad
        scores_BAT = query_BAd @ attention.key.weight @ hidden_BTd.transpose(1, 2)
        weights_BAT = _masked(scores_BAT, mask).softmax(-1)
        values_BAd = (weights_BAT @ hidden_BTd) @ attention.value.weight.T
        context_Bd = (values_BAd * self.columns_Ad).sum(1) + attention.value.bias
        attended_Bd = layer.attention.output(context_Bd, first_Bd)
        top_Bd: Tensor = layer.output(layer.intermediate(attended_Bd), attended_Bd)
        return top_Bd[:, None]


def _masked(scores_BAT: Tensor, mask: Tensor | None) -> Tensor:
    """Adds a mask [B, 1, T or 1, T] to scores, or hides what a mask [B, T] of real tokens has as 0."""
    if mask is None:
        return scores_BAT
    if mask.dim() == 2:
        return torch.where(mask[:, None].bool(), scores_BAT, torch.finfo(scores_BAT.dtype).min)
    return scores_BAT + mask[:, 0, :1]


@contextmanager
def first_token_on_top(model: Any) -> Iterator[None]:
    """Puts a FirstTokenLayer in the place of the top layer for a while, where the model's head reads the first token alone."""
    top = first_token_layer(model)
    if top is None:
        yield
        return
    layers, index = top
    with replaced(layers, {index: FirstTokenLayer(layers[index]).train(model.training)}):
        yield
