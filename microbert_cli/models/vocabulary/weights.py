"""Cuts the rows of a model that belong to tokens: embeddings, and what a masked-LM head has for each token."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import inner_config, model_shape, model_type_of, wasted_positions
from microbert_cli.models.exits.build import has_exits

ID_KEYS = ("_token_id", "_token_ids")  # pad_token_id, mask_token_id and their like


def named_ids(config: Any) -> set[int]:
    """Returns the token ids that a configuration names, and all up to the padding's where positions are counted from it."""
    ids = {number for value in _ids(config).values() for number in (value if isinstance(value, list) else [value])}
    return ids | set(range(wasted_positions(config, getattr(config, "pad_token_id", None))))


def cut_config(config: Any, numbers: Mapping[int, int]) -> Any:
    """Returns the configuration of the smaller model; an id that no token had is named no more."""
    smaller = copy.deepcopy(config)
    if has_exits(config):
        inner = cut_config(inner_config(config), numbers)
        smaller.classifier, smaller.pad_token_id = inner.to_dict(), inner.pad_token_id
        return smaller
    smaller.vocab_size = len(numbers)
    for key, value in _ids(config).items():
        if isinstance(value, list):
            setattr(smaller, key, [numbers[number] for number in value if number in numbers])
        else:
            setattr(smaller, key, numbers.get(value))
    return smaller


def _ids(config: Any) -> dict[str, Any]:
    values = config.to_dict().items()
    return {key: value for key, value in values if key.endswith(ID_KEYS) and isinstance(value, int | list)}


def cut_model(model: Any, config: Any, numbers: Mapping[int, int], *, where: str) -> Any:
    """Returns a model of `config` whose weights are those of `model`, of tokens the kept ones' alone.

    A second model of the smaller configuration shows which axes of which weights are the vocabulary's, whatever the type.
    numbers  the new id of each kept one
    Raises M346 where the input embeddings are no table of one row a token, or a weight has another shape for another reason.
    """
    rows, kept = model_shape(model.config).vocabulary, torch.tensor(sorted(numbers, key=lambda old: numbers[old]))
    padding = [wasted_positions(of, getattr(of, "pad_token_id", None)) for of in (model.config, config)]
    if padding[0] != padding[1]:
        raise _no_table(
            config, f"positions are counted from id {padding[0] - 1}, and a smaller id before it has no token", where
        )
    table = model.get_input_embeddings()
    if not isinstance(table, torch.nn.Embedding) or len(table.weight) != rows:
        raise _no_table(model.config, f"its input embeddings are a {type(table).__name__}", where)
    with torch.random.fork_rng(devices=[]):
        smaller = type(model)(config)
    weights = model.state_dict()
    cut = {
        name: _cut(weights[name], tensor, rows, kept, f"{name} of {model_type_of(config)}", where, config)
        for name, tensor in smaller.state_dict().items()
    }
    smaller.load_state_dict(cut)
    smaller.tie_weights()
    return smaller.eval()


def _cut(old: Tensor, new: Tensor, rows: int, kept: Tensor, name: str, where: str, config: Any) -> Tensor:
    if old.dim() != new.dim():
        raise _no_table(config, f"{name} has {old.dim()} axes, then {new.dim()}", where)
    for axis in range(old.dim()):
        if old.shape[axis] == new.shape[axis]:
            continue
        if old.shape[axis] != rows or new.shape[axis] != len(kept):
            raise _no_table(config, f"{name} changes from {tuple(old.shape)} to {tuple(new.shape)}", where)
        old = old.index_select(axis, kept)
    return old


def _no_table(config: Any, what: str, where: str) -> MbertError:
    return MbertError(
        "M346",
        f'the embeddings of "{model_type_of(config)}" cannot be cut: {what}',
        where=where,
        allowed="A model whose tokens have a row each in one table of vocab_size rows.",
        fix="Leave the stage trim out, or take a model of another architecture, such as BERT, RoBERTa or DistilBERT.",
    )
