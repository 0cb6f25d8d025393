"""The k likeliest tokens of a teacher at every position of every target, on disk; asked once, however long a student trains.

    values.bin   [M, k]   fp16 or fp32 (`cache.precision`): the k largest logits of each of the M target tokens
    tokens.bin   [M, k]   int32: whose they are, by the student's numbers
    done.bin     [chunks] as of all entries of the teacher's cache: an extraction that was stopped goes on

6 bytes for each of k: 48 bytes a target token at k = 8, 768 at k = 128.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from microbert_cli import distributed
from microbert_cli.data.batching import token_budget_batches
from microbert_cli.data.generation.rows import TextPairs
from microbert_cli.distillation.generation.teacher import FillingTeacher
from microbert_cli.distillation.teacher_cache import CachedOutputs, CacheSettings, CacheWriter, Layout, may_cache, open_entry
from microbert_cli.models.capture import Batch, ModelOutputs, OutputRequest, TeacherFunction, tokens_at_once
from microbert_cli.models.device import PLAIN, Precision
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import atomic, manifest

FORMAT = 1
AS_USUAL = CacheSettings()


@dataclass(frozen=True)
class TopLayout(Layout):
    """Where the tokens of every target lie: `lengths` are those of the targets."""

    k: int = 0

    @classmethod
    def of_targets(cls, lengths: np.ndarray, k: int, precision: str) -> "TopLayout":
        """Returns the layout for targets of these lengths."""
        rows = np.arange(len(lengths))
        dtype = "float16" if precision == "fp16" else "float32"
        return cls(rows, rows, np.asarray(lengths), 0, 0, 0, (), (), dtype, k=k)

    @property
    def is_large(self) -> bool:
        return True

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        shape = (int(self.lengths.sum()), self.k)
        return {"values": (shape, self.dtype), "tokens": (shape, "int32")}


class CachedTop(CachedOutputs):
    """A complete entry."""

    by_token = ("values", "tokens")

    def ask(self, batch: Batch, request: OutputRequest) -> ModelOutputs:
        """Returns what the teacher said of the rows `batch["rows"]`, padded as the batch's targets are."""
        slots, device = batch["rows"].cpu().numpy(), batch["labels"].device
        values, tokens = (self._padded(name, *self._tokens(slots, batch["labels"].shape[1])) for name in self.by_token)
        return ModelOutputs(top=(values.float().to(device), tokens.long().to(device)))


class TopWriter(CacheWriter):
    """An entry that is being filled."""

    by_token = CachedTop.by_token

    def _write(self, slots: np.ndarray, outputs: ModelOutputs, real_BT: np.ndarray) -> None:
        assert outputs.top is not None
        values, tokens = outputs.top
        positions, real = self._tokens(slots, values.shape[1])
        self._store("values", values, positions, real)
        self.files["tokens"][positions] = tokens.to(torch.int32).cpu().numpy()[real]


def cached_top(
    teacher: FillingTeacher,
    pairs: TextPairs,
    request: OutputRequest,
    *,
    identity: Mapping[str, Any],
    settings: CacheSettings = AS_USUAL,
    total_rows: int | None = None,
    numerics: Precision = PLAIN,
    reporter: Reporter = SILENT,
) -> TeacherFunction:
    """Returns a function like `teacher.ask` for batches of `pairs`, which reads the cache; `teacher.ask` where it cannot.

    identity    what identifies the teacher's weights and vocabulary
    total_rows  how many rows will be asked about in all; None = more than there are
    """
    if settings.teacher == "off" or total_rows is not None and total_rows <= len(pairs):
        return teacher.ask
    k = min(request.top_k, len(teacher.filler.teacher_ids))
    layout, rows = TopLayout.of_targets(pairs.target_lengths, k, settings.precision), teacher.rows
    device = teacher.filler.device.type
    key = atomic.digest(
        {
            "format": ["top", FORMAT],
            "teacher": dict(identity),
            "rows": manifest.arrays_digest(rows.ids, b"" if rows.types is None else rows.types, rows.offsets, rows.targets),
            "vocabulary": manifest.arrays_digest(teacher.filler.teacher_ids, pairs.target_ids),
            "want": [k, request.copies],
            "precision": [settings.precision, numerics.precision, numerics.compile],
            "torch": torch.__version__,
            "device": device,
            "chunk": (tokens := tokens_at_once(device)),
        }
    )
    if not distributed.on_main_process(lambda: may_cache(layout, key, settings, reporter)):
        return teacher.ask
    with open_entry(key, reporter) as (directory, ready):
        if not ready:
            order = np.argsort(-rows.lengths, kind="stable")
            chunks = token_budget_batches(rows.lengths, order, tokens)
            distributed.on_main_process(lambda: TopWriter(directory, layout, chunks))  # creates the files
            with torch.inference_mode(), numerics.forward():
                asked: Any = _Rows(teacher)
                TopWriter(directory, layout, chunks).fill(asked, rows, request, teacher.filler.tokenizer.pad_token_id, reporter)
    return CachedTop(directory, layout).ask


class _Rows:
    """A teacher that is asked about its own rows, as the writer of an entry asks."""

    def __init__(self, teacher: FillingTeacher):
        self.teacher = teacher

    def to_device(self, batch: Batch) -> Batch:
        return batch

    def ask(self, batch: Batch, request: OutputRequest) -> ModelOutputs:
        return ModelOutputs(top=self.teacher.top(batch, request))
