"""Dynamic masking: which words a masked-LM must guess is drawn anew for every batch, from (seed, batch number) alone.

Of the real, non-special tokens a share is chosen; of these 80 % become [MASK], 10 % a random token, 10 % stay.
Source: BERT (Devlin et al. 2019), with RoBERTa's re-drawing.
"""

from typing import Any

import torch
from torch import Tensor

from microbert_cli import processes

DRAWN = ("token_positions", "token_labels")


def mask_batch(batch: dict[str, Tensor], tokenizer: Any, *, share: float, seed: int, number: int) -> dict[str, Tensor]:
    """The batch with altered input_ids, plus token_positions [P] (into the flattened [B x T]) and token_labels [P]."""
    random = torch.Generator().manual_seed(seed * 1_000_003 + number)
    ids_BT = batch["input_ids"]
    special = torch.isin(ids_BT, torch.tensor(tokenizer.all_special_ids)) | (batch["attention_mask"] == 0)
    draw_BT = torch.rand(ids_BT.shape, generator=random).masked_fill(special, 2.0)
    chosen_BT = draw_BT < share
    if not chosen_BT.any():
        chosen_BT = (draw_BT == draw_BT.min()) & ~special
    positions = chosen_BT.flatten().nonzero()[:, 0]
    labels = ids_BT.flatten()[positions]
    how = torch.rand(len(positions), generator=random)
    noise = torch.randint(len(tokenizer), (len(positions),), generator=random)
    masked = ids_BT.flatten().clone()
    masked[positions] = torch.where(how < 0.8, tokenizer.mask_token_id, torch.where(how < 0.9, noise, labels))
    return {**batch, "input_ids": masked.view_as(ids_BT), "token_positions": positions, "token_labels": labels}


def own_rows(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """This process's rows of a masked batch. Masks are drawn for the whole batch, so they are those of one process.

    Where there are fewer rows than processes, some get the first row and no position of it.
    """
    rank, world = processes.rank(), processes.world()
    if world == 1:
        return batch
    rows, columns = batch["token_positions"] // (width := batch["input_ids"].shape[1]), batch["token_positions"] % width
    mine = rows % world == rank
    chosen = slice(rank, None, world) if rank < len(batch["input_ids"]) else slice(0, 1)
    found = {name: value[chosen] for name, value in batch.items() if name not in DRAWN}
    positions = (rows[mine] // world) * width + columns[mine]
    return {**found, "token_positions": positions, "token_labels": batch["token_labels"][mine]}
