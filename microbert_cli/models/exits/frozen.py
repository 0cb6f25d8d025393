"""Frozen classifiers of torch that answer batches: with all of their layers, or with exits."""

from collections import Counter
from typing import Any

import numpy as np
import torch

from microbert_cli.models.capture import OutputRequest, forward_in_pieces
from microbert_cli.models.exits.answers import answer_early
from microbert_cli.models.load import frozen


class TorchModel:
    """A frozen torch classifier whose class columns are in the task's order."""

    def __init__(self, model: Any, columns: list[int] | None):
        self.model, self.columns = frozen(model), columns

    def logits(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        """[B, C] of a batch of one task; its number, where it has one, is left out."""
        device = next(self.model.parameters()).device
        inputs = {name: value.to(device) for name, value in batch.items() if name != "task"}
        with torch.no_grad():
            logits = forward_in_pieces(self.model, inputs, OutputRequest(logits=True)).logits
        assert logits is not None
        return (logits[..., self.columns] if self.columns else logits).float().cpu().numpy()


class ExitingModel(TorchModel):
    """A frozen model with exits. `left` counts the rows by the layer behind which they left, from 1."""

    def __init__(self, model: Any, columns: list[int] | None, speed: float):
        super().__init__(model, columns)
        self.speed, self.left = speed, Counter[int]()

    def logits(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        """[B, C], as above."""
        device = next(self.model.parameters()).device
        with torch.no_grad():
            answers = answer_early(
                self.model, {name: value.to(device) for name, value in batch.items() if name != "task"}, self.speed
            )
        self.left.update(answers.layers.tolist())
        return (answers.logits[:, self.columns] if self.columns else answers.logits).float().cpu().numpy()
