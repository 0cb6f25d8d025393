"""Rows as both models of a cascade read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.models.windows.settings import no_windows


@dataclass(frozen=True)
class CascadeExamples(TokenizedExamples):
    """Rows as the small model of a cascade reads them, and in `big` as the big one does, padded with `big_pad_id`."""

    big: TokenizedExamples | None = None
    big_pad_id: int | None = 0

    def batch(self, indices: Sequence[int] | np.ndarray, pad_to: int | None = None, pad_id: int | None = 0) -> "dict[str, Any]":
        """Returns rows as `TokenizedExamples.batch` does, and the same rows for the big model under "big"."""
        assert self.big is not None
        return {**super().batch(indices, pad_to, pad_id), "big": self.big.batch(indices, pad_id=self.big_pad_id)}

    def batch_for(self, answers: Any, indices: Sequence[int] | np.ndarray, pad_id: int | None = 0) -> dict[str, Any]:
        """Returns rows as `TokenizedExamples.batch_for` does, and the same rows for the big model under "big"."""
        assert self.big is not None
        small = super().batch_for(answers, indices, pad_id)
        return {**small, "big": self.big.batch_for(answers, indices, self.big_pad_id)}


def for_cascade(small: TokenizedExamples, big: TokenizedExamples, pad_id: int | None) -> CascadeExamples:
    """Returns the rows of a cascade: those of both tokenizers, in the same order; raises M482 for windows of rows."""
    if small.windows is not small or big.windows is not big:
        raise no_windows("a cascade", "Two models that read the beginning of a long text.", "--set data.windows=none")
    return CascadeExamples(**vars(small), big=big, big_pad_id=pad_id)
