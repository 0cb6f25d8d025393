"""Which rows of a training file are its dev part where no dev file is named."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

HELD_OUT, FEWEST_HELD_OUT, LARGEST_SHARE = 0.1, 50, 1 / 3
MOST_HELD_OUT = 10_000  # scores of so many rows are sure to half a point; more cost time, and rows to train on
BYTES = 32  # of a hash


def held_out(texts: Sequence[tuple[str, ...]], classes: Sequence[float] | None = None) -> tuple[list[int], list[int]]:
    """Returns the positions of train and dev rows: a tenth is dev, at most 10,000 rows; or 50 if that is more and no more than
    a third.

    Rows of equal text (but for case and space) stay together. The split depends on the texts alone, not on their order; unless
    that would leave a class without a row in train: then dev takes a share of every class, and never the last text of one.
    """
    is_dev, _ = split_by_hash(texts, classes)
    return np.flatnonzero(~is_dev).tolist(), np.flatnonzero(is_dev).tolist()


def split_by_hash(texts: Sequence[tuple[str, ...]], classes: Sequence[float] | None = None) -> tuple[np.ndarray, bool]:
    """Returns which rows are dev [n], as `held_out` chooses them, and whether each class had to be given its share."""
    hashes = np.fromiter(map(_text_hash, texts), f"S{BYTES}", len(texts))
    tenth = min(round(HELD_OUT * len(texts)), MOST_HELD_OUT)
    wanted_size = max(tenth, min(FEWEST_HELD_OUT, int(LARGEST_SHARE * len(texts))))
    keys = np.sort(hashes)
    # In the order of hashes, rows of equal text together, up to the text with which dev is as large as it should be.
    is_dev = hashes <= keys[wanted_size - 1] if wanted_size else np.zeros(len(hashes), dtype=bool)
    del keys
    if classes is None or set(classes) == {label for label, dev in zip(classes, is_dev.tolist(), strict=True) if not dev}:
        return is_dev, False
    listed = hashes.tolist()
    dev = _stratified(listed, classes, wanted_size)
    return np.fromiter((key in dev for key in listed), bool, len(texts)), True


def _stratified(hashes: Sequence[bytes], classes: Sequence[float], wanted_size: int) -> set[bytes]:
    """Returns the hashes of dev's texts: of each class its share, then any; every class keeps a text in train."""
    labels: dict[bytes, Counter[float]] = {}
    for key, label in zip(hashes, classes, strict=True):
        labels.setdefault(key, Counter())[label] += 1
    in_train, in_dev = Counter(classes), Counter[float]()
    share = {label: max(1, count * wanted_size / len(hashes)) for label, count in in_train.items()}
    dev: set[bytes] = set()
    for is_share in (True, False):
        for key in sorted(labels):
            rows = labels[key]
            full = in_dev.total() >= wanted_size
            last = any(in_train[label] == count for label, count in rows.items())
            beyond = is_share and any(in_dev[label] + count > share[label] for label, count in rows.items())
            if not (key in dev or full or last or beyond):
                dev.add(key)
                in_train -= rows
                in_dev += rows
    return dev


def _text_hash(texts: tuple[str, ...]) -> bytes:
    same = "\x1f".join(" ".join(text.split()).casefold() for text in texts)
    return hashlib.sha256(same.encode()).digest()
