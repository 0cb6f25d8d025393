"""What the teacher said, kept on disk: each distinct row is asked once, however many epochs, seeds and runs want its answer.

An entry is addressed by content: the teacher's weights and the order of its outputs, the rows' token ids (so the tokenizer
too), what is asked, and the precision. Anything else misses; nothing in an entry is ever compared by name or date. It holds

    logits.bin   [U, C]            float32, always
    hidden.bin   [N, L, D]         fp16 or fp32: the asked layers of every token
    scores.bin   [P, L, A]         fp16 or fp32: the asked layers and heads of every query-key pair
    done.bin     [chunks]          checksums of the parts that are written, 0 = not yet; so a stopped pass goes on where it was

U distinct rows (identical rows of augmented data are asked once), N their tokens, P the sum of their squared lengths.
Hidden states and scores are kept only where the estimate fits the budget; entries least recently used make room. Queries, keys
and values are not kept: where a loss reads them, the teacher is asked anew every time.

Rows are asked in an order of their own - sorted by length, filled to a budget of tokens - so what is kept depends neither
on seeds nor on epochs. It is worth it where rows are asked more often than there are distinct ones; else the teacher is
asked batch by batch, as without a cache. Several processes fill an entry together, each its share of the chunks.
"""

import re
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from microbert_cli import distributed
from microbert_cli.data.batching import token_budget_batches
from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.distillation.teacher import Teacher
from microbert_cli.models.capture import ModelOutputs, OutputRequest, tokens_at_once
from microbert_cli.models.device import PLAIN, Precision
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import atomic, cache, manifest
from microbert_cli.training.objective import Batch, TeacherFunction

KIND = "teacher"
FORMAT = 2
FLUSH_SECONDS = 5.0
SHARE = 0.25  # of the free disk, where no budget is given
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class CacheSettings:
    """teacher: "auto" or "off"; budget: such as "8GB", None = a quarter of the free disk; precision: "fp16" or "fp32"."""

    teacher: str = "auto"
    budget: str | None = None
    precision: str = "fp16"


def in_bytes(size: str) -> int:
    """ "8GB" -> 8,000,000,000; raises ValueError for what is no size."""
    found = SIZE.fullmatch(size)
    if not found:
        raise ValueError(f'"{size}" is no size such as 8GB or 500MB')
    return int(float(found[1]) * UNITS[found[2].lower()])


def remember(
    teacher: Teacher,
    encoded: TokenizedExamples,
    want: OutputRequest,
    *,
    asked_by: Mapping[str, Any],
    pad_id: int,
    settings: CacheSettings = CacheSettings(),
    asks: int | None = None,
    numerics: Precision = PLAIN,
    reporter: Reporter = SILENT,
) -> TeacherFunction:
    """Answers like `teacher.ask` for batches of `encoded`, from the cache where that pays and fits.

    asked_by  what identifies the teacher's weights and the order of its outputs
    asks      how many rows will be asked for in all; None = often enough
    numerics  of the teacher's forward passes
    """
    if settings.teacher == "off" or want.token_logits or want.qkv or teacher.model.training:
        return teacher.ask
    layout = Layout.of(encoded, want, teacher, settings.precision)
    if asks is not None and asks <= layout.rows:
        return teacher.ask
    key = atomic.digest(
        {
            "format": FORMAT,
            "teacher": dict(asked_by),
            "rows": _content(encoded),
            "want": [want.logits, sorted(want.hidden), sorted(want.scores)],
            "precision": [settings.precision, numerics.precision, numerics.compile],
            "torch": torch.__version__,
            "device": teacher.device.type,
            "chunk": (tokens := tokens_at_once(teacher.device.type)),
        }
    )
    if not distributed.on_main_process(lambda: _fits(layout, key, settings, reporter)):
        return teacher.ask
    with _entry(key, reporter) as (directory, ready):
        if not ready:
            chunks = token_budget_batches(layout.lengths, np.arange(layout.rows), tokens)
            distributed.on_main_process(lambda: Filling(directory, layout, chunks))
            with torch.inference_mode(), numerics.forward():
                Filling(directory, layout, chunks).fill(teacher, encoded, want, pad_id, reporter)
    return Kept(directory, layout).ask


@contextmanager
def _entry(key: str, reporter: Reporter) -> Iterator[tuple[Path, bool]]:
    """The cache's entry; of several processes the main one holds it for all, until all are through with filling it."""
    if distributed.is_main():
        with cache.entry(KIND, key, resumable=True, reporter=reporter) as (directory, ready):
            yield directory, distributed.broadcast(ready)
            distributed.barrier()
    else:
        yield cache.place(KIND, key), bool(distributed.broadcast(None))
        distributed.barrier()
    distributed.barrier()  # until it is marked as whole


