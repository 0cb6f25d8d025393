"""Trains heads of scores in standardised units, and writes them in the table's.

A score learnt on its raw scale makes the size of the loss, and so how far a rate takes the head, depend on the unit that the
table happens to use. So a head learns (y - mean) / std, mean and std of the training labels; afterwards scale and shift are
folded into its last layer, W std and b std + mean, and the model is a plain one that answers in the table's units.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from microbert_cli.errors import MbertError
from microbert_cli.models.exits.build import has_exits
from microbert_cli.models.heads.layers import last_linear
from microbert_cli.models.moe.extract import is_routed
from microbert_cli.recipe.task_kinds import Standardisation

_Weights = tuple[Tensor, Tensor]


class ScoreUnits:
    """The heads of a model's scores, and the units that they answer in.

    Made of a model in the table's units, whose heads then learn in standardised ones, until `restore`. Tasks without a
    standardisation, such as those of classes, stay as they are to the bit.

    scales  the standardisation of every task by name, None for a kind that has none
    new     names of weights that were initialised and not loaded: a head that was never trained is in no units yet
    """

    def __init__(self, model: nn.Module, scales: Mapping[str, Standardisation | None], new: Sequence[str] = ()):
        heads = {task: output_layers(model, task) for task, scale in scales.items() if scale is not None}
        self.heads = [(head, scales[task]) for task, layers in heads.items() for head in layers]
        self.kept: list[tuple[_Weights, _Weights] | None] = []  # of each head as it was, and in learnt units
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for head, scale in self.heads:
            # A new head of a student whose layers come from a teacher is not in `new`, but its bias is still 0.
            if scale is not None and names[id(head.weight)] not in new and bool(head.bias.any()):
                before = _weights(head)
                _set(head, head.weight.double() / scale.std, (head.bias.double() - scale.mean) / scale.std)
                self.kept.append((before, _weights(head)))
            else:
                self.kept.append(None)

    def restore(self) -> None:
        """Folds scale and shift into the heads: the model answers in the table's units from now on.

        A head that nothing has changed, such as a frozen one, is again what it was, to the bit.
        """
        for (head, scale), kept in zip(self.heads, self.kept, strict=True):
            assert scale is not None
            if kept is not None and all(map(torch.equal, kept[1], _weights(head))):
                _set(head, *kept[0])
            else:
                _set(head, head.weight.double() * scale.std, head.bias.double() * scale.std + scale.mean)

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Makes the model answer in the table's units within the block; its weights are bit-equal afterwards."""
        before = [(head, *_weights(head)) for head, _ in self.heads]
        self.restore()
        try:
            yield
        finally:
            for head, weight_CD, bias_C in before:
                _set(head, weight_CD, bias_C)


def output_layers(model: Any, task: str) -> list[nn.Linear]:
    """Returns the last layers of a classifier's heads for a score: one, and of a model with exits those of its branches."""
    if has_exits(model.config):
        return [*model.output_layers, output_layer(model.backbone, task)]
    return [output_layer(model, task)]


def output_layer(model: nn.Module, task: str) -> nn.Linear:
    """Returns the last layer of a classifier's head for a score, of a model for several tasks that of `task`.

    Raises M315 for a head that scale and shift cannot be folded into.
    """
    if is_routed(model.config):
        heads: Any = model.heads
        layer: nn.Linear = heads[task] if task in heads else next(iter(heads.values()))  # one task, under another name
        return layer
    last = last_linear(model, outputs=1)
    if last is None or last.bias is None:
        raise _no_linear_head(type(model).__name__)
    return last


def _weights(head: nn.Linear) -> _Weights:
    return head.weight.detach().clone(), head.bias.detach().clone()


@torch.no_grad()
def _set(head: nn.Linear, weight_CD: Tensor, bias_C: Tensor) -> None:
    head.weight.copy_(weight_CD)
    head.bias.copy_(bias_C)


def _no_linear_head(model: str) -> MbertError:
    return MbertError(
        "M315",
        f"{model} does not end in a linear layer with a bias, which the scale of a score is folded into",
        where="model",
        allowed="A classifier of transformers whose head ends so, as those of BERT, RoBERTa and DeBERTa do.",
        fix="Choose another model; to learn classes instead of a score: --set data.kind=classes",
    )
