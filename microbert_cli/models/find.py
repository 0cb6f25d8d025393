"""Finds models: a directory that a stage made, any Hugging Face directory, or a Hub id."""

import json
import shlex
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from microbert_cli.errors import MbertError, nearest, unreadable_model
from microbert_cli.hub import ask_hub, hub_errors, is_hub_id, is_offline, unreachable
from microbert_cli.models.architectures import VOCABULARY, writes_texts
from microbert_cli.models.exported.files import FOLDERS, NAMES
from microbert_cli.models.labels import check_one_score, check_several
from microbert_cli.runs import manifest
from microbert_cli.runs.disk import may_not_be_read, unreadable_part

LONGEST_HEADER = 100 * 2**20  # bytes; safetensors itself takes no longer one
# First parts of the names of tensors that belong to no masked-LM head, beside the encoder's own: see `has_head`.
NO_WORD_HEAD = {"classifier", "pre_classifier", "score", "pooler", "head", "dropout", "discriminator_predictions", "qa_outputs"}
ENCODER_PARTS = {"embeddings", "encoder", "layers", "layer", "transformer", "model", "final_norm", "embeddings_project"}
NAMED_CLASSIFIER = {"bert", "roberta", "distilbert", "electra", "albert", "mobilebert", "deberta-v2", "modernbert"}
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # in the order in which they are preferred


# Files of a stage: in a directory without a manifest they mean that the stage did not finish.
# What decides the answers of a model, where it is there.
READ_FILES = (
    "config.json", "model.safetensors", "model.safetensors.index.json", "adapter_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
    "merges.txt", "spiece.model", "sentencepiece.bpe.model", *NAMES, "cascade.json",
)  # fmt: skip
CASCADE_FILE = "cascade.json"
TRACES = ("begun.json", "log.jsonl", "recipe.resolved.toml")


def find_model(source: str | Path, *, where: str, cascade: bool = False) -> Path:
    """Returns the directory of a model: as named, or the local copy of a Hub id; with `cascade` it may be one of two models.

    Raises M203 (no such directory), M204 (the Hub did not give it), M210 (unfinished), M211 (no model in it), M280 (a cascade,
    where a single model is wanted), M301 and M306 (damaged since a stage made it).
    """
    path = Path(source)
    if path.is_dir():
        if is_cascade(path) and not cascade:
            raise no_single_model(path, where)
        return _checked(path, where)
    if manifest.partial_path(path).is_dir():
        raise manifest.unfinished_output(path)
    if path.exists() or not is_hub_id(str(source)):
        raise _not_there(path, where)
    return _from_hub(str(source), where)


def is_cascade(path: Path) -> bool:
    """Whether a directory holds two models, of which a small one answers where it is sure, else a big one."""
    return (path / CASCADE_FILE).is_file()


def no_single_model(path: object, where: str) -> MbertError:
    """Returns the error for a cascade where a single model is wanted."""
    return MbertError(
        "M280",
        "this is a cascade of two models, and a single one is wanted here",
        where=f"{where} {path}",
        allowed="Cascades are for predict, evaluate, bench and export; what trains or cuts takes one of the models that they "
        "were made of.",
        fix=f"Name the model that the cascade was made of; mbert export {shlex.quote(str(path))} ships both",
    )


def cached_model(name: str) -> Path | None:
    """Returns the directory of a Hub model that the local cache holds whole, else None; the network is not asked."""
    for weights in WEIGHTS:
        try:
            directory = _snapshot(name, weights, local_files_only=True)
        except hub_errors():
            continue
        # A download by another library may have left only some of the files, and no listing to compare them with.
        is_whole = all(_has_any(directory, patterns) for patterns in (("config.json",), (weights,), VOCABULARY))
        if is_whole and not _missing_shards(directory, weights):
            return directory
    return None


