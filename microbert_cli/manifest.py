"""What made a directory: identity, inputs, versions, seeds, outputs. Written last; a directory without one is unfinished.

The identity is what decides whether work is up to date: recipe keys that matter to the stage, and the hashes of its inputs.
Times, machines and paths are recorded beside it and never compared.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from microbert_cli import processes
from microbert_cli.errors import MbertError
from microbert_cli.version import __version__

FILE = "manifest.json"
SCHEMA = 1
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "safetensors", "onnxruntime", "accelerate")
WEIGHTS = (".safetensors", ".bin", ".onnx")


def digest(value: Any) -> str:
    """sha256 of a JSON-able value, independent of key order."""
    text = json.dumps(value, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def arrays_digest(*arrays: Any) -> str:
    """sha256 of arrays' bytes, in order."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(memoryview(array).cast("B"))
        found.update(b"|")
    return found.hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identify(source: str | Path | None) -> str | None:
    """A stable name for an input's content.

    A directory made by mbert: its manifest's hash of outputs; any other directory: the hash of its files' hashes; a file: its
    hash; anything else (a Hub id, a built-in name): the text itself.
    """
    if source is None:
        return None
    path = Path(source)
    if path.is_dir():
        made = read(path) if (path / FILE).is_file() else None
        return made["result"] if made else digest(_hashes(path))
    return file_digest(path) if path.is_file() else str(source)


def read(directory: Path) -> dict[str, Any]:
    """A directory's manifest; raises M210 where there is none, M301 where it is damaged."""
    path = directory / FILE
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if _is_whole(manifest):
            return manifest
        raise TypeError
    except FileNotFoundError:
        raise unfinished(directory) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise MbertError(
            "M301",
            "this manifest is damaged",
            where=str(path),
            allowed="A JSON object as mbert writes it, with identity and result.",
            fix=f"Move the directory aside and make it again: mv {directory} {directory}.damaged",
        ) from None


def _is_whole(manifest: Any) -> bool:
    """Whether what others read of it has the shape that `write` gives it."""
    parts = (manifest["identity"], manifest.get("recipe", {}))
    return all(isinstance(part.get("data", {}), dict) for part in parts) and isinstance(
        manifest["identity_hash"] + manifest["result"], str
    )


def unfinished(directory: Path) -> MbertError:
    """The error for a directory that a stage did not finish."""
    partial = partial_path(directory)
    begun = partial if partial.is_dir() else directory
    return MbertError(
        "M210",
        "this is no finished output: it has no manifest.json",
        where=str(directory),
        allowed="A directory that a stage of mbert finished, or a plain Hugging Face model directory.",
        fix=f"Finish it: {finishing_command(begun)}",
    )


def partial_path(out: Path) -> Path:
    """Where a stage works until it is done."""
    return out.with_name(out.name + ".partial")


def finishing_command(partial: Path) -> str:
    """The command line that began this work, as noted when it began."""
    try:
        argv = json.loads((partial / "begun.json").read_text(encoding="utf-8"))["argv"]
        return " ".join(argv)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return "run the stage that writes this directory again"


def write(directory: Path, *, stage: str, identity: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
    """Writes manifest.json atomically, after everything else."""
    outputs = _hashes(directory)
    manifest = {
        "schema": SCHEMA,
        "stage": stage,
        "status": "complete",
        "identity": dict(identity),
        "identity_hash": digest(identity),
        "outputs": outputs,
        "result": digest({name: value for name, value in outputs.items() if _is_result(name)}),
        "argv": command_line(),
        "git": _git_revision(),
        "versions": _versions(),
        "processes": processes.world(),
        "finished": now(),
        **facts,
    }
    write_text(directory / FILE, json.dumps(manifest, indent=2, default=str) + "\n")
    return manifest


def write_text(path: Path, text: str) -> None:
    """Writes a file so that it is there whole or not at all; of several processes the main one does."""
    if not processes.is_main():
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # two runs may write the same file at once
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def command_line() -> list[str]:
    """The command as typed, with the program's bare name."""
    name = Path(sys.argv[0]).name
    return ["mbert" if name == "__main__.py" else name, *sys.argv[1:]]


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _hashes(directory: Path) -> dict[str, str]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    relative = {path.relative_to(directory).as_posix(): path for path in files}
    return {name: file_digest(path) for name, path in relative.items() if _is_output(name)}


def _is_output(name: str) -> bool:
    return name not in (FILE, "begun.json") and not name.startswith(".")


def _is_result(name: str) -> bool:
    """Logs and cards tell of a run; what the next stage reads is the result."""
    return not name.endswith((".jsonl", ".md", "recipe.resolved.toml"))


def _versions() -> dict[str, str]:
    found = {"mbert": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git_revision() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
