"""What fits into memory: a model before it is built; whether memory ran out, and the same batch in two halves."""

from collections.abc import Mapping

import torch
from torch import Tensor

from microbert_cli.data.corpus.masking import MASK_KEYS

OOM_MESSAGES = ("not enough memory", "can't allocate memory", "out of memory", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator failed: torch's on a GPU has a class of its own, its CPU one only words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OOM_MESSAGES)


def split_batch(batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The first and the second half of a batch's rows; masked positions go with their rows. One row stays whole."""
    rows, width = batch["input_ids"].shape
    middle = (rows + 1) // 2
    return [_part(batch, first, last, width) for first, last in ((0, middle), (middle, rows)) if last > first]


def _part(batch: Mapping[str, Tensor], first: int, last: int, width: int) -> dict[str, Tensor]:
    part = {name: value[first:last] for name, value in batch.items() if name not in MASK_KEYS}
    if "token_positions" in batch:
        places = batch["token_positions"]
        here = (places >= first * width) & (places < last * width)
        part |= {"token_positions": places[here] - first * width, "token_labels": batch["token_labels"][here]}
    return part
