"""What fits into memory: a model before it is built; whether memory ran out, and the same batch in two halves."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from microbert_cli.errors import MbertError
from microbert_cli.masking import DRAWN

SAID = ("not enough memory", "can't allocate memory", "out of memory", "bad_alloc")


def is_exhausted(error: BaseException) -> bool:
    """Whether an allocator failed: torch's on a GPU has a class of its own, its CPU one only words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SAID)


def exhausted(error: BaseException, *, where: str, fix: str) -> MbertError:
    """The error for work that does not fit."""
    return MbertError(
        "M222",
        f"memory ran out: {str(error).strip().splitlines()[0][:160] if str(error).strip() else 'the allocator gave none'}",
        where=where,
        allowed="Work that fits into memory: `mbert plan` says how much each stage takes.",
        fix=fix,
    )


def check_room(parameters: int, *, where: str, fix: str) -> None:
    """Raises M223 for a model whose float32 weights and gradients, 8 bytes a parameter, are more than this machine has."""
    needed, there = 8 * parameters, machine_bytes()
    if there and needed > there:
        raise MbertError(
            "M223",
            f"a model of {parameters:,} parameters does not fit: its weights and gradients take {needed / 1e9:,.0f} GB, "
            f"and this machine has {there / 1e9:,.0f}",
            where=where,
            allowed=f"Fewer than {there // 8:,} parameters; training needs twice the room, for the optimiser.",
            fix=fix,
        )


def machine_bytes() -> int | None:
    """The machine's memory, or what its control group is allowed of it; None where the system does not say."""
    found = []
    with suppress(ValueError, OSError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(ValueError, OSError):  # "max" is no number
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(found, default=None)


def halves(batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The first and the second half of a batch's rows; masked positions go with their rows. One row stays whole."""
    rows, width = batch["input_ids"].shape
    middle = (rows + 1) // 2
    return [_part(batch, first, last, width) for first, last in ((0, middle), (middle, rows)) if last > first]


def _part(batch: Mapping[str, Tensor], first: int, last: int, width: int) -> dict[str, Tensor]:
    part = {name: value[first:last] for name, value in batch.items() if name not in DRAWN}
    if "token_positions" in batch:
        places = batch["token_positions"]
        here = (places >= first * width) & (places < last * width)
        part |= {"token_positions": places[here] - first * width, "token_labels": batch["token_labels"][here]}
    return part
