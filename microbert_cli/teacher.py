"""The teacher: asked, never trained, and examined before it teaches.

The two commonest failures of distillation are a raw teacher and permuted labels. So a teacher's outputs are matched to the
task's labels by NAME, and its dev score is measured first: one that is hardly better than the commonest class is refused.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import permutations

import numpy as np
import torch

from microbert_cli.capture import Seen, Vectors, Want, look
from microbert_cli.errors import MbertError
from microbert_cli.models import Loaded, frozen
from microbert_cli.objective import Batch
from microbert_cli.task import Task

FEW = 4
TOKENS = {"cpu": 1024, "cuda": 32_768}  # more at once is slower there: what a layer makes no longer stays in the cache


class Teacher:
    """A frozen model whose class columns are in the task's order.

    columns  column c of the task is column columns[c] of the model; None = as they are
    dropout  keeps dropout active, as the released TinyBERT code does without meaning to
    asked    rows that went through it so far
    """

    asked = 0

    def __init__(self, loaded: Loaded, columns: Sequence[int] | None = None, *, dropout: bool = False):
        self.model = frozen(loaded.model).train(dropout)
        self.columns = list(columns) if columns and list(columns) != sorted(columns) else None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def carry(self, batch: Batch) -> Batch:
        """The batch on the teacher's device."""
        return {name: value.to(self.device) for name, value in batch.items()}

    def ask(self, batch: Batch, want: Want) -> Seen:
        """What the teacher shows of a batch, without gradients; a large batch goes through it piece by piece.

        It answers one task: which one of several the batch is of, is not its number.
        """
        batch = {name: value for name, value in batch.items() if name != "task"}
        self.asked += len(batch["input_ids"])
        with torch.no_grad():
            seen = _joined([look(self.model, piece, want) for piece in self._pieces(batch, want)])
        if seen.logits is not None and self.columns:
            seen.logits = seen.logits[:, self.columns]
        return seen

    def _pieces(self, batch: Batch, want: Want) -> Iterator[Batch]:
        rows, width = batch["input_ids"].shape
        step = max(1, tokens_at_once(self.device.type) // width)
        if rows <= step or self.model.training or want.token_logits:
            yield batch
            return
        for first in range(0, rows, step):
            yield {name: value[first : first + step] for name, value in batch.items() if len(value) == rows}

    def logits(self, batch: Batch) -> np.ndarray:
        """[B, C] in the task's order, dropout off."""
        training = self.model.training
        self.model.eval()
        seen = self.ask(self.carry(batch), Want(logits=True))
        self.model.train(training)
        assert seen.logits is not None
        return seen.logits.float().cpu().numpy()


def tokens_at_once(device: str) -> int:
    """As many tokens, padding included, as a device does best in one forward pass of a teacher."""
    return TOKENS.get(device, TOKENS["cpu"])


def _joined(pieces: list[Seen]) -> Seen:
    """What was shown of a batch's pieces, as of the whole."""
    if len(pieces) == 1:
        return pieces[0]
    first = pieces[0]
    return Seen(
        logits=None if first.logits is None else torch.cat([one.logits for one in pieces if one.logits is not None]),
        hidden={layer: torch.cat([one.hidden[layer] for one in pieces]) for layer in first.hidden},
        scores={layer: torch.cat([one.scores[layer] for one in pieces]) for layer in first.scores},
        token_head=first.token_head,
        qkv={layer: _joined_vectors([one.qkv[layer] for one in pieces]) for layer in first.qkv},
    )


def _joined_vectors(pieces: list[Vectors]) -> Vectors:
    queries, keys, values = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return queries, keys, values


def match_labels(loaded: Loaded, task: Task, order: list[str] | None, *, where: str) -> list[int] | None:
    """Which column of the model answers for each label of the task; None where its checkpoint names no labels.

    order  names of the model's columns, given by the user, over those in its configuration
    Raises M320 where the number of outputs differs, M321 where the names cannot be matched.
    """
    outputs = loaded.model.config.num_labels
    if outputs != task.num_labels:
        raise _mismatch(
            "M320",
            f"the model has {outputs} outputs, the task {task.num_labels}",
            task,
            where,
            fix=f"Fine-tune a model on this task: mbert finetune --model MODEL --task {task.name}",
        )
    names = order or loaded.label_names
    if task.is_regression or names is None:
        return None
    wanted = [_plain(name) for name in task.label.names or ()]
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


def check_order(task: Task, logits: np.ndarray, labels: Sequence[int], *, where: str) -> None:
    """For a teacher that names no labels: the order as it stands must be the best on dev; raises M322 otherwise."""
    if task.is_regression or not 2 <= task.num_labels <= FEW:
        return
    gold = np.asarray(labels)
    accuracy = {
        order: float((logits[:, list(order)].argmax(-1) == gold).mean()) for order in permutations(range(task.num_labels))
    }
    identity = tuple(range(task.num_labels))
    best = max(accuracy, key=lambda order: (accuracy[order], order == identity))
    if best == identity:
        return
    names = list(task.label.names or ())
    told = [names[best.index(column)] for column in identity]
    raise MbertError(
        "M322",
        f"the teacher's outputs seem to be in another order: dev accuracy {accuracy[identity]:.3f} as they stand, "
        f"{accuracy[best]:.3f} as {', '.join(told)}",
        where=where,
        allowed=f"Outputs in the task's order: {', '.join(names)}.",
        fix=f"Name the order of the teacher's outputs: --set 'teacher.label_order={json.dumps(told)}'",
    )


def check_strength(task: Task, teacher: float, majority: float, *, margin: float, where: str) -> None:
    """Raises M610 for a teacher that is not better than the commonest class by `margin` of the primary metric."""
    if teacher >= majority + margin:
        return
    raise MbertError(
        "M610",
        f"the teacher scores {task.primary} {teacher:.3f} on dev, always answering the commonest class {majority:.3f}",
        where=where,
        allowed=f"A teacher fine-tuned on {task.name}, better than that by at least {margin}.",
        fix=f"Fine-tune it: mbert finetune --model MODEL --task {task.name}; or insist: --set teacher.allow_weak=true",
    )


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def _mismatch(code: str, what: str, task: Task, where: str, *, fix: str) -> MbertError:
    names = ", ".join(task.label.names or ("one score",))
    return MbertError(
        code,
        what,
        where=where,
        allowed=f"The labels of {task.name}: {names}.",
        fix=fix,
    )
