"""Rows as token ids, stored flat: one array of ids for all rows; only a batch is padded."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from microbert_cli.data.batching import batches_by_length
from microbert_cli.data.encoded.flat import MANY_ROWS, Block, in_memory, on_disk
from microbert_cli.data.examples import Examples
from microbert_cli.data.words.starts import NO_LABEL, NO_WORD, flat_words, token_labels, tokens_with_words
from microbert_cli.recipe.task_kinds import TaskKind
from microbert_cli.runs import atomic

if TYPE_CHECKING:
    import torch


ROWS_PER_CALL = 2048


@dataclass(frozen=True)
class TokenizedExamples:
    """Token ids of n rows, N tokens in all.

    ids        [N] int32;  row i is ids[offsets[i] : offsets[i + 1]]
    types      [N] int8, 0 for the first text and 1 for the second; None where the model knows no segments
    offsets    [n + 1] int64;  lengths [n] int64, in tokens, special tokens included
    labels     [n] int64 class ids or float32 scores; None = hidden; where words have labels [N] of tokens, -100 = none
    words      [N] int32, where words have labels: the number of the word that a token begins, else -1
    augmented  [n] bool; None = all rows are original
    truncated  how many rows were longer than the model was to see
    task       the task's number in a run of several; None where there is one
    pad_left   padding comes before a row: XLNet's head reads the last token
    """

    ids: np.ndarray
    types: np.ndarray | None
    offsets: np.ndarray
    labels: np.ndarray | None = None
    augmented: np.ndarray | None = None
    truncated: int = 0
    task: int | None = None
    pad_left: bool = False
    words: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Returns the number of tokens of each row."""
        return np.diff(self.offsets)

    @property
    def windows(self) -> "TokenizedExamples":
        """Returns what a model reads at once as rows: the rows themselves; see `data.windows` for others."""
        return self

    def pooled(self, logits: np.ndarray) -> np.ndarray:
        """Returns logits of rows by those of `windows`."""
        return logits

    def distinct_ids(self, pad_id: int | None) -> np.ndarray:
        """Returns the token ids that occur in a batch of these rows, the padding's among them, in ascending order."""
        occurs = np.zeros(max(int(self.ids.max(initial=0)), pad_id or 0) + 1, dtype=bool)
        occurs[self.ids] = True  # no sorting: there may be hundreds of millions
        if pad_id is not None:
            occurs[pad_id] = True
        return np.flatnonzero(occurs)

    def take(self, indices: np.ndarray) -> "TokenizedExamples":
        """Returns some of the rows, numbered anew."""
        lengths = self.lengths[indices]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        positions = np.arange(offsets[-1]) + np.repeat(self.offsets[indices] - offsets[:-1], lengths)
        types = None if self.types is None else self.types[positions]
        by_row = self.labels if self.words is None else None
        labels, augmented = (None if column is None else column[indices] for column in (by_row, self.augmented))
        taken = replace(self, ids=self.ids[positions], types=types, offsets=offsets, labels=labels, augmented=augmented)
        if self.words is None:
            return taken
        return replace(taken, words=self.words[positions], labels=None if self.labels is None else self.labels[positions])

    def all_batches(self, *, batch_size: int, **padding: Any) -> "Iterator[dict[str, torch.Tensor]]":
        """Yields all rows once, longest first, in batches of at most `batch_size` x `TOKENS_PER_ROW` tokens."""
        for indices in batches_by_length(self.lengths, batch_size=batch_size):
            yield self.batch(indices, **padding)

    def row(self, index: int) -> dict[str, list[int]]:
        """Returns one row without padding: input_ids, and token_type_ids where there are any."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        columns = {"input_ids": self.ids[span].tolist()}
        return columns if self.types is None else columns | {"token_type_ids": self.types[span].tolist()}

    def batch(
        self, indices: Sequence[int] | np.ndarray, pad_to: int | None = None, pad_id: int | None = 0
    ) -> "dict[str, torch.Tensor]":
        """Returns rows as tensors; which, and of what shapes, says `arrays`."""
        import torch

        return {name: torch.from_numpy(array) for name, array in self.arrays(indices, pad_to, pad_id).items()}

    def batch_for(self, answers: Any, indices: Sequence[int] | np.ndarray, pad_id: int | None = 0) -> dict[str, Any]:
        """Returns rows as what answers them reads: as arrays where it has no need of tensors, which load torch."""
        return (self.arrays if getattr(answers, "reads_arrays", False) else self.batch)(indices, pad_id=pad_id)

    def arrays(
        self, indices: Sequence[int] | np.ndarray, pad_to: int | None = None, pad_id: int | None = 0
    ) -> dict[str, np.ndarray]:
        """Returns rows as arrays, padded to the longest, or to `pad_to` tokens if that is more.

        input_ids, attention_mask and token_type_ids [B, T] int64; rows [B] int64, their numbers; labels [B] int64 or float32;
        where words have labels, words and labels [B, T] int64;
        augmented [B] bool; task [B] int64, where it has a number.
        """
        indices = np.asarray(indices, dtype=np.int64)
        starts = self.offsets[indices]
        lengths = self.offsets[indices + 1] - starts
        width = max(int(lengths.max(initial=0)), pad_to or 0)
        steps = np.arange(width)[None, :]
        if self.pad_left:
            steps = steps - (width - lengths)[:, None]
        real = (steps >= 0) & (steps < lengths[:, None])
        positions = (starts[:, None] + steps)[real]
        arrays = {"input_ids": _pad(self.ids, positions, real, pad_id or 0), "attention_mask": real.astype(np.int64)}
        arrays["rows"] = indices
        if self.types is not None:
            arrays["token_type_ids"] = _pad(self.types, positions, real, 0)
        if self.words is not None:
            arrays["words"] = _pad(self.words, positions, real, NO_WORD)
            if self.labels is not None:
                arrays["labels"] = _pad(self.labels, positions, real, NO_LABEL)
        elif self.labels is not None:
            arrays["labels"] = self.labels[indices]
        if self.augmented is not None:
            arrays["augmented"] = self.augmented[indices]
        if self.task is not None:
            arrays["task"] = np.full(len(indices), self.task)
        return arrays


def _pad(flat: np.ndarray, positions: np.ndarray, real: np.ndarray, fill: int) -> np.ndarray:
    padded = np.full(real.shape, fill, dtype=np.int64)
    padded[real] = flat[positions]
    return padded


def tokenize_examples(rows: Examples, tokenizer: Any, max_length: int, kind: TaskKind | None = None) -> TokenizedExamples:
    """Rows as token ids with the tokenizer's special tokens, at most `max_length` tokens each.

    A pair that is too long loses tokens from the end of its longer text, of the second where both are equally long.
    Source: `_truncate_seq_pair` of BERT's and TinyBERT's released code.
    """
    frame = special_token_parts(tokenizer, len(rows.texts[0]) if rows.texts else 1)
    room = max(0, max_length - sum(len(ids) for ids, _ in frame[::2]))
    words: list[np.ndarray] = []
    of_words = kind is not None and kind.of_words
    blocks = _blocks_of_words(rows, tokenizer, frame, room, words) if of_words else _blocks(rows, tokenizer, frame, room)
    if len(rows) < MANY_ROWS or of_words:
        flat = in_memory(blocks)
    else:
        facts = [rows.fingerprint, tokenizer_fingerprint(tokenizer), type(tokenizer).__name__, frame, max_length]
        flat = on_disk(blocks, len(rows), atomic.digest(facts))
    starts = np.concatenate([np.empty(0, np.int32), *words])
    return TokenizedExamples(
        ids=flat.ids,
        types=flat.types if "token_type_ids" in tokenizer.model_input_names else None,
        offsets=flat.offsets,
        labels=_labels(rows, kind, starts, flat.offsets),
        words=starts if of_words else None,
        augmented=None if rows.augmented is None else np.asarray(rows.augmented, dtype=bool),
        truncated=flat.truncated,
        pad_left=tokenizer.padding_side == "left",
    )


def _labels(rows: Examples, kind: TaskKind | None, words: np.ndarray, offsets: np.ndarray) -> np.ndarray | None:
    if kind is None or kind.writes or rows.labels is None:
        return None
    labels: Any = rows.labels
    return token_labels(words, offsets, labels) if kind.of_words else kind.label_array(labels)


def joined_examples(blocks: Iterable[Block], tokenizer: Any) -> TokenizedExamples:
    """Returns the rows of several blocks as one set, without labels."""
    flat = in_memory(blocks)
    return TokenizedExamples(
        ids=flat.ids,
        types=flat.types if "token_type_ids" in tokenizer.model_input_names else None,
        offsets=flat.offsets,
        truncated=flat.truncated,
        pad_left=tokenizer.padding_side == "left",
    )


def _blocks(rows: Examples, tokenizer: Any, frame: "list[Part]", room: int) -> Iterator[Block]:
    for columns in token_columns(rows, tokenizer):
        truncated = _cut_columns(columns, room)
        yield Block(*assemble_rows(columns, frame), truncated)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Returns a digest of the rules from text to ids; settings of padding and truncation do not count."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return atomic.digest(tokenizer.get_vocab())
    return atomic.digest({**json.loads(backend.to_str()), "padding": None, "truncation": None})


Column = list[list[int]]  # the token ids of one text of each row


def token_ids(rows: Examples, tokenizer: Any) -> Iterable[tuple[list[int], ...]]:
    """Yields the token ids of each row's texts, without special tokens and not truncated."""
    for columns in token_columns(rows, tokenizer):
        yield from zip(*columns, strict=True)


