"""Trains only the word vectors that can occur; all others, which no row has, change by weight decay alone.

AdamW walks through every weight at every step, and in a small student most weights are word vectors: of 3 layers of width 384
over 30,522 tokens five sixths. A token that no training row has gets no gradient, so its moments stay 0, and a step does

    w <- (1 - lr d) w,    d the weight decay

which needs no walk: the factors of all steps are multiplied, and the vectors that the phase began with are scaled by the
product whenever the table is read as a whole; so it does not matter when that is, nor whether a run was stopped. The phase
trains table[rows] instead, R x E for the R tokens that occur, and ids are replaced by their places among them. Vectors that
occur get the same bits as without this; where gradients are clipped, up to the order in which their norm is summed up.

Only for optimisers whose step without a gradient is that decay, a plain `nn.Embedding` that nothing else shares (a masked-LM
head does), without pruning, and where less than SHARE of the table occurs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from microbert_cli.training.objective import Objective

DECAY_ALONE = {"adamw", "adamw-distilbert", "bertadam"}  # what a step without a gradient does
SHARE = 0.8  # of the table; copies to and fro are not worth less


class WordRows:
    """The word vectors of a student that a phase trains; without `rows` all of them, and nothing is replaced.

    embedding  the table of V word vectors of width E;  rows [R]  the ids that occur, ascending
    """

    def __init__(self, embedding: nn.Embedding | None = None, rows: Tensor | None = None):
        self.embedding, self.rows = embedding, rows
        self.factor = 1.0  # what the decay since the beginning of the phase comes to
        self.depth = 0  # of `whole` within `whole`
        if embedding is None or rows is None:
            return
        self.table, self.padding = embedding.weight, embedding.padding_idx
        # An id that does not occur is outside the smaller table, so that looking it up fails instead of answering.
        self.places = torch.full((embedding.num_embeddings,), len(rows), device=rows.device)
        self.places[rows] = torch.arange(len(rows), device=rows.device)
        self.others = torch.nonzero(self.places == len(rows)).squeeze(1)
        self.start = self.table.detach()[self.others]
        self.part = nn.Parameter(self.table.detach()[rows])

    @classmethod
    def of(cls, objective: Objective, optimizer: str, ids: np.ndarray | None) -> Self:
        """Returns the rows `ids` [R], ascending, of a student's table; all rows where the others cannot be left out."""
        embedding = _plain_table(objective.student)
        if embedding is None or ids is None or optimizer not in DECAY_ALONE or objective.pruner is not None:
            return cls()
        if not len(ids) or ids[-1] >= embedding.num_embeddings or len(ids) > SHARE * embedding.num_embeddings:
            return cls()
        return cls(embedding, torch.as_tensor(ids, device=embedding.weight.device))

    @property
    def count(self) -> int:
        """R, or 0 where the whole table is trained."""
        return 0 if self.rows is None else len(self.rows)

    def __enter__(self) -> Self:
        self._narrow()
        return self

    def __exit__(self, *_: Any) -> None:
        self.give_up()

    def give_up(self) -> None:
        """Puts the whole table back for good."""
        if self.rows is not None:
            self._widen()
        self.embedding = self.rows = None

    def restored(self, factor: float) -> None:
        """Goes on from a whole table that was loaded, and the factor at that step."""
        if self.rows is None:
            return
        loaded = self.table.detach()[self.others]
        self.factor = factor
        if not torch.equal(loaded, self.start * factor):  # the phase begins with other weights than it once did
            self.start, self.factor = loaded, 1.0

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Puts the whole table back for a while; vectors that occur may be written to meanwhile."""
        self.depth += 1
        if self.depth == 1:
            self._widen()
        try:
            yield
        finally:
            self.depth -= 1
            if self.depth == 0:
                self._narrow()

    def decay(self, optimiser: torch.optim.Optimizer) -> None:
        """Notes what the coming step does to the vectors that do not occur: nothing where the table gets no gradient."""
        if self.rows is None or self.part.grad is None:
            return
        (group,) = (group for group in optimiser.param_groups if any(weight is self.part for weight in group["params"]))
        self.factor *= 1.0 - group["lr"] * group["weight_decay"]

    def _narrow(self) -> None:
        if self.embedding is None or self.rows is None:
            return
        with torch.no_grad():
            self.part.copy_(self.table[self.rows])
        self.embedding.weight = self.part
        if self.padding is not None:
            self.embedding.padding_idx = int(self.places[self.padding])
        self.hook = self.embedding.register_forward_pre_hook(lambda _, inputs: (self.places[inputs[0]], *inputs[1:]))

    def _widen(self) -> None:
        if self.embedding is None or self.rows is None:
            return
        self.hook.remove()
        with torch.no_grad():
            self.table[self.rows] = self.part
            self.table[self.others] = self.start * self.factor
        self.embedding.weight, self.embedding.padding_idx = self.table, self.padding


def _plain_table(student: Any) -> nn.Embedding | None:
    """Returns the table of word vectors, if it is trained, a plain one, and no other part of the student has its weights."""
    try:
        embedding = student.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    if type(embedding) is not nn.Embedding or not embedding.weight.requires_grad:
        return None
    if embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse:
        return None
    uses = [name for name, weight in student.named_parameters(remove_duplicate=False) if weight is embedding.weight]
    return embedding if len(uses) == 1 else None
