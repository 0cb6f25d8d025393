"""Rows whose long texts are windows: pieces of at most L tokens, each with the tokenizer's special tokens around it.

Of a text of n tokens, with room for r = L - special tokens, the first window is tokens 0 to r, and every next one begins r - S
tokens later (S the stride), until one reaches the end; the last may be shorter. A text of at most r tokens is one window. Of a
pair with more than r tokens the second text is cut into windows, each behind the first text; of that as many tokens are read
as leave room for the second text, and r / 2 at least.

These are the windows of transformers' tokenizers (`return_overflowing_tokens=True, stride=S`, of pairs
`truncation="only_second"`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from microbert_cli.data.encoded.flat import Block
from microbert_cli.data.examples import Examples
from microbert_cli.data.tokenized import (
    Column,
    TokenizedExamples,
    assemble_rows,
    joined_examples,
    special_token_parts,
    token_columns,
)
from microbert_cli.errors import MbertError
from microbert_cli.models.windows.pooling import pool_arrays
from microbert_cli.models.windows.settings import OVERLAP, WindowSettings
from microbert_cli.recipe.task_kinds import TaskKind


def _no_windows() -> np.ndarray:
    return np.zeros(1, np.int64)


@dataclass(frozen=True)
class WindowedExamples(TokenizedExamples):
    """Rows of one or several windows; the ids of a row are those of its windows, one behind the other.

    window_offsets  [W + 1] int64;  window w is ids[window_offsets[w] : window_offsets[w + 1]]
    first           [n + 1] int64;  row i has the windows first[i] to first[i + 1]
    pool            how logits of windows become those of the row
    truncated       of pairs, how many first texts were cut
    `lengths` are tokens of all windows of a row. In a batch ids, masks and `rows` are those of windows; labels, `augmented` and
    `row_numbers` are those of rows, and `window_mean` or `window_max` [W] says which row a window belongs to.
    """

    window_offsets: np.ndarray = field(default_factory=_no_windows)
    first: np.ndarray = field(default_factory=_no_windows)
    pool: str = "mean"

    @property
    def windows(self) -> TokenizedExamples:
        """Returns the windows as rows of their own, without labels."""
        return TokenizedExamples(self.ids, self.types, self.window_offsets, task=self.task, pad_left=self.pad_left)

    def pooled(self, logits: np.ndarray) -> np.ndarray:
        """Returns logits [n, C] of the rows by those of all windows, [W, C]."""
        return pool_arrays(logits, self.first, self.pool)

    def take(self, indices: np.ndarray) -> "WindowedExamples":
        """Returns some of the rows, numbered anew."""
        taken = super().take(indices)
        assert isinstance(taken, WindowedExamples)
        counts = np.diff(self.first)[indices]
        lengths = np.diff(self.window_offsets)[self._windows_of(indices)]
        return replace(taken, window_offsets=_offsets(lengths), first=_offsets(counts))

    def arrays(
        self, indices: Sequence[int] | np.ndarray, pad_to: int | None = None, pad_id: int | None = 0
    ) -> dict[str, np.ndarray]:
        """Returns the windows of some rows as arrays, padded to the longest window, or to `pad_to` tokens if that is more."""
        indices = np.asarray(indices, dtype=np.int64)
        arrays = self.windows.arrays(self._windows_of(indices), pad_to, pad_id)
        arrays[f"window_{self.pool}"] = np.repeat(np.arange(len(indices)), np.diff(self.first)[indices])
        arrays["row_numbers"] = indices
        if self.labels is not None:
            arrays["labels"] = self.labels[indices]
        if self.augmented is not None:
            arrays["augmented"] = self.augmented[indices]
        return arrays

    def _windows_of(self, indices: np.ndarray) -> np.ndarray:
        """Returns the numbers of the windows of some rows, row by row."""
        counts = np.diff(self.first)[indices]
        ends = np.cumsum(counts)
        return np.repeat(self.first[indices] - (ends - counts), counts) + np.arange(counts.sum())


def tokenize_windows(
    rows: Examples, tokenizer: Any, settings: WindowSettings, kind: TaskKind | None = None
) -> WindowedExamples:
    """Returns rows as windows of token ids; raises M481 where the stride leaves a window nothing new to read."""
    texts = len(rows.texts[0]) if rows.texts else 1
    frame = special_token_parts(tokenizer, texts)
    room = settings.max_length - sum(len(ids) for ids, _ in frame[::2])
    check_stride(settings, room, texts)
    blocks, counts, cut = [], [], 0
    for columns in token_columns(rows, tokenizer):
        pieces, counts_of_block, cut_of_block = _pieces(columns, room, settings.stride)
        counts += counts_of_block
        cut += cut_of_block
        blocks.append(Block(*assemble_rows(pieces, frame), cut_of_block))
    windows = joined_examples(blocks, tokenizer)
    first = _offsets(np.asarray(counts, np.int64))
    return WindowedExamples(
        ids=windows.ids,
        types=windows.types,
        offsets=windows.offsets[first],
        labels=kind.label_array(rows.labels) if kind and rows.labels is not None else None,
        augmented=None if rows.augmented is None else np.asarray(rows.augmented, dtype=bool),
        truncated=cut,
        pad_left=windows.pad_left,
        window_offsets=windows.offsets,
        first=first,
        pool=settings.pool,
    )


def check_stride(settings: WindowSettings, room: int, texts: int) -> None:
    """Checks that every window reads further than the one before; `room`: its tokens without special ones. Raises M481."""
    smallest = room - room // 2 if texts > 1 else room  # behind a first text that takes half the room
    if settings.stride < smallest:
        return
    what = "of the second text " if texts > 1 else ""
    stride = max(0, smallest) // OVERLAP
    raise MbertError(
        "M481",
        f"a window of {settings.max_length} tokens may hold {max(0, smallest)} {what}beside special tokens, and it is to share "
        f"{settings.stride} with the window before",
        where="data.stride",
        allowed=f"At most {smallest - 1} tokens." if smallest > 0 else "Windows with room for a text: data.max_length.",
        fix=f"--set data.stride={stride}" if smallest > 0 else "--set data.max_length=64",
    )


def _pieces(columns: list[Column], room: int, stride: int) -> tuple[list[Column], list[int], int]:
    """Returns the texts of every window, a column a text, how many windows each row has, and how many first texts are cut."""
    tails = columns[-1]
    heads: Column = columns[0] if len(columns) > 1 else [[]] * len(tails)
    before: Column = []
    pieces: Column = []
    counts, cut = [], 0
    for head, ids in zip(heads, tails, strict=True):
        read = head[: max(room // 2, room - len(ids))]
        cut += len(read) < len(head)
        width = room - len(read)
        # The last window is the first that reaches the end.
        starts = range(0, len(ids) - stride, width - stride) if len(ids) > width else range(1)
        before += [read] * len(starts)
        pieces += [ids[start : start + width] for start in starts]
        counts.append(len(starts))
    return ([before, pieces] if len(columns) > 1 else [pieces]), counts, cut


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
