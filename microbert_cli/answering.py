"""Any model that answers: a Hugging Face directory, a Hub id, or an export directory through ONNX Runtime."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from microbert_cli import models
from microbert_cli.onnx_model import FILES, OnnxClassifier, is_export
from microbert_cli.task import Task
from microbert_cli.teacher import Teacher, match_labels


@dataclass
class Answers:
    """A model ready to answer: `answers.logits(batch)`, its configuration as `model.config`, its tokenizer."""

    answers: Any
    model: Any
    tokenizer: Any
    source: str


def open_model(
    source: str, task: Task | None, *, precision: str = "auto", where: str = "model", task_name: str | None = None
) -> Answers:
    """Opens a classifier; with a task, its outputs are put into the order of the task's labels.

    precision  auto: an export directory answers through ONNX Runtime, in fp32 where it has that; one of onnx_model.FILES: in
               that one; torch: its safetensors are loaded. Naming an ONNX file itself chooses it, too.
    task_name  which task's answers a model of several gives, where there is no `task`
    """
    path = Path(source)
    if precision in FILES or (precision == "auto" and is_export(path)):
        return _exported(path, task, precision, where)
    loaded = models.load(source, "classifier", where=where, task=task.name if task else task_name)
    columns = match_labels(loaded, task, None, where=f"{where} {source}") if task else None
    return Answers(Teacher(loaded, columns), loaded.model, loaded.tokenizer, source)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """softmax over the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(-1, keepdims=True)
    return shares


def _exported(path: Path, task: Task | None, precision: str, where: str) -> Answers:
    session = OnnxClassifier(path, precision=None if precision == "auto" or path.is_file() else precision)
    tokenizer = models.load_tokenizer(session.directory, session.config, where=where)
    loaded = models.Loaded(session, tokenizer, str(path), [])
    columns = match_labels(loaded, task, None, where=f"{where} {path}") if task else None
    return Answers(_Ordered(session, columns), session, tokenizer, str(path))


class _Ordered:
    """An ONNX session whose class columns are in the task's order."""

    def __init__(self, session: OnnxClassifier, columns: list[int] | None):
        self.session, self.columns = session, columns

    def logits(self, batch: Any) -> np.ndarray:
        answer = self.session.logits(batch)
        return answer[:, self.columns] if self.columns else answer