def _from_hub(name: str, where: str) -> Path:
    """Returns a model's copy in the Hub's cache, downloaded where there is none; weights as safetensors where there are any."""
    if directory := cached_model(name):
        return _checked(directory, where)
    if is_offline():
        raise unreachable(name, where, LookupError("its local cache has no whole copy"))
    repository, _, revision = name.partition("@")
    try:
        files = ask_hub(repository, "model", revision=revision or None).siblings or ()
        weights = WEIGHTS[0] if any(file.rfilename.endswith(".safetensors") for file in files) else WEIGHTS[1]
        directory = _snapshot(name, weights)
    except hub_errors() as error:
        raise unreachable(name, where, error) from error
    return _checked(directory, where)


def _has_any(directory: Path, patterns: Sequence[str]) -> bool:
    return any(True for pattern in patterns for _ in directory.glob(pattern))


def _missing_shards(directory: Path, weights: str) -> list[str]:
    """Returns the files that the index of the weights names and that are not there."""
    missing: list[str] = []
    for index in directory.glob(f"{weights}.index.json"):
        with suppress(OSError, ValueError, AttributeError):
            files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            missing += sorted(name for name in files if not (directory / name).is_file())
    return missing


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
    if output := manifest.output_of(path):
        manifest.verify_part(output, path, READ_FILES)
    elif any((path / name).exists() for name in TRACES):
        raise manifest.unfinished_output(path)
    elif home := manifest.unfinished_home(path):
        raise manifest.unfinished_output(home)
    if not (path / "config.json").is_file():
        what, fix = _describe_directory(path)
        raise MbertError(
            "M211",
            f"there is no model in this directory: {what}",
            where=f"{where} {path}",
            allowed="A Hugging Face model directory, an output of a stage, or a Hub id.",
            fix=fix,
        )
    for file in (path / "config.json", *path.glob("*.safetensors"), *path.glob("tokenizer*"), *path.glob("vocab*")):
        if closed := unreadable_part(file):
            raise may_not_be_read(closed, f"{where} {path}")
    return path


