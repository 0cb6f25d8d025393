"""Loads models; refuses silent surprises.

A source is a directory or a Hub id. What transformers would only print - missing or unexpected weights - is an error unless it
is a head that training will make. Weights come as float32, a configuration is never shared between two models. Nothing that a
directory brings is executed: weights are safetensors, or `.bin` read by `torch.load(weights_only=True)` inside transformers;
code beside a model or named by it is neither run nor asked about, nor handed on to what is made of the model.
"""

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer

from microbert_cli import checkpoint, counting, extraction, sources
from microbert_cli.capture import show_scores
from microbert_cli.errors import MbertError
from microbert_cli.students import inverted_bottleneck as inverted_bottleneck  # registers what it is

CLASSES = {
    "classifier": "AutoModelForSequenceClassification",
    "masked-lm": "AutoModelForMaskedLM",
    "encoder": "AutoModel",
}
HEADS = {
    "classifier": r"classifier\.|pre_classifier\.|score\.|pooler\.|.*\.pooler\.|head\.",
    "masked-lm": r"cls\.|lm_head\.|generator_|vocab_|predictions\.|head\.|decoder\.|.*\.pooler\.",
    "encoder": r"pooler\.",
}
IGNORED = (
    r"(.*\.)?(position_ids|fit_dense\..*|cls\..*|lm_head\..*|(pre_|sop_)?classifier\..*|pooler\..*|vocab_.*|score\..*)"
    r"|(generator_|discriminator_)?predictions\..*|generator_lm_head\..*|head\..*|decoder\..*"
)

COUNT_FROM_PADDING = ("roberta", "xlm-roberta", "camembert")

NO_CODE = {"trust_remote_code": False}  # left out, transformers asks on stdin, where `mbert predict` is given texts

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@dataclass
class Loaded:
    """A model with its tokenizer. `new` names the weights that were initialised, not loaded."""

    model: Any
    tokenizer: Any
    source: str
    new: list[str]
    projection: dict[str, torch.Tensor] | None = None

    @property
    def head_is_new(self) -> bool:
        return any(re.match(r"classifier|score", name) for name in self.new)

    @property
    def label_names(self) -> list[str] | None:
        """Names of the outputs in order, or None where the checkpoint says only LABEL_k."""
        names = [str(self.model.config.id2label[i]) for i in range(self.model.config.num_labels)]
        return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def load(
    source: str | Path,
    kind: str,
    *,
    where: str,
    labels: list[str] | None = None,
    num_labels: int | None = None,
    new_head: bool = False,
    seed: int = 0,
    task: str | None = None,
) -> Loaded:
    """A model of `kind` (classifier, masked-lm, encoder) from a directory or Hub id.

    where     the option or key that named it, for errors
    labels, num_labels, new_head   a fresh head is made for these labels where the checkpoint has none that fits, from `seed`
    task      which task's model a BERT for several tasks becomes (`extraction.for_task`)
    Raises M2xx (not there, unfinished), M302 (damaged), M310 (weights missing), M311 (head does not fit).
    """
    path = sources.find(source, where=where)
    config = read_config(path, where=where)
    if extraction.is_routed(config):
        return _routed(path, kind, config, task, str(source), where)
    if new_head:
        set_labels(config, labels, num_labels)
    model, info = _from_pretrained(path, kind, config, where, seed)
    new = _check_weights(info, kind, where, path, new_head)
    show_scores(model)
    return Loaded(model, load_tokenizer(path, config, where=where), str(source), new, _projection(path, where))


def _routed(path: Path, kind: str, config: Any, task: str | None, source: str, where: str) -> Loaded:
    """A BERT for several tasks as it answers one of them."""
    if kind != "classifier":
        raise MbertError(
            "M267",
            "this is a model of task heads, and what is wanted here is an encoder or a masked-LM",
            where=f"{where} {path}",
            allowed="A plain model; such a one can be taken out of it, task by task.",
            fix=f"mbert extract {source} -o OUT",
        )
    model = extraction.for_task(load_routed(path, config, where=where), task, where=f"{where} {path}")
    return Loaded(model, load_tokenizer(path, model.config, where=where), source, [])


