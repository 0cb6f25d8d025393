"""The configuration of an export read from config.json alone, where that file states all that is asked of it.

transformers writes every key of a configuration that only its own class has, so what a file of a known type lacks, its class
lacks too. A file that lacks a key which the type has, or says what transformers would refuse, is left to transformers.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from microbert_cli.models.architectures import architecture_of

# Model types whose exports are read here, and what their classes call the sizes of others.
TYPES: Mapping[str, Mapping[str, str]] = {
    "bert": {},
    "distilbert": {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"},
    "electra": {},
    "mobilebert": {},
    "mbert-inverted-bottleneck": {},
    "mbert-bi-encoder": {},
    "mbert-early-exit": {},
    "mbert-bilstm": {},
}
SIZES = ("hidden_size", "vocab_size")
LAYERS = ("num_hidden_layers", "num_attention_heads")  # of all but recurrent networks
PROBLEM_TYPES = (None, "regression", "single_label_classification", "multi_label_classification")
UNNAMED = {"0": "LABEL_0", "1": "LABEL_1"}  # what transformers takes where a file names no labels


# What a class of this package works out of its keys: only counting operations asks for it, and it is asked of the class.
WORKED_OUT = {"mbert-bi-encoder": ("head_width",), "mbert-bilstm": ("head_width", "input_size")}


class ExportedConfig(SimpleNamespace):
    """The values of a config.json as attributes, label names by number, `num_labels` their number, `directory` its place."""

    def __getattr__(self, name: str) -> Any:
        """Returns what the file does not state and its class works out; that loads transformers."""
        values = self.__dict__
        if name not in WORKED_OUT.get(values.get("model_type", ""), ()):
            raise AttributeError(name)
        from microbert_cli.models.config import read_config

        return getattr(read_config(values["directory"], where="model"), name)


def read_exported_config(directory: Path) -> ExportedConfig | None:
    """Returns the configuration of an export; None where only transformers can say what it is."""
    with suppress(OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        values = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        config = _config(values, labels=None)
        if config is not None:
            config.directory = directory
        return config
    return None


def _config(values: dict[str, Any], labels: ExportedConfig | None) -> ExportedConfig | None:
    """Returns the values as a configuration; `labels`: that of the model around it, whose labels are its own."""
    aliases = TYPES.get(values["model_type"])
    if aliases is None or "auto_map" in values or values.get("problem_type") not in PROBLEM_TYPES:
        return None
    names = {int(number): name for number, name in (values.get("id2label") or UNNAMED).items()}
    if sorted(names) != list(range(len(names))) or values.get("num_labels", len(names)) != len(names):
        return None
    sizes = {name: values[key] for name, key in aliases.items()}
    config = ExportedConfig(**{"problem_type": None, **values, **sizes, "id2label": names, "num_labels": len(names)})
    if labels is not None:
        config.id2label, config.num_labels, config.problem_type = labels.id2label, labels.num_labels, labels.problem_type
    architecture = architecture_of(values["model_type"]) if values["model_type"] != "mbert-early-exit" else None
    if architecture is None:
        return _around(config, values)
    required = [*SIZES, "pad_token_id"]
    required += [] if architecture.recurrent else [*LAYERS, architecture.inner]
    required += [architecture.positions] if architecture.positions else []
    is_whole = all(hasattr(config, name) for name in required)
    return config if is_whole and all(type(getattr(config, name)) is int for name in required[:2]) else None


def _around(config: ExportedConfig, values: Mapping[str, Any]) -> ExportedConfig | None:
    """Returns the configuration of a model with exits, that of the classifier within under `classifier_config`."""
    inner = _config(values["classifier"], labels=config)
    if inner is None or not all(name in values for name in ("speed", "exit_layers", "branch", "score_spread")):
        return None
    config.classifier_config = inner
    return config
