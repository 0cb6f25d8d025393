"""A corpus as token blocks on disk: tokenized once, memory-mapped, shared between runs.

    tokens.bin      every token id of every sentence, in order
    sentences.bin   where each sentence begins in tokens.bin
    documents.bin   where each document begins in sentences.bin
    train.bin, heldout.bin   one block a row: [a, a_end, b, b_end), ranges of tokens.bin; b = b_end where there is no segment B

Blocks are ranges, not copies, so they cost 32 bytes each whatever their length. All files are written piece by piece and read
memory-mapped: memory does not grow with the corpus, but for 8 bytes a document. No block crosses a document, a sentence is
cut only where a pair is too long. Held-out documents are chosen by a hash of their tokens.

    pairs    segments A and B as BERT's: a chunk of consecutive sentences is split at a random sentence; with probability
             `random_next` B is replaced by text of another document; a `short` share of chunks has a random smaller target.
             What is too long loses tokens at random from the front or the back of the longer segment.
    packed   consecutive sentences up to the maximum length, one segment.

Source: BERT's data preparation as the released TinyBERT uses it, without the masking.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from microbert_cli.data.batching import batches_by_length
from microbert_cli.data.corpus.documents import identify_corpus, read_documents
from microbert_cli.data.tokenized import tokenizer_fingerprint
from microbert_cli.errors import MbertError
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import atomic, cache

Range = tuple[int, int, int, int]
DOCUMENTS_PER_CALL = 512  # documents tokenised at once
MAX_HELDOUT = 1000  # held-out blocks looked at in each pass; 2 % of a large corpus would take longer than a short training
HELDOUT = "held-out text"  # what progress calls a pass over it
NO_SECOND_SEGMENT = -100  # what cross-entropy passes over


@dataclass(frozen=True)
class BlockSettings:
    """How blocks are cut; every field changes the result, so all are part of the cache key."""

    format: str = "pairs"
    max_length: int = 128
    heldout: float = 0.02
    documents: int | None = None
    random_next: float = 0.5
    short: float = 0.1
    seed: int = 42


class Blocks:
    """Blocks of one part (train or held out), read from disk on demand."""

    def __init__(self, directory: Path, part: str, tokenizer: Any):
        self.ranges = read_positions(directory / f"{part}.bin").reshape(-1, 4)
        self.begins = read_positions(directory / "sentences.bin")[read_positions(directory / "documents.bin")]
        self.tokens = np.memmap(directory / "tokens.bin", dtype=_dtype(tokenizer), mode="r")
        self._cls, self._sep, self._pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id

    def __len__(self) -> int:
        return len(self.ranges)

    @property
    def lengths(self) -> np.ndarray:
        """Returns the tokens of each block, special tokens included."""
        a, a_end, b, b_end = np.asarray(self.ranges).T
        return a_end - a + b_end - b + 2 + (b_end > b)

    def batch(self, indices: np.ndarray, pad_to: int | None = None) -> dict[str, Tensor]:
        """Returns input_ids, token_type_ids and attention_mask [B, T], padded to the longest or to `pad_to` tokens.

        unrelated [B]: 1 where segment B is of another document, 0 where it goes on, ALONE where there is none
        """
        batch = padded([self._row(*self.ranges[i]) for i in indices], self._pad, pad_to)
        a, _, b, b_end = np.asarray(self.ranges[indices]).T
        unrelated = np.where(b_end > b, self._document(a) != self._document(b), NO_SECOND_SEGMENT)
        batch["unrelated"] = torch.from_numpy(unrelated.astype(np.int64))
        return batch

    def _document(self, positions: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.begins, positions, side="right")

    def _row(self, a: int, a_end: int, b: int, b_end: int) -> tuple[np.ndarray, int]:
        parts: list[Any] = [[self._cls], self.tokens[a:a_end], [self._sep]]
        if b_end > b:
            parts += [self.tokens[b:b_end], [self._sep]]
        return np.concatenate(parts).astype(np.int64), int(a_end - a + 2)


def padded(rows: Sequence[tuple[np.ndarray, int]], pad: int, pad_to: int | None = None) -> dict[str, Tensor]:
    """Returns rows of (ids, where segment B begins) as input_ids, token_type_ids and attention_mask [B, T]."""
    length = max(pad_to or 0, *(len(ids) for ids, _ in rows))
    batch = {
        "input_ids": torch.full((len(rows), length), pad),
        "token_type_ids": torch.zeros(len(rows), length, dtype=torch.long),
        "attention_mask": torch.zeros(len(rows), length, dtype=torch.long),
    }
    for row, (ids, first) in enumerate(rows):
        batch["input_ids"][row, : len(ids)] = torch.from_numpy(ids)
        batch["token_type_ids"][row, first : len(ids)] = 1
        batch["attention_mask"][row, : len(ids)] = 1
    return batch


def make_blocks(
    source: str, tokenizer: Any, settings: BlockSettings, *, reporter: Reporter = SILENT, where: str = "corpus.source"
) -> tuple[Blocks, Blocks]:
    """Returns training and held-out blocks of a corpus, from the cache where the same were made before."""
    with cache.entry("blocks", _key(source, tokenizer, settings), reporter=reporter) as (directory, ready):
        if not ready:
            documents = read_documents(source, limit=settings.documents, where=where, reporter=reporter)
            cut_blocks(documents, tokenizer, settings, directory, reporter=reporter, where=where)
    return _open_parts(directory, tokenizer)


def heldout_sample(count: int) -> np.ndarray:
    """Returns which of `count` held-out blocks are looked at: all, or MAX_HELDOUT of them, evenly spread."""
    return np.arange(count) if count <= MAX_HELDOUT else np.linspace(0, count - 1, MAX_HELDOUT).round().astype(np.int64)


def heldout_groups(held: Blocks, batch_size: int, reporter: Reporter = SILENT) -> list[np.ndarray]:
    """Returns the held-out blocks that are looked at, as the indices of each batch; says so where these are not all."""
    sample = heldout_sample(len(held))
    if len(sample) < len(held):
        reporter.note(f"held-out text: {len(sample):,} of {len(held):,} blocks, evenly spread, are looked at each time")
    return [sample[group] for group in batches_by_length(held.lengths[sample], batch_size=batch_size)]


def find_blocks(source: str, tokenizer: Any, settings: BlockSettings) -> tuple[Blocks, Blocks] | None:
    """Returns training and held-out blocks where they are cached; makes none."""
    directory = cache.find("blocks", _key(source, tokenizer, settings))
    return _open_parts(directory, tokenizer) if directory else None


def cut_blocks(
    documents: Iterable[list[str]],
    tokenizer: Any,
    settings: BlockSettings,
    directory: Path,
    *,
    reporter: Reporter = SILENT,
    where: str = "corpus.source",
) -> tuple[Blocks, Blocks]:
    """Cuts documents into training and held-out blocks in `directory`; by itself it does not use the cache."""
    _write_tokens(documents, tokenizer, directory, reporter)
    write_blocks(directory, settings, lambda: TokenizedCorpus(directory, _dtype(tokenizer)), where)
    return _open_parts(directory, tokenizer)


def _open_parts(directory: Path, tokenizer: Any) -> tuple[Blocks, Blocks]:
    return Blocks(directory, "train", tokenizer), Blocks(directory, "heldout", tokenizer)


def _key(source: str, tokenizer: Any, settings: BlockSettings) -> str:
    return atomic.digest({"corpus": identify_corpus(source), "tokenizer": tokenizer_fingerprint(tokenizer), **vars(settings)})


def _write_tokens(documents: Iterable[list[str]], tokenizer: Any, directory: Path, reporter: Reporter) -> None:
    documents, number, tokens, count = iter(documents), 0, 0, 0
    with (
        (directory / "tokens.bin").open("wb") as token_file,
        (directory / "sentences.bin").open("wb") as sentence_file,
        (directory / "documents.bin").open("wb") as document_file,
    ):
        append_positions(sentence_file, [0])
        append_positions(document_file, [0])
        while group := list(islice(documents, DOCUMENTS_PER_CALL)):
            number += len(group)
            for document in _encode(group, tokenizer):
                if not document:
                    continue
                token_file.write(np.concatenate(document).astype(_dtype(tokenizer)).tobytes())
                append_positions(sentence_file, tokens + np.cumsum([len(sentence) for sentence in document]))
                tokens, count = tokens + sum(map(len, document)), count + len(document)
                append_positions(document_file, [count])
            reporter.progress("tokenise", number, 0, tokens=tokens)


def _encode(documents: list[list[str]], tokenizer: Any) -> Iterator[list[list[int]]]:
    """Yields the token ids of each document's sentences, empty ones left out."""
    flat = [sentence for document in documents for sentence in document]
    encoded = iter(tokenizer(flat, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"])
    for document in documents:
        yield [ids for ids in islice(encoded, len(document)) if ids]


def write_blocks(directory: Path, settings: BlockSettings, read: Callable[[], "TokenizedCorpus"], where: str) -> None:
    """Writes the blocks of both parts of the corpus that `read` returns; raises M331 where it has too few documents."""
    count = len(read_positions(directory / "documents.bin")) - 1
    if count < 2:
        raise MbertError(
            "M331",
            f"the corpus has too few documents: {count}",
            where=where,
            allowed="At least two: one is held out, and segments B come from another document. A blank line ends a document.",
            fix="Put a blank line between documents, or name a larger corpus.",
        )
    text, numbers = read(), range(count)
    is_held_out = np.fromiter((text.is_held_out(document, settings.heldout) for document in numbers), dtype=bool)
    if is_held_out.all() or not is_held_out.any():
        is_held_out = np.arange(len(is_held_out)) == len(is_held_out) - 1
    cut = _pair_blocks if settings.format == "pairs" else _packed_blocks
    for part, members in (("train", np.flatnonzero(~is_held_out)), ("heldout", np.flatnonzero(is_held_out))):
        with (directory / f"{part}.bin").open("wb") as file:
            for index, document in enumerate(members.tolist()):
                draw = random.Random(f"{settings.seed} {document}")
                append_positions(file, list(cut(text, index, members, settings, draw)))


class TokenizedCorpus:
    """Random access to the tokenised corpus."""

    def __init__(self, directory: Path, dtype: type):
        self.tokens = np.memmap(directory / "tokens.bin", dtype=dtype, mode="r")
        self.sentences = read_positions(directory / "sentences.bin")
        self.documents = read_positions(directory / "documents.bin")

    def bounds(self, document: int) -> list[int]:
        """Token positions where the document's sentences begin, and its end."""
        first, last = self.documents[document], self.documents[document + 1]
        return [int(position) for position in self.sentences[first : last + 1]]

    def cut_before(self, begin: int, limit: int) -> int:
        """Returns where a block that begins at `begin`, in one sentence, ends at `limit` at the latest."""
        return limit

    def tokens_of(self, document: int) -> np.ndarray:
        """Returns the tokens of a document."""
        bounds = self.bounds(document)
        return self.tokens[bounds[0] : bounds[-1]]

    def is_held_out(self, document: int, share: float) -> bool:
        value = hashlib.sha256(self.tokens_of(document).tobytes()).digest()
        return int.from_bytes(value[:8]) < share * 2**64


def _packed_blocks(
    text: TokenizedCorpus, index: int, part: np.ndarray, settings: BlockSettings, draw: random.Random
) -> Iterator[Range]:
    """Yields the blocks of the document `part[index]`, sentences packed up to the maximum length."""
    room = settings.max_length - 2
    start, end = (bounds := text.bounds(part[index]))[0], bounds[0]
    for sentence, sentence_end in pairwise(bounds):
        if sentence_end - start > room and end > start:
            yield start, end, end, end
            start = sentence
        while sentence_end - start > room:
            cut = text.cut_before(start, start + room)
            yield start, cut, cut, cut
            start = cut
        end = sentence_end
    if end > start:
        yield start, end, end, end


def _pair_blocks(
    text: TokenizedCorpus, index: int, part: np.ndarray, settings: BlockSettings, draw: random.Random
) -> Iterator[Range]:
    """Yields the pairs of the document `part[index]`; random segments B come from other documents of the same part."""
    room = settings.max_length - 3
    bounds = text.bounds(part[index])
    i = 0
    while i < len(bounds) - 1:
        target = draw.randint(2, room) if draw.random() < settings.short else room
        last = i + 1
        while last < len(bounds) - 1 and bounds[last] - bounds[i] < target:
            last += 1
        split = draw.randint(i + 1, max(i + 1, last - 1))
        alone = split == last
        replaced = len(part) > 1 and (alone or draw.random() < settings.random_next)
        if replaced:
            b, b_end = _random_next(text, index, part, max(1, target - (bounds[split] - bounds[i])), draw)
            last = split
        else:
            b, b_end = bounds[split], bounds[last]
        yield _truncate_pair(bounds[i], bounds[split], b, b_end, room, draw)
        i = last


def _random_next(text: TokenizedCorpus, index: int, part: np.ndarray, wanted: int, draw: random.Random) -> tuple[int, int]:
    """Returns consecutive sentences of another document, about `wanted` tokens."""
    other = draw.randrange(len(part))
    if other == index:
        other = (other + 1) % len(part)
    bounds = text.bounds(part[other])
    first = draw.randrange(len(bounds) - 1)
    last = first + 1
    while last < len(bounds) - 1 and bounds[last] - bounds[first] < wanted:
        last += 1
    return bounds[first], bounds[last]


def _truncate_pair(a: int, a_end: int, b: int, b_end: int, room: int, draw: random.Random) -> Range:
    """Drops tokens of the longer segment, from the front or the back, until the pair fits."""
    while (a_end - a) + (b_end - b) > room:
        front = draw.random() < 0.5
        if a_end - a > b_end - b:
            a, a_end = (a + 1, a_end) if front else (a, a_end - 1)
        else:
            b, b_end = (b + 1, b_end) if front else (b, b_end - 1)
    return a, a_end, b, b_end


def append_positions(file: IO[bytes], positions: Any) -> None:
    """Writes positions behind those of a file."""
    file.write(np.asarray(positions, dtype=np.int64).tobytes())


def read_positions(path: Path) -> np.ndarray:
    """Returns the positions of a file, memory-mapped."""
    return np.memmap(path, dtype=np.int64, mode="r")


def _dtype(tokenizer: Any) -> type:
    return np.uint16 if len(tokenizer) <= 2**16 else np.uint32
