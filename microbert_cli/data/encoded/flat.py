"""Token ids of rows, one behind the other: in memory, and of many rows in files of the cache, mapped into memory.

ids.bin    int32 [N]        types.bin   int8 [N], the segments
ends.bin   int64 [n + 1]    0, and where each row ends
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from microbert_cli.data.tables.stored import mapped
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import atomic, cache

KIND = "token-ids"
MANY_ROWS = 200_000  # from here on ids go to the disk: of sentences, these are 20 MB
BYTES_PER_ROW = 200  # at least free on the disk, for each row
CACHE_BYTES = 2**34  # of all token ids in the cache


@dataclass(frozen=True)
class Block:
    """Some rows: ids int32 and types int8 [N], the rows' lengths int64 [n], and how many rows were cut."""

    ids: np.ndarray
    types: np.ndarray
    lengths: np.ndarray
    truncated: int


@dataclass(frozen=True)
class FlatIds:
    """All rows: ids int32 and types int8 [N], offsets int64 [n + 1], and how many rows were cut."""

    ids: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    truncated: int


def in_memory(blocks: Iterable[Block]) -> FlatIds:
    """Returns the rows of all blocks."""
    listed = list(blocks)
    return FlatIds(
        np.concatenate([np.empty(0, np.int32), *(block.ids for block in listed)]),
        np.concatenate([np.empty(0, np.int8), *(block.types for block in listed)]),
        np.concatenate([np.zeros(1, np.int64), *(block.lengths for block in listed)]).cumsum(),
        sum(block.truncated for block in listed),
    )


def on_disk(blocks: Iterable[Block], rows: int, key: str, reporter: Reporter = SILENT) -> FlatIds:
    """Returns the rows of all blocks, from the cache's entry `key`; blocks are asked for only where there is none.

    Where nothing can be kept in the cache, they are returned in memory.
    """
    if not cache.is_writable() or cache.free_bytes() < BYTES_PER_ROW * rows:
        return in_memory(blocks)
    with cache.entry(KIND, key, reporter=reporter) as (folder, ready):
        if not ready:
            _write(blocks, folder)
        cache.evict(KIND, CACHE_BYTES, keep=key)
        ids, types = mapped(folder / "ids.bin", np.int32), mapped(folder / "types.bin", np.int8)
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        return FlatIds(ids, types, mapped(folder / "ends.bin", np.int64), facts["truncated"])


def _write(blocks: Iterable[Block], folder: Path) -> None:
    end = truncated = 0
    with (
        (folder / "ids.bin").open("wb") as ids,
        (folder / "types.bin").open("wb") as types,
        (folder / "ends.bin").open("wb") as ends,
    ):
        ends.write(np.zeros(1, np.int64).tobytes())
        for block in blocks:
            ids.write(block.ids.tobytes())
            types.write(block.types.tobytes())
            ends.write((block.lengths.cumsum() + end).tobytes())
            end += int(block.lengths.sum())
            truncated += block.truncated
    atomic.write_text(folder / "facts.json", json.dumps({"truncated": truncated}))