def token_columns(rows: Examples, tokenizer: Any) -> Iterable[list[Column]]:
    """Yields the token ids of some rows at a time, a column a text, without special tokens and not truncated."""
    for start in range(0, len(rows.texts), ROWS_PER_CALL):
        columns = zip(*rows.texts[start : start + ROWS_PER_CALL], strict=True)
        yield [_ids(list(column), tokenizer) for column in columns]


def _blocks_of_words(
    rows: Examples, tokenizer: Any, frame: "list[Part]", room: int, words: list[np.ndarray]
) -> Iterator[Block]:
    """Yields what `_blocks` does, and adds to `words` the number of the word that each token begins, else -1."""
    for start in range(0, len(rows.texts), ROWS_PER_CALL):
        ids, starts = tokens_with_words([text for (text,) in rows.texts[start : start + ROWS_PER_CALL]], tokenizer)
        truncated = _cut_columns(columns := [ids], room)
        words.append(flat_words(columns, starts, frame))
        yield Block(*assemble_rows(columns, frame), truncated)


def _cut_columns(columns: list[Column], room: int) -> int:
    """Cuts the rows that are longer than `room` tokens, in place; returns how many they are."""
    too_long = np.flatnonzero(np.sum([_lengths(column) for column in columns], axis=0) > room).tolist()
    for row in too_long:
        pieces = _truncate(tuple(column[row] for column in columns), room)
        for column, piece in zip(columns, pieces, strict=True):
            column[row] = piece
    return len(too_long)