@dataclass(frozen=True)
class Layout:
    """Where each row's answers lie: `slot` [n] is the distinct row, `first` [U] a row that has it, `lengths` [U] its tokens."""

    slot: np.ndarray
    first: np.ndarray
    lengths: np.ndarray
    classes: int
    width: int
    heads: int
    hidden: tuple[int, ...]
    scores: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, encoded: TokenizedExamples, want: OutputRequest, teacher: Teacher, precision: str) -> "Layout":
        slot, first = _distinct(encoded)
        found = cls.of_lengths(np.asarray(encoded.lengths)[first], want, teacher.model.config, precision)
        return replace(found, slot=slot, first=first)

    @classmethod
    def of_lengths(cls, lengths: np.ndarray, want: OutputRequest, config: Any, precision: str) -> "Layout":
        """Of distinct rows."""
        own = np.arange(len(lengths))
        return cls(
            slot=own,
            first=own,
            lengths=np.asarray(lengths),
            classes=config.num_labels if want.logits else 0,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            hidden=tuple(sorted(want.hidden)),
            scores=tuple(sorted(want.scores)),
            dtype="float16" if precision == "fp16" else "float32",
        )

    @property
    def rows(self) -> int:
        return len(self.first)

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of every file that is not empty."""
        tokens, pairs = int(self.lengths.sum()), int((self.lengths**2).sum())
        found: dict[str, tuple[tuple[int, ...], str]] = {
            "logits": ((self.rows, self.classes), "float32"),
            "hidden": ((tokens, len(self.hidden), self.width), self.dtype),
            "scores": ((pairs, len(self.scores), self.heads), self.dtype),
        }
        return {name: (shape, dtype) for name, (shape, dtype) in found.items() if 0 not in shape}

    @property
    def bytes(self) -> int:
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self.shapes.values())


class Kept:
    """One entry, asked from memory-mapped files."""

    mode: Literal["r", "r+"] = "r"

    def __init__(self, directory: Path, layout: Layout):
        self.layout = layout
        self.files = {
            name: atomic.mapped(directory / f"{name}.bin", *shape, self.mode) for name, shape in layout.shapes.items()
        }
        self.token_offsets = np.concatenate([[0], np.cumsum(layout.lengths)])
        self.pair_offsets = np.concatenate([[0], np.cumsum(layout.lengths**2)])

    def ask(self, batch: Batch, want: OutputRequest) -> ModelOutputs:
        """What the teacher shows of the rows `batch["rows"]`, padded as the batch is."""
        slots = self.layout.slot[batch["rows"].cpu().numpy()]
        width, device = batch["input_ids"].shape[1], batch["input_ids"].device
        seen = ModelOutputs()
        if "logits" in self.files:
            seen.logits = torch.from_numpy(self.files["logits"][slots]).to(device)
        if "hidden" in self.files:
            hidden_BTLD = self._padded("hidden", *self._tokens(slots, width)).to(device)
            seen.hidden = {layer: hidden_BTLD[:, :, i].float() for i, layer in enumerate(self.layout.hidden)}
        if "scores" in self.files:
            scores_BQKLA = self._padded("scores", *self._pairs(slots, width)).to(device)
            seen.scores = {
                layer: scores_BQKLA[:, :, :, i].permute(0, 3, 1, 2).float() for i, layer in enumerate(self.layout.scores)
            }
        return seen

    def _padded(self, name: str, places: np.ndarray, real: np.ndarray) -> torch.Tensor:
        file = self.files[name]
        values = np.zeros((*real.shape, *file.shape[1:]), dtype=file.dtype)
        values[real] = file[places]
        return torch.from_numpy(values)

    def _tokens(self, slots: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """(places in the file of the real tokens of these rows, row by row; which of [B, T] they are)."""
        steps = np.arange(width)
        real_BT = steps < self.layout.lengths[slots][:, None]
        return (self.token_offsets[slots][:, None] + steps)[real_BT], real_BT

    def _pairs(self, slots: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The same of query-key pairs, [B, Q, K]."""
        steps, lengths_B11 = np.arange(width), self.layout.lengths[slots][:, None, None]
        queries_Q1, keys_K = steps[:, None], steps
        real_BQK = (queries_Q1 < lengths_B11) & (keys_K < lengths_B11)
        return (self.pair_offsets[slots][:, None, None] + queries_Q1 * lengths_B11 + keys_K)[real_BQK], real_BQK


