"""What a cascade answers, row by row, and which cascade.json is refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from microbert_cli.errors import MbertError
from microbert_cli.models.cascade.answers import CascadeAnswers, Rule, narrowed, sureness

SMALL_LOGITS = np.array([[2.0, 0.0], [0.1, 0.0], [0.0, 3.0], [0.0, 0.2]], dtype=np.float32)
BIG_LOGITS = -10 * SMALL_LOGITS


class Table:
    """Answers with the logits of its rows by their numbers, and notes what it was asked."""

    def __init__(self, logits: np.ndarray) -> None:
        self.table, self.asked = logits, []  # type: ignore[var-annotated]

    def logits(self, batch: Any) -> np.ndarray:
        self.asked.append({name: value.clone() for name, value in batch.items() if name != "big"})
        return self.table[batch["rows"].numpy()].copy()


def batch(rows: list[int], lengths: tuple[int, ...] = (3, 5, 2, 4)) -> dict[str, Any]:
    width = max(lengths[row] for row in rows)
    mask = torch.tensor([[int(place < lengths[row]) for place in range(width)] for row in rows])
    each = {"input_ids": mask * 7, "attention_mask": mask, "rows": torch.tensor(rows)}
    return {**each, "big": {**each}}


def cascade(threshold: float, columns: list[int] | None = None) -> CascadeAnswers:
    rule = Rule(threshold, {"small": 0.5, "big": 2.0}, {"small": None, "big": None}, 0.5)
    config = SimpleNamespace()
    return CascadeAnswers(Table(SMALL_LOGITS), Table(BIG_LOGITS), rule, {"small": config, "big": config}, columns)


def test_sureness_is_the_largest_softmax() -> None:
    logits = np.array([[2.0, 0.0, 1.0], [500.0, 0.0, -500.0]], dtype=np.float32)
    exponentials = np.exp([2.0, 0.0, 1.0])
    assert sureness(logits) == pytest.approx([exponentials[0] / exponentials.sum(), 1.0])


def test_sure_rows_stay_and_others_are_sent() -> None:
    """p = 1 / (1 + exp(-m / 0.5)): 0.982, 0.550, 0.998, 0.599."""
    both = cascade(0.6)
    logits = both.logits(batch([0, 1, 2, 3]))
    expected = SMALL_LOGITS / 0.5
    expected[[1, 3]] = BIG_LOGITS[[1, 3]] / 2
    assert np.array_equal(logits, expected)
    assert both.big.asked[0]["rows"].tolist() == [1, 3]
    assert (both.rows, both.sent) == (4, 2) and both.share_sent() == 0.5 and both.rows == 0


@pytest.mark.parametrize(("threshold", "sent"), [(0.0, 0), (0.55, 1), (0.9, 2), (0.99, 3), (1.0, 4)])
def test_batched_is_one_by_one(threshold: float, sent: int) -> None:
    together = cascade(threshold)
    alone = cascade(threshold)
    logits = together.logits(batch([0, 1, 2, 3]))
    assert np.array_equal(logits, np.concatenate([alone.logits(batch([row])) for row in range(4)]))
    assert together.sent == alone.sent == sent
    if threshold in (0.0, 1.0):
        assert np.array_equal(logits, SMALL_LOGITS / 0.5 if threshold == 0 else BIG_LOGITS / 2)


def test_outputs_are_put_into_the_order_of_the_task() -> None:
    assert np.array_equal(cascade(0.6, [1, 0]).logits(batch([0, 1])), cascade(0.6).logits(batch([0, 1]))[:, [1, 0]])


def test_the_big_model_gets_a_batch_as_wide_as_its_longest_row() -> None:
    rows = narrowed(batch([0, 1, 2, 3])["big"], np.array([0, 2]))
    assert rows["input_ids"].tolist() == [[7, 7, 7], [7, 7, 0]] and rows["rows"].tolist() == [0, 2]
    left = {"input_ids": torch.tensor([[0, 0, 5], [0, 4, 5], [3, 4, 5]])}
    left["attention_mask"] = (left["input_ids"] > 0).long()
    assert narrowed(left, np.array([0, 1]))["input_ids"].tolist() == [[0, 5], [4, 5]]


VALUES = {
    "threshold": 0.9,
    "temperature": {"small": 1.5, "big": 1.0},
    "columns": {"small": [1, 0], "big": None},
    "sent": 0.25,
}


def test_a_rule_is_read_as_it_was_written(tmp_path: Path) -> None:
    rule = Rule(**VALUES)  # type: ignore[arg-type]
    rule.write(tmp_path)
    assert Rule.read(tmp_path, 2, where="model") == rule


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 1.01}, {"threshold": -0.1}, {"threshold": "0.9"}, {"threshold": True}, {"threshold": None},
        {"threshold": float("nan")}, {"sent": 2}, {"temperature": {"small": 0, "big": 1}}, {"temperature": {"small": 1}},
        {"temperature": {"small": float("inf"), "big": 1}}, {"temperature": 1}, {"columns": {"small": [0, 0], "big": None}},
        {"columns": {"small": [0, 1, 2], "big": None}}, {"columns": {"small": ["a", 1], "big": None}}, {"columns": []},
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    (tmp_path / "cascade.json").write_text(json.dumps({**VALUES, **wrong}))
    with pytest.raises(MbertError) as refused:
        Rule.read(tmp_path, 2, where="model")
    assert refused.value.code == "M348" and "0 to 1" in refused.value.allowed


def test_a_rule_that_lacks_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cascade.json").write_text(json.dumps({name: value for name, value in VALUES.items() if name != "threshold"}))
    with pytest.raises(MbertError) as refused:
        Rule.read(tmp_path, 2, where="model")
    assert refused.value.code == "M348" and "threshold" in refused.value.what
