"""Which output of a checkpoint answers for which label of a task."""

from microbert_cli.errors import MbertError
from microbert_cli.models.load import LoadedModel
from microbert_cli.recipe.task import Task


def match_labels(loaded: LoadedModel, task: Task, order: list[str] | None, *, where: str) -> list[int] | None:
    """Which column of the model answers for each label of the task; None where its checkpoint names no labels.

    order  names of the model's columns, given by the user, over those in its configuration
    Raises M320 where the number of outputs differs, M321 where the names cannot be matched.
    """
    outputs = loaded.model.config.num_labels
    if outputs != task.kind.num_outputs:
        raise _mismatch(
            "M320",
            f"the model has {outputs} outputs, the task {task.kind.num_outputs}",
            task,
            where,
            fix=f"Fine-tune a model on this task: mbert finetune --model MODEL --task {task.name}",
        )
    names = order or loaded.label_names
    if not task.kind.exclusive or names is None:
        return None
    wanted = [_plain(name) for name in task.kind.names]
    known = [_plain(name) for name in names]
    if sorted(wanted) != sorted(known):
        said = ", ".join(names)
        named = 'Name the outputs in their order: --set \'teacher.label_order=["...", "..."]\''
        raise _mismatch(
            "M321",
            f"the model's labels ({said}) cannot be matched to the task's",
            task,
            where,
            fix=named if where.startswith("teacher") else "Correct id2label and label2id in its config.json.",
        )
    return [known.index(name) for name in wanted]


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def _mismatch(code: str, what: str, task: Task, where: str, *, fix: str) -> MbertError:
    return MbertError(
        code,
        what,
        where=where,
        allowed=f"The labels of {task.name}: {task.kind.describe()}.",
        fix=fix,
    )
