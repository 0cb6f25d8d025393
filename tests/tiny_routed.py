"""Small mixtures of experts for tests, of the small models of tiny_models.py.

routed(dense)       experts in layers 2 and 4, for the tasks TASKS
apart(model)        the same with experts that differ, as training would make them
rows(task=1)        a batch of that task with padding
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

TASKS = {"film": {"labels": ["bad", "good"], "num_labels": 2}, "score": {"labels": None, "num_labels": 1}}


def routed(
    dense: Any,
    *,
    tasks: Mapping[str, Mapping[str, Any]] = TASKS,
    moe_layers: Sequence[int] = (2, 4),
    experts: int = 4,
    seed: int = 3,
    **more: Any,
) -> Any:
    """A routed model of a loaded plain one's weights."""
    from microbert_cli.models.capture import show_scores
    from microbert_cli.models.moe.bert import RoutedBertForSequenceClassification

    model = RoutedBertForSequenceClassification.from_dense(
        dense.model, tasks=tasks, moe_layers=moe_layers, experts=experts, seed=seed, **more
    )
    show_scores(model)
    return model


def apart(model: Any, scale: float = 0.1) -> Any:
    """Every weight moved by N(0, scale), in eval mode."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += scale * torch.randn_like(parameter)
    return model.eval()


def rows(task: int = 0, *, count: int = 3, length: int = 7) -> dict[str, torch.Tensor]:
    """A batch whose second row has three tokens of padding."""
    generator = torch.Generator().manual_seed(1)
    mask_BT = torch.ones(count, length, dtype=torch.long)
    mask_BT[1, 4:] = 0
    return {
        "input_ids": torch.randint(5, 60, (count, length), generator=generator),
        "attention_mask": mask_BT,
        "task": torch.full((count,), task),
        "labels": torch.zeros(count, dtype=torch.long),
    }
