"""What a model answers on a set of rows, and how good that is."""

from typing import Any

import numpy as np
import torch

from microbert_cli import metrics, processes
from microbert_cli.batching import in_order
from microbert_cli.capture import Want, look
from microbert_cli.data import Rows
from microbert_cli.encoding import Encoded
from microbert_cli.errors import MbertError
from microbert_cli.task import Task
from microbert_cli.tracking import SILENT, Talk


def logits_of(
    model: Any, encoded: Encoded, *, pad_id: int, batch_size: int = 64, talk: Talk = SILENT, name: str = "evaluate"
) -> np.ndarray:
    """Logits [n, C] in the rows' order. `model` is a torch model, or anything with `logits(batch) -> [B, C]`.

    Several processes take the batches in turns and tell each other: all have all answers, and the same as one alone gives.
    """
    groups = in_order(encoded.lengths, batch_size=batch_size)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    done = 0
    for number, indices in enumerate(groups):
        if number % processes.world() == processes.rank():
            found.append((indices, _answer(model, encoded.batch(indices, pad_id=pad_id))))
        done += len(indices)
        talk.progress(name, done, len(encoded))
    answers: list[np.ndarray | None] = [None] * len(encoded)
    for indices, rows in processes.gather(found):
        for i, row in zip(indices, rows, strict=True):
            answers[i] = row
    return np.stack([row for row in answers if row is not None])


def _answer(model: Any, batch: dict[str, torch.Tensor]) -> np.ndarray:
    if hasattr(model, "logits"):
        return np.asarray(model.logits(batch))
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        seen = look(model, {name: value.to(device) for name, value in batch.items()}, Want(logits=True))
    model.train(was_training)
    assert seen.logits is not None
    return seen.logits.float().cpu().numpy()


def predictions(task: Task, logits: np.ndarray) -> np.ndarray:
    """Class ids [n], or scores [n] for regression."""
    return logits[:, 0] if task.is_regression else logits.argmax(-1)


def score(task: Task, logits: np.ndarray, rows: Rows) -> dict[str, float]:
    """The task's official metrics; raises M260 where the labels are hidden."""
    if rows.labels is None:
        raise MbertError(
            "M260",
            "the labels of this split are hidden, so nothing can be scored",
            where=f"task {task.name}",
            allowed="A split with labels, such as dev. Hidden labels are predicted, for a submission.",
            fix=f"mbert evaluate --task {task.name} --submission",
        )
    return metrics.compute(task.metrics, predictions(task, logits), rows.labels, num_labels=task.num_labels)


def majority_score(task: Task, labels: list[Any]) -> float:
    """The primary metric of always answering the commonest class, or the mean score."""
    values = np.asarray(labels)
    constant = values.mean() if task.is_regression else np.bincount(values).argmax()
    answers = np.full(len(values), constant)
    return metrics.compute(task.metrics, answers, labels, num_labels=task.num_labels)[task.primary]
