"""Whether a directory is what was made, and so is everything that it was made from."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from microbert_cli.errors import MbertError
from microbert_cli.runs import atomic, manifest

INTACT, DAMAGED, CHANGED, ABSENT = "whole", "damaged", "changed", "not here"


@dataclass(frozen=True)
class VerifiedDirectory:
    """One directory or file: what it is to the one that was asked about, its state, and what was found.

    whole     as its manifest says; a file or a foreign directory: as it was when it was used
    damaged   files are gone or altered
    changed   another one lies there now, itself whole, than the one that was used
    not here  gone, or left behind when the others were moved; nothing can be said of it
    """

    place: str
    role: str
    state: str
    notes: list[str] = field(default_factory=list)

    @property
    def is_wrong(self) -> bool:
        return self.state in (DAMAGED, CHANGED)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify_directory(directory: Path) -> list[VerifiedDirectory]:
    """The directory and its whole ancestry; of a run's folder every stage in it. Raises M210 where nothing was finished."""
    seen: set[Path] = set()
    if (directory / manifest.FILE).is_file():
        return list(_verify_with_sources(directory, "itself", None, seen))
    stages = sorted(path.parent for path in directory.glob(f"*/{manifest.FILE}") if ".old-" not in path.parent.name)
    if not stages:
        raise manifest.unfinished_output(directory)
    return [one for stage in stages for one in _verify_with_sources(stage, "itself", None, seen)]


def _verify_with_sources(place: Path, role: str, used: str | None, seen: set[Path]) -> Iterator[VerifiedDirectory]:
    """One place, then what it was made from.

    used  what it was when it was read, where that is known
    """
    if place.resolve() in seen:
        return
    seen.add(place.resolve())
    if not place.exists():
        yield VerifiedDirectory(str(place), role, ABSENT)
        return
    if not (place / manifest.FILE).is_file():
        same = used is None or manifest.identify(place) == used
        yield VerifiedDirectory(str(place), role, INTACT if same else CHANGED)
        return
    try:
        made = manifest.read(place)
    except MbertError as error:
        yield VerifiedDirectory(str(place), role, DAMAGED, [error.what])
        return
    yield _verify_stage(place, role, used, made)
    for name, path in made.get("sources", {}).items():
        yield from _verify_with_sources(_relative_path(place, path), f"{name} of {place.name}", made["inputs"].get(name), seen)


def _verify_stage(place: Path, role: str, used: str | None, made: dict[str, Any]) -> VerifiedDirectory:
    if wrong := atomic.damaged_files(place, made["outputs"]):
        return VerifiedDirectory(str(place), role, DAMAGED, wrong)
    added = [f"{name} was added" for name in manifest.output_digests(place) if name not in made["outputs"]]
    return VerifiedDirectory(str(place), role, INTACT if used in (None, made["result"]) else CHANGED, added)


def _relative_path(place: Path, path: str) -> Path:
    """A path as seen from a directory, without the detours."""
    found = (place / path).resolve()
    return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found
