"""Model directories: plain Hugging Face, written whole; and the resume state beside them, never mixed with the model.

Of several processes only the main one writes here; all of them may call, and all may read what was written before they met.
"""

import json
import pickle
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from microbert_cli import durable, manifest, processes, sources
from microbert_cli.errors import MbertError
from microbert_cli.tracking import SILENT, Talk

RESUME = "resume"
SCORES = "seed.json"
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
        durable.sync(file)
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


OURS = ("manifest.json", "metrics.json", "begun.json", SCORES)


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
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"{path.name} is JSON, but no object")
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise sources.unreadable(path.parent, where, error) from error


def save_state(state: Mapping[str, Any], directory: Path, *, keep: int = 2) -> None:
    """Writes the whole training state under a name that holds step and checksum; the last `keep` of a phase stay."""
    if not processes.is_main():
        return
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / ".state.tmp"
    with temporary.open("wb") as file:  # torch's own file says of a full disk neither that it is full nor that it is a disk
        torch.save(dict(state), file)
    named = durable.name_by_content(temporary, f"step-{state['step']:08d}", ".pt")
    for old in [path for path in _states(directory) if path != named][max(0, keep - 1) :]:
        old.unlink()


def load_state(directory: Path, talk: Talk = SILENT) -> dict[str, Any] | None:
    """The last training state that is what was written, or None. A damaged one is named, moved aside and passed over.

    Raises M304 for one that mbert did not write: more than tensors and plain values is never unpickled.
    """
    path = processes.on_main(lambda: _last_whole(directory, talk))
    try:
        state: dict[str, Any] | None = torch.load(path, map_location="cpu", weights_only=True) if path else None
        return state
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise MbertError(
            "M304",
            "this is no resume state of mbert's",
            where=str(path),
            allowed="A state written by the same command: tensors and plain values.",
            fix="Begin anew, the old work is moved aside: the same command with --no-resume",
        ) from error


def _last_whole(directory: Path, talk: Talk) -> Path | None:
    for path in _states(directory):
        if durable.is_as_named(path):
            return path
        talk.warn(f"{path} is damaged and was moved aside; an earlier state, or the beginning of the phase, serves")
        path.replace(path.with_suffix(".damaged"))
    return None


def _states(directory: Path) -> list[Path]:
    """The latest first."""
    return sorted(directory.glob("step-*.pt"), key=lambda path: path.name, reverse=True)


def save_batches(batches: Sequence[Mapping[str, Tensor]], path: Path) -> Path:
    """The tensors of some batches as a file to look at: `0.input_ids` and so on."""
    if processes.is_main():
        tensors = {f"{i}.{name}": value.cpu().contiguous() for i, batch in enumerate(batches) for name, value in batch.items()}
        with durable.writing(path) as temporary:
            save_file(tensors, temporary)
    return path


def read_scores(place: Path) -> dict[str, Any] | None:
    """What a finished seed came to, or None where there is no word of it, or its files are no longer what they were."""
    try:
        told = durable.unseal((place / SCORES).read_text(encoding="utf-8"))
        scores: dict[str, Any] = told["scores"]
        return None if durable.damaged(place, told["files"]) else scores
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def write_scores(place: Path, scores: Mapping[str, Any]) -> None:
    """Says that a seed is done, what it came to, and what its files are."""
    if not processes.is_main():
        return
    told = manifest.outputs_of(place).items()
    model = {name: found for name, found in told if name.endswith((".safetensors", ".json")) and name != SCORES}
    durable.write_text(place / SCORES, durable.seal({"scores": scores, "files": model}))


def drop_states(directory: Path) -> None:
    """Removes what a stopped run would have gone on from, once the model is saved; it is larger than the model."""
    if not processes.is_main():
        return
    shutil.rmtree(directory / RESUME / "phases", ignore_errors=True)
    if (directory / RESUME).is_dir() and not any((directory / RESUME).iterdir()):
        (directory / RESUME).rmdir()
