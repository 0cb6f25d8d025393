"""Logits of windows as those of rows: row i has windows W_i, and for each class c

    mean    z_ic = (1 / |W_i|) sum over w in W_i of z_wc
    max     z_ic = max over w in W_i of z_wc

A row of one window keeps its logits. A batch of windows has under `window_mean` or `window_max` the row of every window, [W].

Source: Pappagari et al. 2019, Hierarchical Transformers for Long Document Classification (arXiv 1910.10781), where segments
answer by their average; Sun et al. 2019, How to Fine-Tune BERT for Text Classification (arXiv 1905.05583), section 5.3.1, mean
and max pooling over the pieces of a text.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from microbert_cli.models.windows.settings import POOLS

if TYPE_CHECKING:
    from torch import Tensor

    from microbert_cli.models.capture import ModelOutputs

OF_ROWS = ("labels", "augmented", "row_numbers")  # what a batch of windows has by row
ROW_OF_WINDOW = {f"window_{pool}": pool for pool in POOLS}


def pool_arrays(logits: np.ndarray, first: np.ndarray, pool: str) -> np.ndarray:
    """Returns logits [n, C] of rows by those of their windows, [W, C]; row i has the windows first[i] to first[i + 1].

    A row of which any window answers with no finite numbers has none itself.
    """
    starts = np.asarray(first)[:-1]
    if pool == "max":
        pooled: np.ndarray = np.maximum.reduceat(logits, starts)
    else:
        pooled = np.add.reduceat(logits, starts, dtype=np.float64) / np.diff(first)[:, None]
    finite = np.logical_and.reduceat(np.isfinite(logits).all(-1), starts)
    pooled = pooled.astype(logits.dtype)
    pooled[~finite] = np.nan
    return pooled


def pool_logits(logits: "Tensor", batch: Mapping[str, "Tensor"]) -> "Tensor":
    """Returns logits [..., B, C] of the rows of a batch by those of its windows, [..., W, C]; as they are without windows."""
    name = next((name for name in ROW_OF_WINDOW if name in batch), None)
    if name is None:
        return logits
    import torch

    row_W = batch[name]
    member_BW = torch.arange(row_count(batch), device=row_W.device)[:, None] == row_W
    if ROW_OF_WINDOW[name] == "max":
        unseen_BW1 = ~member_BW[..., None]
        return logits[..., None, :, :].masked_fill(unseen_BW1, -torch.inf).amax(-2)
    # A product, since sums by index are added in another order every time on a GPU.
    share_BW = member_BW / member_BW.sum(-1, keepdim=True)
    return share_BW.to(logits.dtype) @ logits


def pool_outputs(outputs: "ModelOutputs", batch: Mapping[str, "Tensor"]) -> "ModelOutputs":
    """Returns a model's outputs with logits of rows; what is read of layers stays by window."""
    logits, exits = (None if value is None else pool_logits(value, batch) for value in (outputs.logits, outputs.exits))
    return replace(outputs, logits=logits, exits=exits)


def halves_of_windows(batch: Mapping[str, "Tensor"]) -> "list[dict[str, Tensor]]":
    """Splits a batch of windows in two halves by rows, each with all windows of its rows; one row is returned alone."""
    name = next(name for name in ROW_OF_WINDOW if name in batch)
    rows, row_W = row_count(batch), batch[name]
    middle, halves = (rows + 1) // 2, []
    for first, last in ((0, middle), (middle, rows)):
        if last > first:
            inside = (row_W >= first) & (row_W < last)
            half = {key: value[first:last] if key in OF_ROWS else value[inside] for key, value in batch.items()}
            halves.append({**half, name: half[name] - first})
    return halves


def row_count(batch: Mapping[str, Any]) -> int:
    """Returns the number of rows of a batch, which may have several windows each."""
    return len(batch["row_numbers"] if "row_numbers" in batch else batch["input_ids"])
