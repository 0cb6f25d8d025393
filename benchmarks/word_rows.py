"""Seconds of a training step with the whole table of word vectors and with the rows that occur, interleaved, on one thread.

python benchmarks/word_rows.py MODEL --data FOLDER --tasks sst2,mrpc [--precision bf16]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from microbert_cli.data.batching import endless_batches
from microbert_cli.data.task_data import load_task_data
from microbert_cli.models.device import Precision
from microbert_cli.models.load import load_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.training.loop import train
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.objective import Objective
from microbert_cli.training.plan import TrainingPlan

STEPS, WARM, ROUNDS, BATCH = 40, 5, 5, 32


def step_seconds(model: str, rows: Any, token_ids: np.ndarray | None, precision: str) -> float:
    """Returns the median seconds of a step of fine-tuning on labels."""
    student = load_model(model, "classifier", where="model").model
    numerics = Precision(precision)
    objective = Objective(make_terms({"hard_label": (1.0, {})}, Catalog()), student, numerics=numerics)
    marks: list[float] = []

    def batches(skip: int) -> Iterator[Any]:
        for indices in endless_batches(rows.lengths, batch_size=BATCH, seed=1, skip=skip):
            marks.append(time.perf_counter())
            yield rows.batch(indices, pad_id=0)

    with tempfile.TemporaryDirectory() as folder:
        plan = TrainingPlan("benchmark", STEPS, 2e-4, checkpoint_seconds=1e9)
        train(objective, batches, plan, directory=Path(folder), seed=1, token_ids=token_ids)
    return float(np.median(np.diff(marks)[WARM:]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--data")
    parser.add_argument("--tasks", default="sst2,mrpc")
    parser.add_argument("--precision", default="bf16")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for task in arguments.tasks.split(","):
        recipe = resolve(catalog=Catalog(), flags={"task": task, "data.folder": arguments.data, "data.max_length": 128}).recipe
        data = load_task_data(recipe, Catalog(), splits=("train",))
        loaded = load_model(arguments.model, "classifier", where="model")
        rows = data.encode("train", loaded, where="model")
        ids = rows.distinct_ids(loaded.tokenizer.pad_token_id)
        pairs = [
            [step_seconds(arguments.model, rows, given, arguments.precision) for given in (None, ids)] for _ in range(ROUNDS)
        ]
        whole, some = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
        vocabulary = loaded.model.get_input_embeddings().num_embeddings
        print(
            f"{task}: {len(ids):,} of {vocabulary:,} tokens occur; ms a step: whole table {whole:.1f}, these rows {some:.1f}; "
            f"{whole / some:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
