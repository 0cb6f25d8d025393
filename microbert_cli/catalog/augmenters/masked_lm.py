"""Masked-LM candidates: the K likeliest words at a masked position.

    query "with-original"   [CLS] x_1 .. [MASK] .. x_n [SEP] original sentence [SEP]      (released TinyBERT code)
    query "alone"           [CLS] x_1 .. [MASK] .. x_n [SEP]                              (the paper)
    candidates = the top K of the vocabulary at [MASK], without pieces that continue a word and without special tokens

K is taken before those are dropped, as the released code does, so fewer may remain. Where the model sees the
original, the word itself is usually among its candidates, and fewer words change than p_t says. Serves words of a
single piece.

A query longer than the model's positions is cut to a window around the mask (both halves alike), never dropped.

Candidates are listed by token id: choice among them is uniform, so their order has no meaning, and the last bits of a
logit, which depend on the batch, cannot change it. Where the K-th and the next logit are closer than `CLEAR`, the
query is asked again alone, and equal logits go by token id: the answer is the same whatever batch the query came in.
"""

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from microbert_cli.augmentation.interface import Slot, Tools

if TYPE_CHECKING:
    from torch import Tensor


title = "Words a masked language model puts in the slot"
needs = {"masked_lm"}
MIN_MARGIN = 2e-4  # in logits; float32 batches differ by about 1e-5
MAX_CACHED = 1_000_000  # answers kept, of which each takes some 200 bytes: an answer asked for twice costs a pass of the model
TOKENS_PER_QUERY = 128  # tokens per query that `batch_size` is meant for; longer queries go in smaller batches


class Query(NamedTuple):
    """One masked sentence as the model gets it; `mask` is the position of the mask token."""

    ids: tuple[int, ...]
    segments: tuple[int, ...]
    mask: int


class Frame(NamedTuple):
    """The special tokens around one or two sentences, with their segments, as (ids, segments) each."""

    before: tuple[tuple[int, ...], tuple[int, ...]]
    between: tuple[tuple[int, ...], tuple[int, ...]]
    after: tuple[tuple[int, ...], tuple[int, ...]]
    first: int
    second: int

    @property
    def special(self) -> int:
        return len(self.before[0]) + len(self.between[0]) + len(self.after[0])