def load_several(source: str | Path, *, where: str) -> Loaded | None:
    """A BERT for several tasks, whole, to go on from; None where the model is another."""
    path = sources.find(source, where=where)
    if not extraction.is_routed(config := read_config(path, where=where)):
        return None
    model = load_routed(path, config, where=where)
    return Loaded(model, load_tokenizer(path, config, where=where), str(source), [], _projection(path, where))


def load_routed(path: Path, config: Any, *, where: str) -> Any:
    """A BERT for several tasks as it is saved, whole."""
    extraction.check_routes(config, where=f"{where} {path}")
    model, info = _from_pretrained(path, "classifier", config, where, 0)
    _check_weights(info, "classifier", where, path, new_head=False)
    show_scores(model)
    return model


def read_config(path: str | Path, *, where: str) -> Any:
    """The configuration of a checkpoint; released TinyBERT files name no model_type, and are BERT."""
    try:
        return without_code(AutoConfig.from_pretrained(path, **NO_CODE))
    except Exception as error:  # a foreign file fails in more ways than can be listed
        raw = checkpoint.read_json(Path(path) / "config.json", where=where)
        if "auto_map" in raw:
            raise _brings_code(path, where) from error
        if "model_type" in raw or "num_hidden_layers" not in raw:
            raise sources.unreadable(path, where, error) from error
        known = {key: value for key, value in raw.items() if key not in ("pre_trained", "training")}
        try:
            return without_code(transformers.BertConfig(**known))
        except Exception as wrong:
            raise sources.unreadable(path, where, wrong) from error


def _projection(path: Path, where: str) -> dict[str, torch.Tensor] | None:
    try:
        return checkpoint.read_projection(path)
    except SafetensorError as error:
        raise sources.unreadable(path, where, error) from error


def without_code(config: Any) -> Any:
    """The configuration without what names code: files to run, and attention kernels to fetch from the Hub."""
    for name in ("auto_map", "custom_pipelines"):
        config.__dict__.pop(name, None)
    config._attn_implementation = None
    return config


def _brings_code(path: str | Path, where: str) -> MbertError:
    return MbertError(
        "M374",
        "this model is code of its own, and code from a model's directory is never run",
        where=f"{where} {path}",
        allowed="A model of an architecture that transformers itself has, such as BERT, RoBERTa, DistilBERT, ELECTRA.",
        fix="Choose another model, or convert this one to such an architecture.",
    )


def load_tokenizer(path: str | Path, config: Any, *, where: str) -> Any:
    """The tokenizer beside a model, checked against its embedding table.

    transformers builds a tokenizer of nothing but special tokens from a wrong argument or a missing vocabulary, without a word.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, config=config, **NO_CODE)
    except Exception as error:  # as above; the Rust below raises bare exceptions
        raise sources.unreadable(path, where, error) from error
    # Both would be written beside what is made of the model: templates under names of their own, and a call for code.
    tokenizer.chat_template, tokenizer._auto_map = None, None
    tokenizer.init_kwargs.pop("auto_map", None)
    size, rows = rows_needed(tokenizer), config.vocab_size
    if size > rows or size <= len(tokenizer.all_special_ids):
        raise MbertError(
            "M303",
            f"the tokenizer knows {size} tokens, the model's embedding has {rows} rows",
            where=f"{where} {path}",
            allowed="A tokenizer of the model's own vocabulary beside its weights.",
            fix="Copy tokenizer.json or vocab.txt of the same model into the directory.",
        )
    return tokenizer


def rows_needed(tokenizer: Any) -> int:
    """One more than the highest id: a vocabulary that has a piece twice knows fewer tokens than that."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def load_vocabulary(source: str | Path, *, where: str) -> tuple[Any, Any]:
    """The tokenizer and configuration of a model, without its weights."""
    path = sources.find(source, where=where)
    config = read_config(path, where=where)
    return load_tokenizer(path, config, where=where), config


