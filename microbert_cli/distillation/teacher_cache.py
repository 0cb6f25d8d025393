"""The teacher's outputs on disk: the teacher runs once per distinct row, whatever the number of epochs, seeds and runs.

An entry is addressed by content: the teacher's weights and the order of its outputs, the rows' token ids (so the tokenizer
too), the requested outputs, and the precision. A change of any of these is a cache miss; names and dates do not count. Files:

    logits.bin   [U, C]            float32, always; of a model that answers for tokens [N, C]
    hidden.bin   [N, L, D]         fp16 or fp32: the requested layers of every token
    vectors.bin  [U, L, D]         fp16 or fp32: the requested layers of the first token
    scores.bin   [P, L, A]         fp16 or fp32: the requested layers and heads of every query-key pair
    done.bin     [chunks]          checksums of the chunks that are written, 0 = not yet; so an interrupted pass resumes

U distinct rows (augmented data repeats many), N their tokens, P the sum of their squared lengths. Hidden states and scores are
kept only where they fit the budget; the least recently used entries make room. Queries, keys and values are never kept.

An entry is filled before training, in batches sorted by length and filled to a budget of tokens, so that its contents depend
neither on seeds nor on epochs. Where no row is needed twice, the teacher is asked batch by batch, as without a cache. Several
processes fill an entry together, each its share of the chunks.
"""

import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from microbert_cli import distributed
from microbert_cli.data.batching import token_budget_batches
from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.distillation.cache_layout import Layout as Layout
from microbert_cli.models.capture import Batch, ModelOutputs, OutputRequest, TeacherFunction, tokens_at_once
from microbert_cli.models.device import PLAIN, Precision
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import atomic, cache, manifest

if TYPE_CHECKING:
    from microbert_cli.distillation.teacher import Teacher
from microbert_cli.text import parse_size

KIND = "teacher"
FORMAT = 2
FLUSH_SECONDS = 5.0  # at most this much of the teacher's work is lost in a crash
DEFAULT_SHARE = 0.25  # of the free disk, where no budget is given


@dataclass(frozen=True)
class CacheSettings:
    """teacher: "auto" or "off"; budget: such as "8GB", None = a quarter of the free disk; precision: "fp16" or "fp32"."""

    teacher: str = "auto"
    budget: str | None = None
    precision: str = "fp16"


def cached_ask(
    teacher: "Teacher",
    encoded: TokenizedExamples,
    request: OutputRequest,
    *,
    identity: Mapping[str, Any],
    pad_id: int,
    settings: CacheSettings = CacheSettings(),
    total_rows: int | None = None,
    numerics: Precision = PLAIN,
    reporter: Reporter = SILENT,
) -> TeacherFunction:
    """Returns a function like `teacher.ask` for batches of `encoded`, which reads the cache; `teacher.ask` where it cannot.

    identity    what identifies the teacher's weights and the order of its outputs
    total_rows  how many rows will be asked about in all; None = more than there are
    numerics    of the teacher's forward passes
    """
    # A teacher in training mode has dropout, so that its outputs differ from pass to pass.
    if settings.teacher == "off" or request.token_logits or request.qkv or teacher.model.training:
        return teacher.ask
    layout = Layout.of(encoded, request, teacher, settings.precision)
    if total_rows is not None and total_rows <= layout.rows:
        return teacher.ask  # filling the cache would take more passes than it saves
    key = atomic.digest(
        {
            "format": FORMAT,
            "teacher": dict(identity),
            "rows": manifest.arrays_digest(encoded.ids, b"" if encoded.types is None else encoded.types, encoded.offsets),
            "want": [request.logits, sorted(request.hidden), sorted(request.scores), *_vectors(request)],
            "precision": [settings.precision, numerics.precision, numerics.compile],
            "torch": torch.__version__,  # kernels of another version, device or batch size round differently
            "device": teacher.device.type,
            "chunk": (tokens := tokens_at_once(teacher.device.type, in_bfloat16=numerics.precision == "bf16")),
        }
    )
    if not distributed.on_main_process(lambda: may_cache(layout, key, settings, reporter)):
        return teacher.ask
    with open_entry(key, reporter) as (directory, ready):
        if not ready:
            chunks = token_budget_batches(layout.lengths, np.arange(layout.rows), tokens)
            distributed.on_main_process(
                lambda: CacheWriter(directory, layout, chunks)
            )  # creates the files that the others open
            with torch.inference_mode(), numerics.forward():
                CacheWriter(directory, layout, chunks).fill(teacher, encoded, request, pad_id, reporter)
    return CachedOutputs(directory, layout).ask


def _vectors(request: OutputRequest) -> list[list[int]]:
    """Returns what a key says of vectors: nothing where none are wanted, so that older entries keep their keys."""
    return [sorted(request.vectors)] if request.vectors else []


