"""Which rows are the same tokens: of many rows, by a digest of each."""

import hashlib
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from microbert_cli.data.tokenized import TokenizedExamples

DIGEST_BYTES = 16


def distinct_rows(encoded: TokenizedExamples) -> tuple[np.ndarray, np.ndarray]:
    """Returns slot [n], each row's distinct row, and first [U], a row of each: the same are rows of the same ids and segments.

    Distinct rows are numbered from the longest to the shortest, so that in the teacher's cache rows of one batch lie together.
    """
    digests = np.fromiter(_row_digests(encoded), f"S{DIGEST_BYTES}", len(encoded))
    _, first, number = np.unique(digests, return_index=True, return_inverse=True)
    by_row = np.argsort(first)  # distinct rows in the order of their first occurrence
    order = by_row[np.argsort(-np.asarray(encoded.lengths)[first[by_row]], kind="stable")]
    return np.argsort(order)[number], first[order]


def _row_digests(encoded: TokenizedExamples) -> Iterator[bytes]:
    """Yields a digest of each row's ids and segments: of many rows a table of their bytes would fill the memory."""
    ids, width = np.ascontiguousarray(encoded.ids).view(np.uint8).data, encoded.ids.itemsize
    types = None if encoded.types is None else np.ascontiguousarray(encoded.types).view(np.uint8).data
    for start, end in pairwise(encoded.offsets.tolist()):
        digest = hashlib.blake2b(ids[start * width : end * width], digest_size=DIGEST_BYTES)
        if types is not None:
            digest.update(types[start:end])
        yield digest.digest()
