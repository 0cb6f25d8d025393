"""What made a directory: identity, inputs, versions, seeds, outputs. Written last; a directory without one is unfinished.

The identity is what decides whether work is up to date: recipe keys that matter to the stage, and the hashes of its inputs.
Times, machines and paths are recorded beside it and never compared.
"""

import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from microbert_cli import distributed
from microbert_cli.errors import MbertError
from microbert_cli.runs import cache
from microbert_cli.runs.atomic import (
    CHECKSUM_KEY,
    apply_umask,
    damaged_files,
    digest,
    dump_with_checksum,
    file_digest,
    file_digests,
    fsync,
    load_with_checksum,
    write_text,
)
from microbert_cli.text import command_line, without_secrets
from microbert_cli.version import __version__

FILE = "manifest.json"
PAGE = "report.html"  # beside the outputs of a report or a comparison: it shows them, and may be written anew
SCHEMA = 2
WITHOUT_MANIFEST = (
    "Run the stage that writes it again. Of a copy of a finished output bring manifest.json along; or leave out "
    "recipe.resolved.toml and log.jsonl as well, so that the model's own files are left, which then nobody compares."
)
STARTED_FILES = ("begun.json", "recipe.resolved.toml")  # what a stage writes before its manifest
PART = re.compile(r"\.|seed-\d+|(seed-\d+/)?best/[^/]+")  # where models lie in an output
MODEL_SUFFIXES = (".onnx", ".xml")  # of files that stand for a model: ONNX, OpenVINO
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "safetensors", "onnxruntime", "accelerate")


def arrays_digest(*arrays: Any) -> str:
    """Returns the sha256 of arrays' bytes, in order."""
    checksum = hashlib.sha256()
    for array in arrays:
        checksum.update(memoryview(array).cast("B"))
        checksum.update(b"|")
    return checksum.hexdigest()


def identify(source: str | Path | None) -> str | None:
    """Returns a stable name for an input's content.

    A directory made by mbert: its manifest's hash of outputs, which are compared first; any other directory: the hash of its
    files' hashes; a file: its hash; anything else (a Hub id, a built-in name): the text itself.
    Raises M301, M306 where a directory made by mbert is no longer what was made.
    """
    if source is None:
        return None
    path = Path(source)
    model = model_home(path) if path.suffix in MODEL_SUFFIXES else path
    if model.is_dir() and (output := output_of(model)):
        verify_part(output, model)
    if path.is_dir():
        return str(read_verified(path)["result"]) if (path / FILE).is_file() else digest(output_digests(path))
    if path.suffix == ".xml" and path.is_file():  # OpenVINO's graph, whose weights lie beside it
        return digest(file_digests(path.parent, (file.name for file in path.parent.glob(f"{path.stem}.*"))))
    return file_digest(path) if path.is_file() else str(source)


def read(directory: Path) -> dict[str, Any]:
    """Returns a directory's manifest; raises M210 where there is none, M301 where it is damaged."""
    path = directory / FILE
    try:
        manifest = _parse(path.read_text(encoding="utf-8"))
        if _has_all_tables(manifest):
            return manifest
        raise TypeError("it lacks tables")
    except FileNotFoundError:
        raise unfinished_output(directory) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MbertError(
            "M301",
            f"this manifest is damaged: {error}",
            where=str(path),
            allowed="A JSON object as mbert writes it, with identity, outputs, result and its checksum.",
            fix="Move the directory aside and make it again: " + shlex.join(["mv", str(directory), f"{directory}.damaged"]),
        ) from None


def read_verified(directory: Path) -> dict[str, Any]:
    """Returns a directory's manifest once its outputs match it; raises M210, M301, and M306 naming the files."""
    manifest = read(directory)
    if damage := damaged_files(directory, manifest["outputs"], cache.remembered_digest):
        raise _changed_output(directory, manifest, damage)
    return manifest


def output_of(place: Path) -> Path | None:
    """Returns the output that a directory is, or is the model of a seed or a task in; None for any other directory."""
    directory = place.resolve()
    for depth, home in enumerate((directory, *directory.parents[:3])):
        if PART.fullmatch(directory.relative_to(home).as_posix()) and _has_manifest(home, any_kind=depth == 0):
            typed = Path(*place.parts[: len(place.parts) - depth])
            return typed if typed.resolve() == home else home  # in messages as the user typed it
    return None


def _has_manifest(directory: Path, *, any_kind: bool) -> bool:
    """Whether a manifest is there; one above a model may be that of something else, such as a web page."""
    try:
        text = (directory / FILE).read_bytes()
    except OSError:
        return False
    return any_kind or sum(word in text for word in (b'"identity"', b'"identity_hash"', b'"outputs"')) > 1


def model_home(path: Path) -> Path:
    """Returns the directory of a model; of one of its files the folder with config.json, which is its own or the one above."""
    if not path.is_file() or (path.parent / "config.json").is_file():
        return path.parent if path.is_file() else path
    is_typed = path.parent.name not in ("", "..")
    above = path.parent.parent if is_typed else Path(os.path.abspath(path)).parent.parent
    return above if (above / "config.json").is_file() else path.parent


