"""Finds models: a directory that a stage made, any Hugging Face directory, or a Hub id."""

from collections.abc import Sequence
from pathlib import Path

from microbert_cli.errors import MbertError, nearest
from microbert_cli.hub import hub_errors, is_hub_id, is_offline, unreachable
from microbert_cli.runs import manifest

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # in the order in which they are preferred
VOCABULARY = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")  # any of them makes a tokenizer
# Files of a stage: in a directory without a manifest they mean that the stage did not finish.
TRACES = ("begun.json", "log.jsonl", "recipe.resolved.toml")


def find_model(source: str | Path, *, where: str) -> Path:
    """Returns the directory of a model: as named, or the local copy of a Hub id.

    Raises M203 (no such directory), M204 (the Hub did not give it), M210 (unfinished), M211 (no model in it), M301 and M306
    (damaged since a stage made it).
    """
    path = Path(source)
    if path.is_dir():
        return _checked(path, where)
    if manifest.partial_path(path).is_dir():
        raise manifest.unfinished_output(path)
    if path.exists() or not is_hub_id(str(source)):
        raise _not_there(path, where)
    return _from_hub(str(source), where)


def cached_model(name: str) -> Path | None:
    """Returns the directory of a Hub model that the local cache holds whole, else None; the network is not asked."""
    for weights in WEIGHTS:
        try:
            directory = _snapshot(name, weights, local_files_only=True)
        except hub_errors():
            continue
        # A download by another library may have left only some of the files, and no listing to compare them with.
        if all(_has_any(directory, patterns) for patterns in (("config.json",), (weights,), VOCABULARY)):
            return directory
    return None


def _from_hub(name: str, where: str) -> Path:
    """Returns a model's copy in the Hub's cache, downloaded where there is none; weights as safetensors where there are any."""
    if directory := cached_model(name):
        return _checked(directory, where)
    if is_offline():
        raise unreachable(name, where, LookupError("its local cache has no whole copy"))
    from huggingface_hub import HfApi

    repository, _, revision = name.partition("@")
    try:
        files = HfApi().model_info(repository, revision=revision or None).siblings or ()
        weights = WEIGHTS[0] if any(file.rfilename.endswith(".safetensors") for file in files) else WEIGHTS[1]
        directory = _snapshot(name, weights)
    except hub_errors() as error:
        raise unreachable(name, where, error) from error
    return _checked(directory, where)


def _has_any(directory: Path, patterns: Sequence[str]) -> bool:
    return any(True for pattern in patterns for _ in directory.glob(pattern))


def _snapshot(name: str, weights: str, *, local_files_only: bool = False) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    return Path(
        snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=["*.json", "*.txt", "*.model", weights],
            ignore_patterns=["*/*"],  # other formats of the same model lie in folders: onnx/, openvino/
            local_files_only=local_files_only,
        )
    )


def _checked(path: Path, where: str) -> Path:
    """Returns the directory once it is known to hold a whole model."""
    if not (path / manifest.FILE).is_file() and any((path / name).exists() for name in TRACES):
        raise manifest.unfinished_output(path)
    if (path / manifest.FILE).is_file():
        manifest.read_verified(path)
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
    suggestions = nearest(path.name, [p.name for p in path.parent.iterdir() if p.is_dir()]) if path.parent.is_dir() else ""
    return MbertError(
        "M203",
        "there is no such model directory",
        where=f"{where} {path}",
        allowed=f"In {path.parent} there are: {suggestions}" if suggestions else f"There is no {path.parent} either.",
        fix="Name a directory, or a Hub id such as google-bert/bert-base-uncased.",
    )
