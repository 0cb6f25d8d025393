"""Reads the configurations of checkpoints, without anything in them that would run code."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig

from microbert_cli.errors import MbertError, unreadable_model
from microbert_cli.models.find import read_json as read_json
from microbert_cli.recipe.registry import Catalog

NO_CODE = {"trust_remote_code": False}  # without it transformers asks on stdin, from which `mbert predict` reads texts
OWN_MODEL_TYPES = "mbert-"


def writable_config(config: Any) -> Any:
    """Returns a copy of a configuration that can be saved: of an export that was read without transformers, what these read."""
    if hasattr(config, "save_pretrained"):
        return copy.deepcopy(config)
    return read_config(config.directory, where="model")


def read_config(path: str | Path, *, where: str) -> Any:
    """Reads the configuration of a checkpoint."""
    try:
        register_model_type(path)
        return without_code(AutoConfig.from_pretrained(path, **NO_CODE))
    except Exception as error:  # a foreign file fails in more ways than can be listed
        raw = read_json(Path(path) / "config.json", where=where)
        if "auto_map" in raw:
            raise _brings_code(path, where) from error
        if "model_type" in raw or "num_hidden_layers" not in raw:
            raise unreadable_model(path, where, error) from error
        # Released TinyBERT checkpoints name no model_type: they are BERT, with two keys of their own.
        fields = {key: value for key, value in raw.items() if key not in ("pre_trained", "training")}
        try:
            return without_code(transformers.BertConfig(**fields))
        except Exception as bert_error:
            raise unreadable_model(path, where, bert_error) from error


def register_model_type(model: str | Path | Mapping[str, Any]) -> None:
    """Registers a model type of this package, of a directory or a description, with transformers' Auto classes."""
    description = model if isinstance(model, Mapping) else read_json(Path(model) / "config.json", where="")
    model_type = str(description.get("model_type", ""))
    if model_type.startswith(OWN_MODEL_TYPES):
        Catalog().register_model_type(model_type)


def without_code(config: Any) -> Any:
    """Removes what names code from a configuration: files to run, and attention kernels to fetch from the Hub."""
    for name in ("auto_map", "custom_pipelines"):
        config.__dict__.pop(name, None)
    config._attn_implementation = None
    return config


def _brings_code(path: str | Path, where: str) -> MbertError:
    return MbertError(
        "M374",
        "this model is code of its own, and code from a model's directory is never run",
        where=f"{where} {path}",
        allowed="A model of an architecture that transformers itself has, such as BERT, RoBERTa, DistilBERT, ELECTRA.",
        fix="Choose another model, or convert this one to such an architecture.",
    )
