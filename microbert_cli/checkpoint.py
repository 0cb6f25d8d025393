"""Model directories: plain Hugging Face, written whole; and the resume state beside them, never mixed with the model.

Of several processes only the main one writes here; all of them may call, and all may read what was written before they met.
"""

import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from microbert_cli import processes, sources
from microbert_cli.errors import MbertError

RESUME = "resume"
PROJECTION = "projection.safetensors"
FIT_DENSE = "fit_dense."
NOT_TENSORS = ValueError("pytorch_model.bin is damaged, or a pickle of more than tensors, which is never executed")


def save_model(model: Any, tokenizer: Any, directory: Path, *, projection: Mapping[str, Tensor] | None = None) -> None:
    """Writes a directory that transformers alone can load; the projection goes under resume/, since it is training state."""
    if not processes.is_main():
        return
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / ".saving"
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary, safe_serialization=True)
    tokenizer.save_pretrained(temporary)
    if projection is not None:
        (temporary / RESUME).mkdir()
        save_file({name: value.contiguous() for name, value in projection.items()}, temporary / RESUME / PROJECTION)
    for file in sorted(path for path in temporary.rglob("*") if path.is_file()):
        target = directory / file.relative_to(temporary)
        target.parent.mkdir(exist_ok=True)
        _sync(file)
        file.replace(target)
    shutil.rmtree(temporary)


def copy_model(source: Path, target: Path) -> None:
    """Copies the model files of one directory into another, resume state and logs left behind."""
    if not processes.is_main():
        return
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix in (".json", ".txt", ".safetensors", ".model") and file.name not in OURS:
            shutil.copyfile(file, target / file.name)
    if (source / RESUME / PROJECTION).is_file():
        (target / RESUME).mkdir(exist_ok=True)
        shutil.copyfile(source / RESUME / PROJECTION, target / RESUME / PROJECTION)


OURS = ("manifest.json", "metrics.json", "begun.json", "seed.json")


def read_projection(directory: str | Path) -> dict[str, Tensor] | None:
    """The trained map from student to teacher width: our own file, or `fit_dense.*` of a released TinyBERT checkpoint."""
    directory = Path(directory)
    own = directory / RESUME / PROJECTION
    if own.is_file():
        return load_file(own)
    weights = _released_weights(directory)
    found = {key.removeprefix(FIT_DENSE): value for key, value in weights.items() if key.startswith(FIT_DENSE)}
    return found or None


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
            raise sources.unreadable(directory, "weights of", NOT_TENSORS) from None
    return {}


def read_json(path: Path, *, where: str) -> dict[str, Any]:
    """A JSON object from a file; raises M302 where it is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise sources.unreadable(path.parent, where, error) from error


def save_state(state: Mapping[str, Any], directory: Path) -> None:
    """Writes the whole training state atomically: a crash leaves the one before."""
    if not processes.is_main():
        return
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / ".state.tmp"
    torch.save(dict(state), temporary)
    _sync(temporary)
    temporary.replace(directory / "state.pt")


def load_state(directory: Path) -> dict[str, Any] | None:
    """The last training state, or None; raises M304 where it is damaged."""
    path = directory / "state.pt"
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except Exception as error:
        raise _damaged_state(path) from error


def read_scores(path: Path) -> dict[str, Any]:
    """What a finished seed came to; raises M304 where the file is damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise _damaged_state(path) from error


def _damaged_state(path: Path) -> MbertError:
    return MbertError(
        "M304",
        "the resume state is damaged",
        where=str(path),
        allowed="A state written by the same command.",
        fix="Begin anew, the old work is moved aside: the same command with --no-resume",
    )


def drop_states(directory: Path) -> None:
    """Removes what a stopped run would have gone on from, once the model is saved; it is larger than the model."""
    if not processes.is_main():
        return
    shutil.rmtree(directory / RESUME / "phases", ignore_errors=True)
    if (directory / RESUME).is_dir() and not any((directory / RESUME).iterdir()):
        (directory / RESUME).rmdir()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