def check_length(max_length: int, config: Any, *, where: str) -> None:
    """Raises M012 if texts may become longer than the model has positions."""
    positions = positions_of(config) or max_length
    option = f"--set {'corpus' if where.startswith('corpus') else 'data'}.max_length="
    if max_length > positions:
        raise MbertError(
            "M012",
            f"a maximum length of {max_length} tokens is beyond the model's {positions} positions",
            where=where,
            allowed=f"1 to {positions} tokens.",
            fix=f"{'--max-length ' if where == '--max-length' else option}{positions}",
        )


def positions_of(config: Any) -> int | None:
    """How many tokens a model can read. RoBERTa's kind counts positions from behind the padding's number, which it wastes."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    wasted = config.pad_token_id + 1 if positions and getattr(config, "model_type", None) in COUNT_FROM_PADDING else 0
    return positions - wasted if positions else None


def parameters(model: Any) -> int:
    """All parameters of a model, tied ones counted once."""
    return counting.parameters(model).total


def frozen(model: Any) -> Any:
    """The model as a teacher: eval mode, no gradients."""
    return model.eval().requires_grad_(False)


def set_labels(config: Any, labels: list[str] | None, num_labels: int | None) -> None:
    """Writes a task's labels, or their number, into a configuration."""
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: i for i, name in enumerate(labels)}
    elif num_labels is not None:
        config.num_labels = num_labels
    if num_labels == 1:
        config.problem_type = "regression"
    elif num_labels is not None:
        config.problem_type = "single_label_classification"


def _from_pretrained(path: Path, kind: str, config: Any, where: str, seed: int) -> tuple[Any, dict[str, Any]]:
    factory = getattr(transformers, CLASSES[kind])
    try:
        torch.manual_seed(seed)
        model, info = factory.from_pretrained(
            path, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **NO_CODE
        )
        return model, info
    except pickle.UnpicklingError:
        raise sources.unreadable(path, where, checkpoint.NOT_TENSORS) from None
    except Exception as error:  # as above
        raise sources.unreadable(path, where, error) from error


def _check_weights(info: dict[str, Any], kind: str, where: str, path: Any, new_head: bool) -> list[str]:
    mismatched = sorted(str(key[0]) if isinstance(key, tuple) else str(key) for key in info["mismatched_keys"])
    missing = sorted(info["missing_keys"]) + mismatched
    strange = [name for name in missing if not re.match(HEADS[kind], name)]
    unexpected = [name for name in sorted(info["unexpected_keys"]) if not re.fullmatch(IGNORED, name)]
    if strange or unexpected:
        names = ", ".join((strange or unexpected)[:4])
        raise MbertError(
            "M310",
            f"{len(strange)} weights are missing or of another shape and {len(unexpected)} have no place, such as {names}",
            where=f"{where} {path}",
            allowed="Weights that fit the config.json beside them; only a head may be new.",
            fix="Check that config.json and the weights belong together.",
        )
    if [name for name in missing if "pooler" not in name] and not new_head:
        raise no_head(kind, where, path, missing)
    return missing


def no_head(kind: str, where: str, path: Any, missing: list[str]) -> MbertError:
    """The error for a model that lacks the head a stage must have."""
    what = "classification" if kind == "classifier" else "masked-LM"
    fix = "Fine-tune it first: mbert finetune --model" if kind == "classifier" else "Train one: mbert pretrain --model"
    return MbertError(
        "M311",
        f"this model has no trained {what} head (missing: {', '.join(missing[:3])})",
        where=f"{where} {path}",
        allowed=f"A model that was trained with a {what} head.",
        fix=f"{fix} {path}",
    )
