"""Which rows of a training file are its dev part where no dev file is named."""

import hashlib
from collections import Counter
from collections.abc import Sequence

HELD_OUT, FEWEST_HELD_OUT, LARGEST_SHARE = 0.1, 50, 1 / 3


def held_out(texts: Sequence[tuple[str, ...]], classes: Sequence[float] | None = None) -> tuple[list[int], list[int]]:
    """Returns the positions of train and dev rows: a tenth is dev, or 50 rows if that is more and no more than a third.

    Rows of equal text (but for case and space) stay together. The split depends on the texts alone, not on their order; unless
    that would leave a class without a row in train: then dev takes a share of every class, and never the last text of one.
    """
    hashes = [_text_hash(row) for row in texts]
    sizes = Counter(hashes)
    wanted_size = max(round(HELD_OUT * len(texts)), min(FEWEST_HELD_OUT, int(LARGEST_SHARE * len(texts))))
    dev: set[bytes] = set()
    size = 0
    for key in sorted(sizes):
        if size >= wanted_size:
            break
        dev.add(key)
        size += sizes[key]
    if classes is not None and set(classes) != {label for key, label in zip(hashes, classes, strict=True) if key not in dev}:
        dev = _stratified(hashes, classes, wanted_size)
    train = [i for i, key in enumerate(hashes) if key not in dev]
    return train, [i for i, key in enumerate(hashes) if key in dev]


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
