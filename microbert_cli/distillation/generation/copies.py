"""Masked copies of a row: every token of its target is hidden in exactly one of them, and filled in from both sides.

Copy i of at most c hides positions i, i + c, i + 2 c, ... of the target; a target of n <= c tokens has n copies, of one hidden
token each. So no two hidden tokens of a copy are neighbours, and a row costs min(n, c) passes instead of n.
Source: C-MLM (Chen et al., ACL 2020), with c = 7.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from microbert_cli.models.capture import tokens_at_once

Batch = Mapping[str, Tensor]


def masked_copies(length: int, copies: int = 7) -> list[np.ndarray]:
    """Returns the positions that each copy of a target of `length` tokens hides."""
    return [np.arange(first, length, copies) for first in range(min(length, copies))]


def hidden_positions(batch: Batch, copies: int) -> tuple[Tensor, Tensor]:
    """Returns the rows [R] that the copies of a batch are of, and which tokens each of them hides, [R, L] bool."""
    width = batch["input_ids"].shape[1]
    lengths, targets = batch["attention_mask"].sum(1).tolist(), batch["targets"].tolist()
    rows: list[int] = []
    hidden: list[np.ndarray] = []
    for row, (length, target) in enumerate(zip(lengths, targets, strict=True)):
        for positions in masked_copies(target, copies):
            mask = np.zeros(width, dtype=bool)
            mask[length - target + positions] = True
            rows.append(row)
            hidden.append(mask)
    device = batch["input_ids"].device
    return torch.tensor(rows, device=device), torch.from_numpy(np.stack(hidden)).to(device)


def copied_batches(batch: Batch, copies: int, *, mask_id: int) -> "list[tuple[dict[str, Tensor], Tensor, Tensor]]":
    """Returns the copies of a batch in pieces that a device computes fastest.

    Each piece: what a masked-LM reads, with token_positions [P] into the flattened [R x L]; and row and target position, [P]
    both, of each hidden token.
    """
    rows_R, hidden_RL = hidden_positions(batch, copies)
    starts_B = batch["attention_mask"].sum(1) - batch["targets"]
    step = max(1, tokens_at_once(rows_R.device.type) // hidden_RL.shape[1])
    pieces = []
    for first in range(0, len(rows_R), step):
        rows, hidden = rows_R[first : first + step], hidden_RL[first : first + step]
        inputs = {name: batch[name][rows] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
        inputs["input_ids"] = inputs["input_ids"].masked_fill(hidden, mask_id)
        inputs["token_positions"] = hidden.flatten().nonzero()[:, 0]
        copy, column = hidden.nonzero(as_tuple=True)
        pieces.append((inputs, rows[copy], column - starts_B[rows[copy]]))
    return pieces


def positions_hidden_at_random(
    targets: Sequence[int], rows: Sequence[int], *, share: float, seed: int, step: int
) -> list[np.ndarray]:
    """Returns the positions of each target that a training step hides: every one with the chance `share`, at least one.

    rows  the rows' numbers in their data set: what is hidden is a function of seed, step and row alone, so that it is the same
          after a resume, in halves of a batch, and however the rows are dealt out to processes
    """
    drawn = []
    for length, row in zip(targets, rows, strict=True):
        chances = np.random.default_rng((seed, step, row)).random(length)
        positions = np.flatnonzero(chances < share)
        drawn.append(positions if len(positions) else np.asarray([int(chances.argmin())]))
    return drawn