def _describe_directory(path: Path) -> tuple[str, str]:
    """Returns what a directory without a config.json is, and what to do about it."""
    if (path / "adapter_config.json").is_file():
        base = "BASE"
        with suppress(OSError, ValueError, AttributeError):
            base = json.loads((path / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path") or base
        code = (
            "from peft import AutoPeftModelForSequenceClassification as M; "
            f"M.from_pretrained({str(path)!r}).merge_and_unload().save_pretrained({f'{path}-merged'!r})"
        )
        what = f"it is an adapter (LoRA or another of peft), which changes the weights of another model, {base}"
        return what, f'Merge it into that model, where peft is installed: python -c "{code}"; then name {path}-merged'
    if path.name in FOLDERS and (path.parent / "config.json").is_file():
        return "it holds files of an export, whose config.json lies above", f"Name the export itself: {path.parent}"
    if whole := sorted((p.parent for p in path.glob("*/config.json")), key=_number_in_name):
        names = ", ".join(folder.name for folder in whole[-3:])
        if whole[-1].name.startswith("checkpoint-"):
            what = f"it is a folder of the transformers Trainer, whose models are in it: {names}"
        elif (path / "modules.json").is_file() or whole[-1].name.endswith("_Transformer"):
            what = f"it is a folder of sentence-transformers of the old form, whose encoder is in it: {names}"
        else:
            what = f"it has no config.json; folders in it have one: {names}"
        return what, f"Name the model itself: {whole[-1]}"
    return "it has no config.json", f"Look what is there: ls {path}"


def _number_in_name(folder: Path) -> tuple[int, str]:
    number = folder.name.rpartition("-")[2]
    return (int(number) if number.isdecimal() else -1, folder.name)


def _not_there(path: Path, where: str) -> MbertError:
    suggestions = nearest(path.name, [p.name for p in path.parent.iterdir() if p.is_dir()]) if path.parent.is_dir() else ""
    what = "this link leads nowhere" if path.is_symlink() else "there is no such model directory"
    return MbertError(
        "M203",
        what,
        where=f"{where} {path}",
        allowed=f"In {path.parent} there are: {suggestions}" if suggestions else f"There is no {path.parent} either.",
        fix="Name a directory, or a Hub id such as google-bert/bert-base-uncased.",
    )


def check_head(path: Path, kind: str, *, where: str, several: bool | None = None) -> None:
    """Raises M311 where a directory's weights certainly lack a head of this kind, "classifier" or "masked-lm".

    Raises M379 for a classifier of several scores a row, and for one of several labels where
    the task has one, or the other way round.

    several  whether the task's rows have several labels; None = it is not known
    """
    if has_head(path, kind) is False:
        raise missing_head(kind, where, path)
    if kind == "classifier":
        config = _config_values(path)
        labels = config.get("id2label")
        head = SimpleNamespace(
            problem_type=config.get("problem_type"), num_labels=len(labels) if isinstance(labels, dict) else 2
        )
        check_one_score(head, where=f"{where} {path}")
        if several is not None:
            check_several(head, several, where=f"{where} {path}")


def has_head(path: Path, kind: str) -> bool | None:
    """Whether the weights have such a head; None where their names do not tell, or are in no safetensors file."""
    names = tensor_names(path)
    if not names:
        return None
    model_type, first_parts = _model_type(path), {name.partition(".")[0] for name in names}
    if kind == "classifier":
        return "classifier" in first_parts if model_type in NAMED_CLASSIFIER else None
    bodies = {model_type.replace("-", "_"), model_type.partition("-")[0], "bert", "roberta"} | ENCODER_PARTS
    return None if first_parts - bodies - NO_WORD_HEAD else False


def tensor_names(path: Path) -> list[str]:
    """The names of the tensors in a directory's safetensors files, from their headers; empty where one cannot be read."""
    names: list[str] = []
    for file in path.glob("model*.safetensors"):
        try:
            with file.open("rb") as opened:
                (length,) = struct.unpack("<Q", opened.read(8))
                header = json.loads(opened.read(length)) if length <= LONGEST_HEADER else {}
            names += [name for name in header if name != "__metadata__"]
        except (OSError, ValueError, TypeError, struct.error, RecursionError):
            return []
    return names


def _model_type(path: Path) -> str:
    return str(_config_values(path).get("model_type", "bert"))


def _config_values(path: Path) -> dict[str, Any]:
    """Returns what a directory's config.json says; nothing where it cannot be read, which is told when it is opened."""
    try:
        values = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def directory_writes(source: str | Path) -> bool:
    """Whether a model has a decoder that writes; what cannot be read is told by who loads it."""
    path = Path(source)
    if not path.exists() and is_hub_id(str(source)):
        with suppress(MbertError):
            path = find_model(source, where="model")
    return writes_texts(SimpleNamespace(**_config_values(path)))


def writes_no_classes(where: str, fix: str = "Choose another student: mbert list students") -> MbertError:
    """Returns the error for a model that writes texts where one is wanted that reads them."""
    return MbertError(
        "M376",
        "this model writes a text, an encoder with a decoder, and what is wanted here reads texts: a classifier or an encoder",
        where=where,
        allowed='Models that write are for tasks of the kind "text_generation": finetune, task-distill, evaluate, predict.',
        fix=fix,
    )


def read_json(path: Path, *, where: str) -> dict[str, Any]:
    """Reads a JSON object from a file; raises M302 where it is none."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"{path.name} is JSON, but no object")
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable_model(path.parent, where, error) from error


def missing_head(kind: str, where: str, path: object, missing: list[str] | None = None) -> MbertError:
    """Returns the error for a model that lacks the head a stage must have."""
    what = "classification" if kind == "classifier" else "masked-LM"
    if kind == "classifier":
        fix = f"Fine-tune it first: mbert finetune --model {shlex.quote(str(path))} --task TASK"
    else:
        fix = f"Train one: mbert pretrain --model {shlex.quote(str(path))} --corpus python-docs, or a corpus of your own"
    names = f" (missing: {', '.join(missing[:3])})" if missing else ""
    return MbertError(
        "M311",
        f"this model has no trained {what} head{names}",
        where=f"{where} {path}",
        allowed=f"A model that was trained with a {what} head.",
        fix=fix,
    )
