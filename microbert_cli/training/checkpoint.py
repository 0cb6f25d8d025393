"""What training saves and restores: the resume state, the best weights, scores of finished seeds, random generators.

The resume state lies beside the model directory's Hugging Face files and is never mixed with them. Of several processes only
the main one writes; all of them call these functions, and read once the main one has written.
"""

import pickle
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from microbert_cli import distributed
from microbert_cli.errors import MbertError
from microbert_cli.models.save import RESUME, SCORES_FILE
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import atomic, manifest

RandomState = dict[str, Any]


class BestWeights:
    """The best weights by each of several metrics; in a run of several tasks, the best for each task alone.

    The model that such a run keeps is the best by the mean over its tasks; for one task another step may have been better.

    metrics  names among the scores of an evaluation; without any, nothing is stored
    records  metric -> step, all scores at that step, and the weights
    """

    def __init__(self, metrics: Sequence[str] = ()):
        self.metrics = list(metrics)
        self.records: dict[str, dict[str, Any]] = {}

    def empty(self) -> "BestWeights":
        """Returns a tracker of the same metrics with nothing stored."""
        return BestWeights(self.metrics)

    def update(self, step: int, scores: Mapping[str, float], model: nn.Module) -> None:
        """Stores the model's weights for every metric that improved; metrics that improve together share one copy."""
        improved = [
            name for name in self.metrics if name not in self.records or scores[name] > self.records[name]["scores"][name]
        ]
        if not improved:
            return
        weights: dict[str, Tensor] = {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}
        self.records |= {name: {"step": step, "scores": dict(scores), "weights": weights} for name in improved}


def random_state() -> RandomState:
    """Returns the state of torch's random generators, on the CPU and on every GPU."""
    return {"cpu": torch.get_rng_state(), "gpu": torch.cuda.get_rng_state_all()}


def set_random_state(state: RandomState) -> None:
    """Restores the state of torch's random generators."""
    torch.set_rng_state(state["cpu"])
    torch.cuda.set_rng_state_all(state["gpu"])


def save_state(state: Mapping[str, Any], directory: Path, *, keep: int = 2) -> None:
    """Writes the training state under a name that holds step and checksum, and deletes all but the last `keep` of a phase."""
    if not distributed.is_main():
        return
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / ".state.tmp"
    with temporary.open("wb") as file:  # torch.save to a path hides ENOSPC behind a message without an errno
        torch.save(dict(state), file)
    newest = atomic.rename_by_checksum(temporary, f"step-{state['step']:08d}", ".pt")
    for old in [path for path in _states(directory) if path != newest][max(0, keep - 1) :]:
        old.unlink()


def load_state(directory: Path, reporter: Reporter = SILENT) -> dict[str, Any] | None:
    """Loads the latest intact training state, or returns None; a damaged one is reported and moved aside.

    Raises M304 for a file that mbert did not write.
    """
    path = distributed.on_main_process(lambda: _latest_intact(directory, reporter))
    try:
        # weights_only: a pickle of anything but tensors and plain values could run code
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


def _latest_intact(directory: Path, reporter: Reporter) -> Path | None:
    for path in _states(directory):
        if atomic.matches_name_checksum(path):
            return path
        reporter.warn(f"{path} is damaged and was moved aside; an earlier state, or the beginning of the phase, serves")
        path.replace(path.with_suffix(".damaged"))
    return None


def _states(directory: Path) -> list[Path]:
    """Returns the saved states, the latest first."""
    return sorted(directory.glob("step-*.pt"), key=lambda path: path.name, reverse=True)


def save_batches(batches: Sequence[Mapping[str, Tensor]], path: Path) -> Path:
    """Writes the tensors of some batches to a file for inspection, named `0.input_ids` and so on."""
    if distributed.is_main():
        tensors = {f"{i}.{name}": value.cpu().contiguous() for i, batch in enumerate(batches) for name, value in batch.items()}
        with atomic.atomic_write(path) as temporary:
            save_file(tensors, temporary)
    return path


def read_scores(directory: Path) -> dict[str, Any] | None:
    """Reads the scores of a finished seed; returns None where there are none, or where its files have changed since."""
    try:
        record = atomic.load_with_checksum((directory / SCORES_FILE).read_text(encoding="utf-8"))
        scores: dict[str, Any] = record["scores"]
        return None if atomic.damaged_files(directory, record["files"]) else scores
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def write_scores(directory: Path, scores: Mapping[str, Any]) -> None:
    """Records that a seed is finished, with its scores and the hashes of its files."""
    if not distributed.is_main():
        return
    digests = manifest.output_digests(directory).items()
    model = {name: digest for name, digest in digests if name.endswith((".safetensors", ".json")) and name != SCORES_FILE}
    atomic.write_text(directory / SCORES_FILE, atomic.dump_with_checksum({"scores": scores, "files": model}))


def drop_states(directory: Path) -> None:
    """Removes the resume states once the model is saved; with the optimiser's moments they are larger than the model."""
    if not distributed.is_main():
        return
    shutil.rmtree(directory / RESUME / "phases", ignore_errors=True)
    if (directory / RESUME).is_dir() and not any((directory / RESUME).iterdir()):
        (directory / RESUME).rmdir()
