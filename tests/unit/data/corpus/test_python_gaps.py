"""The built-in task of texts: gaps are numbered, targets fill them, and no sentence is in two splits."""

import pytest

from microbert_cli.data.corpus.python_gaps import REMOVED, python_gap_rows


@pytest.fixture(scope="module")
def splits() -> dict[str, tuple[list[str], list[str]]]:
    return {split: python_gap_rows(split) for split in ("train", "dev", "test")}


def test_targets_fill_the_gaps_in_their_order(splits: dict[str, tuple[list[str], list[str]]]) -> None:
    for source, target in zip(*splits["dev"], strict=True):
        words, removed = source.split(), target.split()
        assert len(removed) >= 2 and set(removed) <= REMOVED and 6 <= len(words) <= 24
        gaps = iter(range(1, len(removed) + 1))
        number = next(gaps)
        for word in words:
            assert word not in REMOVED
            if word == str(number):
                number = next(gaps, -1)
        assert number == -1, source  # every number stands in the source, in order


def test_splits_share_no_row(splits: dict[str, tuple[list[str], list[str]]]) -> None:
    rows = {split: set(zip(*pairs, strict=True)) for split, pairs in splits.items()}
    assert len(rows["train"]) > 8 * len(rows["dev"]) * 0.8 and len(rows["dev"]) > 1000
    assert not rows["train"] & rows["dev"] and not rows["dev"] & rows["test"]
    assert python_gap_rows("dev") == splits["dev"]
