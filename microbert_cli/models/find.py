"""Where a model comes from: a directory a stage made, any Hugging Face directory, or a Hub id."""

from pathlib import Path

from microbert_cli.errors import MbertError, first_line, nearest
from microbert_cli.hub import is_hub_id, unreachable
from microbert_cli.runs import manifest

TRACES = ("begun.json", "log.jsonl", "recipe.resolved.toml")


def find_model(source: str | Path, *, where: str) -> Path:
    """The directory of a model: as named, or the local copy of a Hub id.

    Raises M203 (no such directory), M204 (the Hub did not give it), M210 (unfinished), M211 (no model in it), M301 and M306
    (damaged since a stage made it).
    """
    path = Path(source)
    if path.is_dir():
        return _checked(path, where)
    if manifest.partial_path(path).is_dir():
        raise manifest.unfinished(path)
    if path.exists() or not is_hub_id(str(source)):
        raise _not_there(path, where)
    return _from_hub(str(source), where)


def unreadable_model(path: str | Path, where: str, error: BaseException) -> MbertError:
    """The error for a model that is there but cannot be read."""
    return MbertError(
        "M302",
        f"this model cannot be read: {first_line(error)}",
        where=f"{where} {path}",
        allowed="A whole Hugging Face directory: config.json, tokenizer files, model.safetensors of full length.",
        fix=f"Compare its files with their source; one made by mbert is checked against {path}/manifest.json.",
    )


def _from_hub(name: str, where: str) -> Path:
    """Downloads what a model needs into the Hub's cache, or finds it there; weights as safetensors where there are any."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    repository, _, revision = name.partition("@")
    wanted = ["*.json", "*.txt", "*.model"]
    try:
        try:
            files = HfApi().list_repo_files(repository, revision=revision or None)
            safe = any(file.endswith(".safetensors") for file in files)
            wanted.append("*.safetensors" if safe else "pytorch_model*.bin")
        except (OfflineModeIsEnabled, ConnectionError):
            wanted += ["*.safetensors", "pytorch_model*.bin"]
        found = snapshot_download(repository, revision=revision or None, allow_patterns=wanted, ignore_patterns=["*/*"])
        return _checked(Path(found), where)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise unreachable(name, where, error) from error


def _checked(path: Path, where: str) -> Path:
    if not (path / manifest.FILE).is_file() and any((path / name).exists() for name in TRACES):
        raise manifest.unfinished(path)
    if (path / manifest.FILE).is_file():
        manifest.checked(path)
    if not (path / "config.json").is_file():
        raise MbertError(
            "M211",
            "there is no model in this directory: it has no config.json",
            where=f"{where} {path}",
            allowed="A Hugging Face model directory, an output of a stage, or a Hub id.",
            fix=f"Look what is there: ls {path}",
        )
    return path


def _not_there(path: Path, where: str) -> MbertError:
    near = nearest(path.name, [p.name for p in path.parent.iterdir() if p.is_dir()]) if path.parent.is_dir() else ""
    return MbertError(
        "M203",
        "there is no such model directory",
        where=f"{where} {path}",
        allowed=f"In {path.parent} there are: {near}" if near else f"There is no {path.parent} either.",
        fix="Name a directory, or a Hub id such as google-bert/bert-base-uncased.",
    )
