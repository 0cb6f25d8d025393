"""Rows of a source and a target as token ids.

`TextPairs` is what a student reads and writes: [CLS] X [SEP], and Y [SEP]. `FilledRows` is what its teacher reads:
[CLS] X [SEP] Y [SEP], whose last tokens are the target's, the end among them. A target is cut into the student's tokens, which
are all tokens of the teacher too, so that position t is the same piece of text for both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from microbert_cli.data.examples import Examples
from microbert_cli.data.task_data import TaskData
from microbert_cli.data.tokenized import TokenizedExamples, special_token_parts, token_ids, tokenize_examples
from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import positions_of

if TYPE_CHECKING:
    import torch

NO_TOKEN = -100  # a label where a target has ended


@dataclass(frozen=True)
class TextPairs(TokenizedExamples):
    """Sources with their targets; what `TokenizedExamples` has is of the sources.

    target_ids      [M] int32, every target's tokens with the one that ends it;  target_offsets [n + 1] int64
    start_id        the token that a decoder begins with
    whole_lengths   [n] int64, the tokens of each target before it was cut
    """

    target_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    target_offsets: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    start_id: int = 0
    whole_lengths: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def target_lengths(self) -> np.ndarray:
        """Returns the number of tokens of each target, its end among them."""
        return np.diff(self.target_offsets)

    @property
    def lengths(self) -> np.ndarray:
        """Returns the tokens of each row, source and target: what a batch of it costs."""
        return np.diff(self.offsets) + self.target_lengths

    def distinct_ids(self, pad_id: int | None) -> np.ndarray:
        """Returns nothing: every token's row of the table is trained, since each is an answer that is not given."""
        return np.empty(0, np.int64)

    def take(self, indices: np.ndarray) -> "TextPairs":
        """Returns some of the rows, numbered anew."""
        sources = replace(self.sources, labels=None).take(indices)
        targets = TokenizedExamples(self.target_ids, None, self.target_offsets).take(indices)
        return replace(
            self, ids=sources.ids, types=sources.types, offsets=sources.offsets, target_ids=targets.ids,
            target_offsets=targets.offsets, whole_lengths=self.whole_lengths[indices],
        )  # fmt: skip

    @property
    def sources(self) -> TokenizedExamples:
        """Returns the sources alone."""
        return TokenizedExamples(self.ids, self.types, self.offsets, pad_left=self.pad_left)

    def batch(
        self, indices: Sequence[int] | np.ndarray, pad_to: int | None = None, pad_id: int | None = 0
    ) -> "dict[str, torch.Tensor]":
        """Returns rows as tensors: those of the sources, and of the targets, both padded to their longest.

        input_ids and attention_mask [B, S]; rows [B]; decoder_input_ids [B, T], the target one position later; labels [B, T],
        the target, NO_TOKEN behind its end.
        """
        import torch

        indices = np.asarray(indices, dtype=np.int64)
        sources = self.sources.batch(indices, pad_to=pad_to, pad_id=pad_id)
        targets = TokenizedExamples(self.target_ids, None, self.target_offsets).batch(indices, pad_id=pad_id)
        labels_BT, real_BT = targets["input_ids"], targets["attention_mask"] > 0
        start_B1 = torch.full((len(indices), 1), self.start_id)
        decoder_BT = torch.cat([start_B1, labels_BT[:, :-1]], dim=1)
        sources.pop("token_type_ids", None)
        return {**sources, "decoder_input_ids": decoder_BT, "labels": labels_BT.masked_fill(~real_BT, NO_TOKEN)}


@dataclass(frozen=True)
class FilledRows(TokenizedExamples):
    """Rows [CLS] X [SEP] Y [SEP] in a teacher's tokens; the last targets[i] of row i are its target, [SEP] among them."""

    targets: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def distinct_ids(self, pad_id: int | None) -> np.ndarray:
        """Returns nothing: [MASK] stands in rows that do not have it."""
        return np.empty(0, np.int64)

    def take(self, indices: np.ndarray) -> "FilledRows":
        """Returns some of the rows, numbered anew."""
        rows = super().take(indices)
        assert isinstance(rows, FilledRows)
        return replace(rows, targets=self.targets[indices])

    def batch(
        self, indices: Sequence[int] | np.ndarray, pad_to: int | None = None, pad_id: int | None = 0
    ) -> "dict[str, torch.Tensor]":
        """Returns rows as tensors, and `targets` [B], the tokens of each target."""
        import torch

        indices = np.asarray(indices, dtype=np.int64)
        return {**super().batch(indices, pad_to=pad_to, pad_id=pad_id), "targets": torch.from_numpy(self.targets[indices])}