def _lengths(column: Column) -> np.ndarray:
    return np.fromiter(map(len, column), np.int64, len(column))


def _ids(texts: list[str], tokenizer: Any) -> list[list[int]]:
    if (backend := _plain_backend(tokenizer)) is not None:
        return [row.ids for row in backend.encode_batch_fast(texts, add_special_tokens=False)]
    ids: list[list[int]] = tokenizer(
        texts,
        add_special_tokens=False,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    return ids


def _plain_backend(tokenizer: Any) -> Any:
    """Returns the `tokenizers.Tokenizer` that a tokenizer of transformers calls, set as it would set it; else None.

    Asked directly it finds no offsets into the texts, which takes a fifth of its time, and none of transformers' lists of lists
    of arguments, which take as much again.
    """
    if not type(tokenizer).__module__.startswith("transformers."):
        return None
    from transformers import PreTrainedTokenizerFast

    if getattr(type(tokenizer), "_encode_plus", None) is not getattr(PreTrainedTokenizerFast, "_encode_plus", tokenizer):
        return None
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend


def _truncate(pieces: tuple[list[int], ...], room: int) -> tuple[list[int], ...]:
    if len(pieces) == 1:
        return (pieces[0][:room],)
    first, second = len(pieces[0]), len(pieces[1])
    excess = first + second - room
    if excess <= 0:
        return pieces
    level = min(abs(first - second), excess)  # the longer one gives way until both are equal ...
    first, second = (first - level, second) if first > second else (first, second - level)
    rest = excess - level  # ... then the second and the first take turns
    return pieces[0][: first - rest // 2], pieces[1][: second - (rest - rest // 2)]


Part = tuple[list[int], int]


def special_token_parts(tokenizer: Any, texts: int) -> list[Part]:
    """Returns the special tokens around and between texts, with the segment of each part: [CLS], text, [SEP], text, [SEP].

    Read off one encoded example, so that it holds for every tokenizer. Even parts are special tokens with their first
    segment, odd parts stand for the texts.
    """
    bare = _ids(["a"], tokenizer)[0]
    example = tokenizer(*(["a"] * texts), return_token_type_ids=True, return_special_tokens_mask=True)
    ids, special, types = (example[key] for key in ("input_ids", "special_tokens_mask", "token_type_ids"))
    frame: list[Part] = []
    position = 0
    for number in range(texts + 1):
        start = position
        while position < len(ids) and (special[position] or not bare):
            position += 1
        frame.append((ids[start:position], types[start] if start < position else 0))
        if number < texts:
            frame.append(([], types[position]))
            position += len(bare)
    return frame


def assemble_rows(columns: list[Column], frame: list[Part]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns ids int32 and segments int8 of whole rows, one behind the other, and the rows' lengths int64 [n]."""
    text_lengths = [_lengths(column) for column in columns]
    lengths = np.sum(text_lengths, axis=0) + sum(len(special) for special, _ in frame[::2])
    ends = np.cumsum(lengths)
    ids, types = np.empty(ends[-1], np.int32), np.empty(ends[-1], np.int8)
    starts = ends - lengths  # of the next part in every row
    for number, (special, segment) in enumerate(frame):
        if number % 2 == 0:
            for token in special:
                ids[starts], types[starts] = token, segment
                starts = starts + 1
            continue
        part = text_lengths[number // 2]
        part_ends = np.cumsum(part)
        places = np.repeat(starts - (part_ends - part), part) + np.arange(part_ends[-1])
        ids[places] = np.fromiter(chain.from_iterable(columns[number // 2]), np.int32, int(part_ends[-1]))
        types[places] = segment
        starts = starts + part
    return ids, types, lengths
