"""The shape that a pruned student ends with: the student's description, checked against the teacher that it begins as.

A plain configuration has one width for all feed-forward networks, and its hidden size is heads x width of a head: so every
layer keeps the same number of neurons, and heads are cut only together with the hidden columns, whole heads or dimensions of
every head. transformers 5 reads no `pruned_heads`.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from microbert_cli.distillation.start.slice import axes_of
from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import architecture_of, bert_name, model_shape, model_type_of

# A classifier's head: what its first layer gives out is chosen by itself, and is as many as there are hidden columns.
HEAD_AXES = {
    "pooler.dense": ("pooled", "hidden"),
    "pre_classifier": ("pooled", "hidden"),
    "classifier": ("rows", "pooled"),
    "classifier.dense": ("pooled", "hidden"),
    "classifier.out_proj": ("rows", "pooled"),
}


@dataclass(frozen=True)
class Sizes:
    """The sizes that pruning changes. While it goes on, width and heads x head_width differ, as in no plain configuration."""

    layers: int
    width: int
    inner: int
    heads: int
    head_width: int

    @classmethod
    def of(cls, config: Any) -> "Sizes":
        """Returns the sizes that a configuration describes."""
        shape = model_shape(config)
        return cls(shape.layers, shape.width, shape.inner or 0, shape.heads or 0, shape.head_width)

    @property
    def named(self) -> dict[str, int]:
        """The sizes under transformers' names for them."""
        return {
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_attention_heads": self.heads,
            "width of a head": self.head_width,
        }

    def towards(self, last: "Sizes", t: float) -> "Sizes":
        """Returns the sizes at t of the schedule that ends with `last`."""
        pairs = zip(vars(self).values(), vars(last).values(), strict=True)
        return Sizes(*(size_at(first, final, t) for first, final in pairs))


def size_at(first: int, last: int, t: float) -> int:
    """Returns n(t), the whole number nearest to N - (N - n) (1 - (1 - t)^3); of two as near the smaller."""
    return math.ceil(first - (first - last) * (1 - (1 - t) ** 3) - 0.5)


def plain_name(name: str, model: Any) -> str:
    """Returns BERT's name for a parameter of a classifier, without the prefix of its encoder."""
    return bert_name(name.removeprefix(f"{model.base_model_prefix}."), model.config)


def axes(name: str) -> tuple[str, ...]:
    """Returns what the axes of a parameter count, by BERT's name for it; () for an unknown one."""
    return HEAD_AXES.get(name.rpartition(".")[0]) or axes_of(name)


def pruned_config(teacher: Any, target: Any, *, where: str) -> Any:
    """Returns the teacher's configuration in the sizes of the target's: M420 for another type, M421 for a larger size.

    Vocabulary and positions stay the teacher's.
    """
    if model_type_of(teacher) != model_type_of(target):
        raise _other_type(model_type_of(teacher), model_type_of(target), where)
    before, after = Sizes.of(teacher), Sizes.of(target)
    pairs = {name: (size, after.named[name]) for name, size in before.named.items()}
    if larger := {name: pair for name, pair in pairs.items() if pair[1] > pair[0]}:
        raise _too_large(larger, where)
    config = copy.deepcopy(teacher)
    set_sizes(config, after)
    return config


def set_sizes(config: Any, sizes: Sizes) -> None:
    """Writes sizes into a configuration."""
    config.num_hidden_layers, config.hidden_size, config.num_attention_heads = sizes.layers, sizes.width, sizes.heads
    setattr(config, architecture_of(config).inner, sizes.inner)


def check_prunable(model: Any, *, where: str) -> None:
    """Checks that all of a model's parameters have known axes: raises M422."""
    shape = model_shape(model.config)
    unknown = [name for name, _ in model.named_parameters() if not axes(plain_name(name, model))]
    if unknown or shape.embedding != shape.width:
        raise MbertError(
            "M422",
            f'a model of type "{model_type_of(model.config)}" cannot be pruned: '
            + (f"what {unknown[0]} holds is not known" if unknown else "its embeddings have a width of their own"),
            where=where,
            allowed="BERT, RoBERTa, XLM-R, CamemBERT and DistilBERT.",
            fix=f"Begin as a new student instead: --set init=new --set {where}=false",
        )


def _other_type(teacher: str, target: str, where: str) -> MbertError:
    return MbertError(
        "M420",
        f'a teacher of type "{teacher}" cannot be pruned to a student of type "{target}"',
        where=where,
        allowed=f'A student of model_type = "{teacher}": pruning cuts sizes, and the architecture stays the teacher\'s.',
        fix="See the students: mbert list students; another shape is a TOML file of your own: mbert copy students bert-LxHxF",
    )


def _too_large(larger: Mapping[str, tuple[int, int]], where: str) -> MbertError:
    differences = "; ".join(f"{name} {before} and {after}" for name, (before, after) in larger.items())
    return MbertError(
        "M421",
        f"the student is larger than the teacher that it is pruned from (teacher and student: {differences})",
        where=where,
        allowed="No larger size. Heads are cut with the hidden columns: hidden_size = heads x width of a head, both at most "
        "the teacher's.",
        fix="Choose a smaller student: mbert list students",
    )
