"""A model with exits as ONNX files, one from each exit to the next; `graph.py` makes one graph of them.

    first   token ids -> hidden states behind the first exit, its logits
    next    hidden states, mask -> hidden states behind the next exit, its logits
    last    hidden states, mask -> the classifier's own logits

A segment is the whole classifier, whose layers below hand on the hidden states that come in, and whose layers above are left
out; the exporter drops what is then not read.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from microbert_cli.models.architectures import model_shape
from microbert_cli.models.capture import removable_layers, replaced
from microbert_cli.models.exits.build import exit_ends
from microbert_cli.models.graphs.first_token import first_token_on_top
from microbert_cli.models.onnx import not_exportable, resting, write_graph

ROWS, LENGTH, TOKEN = 2, 7, 5  # of the example that is traced: sizes that the exporter must not take for constants


def write_segments(model: Any, folder: Path, *, inputs: Sequence[str]) -> list[Path]:
    """Writes the segments of a model with exits, and returns their files; inputs: of the first one. Raises M611."""
    ends = exit_ends(model.config)
    files = [folder / f"segment-{number:02d}.onnx" for number in range(1, len(ends) + 1)]
    try:
        with torch.no_grad(), resting(model, "eager"):
            for file, first, last in zip(files, [0, *ends[:-1]], ends, strict=True):
                _write_segment(model, file, first, last, inputs)
    except Exception as error:
        raise not_exportable(model, f"segment to layer {last}: {type(error).__name__}: {error}") from error
    return files


def _write_segment(model: Any, path: Path, first: int, last: int, names: Sequence[str]) -> None:
    """Writes the layers from `first` to below `last`, numbered from 0, with the exit behind them."""
    layers, is_top = removable_layers(model.base_model), last == model_shape(model.config).layers
    held = _Held()
    width = model_shape(model.config).width
    ids_BT = torch.full((ROWS, LENGTH), TOKEN)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, LENGTH // 2 :] = 0
    tokens = {"input_ids": ids_BT, "attention_mask": mask_BT, "token_type_ids": torch.zeros_like(ids_BT)}
    example = {name: tokens[name] for name in names}
    if first:
        example = {"hidden": torch.randn(ROWS, LENGTH, width), "attention_mask": mask_BT}
    with first_token_on_top(model) if is_top else nullcontext():
        substitutes: dict[int, nn.Module] = {index: _Given(layers[index], held) for index in range(first)}
        if not is_top:
            substitutes[last - 1] = _Keeping(layers[last - 1], held)
            substitutes |= {index: _Given(layers[index], held) for index in range(last, len(layers))}
        with replaced(layers, substitutes):
            segment = _Segment(model, held, tuple(example), branch=None if is_top else model.branches[str(last)])
            write_graph(segment.eval(), path, example, outputs=("logits",) if is_top else ("hidden_states", "logits"))


class _Held:
    """The hidden states that a segment begins or ends with."""

    value: Any = None


class _Given(nn.Module):
    """Stands for a layer of another segment: hands on the hidden states that are held."""

    def __init__(self, layer: nn.Module, held: _Held):
        super().__init__()
        self.layer, self.held = layer, held

    def forward(self, hidden_BTd: Tensor, *_: Any, **__: Any) -> Tensor:
        held: Tensor = self.held.value
        return held


class _Keeping(nn.Module):
    """A segment's last layer, whose output is held."""

    def __init__(self, layer: nn.Module, held: _Held):
        super().__init__()
        self.layer, self.held = layer, held

    def forward(self, hidden_BTd: Tensor, *arguments: Any, **options: Any) -> Tensor:
        hidden: Tensor = self.layer(hidden_BTd, *arguments, **options)
        self.held.value = hidden
        return hidden


class _Segment(nn.Module):
    """Takes token ids, or hidden states, by position; returns hidden states and logits, the last segment logits alone."""

    def __init__(self, model: Any, held: _Held, names: tuple[str, ...], *, branch: nn.Module | None):
        super().__init__()
        self.backbone, self.branch = model.backbone, branch
        self.held, self.names = held, names
        shape = model_shape(model.config)
        self.embedding = shape.embedding

    def forward(self, *inputs: Tensor) -> Any:
        given = dict(zip(self.names, inputs, strict=True))
        if (hidden := given.pop("hidden", None)) is not None:
            self.held.value = hidden
            # Read by nothing, since the first layer's place hands on what is held.
            given["inputs_embeds"] = hidden.new_zeros(hidden.shape[0], hidden.shape[1], self.embedding)
        logits = self.backbone(**given).logits
        if self.branch is None:
            return logits
        return self.held.value, self.branch(self.held.value, given.get("attention_mask"))