class Augmenter:
    """Queries the model in batches of similar length; answers are cached, since sentences repeat."""

    def __init__(self, tools: Tools):
        assert tools.masked_lm is not None
        self._tools, self._spelling, self._ask_model = tools, tools.spelling, tools.masked_lm
        self._frame = frame(tools.tokenizer, pair=tools.query == "with-original")
        self._memo: dict[bytes, bytes] = {}

    def serves(self, word: str) -> bool:
        """Whether the word is exactly one piece."""
        return len(self._spelling.pieces(word)) == 1

    def candidates(self, slots: Sequence[Slot]) -> list[list[str]]:
        """Returns the K likeliest words at each slot, ordered by token id."""
        queries = [self.query(slot) for slot in slots]
        digests = [_digest(query) for query in queries]
        if len(self._memo) > MAX_CACHED:
            self._memo.clear()
        new = {query for query, digest in zip(queries, digests, strict=True) if digest not in self._memo}
        for batch in self._batches(sorted(new, key=lambda query: (len(query.ids), query))):
            tops = (array("i", ids).tobytes() for ids in self._top(batch))
            self._memo.update(zip(map(_digest, batch), tops, strict=True))
        return [self._words(array("i", self._memo[digest]).tolist()) for digest in digests]

    def query(self, slot: Slot) -> Query:
        """Returns the model's input for a slot."""
        room = self._tools.max_positions - self._frame.special
        before, after = self._around(slot.words, slot.position, slot.position + 1, room)
        masked, mask = [*before, self._tools.tokenizer.mask_token_id, *after], len(before)
        if self._tools.query == "alone":
            return self._framed(*window(masked, mask, room), [])
        before, after = self._around(slot.original, slot.position, slot.position, room)
        original, centre = before + after, len(before)
        if len(masked) + len(original) > room:
            masked, mask = window(masked, mask, room // 2)
            original, _ = window(original, centre, room // 2)
        return self._framed(masked, mask, original)

    def _around(self, words: Sequence[str], left: int, right: int, room: int) -> tuple[list[int], list[int]]:
        """Returns the pieces before `left` and from `right` on, at most `room` of each: no window shows more."""
        before = self._spell((words[i] for i in range(left - 1, -1, -1)), room, -1)
        return before[::-1], self._spell((words[i] for i in range(right, len(words))), room, 1)

    def _spell(self, words: Iterator[str], room: int, step: int) -> list[int]:
        return list(islice((piece for word in words for piece in self._spelling.pieces(word)[::step]), room))

    def _framed(self, masked: list[int], mask: int, original: list[int]) -> Query:
        frame = self._frame
        ids = (*frame.before[0], *masked, *frame.between[0], *original, *frame.after[0])
        first, second = [frame.first] * len(masked), [frame.second] * len(original)
        segments = (*frame.before[1], *first, *frame.between[1], *second, *frame.after[1])
        return Query(ids, segments, mask + len(frame.before[0]))

    def _batches(self, queries: list[Query]) -> Iterator[list[Query]]:
        batch: list[Query] = []
        for query in queries:
            if len(batch) == self._tools.batch_size or (len(batch) + 1) * len(query.ids) > self._budget(batch):
                yield batch
                batch = []
            batch.append(query)
        if batch:
            yield batch

    def _budget(self, batch: list[Query]) -> float:
        return self._tools.batch_size * TOKENS_PER_QUERY if batch else float("inf")

    def _top(self, batch: list[Query]) -> "list[list[int]]":
        import torch

        count = self._tools.candidates_per_word
        with torch.inference_mode():
            logits_PV = self._logits(batch)
            best = logits_PV.topk(min(count + 1, logits_PV.shape[-1]))
            tops: list[list[int]] = best.indices[:, :count].tolist()
            if logits_PV.shape[-1] > count:
                close = best.values[:, count - 1] - best.values[:, count] < MIN_MARGIN
                for row in close.nonzero()[:, 0].tolist():
                    tops[row] = self._logits([batch[row]])[0].sort(descending=True, stable=True).indices[:count].tolist()
        return tops

    def _logits(self, batch: list[Query]) -> "Tensor":
        import torch

        width, pad = max(len(query.ids) for query in batch), self._tools.tokenizer.pad_token_id or 0
        rows = {
            "input_ids": [[*query.ids, *[pad] * (width - len(query.ids))] for query in batch],
            "attention_mask": [[1] * len(query.ids) + [0] * (width - len(query.ids)) for query in batch],
            "token_type_ids": [[*query.segments, *[0] * (width - len(query.ids))] for query in batch],
            "token_positions": [row * width + query.mask for row, query in enumerate(batch)],
        }
        return self._ask_model({name: torch.tensor(values) for name, values in rows.items()}).float()

    def _words(self, ids: list[int]) -> list[str]:
        vocabulary = self._spelling.words
        words = (vocabulary[i] for i in sorted(ids) if i < len(vocabulary))
        return [word for word in words if word is not None]


def _digest(query: Query) -> bytes:
    """Returns what an answer is kept by: a digest, since the queries of a million answers would take a gigabyte."""
    return blake2b(array("i", (query.mask, *query.ids)).tobytes() + bytes(query.segments), digest_size=16).digest()


def frame(tokenizer: object, *, pair: bool) -> Frame:
    """Returns the special tokens that a tokenizer puts around sentences, seen from its encoding of two mask tokens."""
    mask, mask_id = tokenizer.mask_token, tokenizer.mask_token_id  # type: ignore[attr-defined]
    encoded = tokenizer(*[mask] * (1 + pair))  # type: ignore[operator]
    ids = encoded["input_ids"]
    segments = encoded.get("token_type_ids") or [0] * len(ids)
    cuts = [i for i, token in enumerate(ids) if token == mask_id]
    first, second = cuts[0], cuts[-1]

    def part(start: int, stop: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return tuple(ids[start:stop]), tuple(segments[start:stop])

    between = part(first + 1, second) if pair else ((), ())
    return Frame(part(0, first), between, part(second + 1, len(ids)), segments[first], segments[second])


def window(ids: list[int], centre: int, room: int) -> tuple[list[int], int]:
    """Returns at most `room` ids around `centre`, and the centre's position among them."""
    start = min(max(0, centre - room // 2), max(0, len(ids) - room))
    return ids[start : start + room], centre - start
