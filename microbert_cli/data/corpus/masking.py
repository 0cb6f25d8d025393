"""Dynamic masking: the masked tokens are drawn anew for every batch, from (seed, batch number) alone.

Of the real, non-special tokens a share is chosen; of these 80 % become [MASK], 10 % a random token, 10 % stay.
Each is chosen with the same probability; or, where chances c are given, ceil(share x real tokens, special ones counted) are,
one after another, each with a probability proportional to its token's c = max(count in the corpus, 1)^-s: rare words oftener.
Sources: BERT (Devlin et al. 2019), with RoBERTa's re-drawing; DistilBERT's released code for s = 0.7.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microbert_cli import distributed
from microbert_cli.models.windows.pooling import halves_of_windows

MASK_KEYS = ("token_positions", "token_labels")
TEACHER = "teacher_"  # begins the names of what a batch has for a teacher that reads other tokens


def mask_batch(
    batch: dict[str, Tensor], tokenizer: Any, *, share: float, seed: int, number: int, chances_V: Tensor | None = None
) -> dict[str, Tensor]:
    """Masks a batch: input_ids changed, plus token_positions [P] (into the flattened [B x T]) and token_labels [P]."""
    random = torch.Generator().manual_seed(seed * 1_000_003 + number)
    ids_BT = batch["input_ids"]
    special = torch.isin(ids_BT, torch.tensor(tokenizer.all_special_ids)) | (batch["attention_mask"] == 0)
    if chances_V is None:
        positions = _uniform_positions(special, share, random)
    else:
        wanted = math.ceil(share * int(batch["attention_mask"].sum()))
        positions = _weighted_positions(chances_V[ids_BT].masked_fill(special, 0.0).flatten(), wanted, random)
    labels = ids_BT.flatten()[positions]
    action = torch.rand(len(positions), generator=random)
    noise = torch.randint(len(tokenizer), (len(positions),), generator=random)
    masked = ids_BT.flatten().clone()
    masked[positions] = torch.where(action < 0.8, tokenizer.mask_token_id, torch.where(action < 0.9, noise, labels))
    return {**batch, "input_ids": masked.view_as(ids_BT), "token_positions": positions, "token_labels": labels}


class Masking:
    """The masking of a run: a share of the tokens, rare ones more often by `smoothing`, drawn from its seed.

    tokens  of the corpus, for their frequencies
    """

    def __init__(self, tokenizer: Any, share: float, smoothing: float, seed: int, tokens: np.ndarray):
        self.tokenizer, self.share, self.seed = tokenizer, share, seed
        self.chances_V = token_weights(tokens, len(tokenizer), smoothing) if smoothing else None

    def draw(self, batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        """Masks the run's batch of that number."""
        return mask_batch(batch, self.tokenizer, share=self.share, seed=self.seed, number=number, chances_V=self.chances_V)

    def draw_for_rank(self, batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        """Masks the batch and returns this rank's rows of it."""
        return rank_rows(self.draw(batch, number))


def token_weights(tokens: np.ndarray, vocabulary: int, smoothing: float) -> Tensor:
    """Returns max(count, 1)^-smoothing of every token of the vocabulary [V]; the corpus is counted piece by piece."""
    counts = sum((np.bincount(piece, minlength=vocabulary) for piece in _pieces(tokens)), np.zeros(vocabulary, dtype=np.int64))
    return torch.from_numpy(np.maximum(counts, 1).astype(np.float64) ** -smoothing).float()


def _pieces(tokens: np.ndarray, size: int = 2**24) -> Iterable[np.ndarray]:
    return (np.asarray(tokens[first : first + size], dtype=np.int64) for first in range(0, len(tokens), size))


def _uniform_positions(special_BT: Tensor, share: float, random: torch.Generator) -> Tensor:
    """Draws each token with the same probability, and at least one token."""
    draw_BT = torch.rand(special_BT.shape, generator=random).masked_fill(special_BT, 2.0)
    chosen_BT = draw_BT < share
    if not chosen_BT.any():
        chosen_BT = (draw_BT == draw_BT.min()) & ~special_BT
    return chosen_BT.flatten().nonzero()[:, 0]


def _weighted_positions(chances: Tensor, wanted: int, random: torch.Generator) -> Tensor:
    """Draws `wanted` positions without replacement, in order."""
    wanted = min(wanted, int((chances > 0).sum()))
    if not wanted:
        return torch.zeros(0, dtype=torch.long)
    return torch.multinomial(chances, wanted, generator=random).sort().values


def rank_rows(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns this rank's rows of a masked batch; masks are drawn for the whole batch, so they equal those of one process.

    Where there are fewer rows than processes, some get the first row, no position of it, and "idle" (`distributed.rank_batch`).
    """
    rank, world = distributed.rank(), distributed.world_size()
    if world == 1:
        return batch
    rows, columns = batch["token_positions"] // (width := batch["input_ids"].shape[1]), batch["token_positions"] % width
    on_this_rank = rows % world == rank
    rank_slice = slice(rank, None, world) if rank < len(batch["input_ids"]) else slice(0, 1)
    rank_batch = {name: value[rank_slice] for name, value in batch.items() if name not in MASK_KEYS}
    positions = (rows[on_this_rank] // world) * width + columns[on_this_rank]
    idle = {} if rank < len(batch["input_ids"]) else {"idle": torch.ones(1)}
    return {**rank_batch, "token_positions": positions, "token_labels": batch["token_labels"][on_this_rank], **idle}


def split_batch(batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Splits a batch in two halves by rows, masked positions with their rows; a batch of one row is returned alone."""
    if "row_numbers" in batch:
        return halves_of_windows(batch)
    rows, width = batch["input_ids"].shape
    middle = (rows + 1) // 2
    return [_part(batch, first, last, width) for first, last in ((0, middle), (middle, rows)) if last > first]


def teacher_part(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns what a batch has for a teacher that reads other tokens, under the names that models know."""
    return {name.removeprefix(TEACHER): value for name, value in batch.items() if name.startswith(TEACHER)}


def with_teacher_part(batch: Mapping[str, Tensor], part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a batch with what a teacher reads of the same rows."""
    return {**batch, **{f"{TEACHER}{name}": value for name, value in part.items()}}


def _part(batch: Mapping[str, Tensor], first: int, last: int, width: int) -> dict[str, Tensor]:
    if other := teacher_part(batch):
        shared = {name: value for name, value in batch.items() if not name.startswith(TEACHER)}
        return with_teacher_part(_part(shared, first, last, width), _part(other, first, last, other["input_ids"].shape[1]))
    part = {name: value[first:last] for name, value in batch.items() if name not in MASK_KEYS}
    if "token_positions" in batch:
        positions = batch["token_positions"]  # into the flattened [B x T]
        inside = (positions >= first * width) & (positions < last * width)
        part |= {"token_positions": positions[inside] - first * width, "token_labels": batch["token_labels"][inside]}
    return part
