"""Out-of-memory errors: how they are recognised, and how a batch is split to try again."""

from collections.abc import Mapping

import torch
from torch import Tensor

from microbert_cli.data.corpus.masking import MASK_KEYS

OOM_MESSAGES = ("not enough memory", "can't allocate memory", "out of memory", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator failed. Torch raises a class of its own for a GPU, and a bare RuntimeError for the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OOM_MESSAGES)


def split_batch(batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Splits a batch in two halves by rows, masked positions with their rows; a batch of one row is returned alone."""
    rows, width = batch["input_ids"].shape
    middle = (rows + 1) // 2
    return [_part(batch, first, last, width) for first, last in ((0, middle), (middle, rows)) if last > first]


def _part(batch: Mapping[str, Tensor], first: int, last: int, width: int) -> dict[str, Tensor]:
    part = {name: value[first:last] for name, value in batch.items() if name not in MASK_KEYS}
    if "token_positions" in batch:
        positions = batch["token_positions"]  # into the flattened [B x T]
        inside = (positions >= first * width) & (positions < last * width)
        part |= {"token_positions": positions[inside] - first * width, "token_labels": batch["token_labels"][inside]}
    return part
