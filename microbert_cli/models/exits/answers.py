"""Answers of a model with exits: rows leave behind a layer whose branch is sure enough, and the batch goes on without them.

    classes   U = H(p) / log C = - sum_c p_c log p_c / log C, in [0, 1], p the softmax of the branch's logits
    a score   U = |s_i - s_(i-1)| / spread: how far an exit is from the one before, in units of the labels' standard deviation;
              behind the first exit no row leaves (this toolkit's: FastBERT is about classes)

A row leaves where U <= speed, 0 <= speed <= 1; behind the last layer all do. The rows that are left are computed as a smaller
batch by the layers above, to which one hard row does not keep the others. speed = 0 runs the whole model, without branches.
Source: FastBERT (Liu et al., ACL 2020), whose code answers one row at a time.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from microbert_cli.models.architectures import input_names
from microbert_cli.models.capture import (
    FirstToken,
    OutputRequest,
    first_token_layer,
    forward_outputs,
    in_pieces,
    is_skipped,
    removable_layers,
    replaced,
)
from microbert_cli.models.exits.speed import chosen_speed as chosen_speed
from microbert_cli.models.exits.speed import parse_speeds as parse_speeds

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class EarlyAnswers:
    """logits [B, C], and behind which layer each row left, [B] int64, from 1."""

    logits: Tensor
    layers: Tensor


def uncertainty(logits_BC: Tensor) -> Tensor:
    """Returns the normalised entropy [B] of the classes: 0 = one is certain, 1 = all are alike."""
    log_p_BC = logits_BC.float().log_softmax(-1)
    entropy_B = -(log_p_BC.exp() * log_p_BC).sum(-1)
    # Rounding may take the entropy of equal logits beyond log C.
    return (entropy_B / math.log(logits_BC.shape[-1])).clamp(0.0, 1.0)


def answer_early(model: Any, batch: Batch, speed: float) -> EarlyAnswers:
    """Runs a model with exits on a batch; large batches in pieces, as `forward_in_pieces` does."""
    pieces = [_answer_piece(model, piece, speed) for piece in in_pieces(batch)]
    return EarlyAnswers(torch.cat([piece.logits for piece in pieces]), torch.cat([piece.layers for piece in pieces]))


def _answer_piece(model: Any, batch: Batch, speed: float) -> EarlyAnswers:
    rows, device = len(batch["input_ids"]), batch["input_ids"].device
    if speed == 0:
        logits = forward_outputs(model, batch, OutputRequest(logits=True)).logits
        assert logits is not None
        return EarlyAnswers(logits, torch.full((rows,), len(removable_layers(model.base_model)), device=device))
    leaving = _Leaving(model, batch.get("attention_mask"), rows, speed)
    layers = removable_layers(model.base_model)
    top = first_token_layer(model)
    substitutes = {}
    for index, layer in enumerate(layers):
        computing = FirstToken(layer) if top and index == top[1] else layer
        substitutes[index] = (
            layer if is_skipped(layer) and index + 1 not in leaving.exits else _Exit(computing, index + 1, leaving)
        )
    inputs = {name: batch[name] for name in input_names(model) if name in batch}
    with suppress(_AllLeft), replaced(layers, substitutes):
        leaving.finish(model.backbone(**inputs).logits, len(layers))
    assert leaving.logits is not None
    return EarlyAnswers(leaving.logits, leaving.layers)


class _AllLeft(Exception):
    """Ends a forward pass that no row is left in."""


class _Leaving:
    """The rows of a batch that still run, and the answers of those that have left."""

    def __init__(self, model: Any, mask_BT: Tensor | None, rows: int, speed: float):
        self.exits = {int(layer): branch for layer, branch in model.branches.items()}
        self.spread, self.speed, self.rows, self.mask_BT = model.config.score_spread, speed, rows, mask_BT
        device = next(model.parameters()).device
        self.staying = torch.arange(rows, device=device)
        self.layers = torch.zeros(rows, dtype=torch.long, device=device)
        self.logits: Tensor | None = None
        self.before: Tensor | None = None  # scores of the rows that stay, behind the exit before

    def of_staying(self, value: Any) -> Any:
        """Returns the staying rows of an argument that has one entry a row of the batch, such as a mask."""
        is_by_row = isinstance(value, Tensor) and value.dim() > 1 and len(value) == self.rows > len(self.staying)
        return value[self.staying] if is_by_row else value

    def leave(self, hidden_bTd: Tensor, layer: int) -> Tensor:
        """Lets the rows go that are sure behind this layer; returns the hidden states of the others."""
        if layer not in self.exits:
            return hidden_bTd
        logits_bC = self.exits[layer](hidden_bTd, self.of_staying(self.mask_BT))
        sure_b = self._is_sure(logits_bC)
        self._note(logits_bC[sure_b], self.staying[sure_b], layer)
        stays_b = ~sure_b
        self.staying = self.staying[stays_b]
        if self.before is not None:
            self.before = self.before[stays_b]
        if not len(self.staying):
            raise _AllLeft
        return hidden_bTd if len(self.staying) == len(hidden_bTd) else hidden_bTd[stays_b]

    def finish(self, logits_bC: Tensor, layer: int) -> None:
        """Lets all rows go that are left."""
        self._note(logits_bC, self.staying, layer)

    def _is_sure(self, logits_bC: Tensor) -> Tensor:
        if logits_bC.shape[-1] > 1:
            return uncertainty(logits_bC) <= self.speed
        before, self.before = self.before, logits_bC[:, 0]
        if before is None:
            return torch.zeros(len(logits_bC), dtype=torch.bool, device=logits_bC.device)
        return (logits_bC[:, 0] - before).abs() <= self.speed * (self.spread or 1.0)

    def _note(self, logits_bC: Tensor, rows_b: Tensor, layer: int) -> None:
        if self.logits is None:
            self.logits = logits_bC.new_zeros(self.rows, logits_bC.shape[-1])
        self.logits[rows_b] = logits_bC
        self.layers[rows_b] = layer


class _Exit(nn.Module):
    """A layer that computes the rows which are still there, and lets those go that are sure behind it."""

    def __init__(self, layer: nn.Module, number: int, leaving: _Leaving):
        super().__init__()
        self.layer, self.number, self.leaving = layer, number, leaving

    def forward(self, hidden_bTd: Tensor, *arguments: Any, **options: Any) -> Tensor:
        rows = self.leaving.of_staying
        computed = self.layer(
            hidden_bTd, *(rows(value) for value in arguments), **{name: rows(value) for name, value in options.items()}
        )
        return self.leaving.leave(computed, self.number)


class ExitLogits:
    """A model with exits that answers with the logits of all of them, [B, exits x C], the last layer's at the end."""

    def __init__(self, model: Any):
        self.model = model

    def logits(self, batch: Batch) -> np.ndarray:
        """Returns the logits of a batch, in eval mode."""
        device, was_training = next(self.model.parameters()).device, self.model.training
        self.model.eval()
        inputs = {name: value.to(device) for name, value in batch.items()}
        with torch.inference_mode():
            exits_EBC = forward_outputs(self.model, inputs, OutputRequest(exits=True)).exits
        self.model.train(was_training)
        assert exits_EBC is not None
        logits: np.ndarray = exits_EBC.transpose(0, 1).flatten(1).float().cpu().numpy()
        return logits
