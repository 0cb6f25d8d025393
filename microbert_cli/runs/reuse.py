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
    wanted = atomic.digest(identity)
    for place in _output_directories(runs):
        try:
            made = manifest.read(place)
            if (made.get("stage"), made["identity_hash"]) == (stage, wanted) and _copy_files(place, made["outputs"], copy):
                return place
        except (MbertError, OSError):
            shutil.rmtree(copy, ignore_errors=True)
    return None


def matching_output(runs: Sequence[str], stage: str, recipe: Mapping[str, Any]) -> Path | None:
    """What one of these runs made of the same recipe keys as a manifest has them, inputs not compared.

    None for a stage that looks for none.
    """
    for place in _output_directories(runs if find_stage(stage).reusable else ()):
        with suppress(MbertError, OSError):
            made = manifest.read(place)
            if (made.get("stage"), made["identity"].get("recipe")) == (stage, recipe):
                return place
    return None


def _output_directories(runs: Sequence[str]) -> Iterator[Path]:
    for run in map(Path, runs):
        yield from (file.parent for file in (run / manifest.FILE, *sorted(run.glob(f"*/{manifest.FILE}"))) if file.is_file())


def _copy_files(place: Path, outputs: Mapping[str, str], copy: Path) -> bool:
    if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in outputs):
        return False
    if copy.is_symlink():
        copy.unlink()  # what is written must not leave the output's folder
    shutil.rmtree(copy, ignore_errors=True)  # left by a run that was killed
    for name in (*outputs, manifest.FILE):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place / name, copy / name)
        atomic.fsync(copy / name)
    for folder in {(copy / name).parent for name in (*outputs, manifest.FILE)}:
        atomic.fsync(folder)
    whole = not atomic.damaged_files(copy, outputs)
    if not whole:
        shutil.rmtree(copy)
    return whole
