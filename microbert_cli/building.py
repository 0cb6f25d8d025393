"""Builds new models from descriptions: a student of the catalogue, a user's TOML."""

import copy
from typing import Any

import torch
import transformers
from transformers import AutoConfig

from microbert_cli import memory
from microbert_cli.capture import show_scores
from microbert_cli.errors import MbertError
from microbert_cli.models import (
    CLASSES,
    COUNT_FROM_PADDING,
    NO_CODE,
    parameters,
    positions_of,
    rows_needed,
    set_labels,
    without_code,
)

MAX_LENGTH = 512  # of a new student, where the model it is made after has no positions to count


def build(
    student: dict[str, Any], *, kind: str, tokenizer: Any, seed: int, like: Any = None, labels: list[str] | None = None,
    num_labels: int | None = None, where: str = "student",
) -> Any:  # fmt: skip
    """A new model from a student description (its TOML with numbers filled in), initialised from `seed`.

    like  the teacher's configuration: heads where the description says "teacher", positions and padding
    Raises M042 for what is no description, M011 for heads that do not divide the width, M223 for what no memory holds.
    """
    fields = {key: value for key, value in student.items() if key not in ("title", "model_type")}
    fields |= {"vocab_size": rows_needed(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if like is not None and "max_position_embeddings" not in student:
        wasted = tokenizer.pad_token_id + 1 if student.get("model_type") in COUNT_FROM_PADDING else 0
        fields["max_position_embeddings"] = (positions_of(like) or MAX_LENGTH) + wasted
    try:
        fields["num_attention_heads"] = _heads(fields, like)
        config = without_code(AutoConfig.for_model(student["model_type"], **fields))
    except Exception as error:  # as of a foreign configuration
        raise _no_student(where, error) from error
    set_labels(config, labels, num_labels)
    if config.hidden_size % config.num_attention_heads:
        raise MbertError(
            "M011",
            f"{config.num_attention_heads} heads do not divide a width of {config.hidden_size}",
            where=where,
            allowed="A width that is a multiple of the number of heads.",
            fix="Choose another student: mbert list students",
        )
    if torch.get_default_device().type != "meta":  # where nothing is allocated, anything fits
        memory.check_room(size_of(config, kind), where=where, fix="Choose a smaller student: mbert list students")
    torch.manual_seed(seed)
    model = getattr(transformers, CLASSES[kind]).from_config(copy.deepcopy(config), dtype=torch.float32, **NO_CODE)
    show_scores(model)
    return model


def size_of(config: Any, kind: str) -> int:
    """Parameters of a model to come, from those of one layer and of two, so that any depth is counted as fast."""
    depth = int(config.num_hidden_layers)
    if depth < 3:
        return counted(config, kind)
    one, two = (counted(_of_depth(config, layers), kind) for layers in (1, 2))
    return one + (depth - 1) * (two - one)


def counted(config: Any, kind: str) -> int:
    """Parameters of a model to come; nothing is allocated."""
    with torch.device("meta"):
        return parameters(getattr(transformers, CLASSES[kind]).from_config(copy.deepcopy(config), **NO_CODE))


def _of_depth(config: Any, layers: int) -> Any:
    other = copy.deepcopy(config)
    other.num_hidden_layers = layers
    return other


def _no_student(where: str, error: Exception) -> MbertError:
    return MbertError(
        "M042",
        f"this description makes no model: {type(error).__name__}: {str(error)[:200]}",
        where=where,
        allowed="The keys of a configuration of transformers: model_type, num_hidden_layers, num_attention_heads ...",
        fix="Start from one: mbert copy students tinybert-4l-312",
    )


def _heads(fields: dict[str, Any], like: Any) -> int:
    heads = fields["num_attention_heads"]
    if heads != "teacher":
        return int(heads)
    width: int = fields["hidden_size"]
    if like is not None and width % like.num_attention_heads == 0:
        return int(like.num_attention_heads)
    return next(heads for heads in (12, 8, 6, 4, 3, 2, 1) if width % heads == 0)
