"""What AdamW on the word vectors of one batch would save, beside those of all tokens that occur; a step, part by part.

    OMP_NUM_THREADS=1 python benchmarks/batch_rows.py MODEL --data FOLDER --task sst2 [--precision bf16] [--steps 150]

MODEL gives tokenizer and width; the student has three layers with 128 neurons and random weights. Both kinds of step take
turns. The vectors of a batch make up the steps that they missed in closed form: with m and v the moments at the last step that
touched a row, k steps ago, and u = m / (sqrt v + eps), w <- w (1 - lr d)^k - S u, m <- b1^k m, v <- b2^k v. S, a sum over the k
rates, is a made-up number here: what is measured is time. Milliseconds of processor time, medians.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import BertForSequenceClassification

from microbert_cli import distributed
from microbert_cli.data.batching import endless_batches
from microbert_cli.data.task_data import load_task_data
from microbert_cli.models.device import Precision
from microbert_cli.models.load import load_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve

RATE, DECAY, BETA1, BETA2, EPS = 2e-4, 0.01, 0.9, 0.999, 1e-8
WARM = 5


class Steps:
    """Both kinds of step on one student, whose table has R rows: those of the tokens that occur."""

    def __init__(self, config: Any, rows: int, precision: str):
        self.model = BertForSequenceClassification(config).train()
        self.words = self.model.bert.embeddings.word_embeddings = nn.Embedding(rows, config.hidden_size)
        self.table = self.words.weight
        self.others = [weight for weight in self.model.parameters() if weight is not self.table]
        self.whole = {name: self._adamw([*self.others, self.table], **{name: True}) for name in ("fused", "foreach")}
        self.rest = self._adamw(self.others, fused=True)
        self.moments = torch.zeros(2, *self.table.shape)
        self.last, self.number = torch.zeros(rows), 0
        self.numerics = Precision(precision)
        self.times: dict[str, list[float]] = defaultdict(list)

    def all_rows(self, ids: torch.Tensor, labels: torch.Tensor, name: str) -> None:
        """A step as it is taken today."""
        weights = [*self.others, self.table]
        self._gradients(ids, labels, weights, name)
        self._timed(f"{name}, AdamW", self.whole[name].step)
        self.whole[name].zero_grad()

    def rows_of_batch(self, ids: torch.Tensor, labels: torch.Tensor) -> None:
        """A step that touches the rows of its batch alone."""
        self.number += 1
        self._timed("batch, making up", lambda: self._make_up(ids))
        self._gradients(self.places, labels, [*self.others, self.words.weight], "batch")
        self._timed("batch, AdamW", self.rest.step)
        self._timed("batch, AdamW of rows", self._step_of_rows)
        self.rest.zero_grad()
        self.words.weight = self.table

    @torch.no_grad()
    def _make_up(self, ids: torch.Tensor) -> None:
        self.rows, self.places = torch.unique(ids, return_inverse=True)
        missed = (self.number - 1 - self.last[self.rows])[:, None]
        mean, square = self.moments[:, self.rows]
        weights = self.table[self.rows] * (1 - RATE * DECAY) ** missed - 1e-5 * mean / (square.sqrt() + EPS)
        self.now = mean * BETA1**missed, square * BETA2**missed
        self.words.weight = nn.Parameter(weights)

    @torch.no_grad()
    def _step_of_rows(self) -> None:
        part, step = self.words.weight, torch.tensor(float(self.number))
        torch._fused_adamw_(
            [part], [part.grad], [self.now[0]], [self.now[1]], [], [step],
            lr=RATE, beta1=BETA1, beta2=BETA2, weight_decay=DECAY, eps=EPS, amsgrad=False, maximize=False,
        )  # fmt: skip
        self.table[self.rows] = part
        self.moments[0, self.rows], self.moments[1, self.rows] = self.now
        self.last[self.rows] = self.number

    def _gradients(self, ids: torch.Tensor, labels: torch.Tensor, weights: list[Any], name: str) -> None:
        def forward() -> torch.Tensor:
            with self.numerics.forward():
                logits = self.model(input_ids=ids).logits
            return nn.functional.cross_entropy(logits.float(), labels)

        loss = self._timed(f"{name}, forward", forward)
        self._timed(f"{name}, backward", loss.backward)
        self._timed(f"{name}, norm", lambda: nn.utils.clip_grad_norm_(weights, 1.0))

    def _timed(self, name: str, work: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = work()
        self.times[name].append(1e3 * (time.process_time() - started))
        return result

    def _adamw(self, weights: list[Any], **how: bool) -> torch.optim.Optimizer:
        return torch.optim.AdamW(weights, lr=RATE, weight_decay=DECAY, **how)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--foreach", action="store_true", help="also AdamW as it is without fused kernels")
    options = parser.parse_args()
    torch.set_num_threads(1)
    distributed.keep_memory()
    recipe = resolve(
        catalog=Catalog(), flags={"task": options.task, "data.folder": options.data, "data.max_length": 128}
    ).recipe
    loaded = load_model(options.model, "classifier", where="model", new_head=True)
    rows = load_task_data(recipe, Catalog(), splits=("train",)).encode("train", loaded, where="model")
    ids = torch.as_tensor(rows.distinct_ids(loaded.tokenizer.pad_token_id))
    config = loaded.model.config
    config.num_hidden_layers, config.intermediate_size, config.num_labels = 3, 128, 2
    places = torch.zeros(config.vocab_size, dtype=torch.long)
    places[ids] = torch.arange(len(ids))
    steps = Steps(config, len(ids), options.precision)
    for number, indices in enumerate(endless_batches(rows.lengths, batch_size=32, seed=1)):
        if number == options.steps:
            break
        batch = rows.batch(indices, pad_id=loaded.tokenizer.pad_token_id)
        labels = batch["labels"].long().clamp(0, 1)
        for name in ("fused", "foreach") if options.foreach else ("fused",):
            steps.all_rows(places[batch["input_ids"]], labels, name)
        steps.rows_of_batch(places[batch["input_ids"]], labels)
    medians = {name: median(values[WARM:]) for name, values in steps.times.items()}
    for name, value in medians.items():
        print(f"{name:22s} {value:8.2f}")
    for kind in ("fused", "foreach", "batch"):
        if whole := sum(value for name, value in medians.items() if name.startswith(f"{kind},")):
            print(f"{kind}: {whole:.1f} ms a step, {len(ids):,} rows occur")


if __name__ == "__main__":
    main()