def unfinished_home(part: Path) -> Path | None:
    """Returns the unfinished output whose seed's or task's model this is; None for any other directory."""
    directory = part.resolve()
    for home in directory.parents[:3]:
        if PART.fullmatch(directory.relative_to(home).as_posix()) and any((home / name).is_file() for name in STARTED_FILES):
            return home
    return None


def verify_part(output: Path, directory: Path, read_names: Sequence[str] = ()) -> None:
    """Checks that the model of a seed or a task in an output is what was made, and that nothing was laid beside it.

    read_names  the files that decide what a model answers: none of them may lie there that the stage did not write
    Raises M301, and M306 naming the files.
    """
    manifest = read(output)
    part = directory.resolve().relative_to(output.resolve()).as_posix()
    prefix = "" if part == "." else f"{part}/"
    outputs = {name: value for name, value in manifest["outputs"].items() if name.startswith(prefix)}
    damage = damaged_files(output, outputs, cache.remembered_digest)
    if f"{prefix}config.json" in outputs:
        added = (prefix + name for name in read_names if (directory / name).is_file() and prefix + name not in outputs)
        damage += [f"{name} was added" for name in added]
    if damage:
        raise _changed_output(output, manifest, damage)


def _changed_output(directory: Path, manifest: Mapping[str, Any], damage: Sequence[str]) -> MbertError:
    argv = shlex.join(map(str, manifest.get("argv", ["mbert", "..."])))
    added = [str(directory / text.removesuffix(" was added")) for text in damage if text.endswith(" was added")]
    again = f"Make it again, the old one is moved aside: {argv} --force"
    return MbertError(
        "M306",
        f"this output is no longer what was made: {', '.join(damage[:4])}",
        where=str(directory),
        allowed="The files that its manifest.json lists, as they were written.",
        fix=f"Take away what was added: rm {shlex.join(added)}" if len(added) == len(damage) else again,
    )


def _parse(text: str) -> dict[str, Any]:
    """Parses a manifest; those of schema 1 had no checksum."""
    plain: dict[str, Any] = json.loads(text)
    return (
        plain
        if isinstance(plain, dict) and plain.get("schema") == 1 and CHECKSUM_KEY not in plain
        else load_with_checksum(text)
    )


def _has_all_tables(manifest: Mapping[str, Any]) -> bool:
    """Whether what others read of it has the shape that `write` gives it."""
    tables = [manifest["identity"], manifest.get("recipe", {}), manifest["outputs"]]
    tables += [table.get("data", {}) for table in tables[:2]]
    lists = [manifest.get("argv", []), tables[1].get("tasks", [])]
    texts = [manifest["identity_hash"], manifest["result"], *lists[1]]
    return (
        all(isinstance(table, dict) for table in tables)
        and all(isinstance(values, list) for values in lists)
        and all(isinstance(text, str) for text in texts)
    )


def unfinished_output(directory: Path) -> MbertError:
    """Returns the error for a directory that a stage did not finish."""
    partial = partial_path(directory)
    unfinished = partial if partial.is_dir() else directory
    return MbertError(
        "M210",
        "this is no finished output: it has no manifest.json",
        where=str(directory),
        allowed="A directory that a stage of mbert finished, or a plain Hugging Face model directory.",
        fix=f"Finish it: {command}" if (command := finishing_command(unfinished)) else WITHOUT_MANIFEST,
    )


def partial_path(out: Path) -> Path:
    """Returns where a stage works until it is done."""
    return out.with_name(out.name + ".partial")


def finishing_command(partial: Path) -> str:
    """Returns the command line that began this work, as noted when it began; empty where it was not."""
    try:
        argv = json.loads((partial / "begun.json").read_text(encoding="utf-8"))["argv"]
        return shlex.join(argv)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""


def write(directory: Path, *, stage: str, identity: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
    """Writes manifest.json atomically, after everything else is on the disk."""
    outputs = output_digests(directory)
    for name in [*outputs, *{str(Path(name).parent) for name in outputs}]:
        apply_umask(directory / name)
        fsync(directory / name)
    manifest = {
        "schema": SCHEMA,
        "stage": stage,
        "status": "complete",
        "identity": dict(identity),
        "identity_hash": digest(identity),
        "outputs": outputs,
        "result": digest({name: value for name, value in outputs.items() if is_result(name)}),
        "argv": command_line(),
        "git": _git_revision(),
        "versions": _versions(),
        "processes": distributed.world_size(),
        "finished": utc_now(),
        **facts,
    }
    write_text(directory / FILE, dump_with_checksum(json.loads(without_secrets(json.dumps(manifest, default=str)))))
    return manifest


def utc_now() -> str:
    """Returns the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def output_digests(directory: Path) -> dict[str, str]:
    """Returns the digests of the files of a directory, except those that only describe the work on it."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    names = (path.relative_to(directory).as_posix() for path in files)
    return file_digests(directory, filter(_is_output, names))


def _is_output(name: str) -> bool:
    return name not in (FILE, "begun.json", PAGE) and not any(part.startswith(".") for part in name.split("/"))


def is_result(name: str) -> bool:
    """Whether a file is what the next stage reads; logs and cards tell of a run."""
    return not name.endswith((".jsonl", ".md", "recipe.resolved.toml"))


def _versions() -> dict[str, str]:
    versions = {"mbert": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git_revision() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
