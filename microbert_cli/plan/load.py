"""How much there is to compute: batches by their padded shape, exactly as the loop will draw them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from microbert_cli.data.batching import batches_by_length, epoch_batches, token_budget_batches
from microbert_cli.models.capture import tokens_at_once

Shape = tuple[int, int]
EXACT = 3_000_000  # rows drawn batch by batch; of what a longer training sees, whole epochs are taken to be alike


@dataclass(frozen=True)
class Workload:
    """Batches by shape, {(rows, padded length): how many}, and the tokens in them that are not padding."""

    shapes: Mapping[Shape, float] = field(default_factory=dict)
    useful: float = 0

    @property
    def batches(self) -> float:
        """How many."""
        return sum(self.shapes.values())

    @property
    def rows(self) -> float:
        """Rows of all batches."""
        return sum(rows * count for (rows, _), count in self.shapes.items())

    @property
    def tokens(self) -> float:
        """Tokens of all batches, padding included."""
        return sum(rows * length * count for (rows, length), count in self.shapes.items())

    @property
    def squares(self) -> float:
        """Squared padded lengths, summed over all rows: what attention grows with."""
        return sum(rows * length**2 * count for (rows, length), count in self.shapes.items())

    @property
    def widest(self) -> Shape:
        """The shape with most tokens; (0, 0) where there is none."""
        return max(self.shapes, key=lambda shape: (shape[0] * shape[1], shape), default=(0, 0))

    def __add__(self, other: "Workload") -> "Workload":
        return Workload(Counter(self.shapes) + Counter(other.shapes), self.useful + other.useful)

    def times(self, factor: float) -> "Workload":
        """The same again and again."""
        return Workload({shape: count * factor for shape, count in self.shapes.items()}, self.useful * factor)


def training_load(
    lengths: Sequence[int] | np.ndarray,
    *,
    batches: int,
    batch_size: int,
    seed: int,
    drop_last: bool = False,
    pad_to: int | None = None,
    tokens: int | None = None,
) -> Workload:
    """The first `batches` batches of `batching.endless`, over as many epochs as that takes.

    lengths  of the rows in tokens;  pad_to  the padded length where every batch has the same
    Exact up to EXACT rows; beyond them the epochs counted stand for the others.
    """
    lengths = np.asarray(lengths)
    counted, epoch = Workload(), 0
    while (missing := batches - counted.batches) > 0:
        if epoch and len(lengths) * epoch > EXACT:
            return counted.times(batches / counted.batches)
        drawn = epoch_batches(lengths, batch_size=batch_size, seed=seed, epoch=epoch, drop_last=drop_last, tokens=tokens)
        counted += load_of_batches((lengths[rows] for rows in drawn[: int(missing)]), pad_to)
        epoch += 1
    return counted


def answering_load(lengths: Sequence[int] | np.ndarray, *, batch_size: int) -> Workload:
    """All rows once, longest first, as evaluation goes through them."""
    lengths = np.asarray(lengths)
    return load_of_batches(lengths[rows] for rows in batches_by_length(lengths, batch_size=batch_size))


def at_once(lengths: Sequence[int] | np.ndarray, device: str) -> Workload:
    """All rows once, as the teacher's cache is filled."""
    lengths = np.sort(np.asarray(lengths))[::-1]
    return load_of_batches(
        lengths[rows] for rows in token_budget_batches(lengths, np.arange(len(lengths)), tokens_at_once(device))
    )


def load_of_batches(batches: Iterable[np.ndarray], pad_to: int | None = None) -> Workload:
    """Batches given as the lengths of their rows, each padded to its longest, or to `pad_to` if that is more."""
    shapes: Counter[Shape] = Counter()
    useful = 0
    for lengths in batches:
        shapes[len(lengths), max(int(lengths.max()), pad_to or 0)] += 1
        useful += int(lengths.sum())
    return Workload(dict(shapes), useful)
