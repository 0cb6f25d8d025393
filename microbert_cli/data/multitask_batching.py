"""Batches over several tasks, each batch of one task.

Task k of n_k rows is drawn with probability p_k, which follows from the sizes:

    proportional  p_k ~ n_k             every row is seen about as often as any other
    square-root   p_k ~ sqrt(n_k)       small tasks more often
    capped        p_k ~ min(n_k, cap)   proportional, large tasks held back

Which task's turn it is, is a pure function of (seed, step), and every task goes through its own rows in the order that
`endless_batches` gives them alone. So a resumed run passes over what was seen without loading it.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from microbert_cli.data.batching import endless_batches, evenly_spaced_chunks
from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.errors import MbertError

if TYPE_CHECKING:
    import torch


TASKS_PER_DRAW = 1024
TASK_STREAM = 7  # sets the draw of tasks apart from the draws of rows, which have the same seed


def task_shares(sizes: Sequence[int], by: str = "proportional", *, cap: int = 100_000) -> list[float]:
    """Returns p_k of every task, by its number of rows."""
    weigh: dict[str, Callable[[int], float]] = {
        "proportional": float,
        "square-root": lambda rows: rows**0.5,
        "capped": lambda rows: float(min(rows, cap)),
    }
    weights = [weigh[by](size) for size in sizes]
    return [weight / sum(weights) for weight in weights]


def task_sequence(shares: Sequence[float], *, seed: int) -> Iterator[int]:
    """Yields task indices, one a batch, without end."""
    for block in count():
        random = np.random.default_rng((seed, TASK_STREAM, block))
        yield from random.choice(len(shares), size=TASKS_PER_DRAW, p=shares).tolist()


def mixed_batches(
    lengths: Sequence[int] | np.ndarray,
    *,
    sizes: Sequence[int],
    shares: Sequence[float],
    seed: int,
    skip: int = 0,
    **options: Any,
) -> Iterator[np.ndarray]:
    """Yields batches over the rows of all tasks, numbered task after task; `options` are those of `endless_batches`."""
    starts = np.cumsum([0, *sizes])
    task_indices = task_sequence(shares, seed=seed)
    skipped = Counter(islice(task_indices, skip))
    task_batches = [
        endless_batches(np.asarray(lengths)[start : start + size], seed=seed, skip=skipped[task], **options)
        for task, (start, size) in enumerate(zip(starts, sizes, strict=False))
    ]
    for task in task_indices:
        yield starts[task] + next(task_batches[task])


@dataclass(frozen=True)
class MultitaskExamples:
    """Tokenized rows of several tasks, numbered one task after the other, and the share of batches of each task."""

    parts: tuple[TokenizedExamples, ...]
    shares: tuple[float, ...]

    @property
    def lengths(self) -> np.ndarray:
        """Returns the number of tokens of each row."""
        return np.concatenate([part.lengths for part in self.parts])

    @property
    def order(self) -> Callable[..., Iterator[np.ndarray]]:
        """Returns a function like `endless_batches`, over all tasks."""
        return partial(mixed_batches, sizes=[len(part) for part in self.parts], shares=self.shares)

    def distinct_ids(self, pad_id: int | None) -> np.ndarray:
        """Returns the token ids that occur in a batch of any task; see `TokenizedExamples.distinct_ids`."""
        return np.unique(np.concatenate([part.distinct_ids(pad_id) for part in self.parts]))

    def batch(self, indices: np.ndarray, pad_to: int | None = None, pad_id: int | None = 0) -> "dict[str, torch.Tensor]":
        """Returns rows of one task as tensors, `rows` numbered within the task; see `TokenizedExamples.batch`."""
        starts = np.cumsum([0, *(len(part) for part in self.parts)])
        part = int(np.searchsorted(starts, indices[0], side="right")) - 1
        return self.parts[part].batch(indices - starts[part], pad_to=pad_to, pad_id=pad_id)


def batches_of(rows: TokenizedExamples | MultitaskExamples, **options: Any) -> Iterator[np.ndarray]:
    """Yields batches of row numbers of one task or of several; `options` are those of `endless_batches`."""
    return (rows.order if isinstance(rows, MultitaskExamples) else endless_batches)(rows.lengths, **options)


def chunks_of_rows(
    rows: TokenizedExamples | MultitaskExamples, chunk_rows: int | None, *, where: str
) -> list[tuple[TokenizedExamples | MultitaskExamples, np.ndarray | None]]:
    """Returns the chunks of a phase's rows, each with the numbers of its rows, evenly spaced; None = all rows.

    Raises M462 for the rows of several tasks.
    """
    if chunk_rows is None or len(rows.lengths) <= chunk_rows:
        return [(rows, None)]
    if isinstance(rows, MultitaskExamples):
        raise MbertError(
            "M462",
            "rows are taken in chunks for one task alone, and this run learns several",
            where=where,
            allowed="All rows at once, for several tasks.",
            fix="Leave it out: every task's rows are then taken together.",
        )
    return [(rows.take(numbers), numbers) for numbers in evenly_spaced_chunks(len(rows), chunk_rows)]
