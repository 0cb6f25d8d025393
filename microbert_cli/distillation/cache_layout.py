"""Where a teacher's outputs lie in the files of its cache: their shapes, and which rows are the same."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from microbert_cli.data.encoded.distinct import distinct_rows
from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.models.architectures import model_shape
from microbert_cli.models.capture import OutputRequest
from microbert_cli.recipe.task_kinds import answers_words

if TYPE_CHECKING:
    from microbert_cli.distillation.teacher import Teacher


@dataclass(frozen=True)
class Layout:
    """Where outputs lie in the files: `slot` [n] each row's distinct row, `first` [U] a row of each, `lengths` [U] tokens."""

    slot: np.ndarray
    first: np.ndarray
    lengths: np.ndarray
    classes: int
    width: int
    heads: int
    hidden: tuple[int, ...]
    scores: tuple[int, ...]
    dtype: str
    vectors: tuple[int, ...] = ()
    of_tokens: bool = False

    @classmethod
    def of(cls, encoded: TokenizedExamples, request: OutputRequest, teacher: "Teacher", precision: str) -> "Layout":
        """Returns the layout of a dataset, whose rows may repeat."""
        slot, first = distinct_rows(encoded)
        layout = cls.of_lengths(np.asarray(encoded.lengths)[first], request, teacher.model.config, precision)
        return replace(layout, slot=slot, first=first)

    @classmethod
    def of_lengths(cls, lengths: np.ndarray, request: OutputRequest, config: Any, precision: str) -> "Layout":
        """Returns the layout of rows that are all distinct, by their numbers of tokens."""
        rows, shape = np.arange(len(lengths)), model_shape(config)
        return cls(
            slot=rows,
            first=rows,
            lengths=np.asarray(lengths),
            classes=config.num_labels if request.logits else 0,
            width=shape.width,
            heads=shape.heads or 0,
            hidden=tuple(sorted(request.hidden)),
            scores=tuple(sorted(request.scores)),
            dtype="float16" if precision == "fp16" else "float32",
            vectors=tuple(sorted(request.vectors)),
            of_tokens=answers_words(config),
        )

    @property
    def rows(self) -> int:
        """The number of distinct rows."""
        return len(self.first)

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """The shape and dtype of every file that is not empty."""
        tokens, pairs = int(self.lengths.sum()), int((self.lengths**2).sum())
        shapes: dict[str, tuple[tuple[int, ...], str]] = {
            "logits": ((tokens if self.of_tokens else self.rows, self.classes), "float32"),
            "hidden": ((tokens, len(self.hidden), self.width), self.dtype),
            "scores": ((pairs, len(self.scores), self.heads), self.dtype),
            "vectors": ((self.rows, len(self.vectors), self.width), self.dtype),
        }
        return {name: (shape, dtype) for name, (shape, dtype) in shapes.items() if 0 not in shape}

    @property
    def is_large(self) -> bool:
        """Whether the entry has to fit the budget: it holds more than logits, which are a few bytes a row."""
        return bool(self.hidden or self.scores or self.vectors)

    @property
    def bytes(self) -> int:
        """The size of the entry on disk."""
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self.shapes.values())
