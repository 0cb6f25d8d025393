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
    """The state of one directory or file, and its role for the directory that was asked about.

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
    """Checks a directory and everything it was made from; of a run's folder every stage. Raises M210 where none is finished."""
    seen: set[Path] = set()
    if output := manifest.output_of(directory):  # of the model of a seed or a task the output that it is in
        return list(_verify_with_sources(output, "itself", None, seen))
    stages = sorted(path.parent for path in directory.glob(f"*/{manifest.FILE}") if ".old-" not in path.parent.name)
    if not stages:
        raise manifest.unfinished_output(directory)
    return [result for stage in stages for result in _verify_with_sources(stage, "itself", None, seen)]


def _verify_with_sources(path: Path, role: str, used: str | None, seen: set[Path]) -> Iterator[VerifiedDirectory]:
    """Yields the state of one file or directory, then of what it was made from.

    used  the digest it had when it was read, where that is known
    """
    if path.resolve() in seen:
        return
    seen.add(path.resolve())
    if not path.exists():
        yield VerifiedDirectory(str(path), role, ABSENT)
        return
    if not (path / manifest.FILE).is_file():
        same = used is None or manifest.identify(path) == used
        yield VerifiedDirectory(str(path), role, INTACT if same else CHANGED)
        return
    try:
        record = manifest.read(path)
    except MbertError as error:
        yield VerifiedDirectory(str(path), role, DAMAGED, [error.what])
        return
    yield _verify_stage(path, role, used, record)
    for name, source in record.get("sources", {}).items():
        digest = record["inputs"].get(name)
        yield from _verify_with_sources(_relative_path(path, source), f"{name} of {path.name}", digest, seen)


def _verify_stage(path: Path, role: str, used: str | None, record: dict[str, Any]) -> VerifiedDirectory:
    if damage := atomic.damaged_files(path, record["outputs"]):
        return VerifiedDirectory(str(path), role, DAMAGED, damage)
    added = [f"{name} was added" for name in manifest.output_digests(path) if name not in record["outputs"]]
    return VerifiedDirectory(str(path), role, INTACT if used in (None, record["result"]) else CHANGED, added)


def _relative_path(directory: Path, path: str) -> Path:
    """Returns a path that a manifest gives as seen from its own directory, shortened where it lies below the current one."""
    resolved = (directory / path).resolve()
    return resolved.relative_to(Path.cwd()) if resolved.is_relative_to(Path.cwd()) else resolved
