"""What a cascade answers, and the file that says when: cascade.json beside two folders with an ONNX file each.

DIR/cascade.json   threshold, temperatures, the outputs' order, the share of rows that was sent on
DIR/config.json    the labels, and how much text is read: that of the small model
DIR/small, DIR/big    config.json, tokenizer, one ONNX file: each is a model by itself
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from microbert_cli import distributed
from microbert_cli.errors import MbertError
from microbert_cli.models.find import CASCADE_FILE, read_json
from microbert_cli.models.size import forward_flops
from microbert_cli.text import dump_json

SMALL, BIG = "small", "big"
PARTS = (SMALL, BIG)
Columns = list[int] | None


@dataclass(frozen=True)
class Rule:
    """When the small model answers: where its largest probability, of logits / temperature, is above the threshold.

    temperature  of each model, which makes its probabilities those of being right
    columns      each model's output for every label of the cascade; None: as they stand
    sent         share of rows that went to the big model where the threshold was checked
    """

    threshold: float
    temperature: Mapping[str, float]
    columns: Mapping[str, Columns]
    sent: float

    def write(self, directory: Path) -> None:
        """Writes cascade.json."""
        (directory / CASCADE_FILE).write_text(dump_json(asdict(self), indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def read(directory: Path, outputs: int, *, where: str) -> "Rule":
        """Returns what cascade.json says, of models with so many outputs; raises M348 where it cannot be."""
        values = read_json(directory / CASCADE_FILE, where=where)
        try:
            rule = Rule(
                _share(values, "threshold"),
                {part: _temperature(values["temperature"][part]) for part in PARTS},
                {part: _order(values["columns"][part], outputs) for part in PARTS},
                _share(values, "sent"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise MbertError(
                "M348",
                f"this file of a cascade cannot be used: {error}" if isinstance(error, ValueError) else f"it lacks {error}",
                where=f"{where} {directory / CASCADE_FILE}",
                allowed="threshold and sent from 0 to 1, a temperature above 0 for small and big, the order of their outputs.",
                fix="Make the cascade again: mbert cascade SMALL BIG, with --threshold 0.9 for a threshold of your own",
            ) from None
        return rule


class CascadeAnswers:
    """Two opened models as one; `rows` and `sent` count what it answered so far, and what the big one of it.

    small, big  with `logits(batch)`, outputs in the cascade's order;  configs: of both models
    """

    reads_arrays = True

    def __init__(self, small: Any, big: Any, rule: Rule, configs: Mapping[str, Any], columns: Columns = None):
        self.small, self.big, self.rule, self.configs, self.columns = small, big, rule, configs, columns
        self.rows = self.sent = 0

    def logits(self, batch: Mapping[str, Any]) -> np.ndarray:
        """Returns the logits [B, C] of a batch of the small model's tokens, with the big one's under "big", over temperatures.

        Rows of which the small model is not sure are cut out of the big one's batch, which is as wide as the longest of them.
        """
        logits = self.small.logits(batch) / self.rule.temperature[SMALL]
        unsure = np.flatnonzero(sureness(logits) <= self.rule.threshold)
        self.rows, self.sent = self.rows + len(logits), self.sent + len(unsure)
        if len(unsure):
            logits[unsure] = self.big.logits(narrowed(batch[BIG], unsure)) / self.rule.temperature[BIG]
        return logits[:, self.columns] if self.columns else logits

    def share_sent(self) -> float:
        """Returns the share of the rows asked since the last call, by all processes, that went to the big model."""
        counts = np.sum(distributed.gather([(self.rows, self.sent)]), axis=0)
        self.rows = self.sent = 0
        return float(counts[1] / max(1, counts[0]))

    def flops(self, length: int, big_length: int) -> int | None:
        """Returns the mean floating-point operations of a row: the small model's, and the big one's of the share sent on.

        length, big_length  tokens of the row, as each of the two splits it
        """
        small, big = forward_flops(self.configs[SMALL], length), forward_flops(self.configs[BIG], big_length)
        return None if small is None or big is None else round(small + self.rule.sent * big)


def sureness(logits: np.ndarray) -> np.ndarray:
    """Returns the largest probability [n] of each row of logits z [n, C] over their temperature: 1 / sum exp(z - max z)."""
    differences = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    largest: np.ndarray = 1 / np.exp(differences).sum(-1)
    return largest


def narrowed(batch: Mapping[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """Returns some rows of a batch, without the columns that are padding in all of them."""
    if len(rows) == len(batch["input_ids"]):
        return dict(batch)
    columns = batch["attention_mask"][rows].any(0)
    return {name: values[rows][:, columns] if values.ndim == 2 else values[rows] for name, values in batch.items()}


def _share(values: Mapping[str, Any], name: str) -> float:
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {json.dumps(value)}")
    return float(value)


def _temperature(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"a temperature is {json.dumps(value)}")
    return float(value)


def _order(value: Any, outputs: int) -> Columns:
    if value is not None and (not isinstance(value, list) or sorted(value) != list(range(outputs))):
        raise ValueError(f"the order of outputs is {json.dumps(value)}, and there are {outputs}")
    return value
