"""Writes, copies and reads model directories: plain Hugging Face files."""

import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from microbert_cli import distributed
from microbert_cli.errors import unreadable_model
from microbert_cli.runs import atomic

RESUME = "resume"  # the folder of training state beside a model
SCORES_FILE = "seed.json"
PROJECTION_FILE = "projection.safetensors"
FIT_DENSE = "fit_dense."  # what TinyBERT's released checkpoints call the projection
NOT_TENSORS = ValueError("pytorch_model.bin is damaged, or a pickle of more than tensors, which is never executed")


def save_model(model: Any, tokenizer: Any, directory: Path, *, projection: Mapping[str, Tensor] | None = None) -> None:
    """Writes a directory that transformers alone can load; the projection goes under resume/, since it is training state."""
    if not distributed.is_main():
        return
    directory.mkdir(parents=True, exist_ok=True)
    # Files are written beside and moved when they are whole, so that a kill leaves the old model or the new one.
    temporary = directory / ".saving"
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary, safe_serialization=True)
    tokenizer.save_pretrained(temporary)
    if projection is not None:
        (temporary / RESUME).mkdir()
        save_file({name: value.contiguous() for name, value in projection.items()}, temporary / RESUME / PROJECTION_FILE)
    for file in sorted(path for path in temporary.rglob("*") if path.is_file()):
        target = directory / file.relative_to(temporary)
        target.parent.mkdir(exist_ok=True)
        atomic.apply_umask(file)
        atomic.fsync(file)
        file.replace(target)
    shutil.rmtree(temporary)


def copy_model(source: Path, target: Path) -> None:
    """Copies the model files of one directory into another, resume state and logs left behind."""
    if not distributed.is_main():
        return
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix in (".json", ".txt", ".safetensors", ".model") and file.name not in MBERT_FILES:
            shutil.copyfile(file, target / file.name)
    if (source / RESUME / PROJECTION_FILE).is_file():
        (target / RESUME).mkdir(exist_ok=True)
        shutil.copyfile(source / RESUME / PROJECTION_FILE, target / RESUME / PROJECTION_FILE)


MBERT_FILES = ("manifest.json", "metrics.json", "begun.json", SCORES_FILE)


def read_projection(directory: str | Path) -> dict[str, Tensor] | None:
    """Reads the trained map from student to teacher width: mbert's file, or `fit_dense.*` of a released TinyBERT."""
    directory = Path(directory)
    if (file := directory / RESUME / PROJECTION_FILE).is_file():
        return load_file(file)
    weights = _released_weights(directory)
    return {key.removeprefix(FIT_DENSE): value for key, value in weights.items() if key.startswith(FIT_DENSE)} or None


def _released_weights(directory: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    if (file := directory / "model.safetensors").is_file():
        with safe_open(file, "pt") as tensors:
            return {key: tensors.get_tensor(key) for key in tensors.keys() if key.startswith(FIT_DENSE)}  # noqa: SIM118
    if (file := directory / "pytorch_model.bin").is_file():
        try:
            weights: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
            return weights
        except (pickle.UnpicklingError, RuntimeError, EOFError):
            raise unreadable_model(directory, "weights of", NOT_TENSORS) from None
    return {}