@contextmanager
def open_entry(key: str, reporter: Reporter) -> Iterator[tuple[Path, bool]]:
    """Yields the entry's directory and whether it is complete; the main process keeps the lock until all have filled it."""
    if distributed.is_main():
        with cache.entry(KIND, key, resumable=True, reporter=reporter) as (directory, ready):
            yield directory, distributed.broadcast(ready)
            distributed.barrier()
    else:
        yield cache.entry_path(KIND, key), bool(distributed.broadcast(None))
        distributed.barrier()
    distributed.barrier()  # until the main process has marked the entry as complete


class CachedOutputs:
    """A complete entry, read through memory-mapped files."""

    mode: Literal["r", "r+"] = "r"
    by_token: tuple[str, ...] = ("hidden",)  # files of a row a token, beside the logits of tokens

    def __init__(self, directory: Path, layout: Layout):
        self.layout = layout
        self.by_token = (*self.by_token, "logits") if layout.of_tokens else self.by_token
        self.files = {
            name: atomic.memory_map(directory / f"{name}.bin", *shape, self.mode) for name, shape in layout.shapes.items()
        }
        self.token_offsets = np.concatenate([[0], np.cumsum(layout.lengths)])
        self.pair_offsets = np.concatenate([[0], np.cumsum(layout.lengths**2)])

    def ask(self, batch: Batch, request: OutputRequest) -> ModelOutputs:
        """Returns the teacher's outputs for the rows `batch["rows"]`, padded as the batch is."""
        slots = self.layout.slot[batch["rows"].cpu().numpy()]
        width, device = batch["input_ids"].shape[1], batch["input_ids"].device
        outputs = ModelOutputs()
        if "logits" in self.files:
            outputs.logits = self._logits(slots, width).to(device)
        if "hidden" in self.files:
            hidden_BTLD = self._padded("hidden", *self._tokens(slots, width)).to(device)
            outputs.hidden = {layer: hidden_BTLD[:, :, i].float() for i, layer in enumerate(self.layout.hidden)}
        if "vectors" in self.files:
            vectors_BLD = torch.from_numpy(self.files["vectors"][slots]).to(device)
            outputs.hidden |= {layer: vectors_BLD[:, i, None].float() for i, layer in enumerate(self.layout.vectors)}
        if "scores" in self.files:
            scores_BQKLA = self._padded("scores", *self._pairs(slots, width)).to(device)
            outputs.scores = {
                layer: scores_BQKLA[:, :, :, i].permute(0, 3, 1, 2).float() for i, layer in enumerate(self.layout.scores)
            }
        return outputs

    def _logits(self, slots: np.ndarray, width: int) -> torch.Tensor:
        if self.layout.of_tokens:
            return self._padded("logits", *self._tokens(slots, width))
        return torch.from_numpy(self.files["logits"][slots])

    def _padded(self, name: str, positions: np.ndarray, real: np.ndarray) -> torch.Tensor:
        file = self.files[name]
        values = np.zeros((*real.shape, *file.shape[1:]), dtype=file.dtype)
        values[real] = file[positions]
        return torch.from_numpy(values)

    def _tokens(self, slots: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the file positions of the real tokens of these rows, row by row, and the mask of real tokens [B, T]."""
        steps = np.arange(width)
        real_BT = steps < self.layout.lengths[slots][:, None]
        return (self.token_offsets[slots][:, None] + steps)[real_BT], real_BT

    def _pairs(self, slots: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the same for query-key pairs, [B, Q, K]."""
        steps, lengths_B11 = np.arange(width), self.layout.lengths[slots][:, None, None]
        queries_Q1 = steps[:, None]
        real_BQK = (queries_Q1 < lengths_B11) & (steps < lengths_B11)
        return (self.pair_offsets[slots][:, None, None] + queries_Q1 * lengths_B11 + steps)[real_BQK], real_BQK


class CacheWriter(CachedOutputs):
    """An entry that is being filled: the same files, and which of the `chunks` of distinct rows are done."""

    mode = "r+"

    def __init__(self, directory: Path, layout: Layout, chunks: Sequence[np.ndarray]):
        super().__init__(directory, layout)
        self.chunks = chunks
        self.done = atomic.memory_map(directory / "done.bin", (len(chunks),), "uint32", self.mode)

    def fill(
        self, teacher: "Teacher", rows: TokenizedExamples, request: OutputRequest, pad_id: int, reporter: Reporter
    ) -> None:
        """Runs the teacher on this process's chunks that are not done yet."""
        written: list[int] = []
        flushed = time.monotonic()
        of_rank = range(distributed.rank(), len(self.chunks), distributed.world_size())
        # A chunk that was marked but did not reach the disk in full has another checksum, and is run again.
        missing = [number for number in of_rank if not self.done[number] or self.done[number] != self._checksum(number)]
        for number in missing:
            slots = self.chunks[number]
            batch = rows.batch(self.layout.first[slots], pad_id=pad_id)
            outputs = teacher.ask(teacher.to_device(batch), request)
            self._write(slots, outputs, batch["attention_mask"].numpy() > 0)
            written.append(number)
            if time.monotonic() - flushed > FLUSH_SECONDS or number == missing[-1]:
                self._flush(written)
                written, flushed = [], time.monotonic()
            reporter.progress("teacher", number + 1, len(self.chunks), rows=len(slots))

    def _write(self, slots: np.ndarray, outputs: ModelOutputs, real_BT: np.ndarray) -> None:
        width = real_BT.shape[1]
        if outputs.logits is not None:
            rows = (self._tokens(slots, width)[0], real_BT) if self.layout.of_tokens else (slots, slice(None))
            self.files["logits"][rows[0]] = outputs.logits.float().cpu().numpy()[rows[1]]
        if self.layout.vectors:
            vectors_BLD = torch.cat([outputs.hidden[layer] for layer in self.layout.vectors], dim=1)
            self.files["vectors"][slots] = self._kept(vectors_BLD).numpy()
        if self.layout.hidden:
            stacked = torch.stack([outputs.hidden[layer] for layer in self.layout.hidden], dim=2)
            self._store("hidden", stacked, *self._tokens(slots, width))
        if self.layout.scores:
            stacked = torch.stack([outputs.scores[layer].permute(0, 2, 3, 1) for layer in self.layout.scores], dim=3)
            self._store("scores", stacked, *self._pairs(slots, width))

    def _store(self, name: str, values: torch.Tensor, positions: np.ndarray, real: np.ndarray) -> None:
        self.files[name][positions] = self._kept(values).numpy()[real]

    def _kept(self, values: torch.Tensor) -> torch.Tensor:
        """Returns values as the entry keeps them."""
        # Converted before they leave the device, so that half as many bytes are copied.
        return values.to(torch.float16 if self.layout.dtype == "float16" else torch.float32).cpu()

    def _checksum(self, number: int) -> int:
        """Returns the CRC-32 of a chunk's part of all files, never 0, which stands for a chunk that is not written."""
        slots = self.chunks[number]
        width = int(self.layout.lengths[slots].max())
        positions_of = {**dict.fromkeys(self.by_token, self._tokens), "scores": self._pairs}
        checksum = 0
        for name, file in self.files.items():
            positions = positions_of[name](slots, width)[0] if name in positions_of else slots
            checksum = zlib.crc32(file[positions].tobytes(), checksum)
        return checksum or 1

    def _flush(self, chunks: list[int]) -> None:
        """Writes the outputs to disk, and only then marks `chunks` as done."""
        for file in self.files.values():
            file.flush()
        for number in chunks:
            self.done[number] = self._checksum(number)
        self.done.flush()


def cache_budget(settings: CacheSettings, *, taken: int = 0) -> int:
    """Returns the budget in bytes; `taken` is what this entry occupies on disk already."""
    return parse_size(settings.budget) if settings.budget else int(DEFAULT_SHARE * (cache.free_bytes() + taken))


def may_cache(layout: Layout, key: str, settings: CacheSettings, reporter: Reporter) -> bool:
    """Whether the entry may be written, with a note on its size or on why not; logits alone need only a place on the disk."""
    if not cache.is_writable():
        reporter.note(
            f"teacher cache: nothing can be written in {cache.root()}, so the teacher is asked anew every time; see MBERT_CACHE"
        )
        return False
    free = cache.free_bytes() + cache.used_bytes(KIND, key)
    if layout.bytes > free:
        reporter.note(
            f"teacher cache: {layout.bytes / 1e9:.2f} GB do not fit on the disk of {cache.root()}; asked anew every time"
        )
        return False
    if not layout.is_large:
        return True
    budget = cache_budget(settings, taken=cache.used_bytes(KIND, key))
    size = f"{layout.bytes / 1e9:.2f} GB" if layout.bytes >= 1e8 else f"{layout.bytes / 1e6:.1f} MB"
    size = f"{layout.rows:,} distinct rows of {len(layout.slot):,}, {size}"
    if layout.bytes > budget:
        reporter.note(f"teacher cache: {size}, is more than the {budget / 1e9:.2f} GB of cache.budget; asked anew every time")
        return False
    cache.evict(KIND, budget - layout.bytes, keep=key)
    reporter.note(f"teacher cache: {size} in {cache.entry_path(KIND, key)}")
    return True
