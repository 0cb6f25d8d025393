"""Model directories: plain Hugging Face, written whole; and the resume state beside them, never mixed with the model.

Of several processes only the main one writes here; all of them may call, and all may read what was written before they met.
"""

import pickle
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from microbert_cli import distributed
from microbert_cli.errors import MbertError
from microbert_cli.models.save import RESUME, SCORES_FILE
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import atomic, manifest


def save_state(state: Mapping[str, Any], directory: Path, *, keep: int = 2) -> None:
    """Writes the whole training state under a name that holds step and checksum; the last `keep` of a phase stay."""
    if not distributed.is_main():
        return
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / ".state.tmp"
    with temporary.open("wb") as file:  # torch's own file says of a full disk neither that it is full nor that it is a disk
        torch.save(dict(state), file)
    named = atomic.rename_by_checksum(temporary, f"step-{state['step']:08d}", ".pt")
    for old in [path for path in _states(directory) if path != named][max(0, keep - 1) :]:
        old.unlink()


def load_state(directory: Path, reporter: Reporter = SILENT) -> dict[str, Any] | None:
    """The last training state that is what was written, or None. A damaged one is named, moved aside and passed over.

    Raises M304 for one that mbert did not write: more than tensors and plain values is never unpickled.
    """
    path = distributed.on_main_process(lambda: _last_whole(directory, reporter))
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


def _last_whole(directory: Path, reporter: Reporter) -> Path | None:
    for path in _states(directory):
        if atomic.matches_name_checksum(path):
            return path
        reporter.warn(f"{path} is damaged and was moved aside; an earlier state, or the beginning of the phase, serves")
        path.replace(path.with_suffix(".damaged"))
    return None


def _states(directory: Path) -> list[Path]:
    """The latest first."""
    return sorted(directory.glob("step-*.pt"), key=lambda path: path.name, reverse=True)


def save_batches(batches: Sequence[Mapping[str, Tensor]], path: Path) -> Path:
    """The tensors of some batches as a file to look at: `0.input_ids` and so on."""
    if distributed.is_main():
        tensors = {f"{i}.{name}": value.cpu().contiguous() for i, batch in enumerate(batches) for name, value in batch.items()}
        with atomic.atomic_write(path) as temporary:
            save_file(tensors, temporary)
    return path


def read_scores(place: Path) -> dict[str, Any] | None:
    """What a finished seed came to, or None where there is no word of it, or its files are no longer what they were."""
    try:
        told = atomic.load_with_checksum((place / SCORES_FILE).read_text(encoding="utf-8"))
        scores: dict[str, Any] = told["scores"]
        return None if atomic.damaged_files(place, told["files"]) else scores
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def write_scores(place: Path, scores: Mapping[str, Any]) -> None:
    """Says that a seed is done, what it came to, and what its files are."""
    if not distributed.is_main():
        return
    told = manifest.output_digests(place).items()
    model = {name: found for name, found in told if name.endswith((".safetensors", ".json")) and name != SCORES_FILE}
    atomic.write_text(place / SCORES_FILE, atomic.dump_with_checksum({"scores": scores, "files": model}))


def drop_states(directory: Path) -> None:
    """Removes what a stopped run would have gone on from, once the model is saved; it is larger than the model."""
    if not distributed.is_main():
        return
    shutil.rmtree(directory / RESUME / "phases", ignore_errors=True)
    if (directory / RESUME).is_dir() and not any((directory / RESUME).iterdir()):
        (directory / RESUME).rmdir()
