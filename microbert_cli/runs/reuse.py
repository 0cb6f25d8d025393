"""Work that other runs have done: an output of exactly these keys and inputs, copied from there instead of made again."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from microbert_cli.errors import MbertError
from microbert_cli.runs import atomic, manifest
from microbert_cli.runs.stage_registry import find_stage


def copy_output(runs: Sequence[str], stage: str, identity: Mapping[str, Any], copy: Path) -> Path | None:
    """Copies what one of these runs made of the same identity to the directory `copy`, and says where it was found.

    runs  folders of runs, or single outputs; one that is not there, or holds nothing of the kind, is passed over
    The copy has the manifest's files and no others, and is compared with their hashes: what is damaged is not taken.
    """
    identity_hash = atomic.digest(identity)
    for directory in _output_directories(runs):
        try:
            record = manifest.read(directory)
            if (record.get("stage"), record["identity_hash"]) == (stage, identity_hash) and _copy_files(
                directory, record["outputs"], copy
            ):
                return directory
        except (MbertError, OSError):
            shutil.rmtree(copy, ignore_errors=True)
    return None


def matching_output(runs: Sequence[str], stage: str, recipe: Mapping[str, Any]) -> Path | None:
    """Returns what one of these runs made with the same recipe keys as a manifest has them; inputs are not compared.

    None for a stage that looks for none.
    """
    for directory in _output_directories(runs if find_stage(stage).reusable else ()):
        with suppress(MbertError, OSError):
            record = manifest.read(directory)
            if (record.get("stage"), record["identity"].get("recipe")) == (stage, recipe):
                return directory
    return None


def _output_directories(runs: Sequence[str]) -> Iterator[Path]:
    for run in map(Path, runs):
        yield from (file.parent for file in (run / manifest.FILE, *sorted(run.glob(f"*/{manifest.FILE}"))) if file.is_file())


def _copy_files(directory: Path, outputs: Mapping[str, str], copy: Path) -> bool:
    if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in outputs):
        return False
    if copy.is_symlink():
        copy.unlink()  # what is written must not leave the output's folder
    shutil.rmtree(copy, ignore_errors=True)  # left by a run that was killed
    for name in (*outputs, manifest.FILE):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(directory / name, copy / name)
        atomic.fsync(copy / name)
    for folder in {(copy / name).parent for name in (*outputs, manifest.FILE)}:
        atomic.fsync(folder)
    is_intact = not atomic.damaged_files(copy, outputs)
    if not is_intact:
        shutil.rmtree(copy)
    return is_intact
