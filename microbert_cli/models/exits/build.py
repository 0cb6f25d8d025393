"""Puts exits into a classifier: which layers get a branch, and of what kind."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import ARCHITECTURES, architecture_of, inner_model, model_shape, model_type_of
from microbert_cli.models.capture import removable_layers, show_scores
from microbert_cli.models.config import register_model_type
from microbert_cli.models.exits.speed import MODEL_TYPE
from microbert_cli.models.exits.speed import has_exits as has_exits
from microbert_cli.models.load import LoadedModel

RUNTIME_KEYS = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


@dataclass(frozen=True)
class ExitSettings:
    """The exits of a model. branch: "attention" or "linear"; layers: "all" below the last, or numbers from 1."""

    branch: str = "attention"
    layers: str | Sequence[int] = "all"
    width: int = 128
    heads: int = 2


def add_exits(loaded: LoadedModel, settings: ExitSettings, *, seed: int, spread: float | None = None) -> LoadedModel:
    """Returns the classifier with branches drawn from `seed`, its own weights as they are; one with these exits as it is.

    spread  of a score: the standard deviation of the training labels
    Raises M036 (a layer that is not there), M328 (an architecture whose layers cannot be run one by one), M037 (other exits).
    """
    if has_exits(loaded.model.config):
        _check_same(loaded.model.config, exit_config(loaded.model.config.classifier_config, settings))
        return loaded
    config = exit_config(loaded.model.config, settings, spread=spread)
    if not len(removable_layers(loaded.model.base_model)) or architecture_of(loaded.model.config).reads_apart:
        raise _no_layers(model_type_of(loaded.model.config))
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    model.backbone = loaded.model
    show_scores(model)
    return replace(loaded, model=model)


def without_exits(loaded: LoadedModel) -> LoadedModel:
    """Returns the classifier within a model with exits; any other as it is."""
    return replace(loaded, model=inner_model(loaded.model))


def exit_config(classifier: Any, settings: ExitSettings, *, spread: float | None = None) -> Any:
    """Returns the configuration of a classifier with exits, which answers as it does. Raises M036."""
    register_model_type({"model_type": MODEL_TYPE})
    inner = {key: value for key, value in copy.deepcopy(classifier).to_dict().items() if key not in RUNTIME_KEYS}
    return AutoConfig.for_model(
        MODEL_TYPE,
        classifier=inner,
        branch=settings.branch,
        exit_layers=exit_layers(settings.layers, model_shape(classifier).layers),
        branch_width=settings.width,
        branch_heads=settings.heads,
        score_spread=spread,
        pad_token_id=classifier.pad_token_id,
        id2label=dict(classifier.id2label),
        label2id=dict(classifier.label2id),
        problem_type=classifier.problem_type,
    )


def exit_ends(config: Any) -> list[int]:
    """Returns the layers behind which rows leave, the last one included."""
    return [*map(int, config.exit_layers), model_shape(config).layers]


def exit_layers(requested: str | Sequence[int], depth: int) -> list[int]:
    """Returns the layers with a branch, from 1; raises M036 for one that is not there, or where none is left."""
    layers = list(range(1, depth)) if requested == "all" else sorted(int(layer) for layer in requested)
    wrong = [layer for layer in layers if not 1 <= layer < depth]
    if layers and not wrong:
        return layers
    what = f"there is no exit behind layer {wrong[0]}" if wrong else "there is no layer to have an exit"
    raise MbertError(
        "M036",
        f"{what}: the model has {depth} layers, and behind the last its own classifier answers",
        where="early_exit.layers",
        allowed=f"Numbers from 1 to {depth - 1}, or all." if depth > 1 else "A model of two layers or more.",
        fix="--set early_exit.layers=all" if depth > 1 else "Take a deeper model, or none: --set early_exit.branch=none",
    )


def _no_layers(model_type: str) -> MbertError:
    names = [
        name for name, facts in ARCHITECTURES.items() if facts.stack and not (facts.reads_apart or facts.experts == "task")
    ]
    return MbertError(
        "M328",
        f'rows cannot leave a model of "{model_type}" between its layers, which are not run one after the other for one text',
        where="early_exit.branch",
        allowed=f"Classifiers of {', '.join(names)}.",
        fix="Take such a model, or leave exits out: --set early_exit.branch=none",
    )


def _check_same(config: Any, requested: Any) -> None:
    keys = ("branch", "exit_layers", "branch_width", "branch_heads")
    has, wanted = (
        [list(v) if isinstance(v := getattr(each, key), list | tuple) else v for key in keys] for each in (config, requested)
    )
    if has[: 2 if config.branch == "linear" else 4] != wanted[: 2 if config.branch == "linear" else 4]:
        raise MbertError(
            "M037",
            f"this model has exits already, {has[0]} at {has[1]}, and others are asked for, {wanted[0]} at {wanted[1]}",
            where="early_exit",
            allowed="The same keys, to train its branches further; or the model that they were put into.",
            fix=f"--set early_exit.branch={has[0]} --set 'early_exit.layers={has[1]}'",
        )