class Filling(Kept):
    """One entry being made: the same files, and which of the `chunks` of distinct rows are done."""

    mode = "r+"

    def __init__(self, directory: Path, layout: Layout, chunks: Sequence[np.ndarray]):
        super().__init__(directory, layout)
        self.chunks = chunks
        self.done = atomic.mapped(directory / "done.bin", (len(chunks),), "uint32", self.mode)

    def fill(self, teacher: Teacher, encoded: TokenizedExamples, want: OutputRequest, pad_id: int, reporter: Reporter) -> None:
        """Asks the teacher about every chunk of ours that is not done; none is asked twice, even after a crash."""
        written: list[int] = []
        flushed = time.monotonic()
        ours = np.arange(distributed.rank(), len(self.chunks), distributed.world_size())
        missing = [number for number in ours.tolist() if not self.done[number] or self.done[number] != self._checksum(number)]
        for number in missing:
            slots = self.chunks[number]
            batch = encoded.batch(self.layout.first[slots], pad_id=pad_id)
            self._write(slots, teacher.ask(teacher.carry(batch), want), batch["attention_mask"].numpy() > 0)
            written.append(number)
            if time.monotonic() - flushed > FLUSH_SECONDS or number == missing[-1]:
                self._flush(written)
                written, flushed = [], time.monotonic()
            reporter.progress("teacher", number + 1, len(self.chunks), rows=len(slots))

    def _write(self, slots: np.ndarray, seen: ModelOutputs, real_BT: np.ndarray) -> None:
        if seen.logits is not None:
            self.files["logits"][slots] = seen.logits.float().cpu().numpy()
        width = real_BT.shape[1]
        if self.layout.hidden:
            stacked = torch.stack([seen.hidden[layer] for layer in self.layout.hidden], dim=2)
            self._store("hidden", stacked, *self._tokens(slots, width))
        if self.layout.scores:
            stacked = torch.stack([seen.scores[layer].permute(0, 2, 3, 1) for layer in self.layout.scores], dim=3)
            self._store("scores", stacked, *self._pairs(slots, width))

    def _store(self, name: str, values: torch.Tensor, places: np.ndarray, real: np.ndarray) -> None:
        kind = torch.float16 if self.layout.dtype == "float16" else torch.float32
        self.files[name][places] = values.to(kind).cpu().numpy()[real]

    def _checksum(self, number: int) -> int:
        """Of all that is kept of a chunk, never 0."""
        slots = self.chunks[number]
        width = int(self.layout.lengths[slots].max())
        laid_out = {"hidden": self._tokens, "scores": self._pairs}
        found = 0
        for name, file in self.files.items():
            places = laid_out[name](slots, width)[0] if name in laid_out else slots
            found = zlib.crc32(file[places].tobytes(), found)
        return found or 1

    def _flush(self, chunks: list[int]) -> None:
        """Writes the answers to disk, and then the word that those of `chunks` are there."""
        for file in self.files.values():
            file.flush()
        for number in chunks:
            self.done[number] = self._checksum(number)
        self.done.flush()


def _distinct(encoded: TokenizedExamples) -> tuple[np.ndarray, np.ndarray]:
    """(the distinct row of every row [n], a row that has each distinct one [U]); rows are alike if ids and segments are.

    Distinct rows are numbered from the longest to the shortest, so that rows asked together lie together.
    """
    ids, types = encoded.ids.tobytes(), b"" if encoded.types is None else encoded.types.tobytes()
    width = encoded.ids.itemsize
    known: dict[bytes, int] = {}
    slot = np.empty(len(encoded), dtype=np.int64)
    first: list[int] = []
    offsets = encoded.offsets.tolist()
    for row, (start, end) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        slot[row] = known.setdefault(ids[start * width : end * width] + types[start:end], len(first))
        if slot[row] == len(first):
            first.append(row)
    found = np.asarray(first, dtype=np.int64)
    order = np.argsort(-np.asarray(encoded.lengths)[found], kind="stable")
    return np.argsort(order)[slot], found[order]


def _content(encoded: TokenizedExamples) -> str:
    types = b"" if encoded.types is None else encoded.types
    return manifest.arrays_digest(encoded.ids, types, encoded.offsets)


def room_for(settings: CacheSettings, *, taken: int = 0) -> int:
    """The budget in bytes; `taken` of the disk already belong to the entry in question."""
    return in_bytes(settings.budget) if settings.budget else int(SHARE * (cache.free_bytes() + taken))


def _fits(layout: Layout, key: str, settings: CacheSettings, reporter: Reporter) -> bool:
    """Whether the entry may be made; logits alone may wherever there is room. Says what it will take, or why it is not made."""
    if not cache.is_writable():
        reporter.note(
            f"teacher cache: nothing can be written in {cache.root()}, so the teacher is asked anew every time; see MBERT_CACHE"
        )
        return False
    free = cache.free_bytes() + cache.taken(KIND, key)
    if layout.bytes > free:
        reporter.note(
            f"teacher cache: {layout.bytes / 1e9:.2f} GB do not fit on the disk of {cache.root()}; asked anew every time"
        )
        return False
    if not (layout.hidden or layout.scores):
        return True
    room = room_for(settings, taken=cache.taken(KIND, key))
    told = f"{layout.rows:,} distinct rows of {len(layout.slot):,}, {layout.bytes / 1e9:.2f} GB"
    if layout.bytes > room:
        reporter.note(f"teacher cache: {told}, is more than the {room / 1e9:.2f} GB of cache.budget; asked anew every time")
        return False
    cache.make_room(KIND, room - layout.bytes, keep=key)
    reporter.note(f"teacher cache: {told} in {cache.place(KIND, key)}")
    return True
