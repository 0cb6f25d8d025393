"""Which output of a checkpoint answers for which label of a task."""

import re
from typing import Any

from microbert_cli.errors import MbertError
from microbert_cli.recipe.task import Task


def output_names(config: Any) -> list[str] | None:
    """Returns the names of a classifier's outputs in order; None where the checkpoint says only LABEL_k."""
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    # LABEL_k is what transformers writes where nobody named the labels: it says nothing of their order.
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def match_labels(config: Any, task: Task, order: list[str] | None, *, where: str) -> list[int] | None:
    """Returns the output of a classifier for each label of the task; None where its checkpoint names no labels.

    order  names of the model's outputs, given by the user, over those in its configuration
    Raises M320 where the number of outputs differs, M321 where the names cannot be matched.
    """
    outputs = config.num_labels
    if outputs != task.kind.num_outputs:
        raise _mismatch(
            "M320",
            f"the model has {outputs} outputs, the task {task.kind.num_outputs}",
            task,
            where,
            fix=f"Fine-tune a model on this task: mbert finetune --model MODEL --task {task.name}",
        )
    names = order or output_names(config)
    if not task.kind.exclusive or names is None:
        return None
    task_labels = [_normalised(name) for name in task.kind.names]
    model_labels = [_normalised(name) for name in names]
    if sorted(task_labels) != sorted(model_labels):
        name_outputs = 'Name the outputs in their order: --set \'teacher.label_order=["...", "..."]\''
        raise _mismatch(
            "M321",
            f"the model's labels ({', '.join(names)}) cannot be matched to the task's",
            task,
            where,
            fix=name_outputs if where.startswith("teacher") else "Correct id2label and label2id in its config.json.",
        )
    return [model_labels.index(name) for name in task_labels]


def _normalised(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def _mismatch(code: str, what: str, task: Task, where: str, *, fix: str) -> MbertError:
    return MbertError(
        code,
        what,
        where=where,
        allowed=f"The labels of {task.name}: {task.kind.describe()}.",
        fix=fix,
    )