@dataclass(frozen=True)
class Lengths:
    """How many tokens of a source and of a target are read, special tokens included."""

    source: int
    target: int

    @classmethod
    def of(cls, data: TaskData, config: Any, *, both: bool, where: str) -> "Lengths":
        """Returns the lengths of a task's rows for a model; `both` = it reads source and target as one row, as a teacher does.

        Raises M027 where the recipe names more than the model has positions.
        """
        positions = positions_of(config)
        most = positions if positions is None or not both else positions // 2
        if most is not None and data.max_length > most:
            if data.length_is_given:
                raise _too_long(data.max_length, most, both, where)
            return cls(most, most)
        return cls(data.max_length, data.max_length)


def text_pairs(rows: Examples, tokenizer: Any, lengths: Lengths) -> TextPairs:
    """Tokenizes rows for a student; targets are cut to lengths.target tokens, their end kept. Hidden targets are empty."""
    sources = tokenize_examples(Examples(rows.texts), tokenizer, lengths.source)
    whole = target_pieces(rows, tokenizer)
    targets = [ids if len(ids) <= lengths.target else [*ids[: lengths.target - 1], tokenizer.sep_token_id] for ids in whole]
    flat = np.concatenate([np.asarray(ids, dtype=np.int32) for ids in targets]) if targets else np.empty(0, np.int32)
    return TextPairs(
        ids=sources.ids,
        types=None,
        offsets=sources.offsets,
        truncated=sources.truncated,
        target_ids=flat,
        target_offsets=np.cumsum([0, *map(len, targets)], dtype=np.int64),
        start_id=tokenizer.cls_token_id,
        whole_lengths=np.asarray([*map(len, whole)], dtype=np.int64),
    )


def target_pieces(rows: Examples, tokenizer: Any) -> list[list[int]]:
    """Returns the student's token ids of every target, however long, with the one that ends it."""
    texts = Examples([(str(label),) for label in rows.labels or [""] * len(rows)])
    return [[*ids, tokenizer.sep_token_id] for (ids,) in token_ids(texts, tokenizer)]


def filled_rows(rows: Examples, pairs: TextPairs, tokenizer: Any, teacher_ids: np.ndarray, lengths: Lengths) -> FilledRows:
    """Returns what a teacher reads for the rows of `pairs`: sources in its own tokens, targets in the student's.

    teacher_ids  [V] the teacher's id of each of the student's tokens
    """
    frame = special_token_parts(tokenizer, 2)
    (before, first), (between, middle), (after, last) = frame[::2]
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    for (pieces,), start, end in zip(
        token_ids(Examples(rows.texts), tokenizer), pairs.target_offsets[:-1], pairs.target_offsets[1:], strict=True
    ):
        target = teacher_ids[pairs.target_ids[start : end - 1]].tolist()
        source = pieces[: lengths.source - len(before) - len(after)]
        ids.append(np.asarray([*before, *source, *between, *target, *after], dtype=np.int32))
        segments = (len(before), first), (len(source), frame[1][1]), (len(between), middle), (len(target), frame[3][1])
        types.append(np.concatenate([np.full(count, kind, np.int8) for count, kind in (*segments, (len(after), last))]))
    with_types = "token_type_ids" in tokenizer.model_input_names
    return FilledRows(
        ids=np.concatenate(ids) if ids else np.empty(0, np.int32),
        types=(np.concatenate(types) if types else np.empty(0, np.int8)) if with_types else None,
        offsets=np.cumsum([0, *map(len, ids)], dtype=np.int64),
        targets=pairs.target_lengths.astype(np.int64),
    )


def check_frame(tokenizer: Any, *, where: str) -> None:
    """Raises M398 for a tokenizer that puts anything but one token behind the second of two texts, or pads on the left."""
    after = special_token_parts(tokenizer, 2)[-1][0]
    if after != [tokenizer.sep_token_id] or tokenizer.padding_side != "right":
        raise MbertError(
            "M398",
            "this tokenizer does not end a pair of texts with one token, and padding behind it",
            where=where,
            allowed="Tokenizers like those of BERT, RoBERTa and DistilBERT: [CLS] X [SEP] Y [SEP].",
            fix="Take a model with such a tokenizer: --set base=google-bert/bert-base-uncased",
        )


def _too_long(length: int, most: int, both: bool, where: str) -> MbertError:
    what = f"source and target of {length} tokens each" if both else f"texts of {length} tokens"
    return MbertError(
        "M027",
        f"{what} are beyond what the model has positions for",
        where=where,
        allowed=f"At most {most} tokens" + (", for each of the two." if both else "."),
        fix=f"--set data.max_length={most}",
    )
