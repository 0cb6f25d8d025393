"""Loads models, and refuses what transformers would let pass silently.

A source is a directory or a Hub id. What transformers would only print - missing or unexpected weights - is an error unless it
is a head that training will make. Weights come as float32, a configuration is never shared between two models. Nothing that a
directory brings is executed: weights are safetensors, or `.bin` read by `torch.load(weights_only=True)` inside transformers;
code beside a model or named by it is neither run nor asked about, nor handed on to what is made of the model.
"""

import copy
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from microbert_cli.errors import MbertError, unreadable_model
from microbert_cli.models.architectures import (
    ARCHITECTURES,
    HEAD_WEIGHTS,
    UNUSED_WEIGHTS,
    architecture_of,
    model_shape,
    model_type_of,
    writes_texts,
)
from microbert_cli.models.capture import show_scores
from microbert_cli.models.config import NO_CODE, read_config
from microbert_cli.models.find import find_model, missing_head, writes_no_classes
from microbert_cli.models.heads.layers import reorder_head
from microbert_cli.models.labels import check_one_score, match_names, output_names
from microbert_cli.models.moe import bert  # noqa: F401 - registers its model type with transformers' Auto classes
from microbert_cli.models.moe.extract import check_routing, dense_for_task, is_routed
from microbert_cli.models.save import NOT_TENSORS, read_projection
from microbert_cli.models.size import count_parameters
from microbert_cli.models.tokenizers import load_tokenizer
from microbert_cli.models.words.head import name_class, set_answers
from microbert_cli.recipe.task_kinds import TaskKind, answers_words
from microbert_cli.text import shortened

CLASSES = {
    "classifier": "AutoModelForSequenceClassification",
    "masked-lm": "AutoModelForMaskedLM",
    "encoder": "AutoModel",
    "seq2seq": "AutoModelForSeq2SeqLM",
}


transformers.logging.set_verbosity_error()


transformers.utils.logging.disable_progress_bar()


@dataclass
class LoadedModel:
    """A model with its tokenizer. `new` names the weights that were initialised and not loaded."""

    model: Any
    tokenizer: Any
    source: str
    new: list[str]
    projection: dict[str, torch.Tensor] | None = None

    @property
    def head_is_new(self) -> bool:
        """Whether any weight of the head was initialised and not loaded; poolers are no heads."""
        prefix = f"{self.model.base_model_prefix}."
        return any(not name.startswith(prefix) and "pooler" not in name for name in self.new)

    @property
    def label_names(self) -> list[str] | None:
        """Names of the outputs in order, or None where the checkpoint has only LABEL_k."""
        return output_names(self.model.config)


def load_model(
    source: str | Path,
    kind: str,
    *,
    where: str,
    head: TaskKind | None = None,
    new_head: bool = False,
    seed: int = 0,
    task: str | None = None,
    label_order: Sequence[str] | None = None,
) -> LoadedModel:
    """Loads a model of `kind` (classifier, masked-lm, encoder, seq2seq) from a directory or Hub id.

    where     the option or key that named it, for errors
    head, new_head   a fresh head is made where the checkpoint has none that fits, from `seed`; a classifier's for these labels
    label_order   names of the checkpoint's outputs, given by the user, over those in its configuration
    task      which task's model a BERT for several tasks becomes (`extract.dense_for_task`)
    Raises M2xx (not there, unfinished), M302 (damaged), M310 (weights missing), M311 (head does not fit).
    """
    path = find_model(source, where=where)
    config = read_config(path, where=where)
    if is_routed(config) and not (head and head.of_words):
        return _routed(path, kind, config, task, str(source), where)
    columns = None
    if kind == "classifier" and not new_head:
        if writes_texts(config):
            raise writes_no_classes(
                f"{where} {path}", "Take a classifier: what mbert finetune and task-distill make of classes."
            )
        check_one_score(config, where=f"{where} {path}")
    if new_head and head is not None:
        columns = _head_order(config, head, label_order)
        set_answers(config, head, where=f"{where} {path}")
    model, info = _from_pretrained(path, kind, config, where, seed)
    new = _check_weights(info, kind, where, path, new_head, model)
    _check_finite(model.state_dict(), where, path)
    if columns is not None and all("pooler" in name for name in new):
        reorder_head(model, columns)
    name_class(model)
    if kind != "seq2seq":  # whose decoder takes transformers' own attention
        show_scores(model)
    tokenizer = load_tokenizer(path, config, where=where)
    if kind != "seq2seq":
        check_forward(model, where=f"{where} {path}")
    return LoadedModel(model, tokenizer, str(source), new, _projection(path, where))


def class_of(kind: str, config: Any) -> Any:
    """Returns transformers' class for a model of `kind` with this configuration: a classifier may be of texts or of tokens."""
    name = "AutoModelForTokenClassification" if kind == "classifier" and answers_words(config) else CLASSES[kind]
    return getattr(transformers, name)


def _head_order(config: Any, head: TaskKind, label_order: Sequence[str] | None) -> list[int] | None:
    """Returns the order in which a checkpoint's outputs are those of `head`; None where they are already, or others."""
    if not head.is_named or config.num_labels != head.num_outputs:
        return None
    columns = match_names(head.names, label_order or [str(config.id2label[i]) for i in range(config.num_labels)])
    return None if columns == sorted(columns or ()) else columns


def _routed(path: Path, kind: str, config: Any, task: str | None, source: str, where: str) -> LoadedModel:
    """Loads a BERT for several tasks as the classifier of one of them."""
    if kind != "classifier":
        raise MbertError(
            "M267",
            "this is a model of task heads, and what is wanted here is an encoder or a masked-LM",
            where=f"{where} {path}",
            allowed="A plain model; such a one can be taken out of it, task by task.",
            fix=f"mbert extract {source} -o OUT",
        )
    model = dense_for_task(load_routed(path, config, where=where), task, where=f"{where} {path}")
    return LoadedModel(model, load_tokenizer(path, model.config, where=where), source, [])


def load_multitask(source: str | Path, *, where: str) -> LoadedModel | None:
    """Loads a BERT for several tasks, whole, to train it further; None where the model is another."""
    path = find_model(source, where=where)
    if not is_routed(config := read_config(path, where=where)):
        return None
    model = load_routed(path, config, where=where)
    return LoadedModel(model, load_tokenizer(path, config, where=where), str(source), [], _projection(path, where))


def load_routed(path: Path, config: Any, *, where: str) -> Any:
    """Loads a BERT for several tasks, whole, from its directory."""
    check_routing(config, where=f"{where} {path}")
    model, info = _from_pretrained(path, "classifier", config, where, 0)
    _check_weights(info, "classifier", where, path, new_head=False, model=model)
    _check_finite(model.state_dict(), where, path)
    show_scores(model)
    return model


def _projection(path: Path, where: str) -> dict[str, torch.Tensor] | None:
    try:
        projection = read_projection(path)
        _check_finite(projection or {}, where, path)
        return projection
    except SafetensorError as error:
        raise unreadable_model(path, where, error) from error


def load_vocabulary(source: str | Path, *, where: str) -> tuple[Any, Any]:
    """Loads the tokenizer and configuration of a model, without its weights."""
    path = find_model(source, where=where)
    config = read_config(path, where=where)
    return load_tokenizer(path, config, where=where), config


def count_all_parameters(model: Any) -> int:
    """Counts all parameters of a model, tied ones once."""
    return count_parameters(model).total


def frozen(model: Any) -> Any:
    """Puts the model into eval mode, without gradients."""
    return model.eval().requires_grad_(False)


def _from_pretrained(path: Path, kind: str, config: Any, where: str, seed: int) -> tuple[Any, dict[str, Any]]:
    factory = class_of(kind, config)
    try:
        torch.manual_seed(seed)  # weights that the checkpoint lacks are drawn as it is loaded
        model, info = factory.from_pretrained(
            path, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **NO_CODE
        )
        return model, info
    except pickle.UnpicklingError:
        raise unreadable_model(path, where, NOT_TENSORS) from None
    except Exception as error:  # a foreign checkpoint fails in more ways than can be listed
        raise unreadable_model(path, where, error) from error


def _check_weights(info: dict[str, Any], kind: str, where: str, path: Any, new_head: bool, model: Any) -> list[str]:
    mismatched = sorted(str(key[0]) if isinstance(key, tuple) else str(key) for key in info["mismatched_keys"])
    missing = sorted(info["missing_keys"]) + mismatched
    absent = [name for name in missing if not re.match(HEAD_WEIGHTS[kind], name) and not _is_of_head(name, kind, model)]
    unexpected = [name for name in sorted(info["unexpected_keys"]) if not re.fullmatch(UNUSED_WEIGHTS, name)]
    if unexpected:
        unexpected = sorted(set(unexpected) - _weights_of_its_class(model.config, model.base_model_prefix))
    if absent or unexpected:
        names = ", ".join((absent or unexpected)[:4])
        raise MbertError(
            "M310",
            f"{len(absent)} weights are missing or of another shape and {len(unexpected)} have no place, such as {names}",
            where=f"{where} {path}",
            allowed="Weights that fit the config.json beside them; only a head may be new.",
            fix="Check that config.json and the weights belong together.",
        )
    # A masked-LM has no pooler, and classifiers are made of them.
    if [name for name in missing if "pooler" not in name] and not new_head:
        raise missing_head(kind, where, path, missing)
    return missing


def _is_of_head(name: str, kind: str, model: Any) -> bool:
    """Whether a weight lies outside the encoder, of which a checkpoint without that head has none."""
    has_one_head = architecture_of(model.config).experts != "task"
    return kind != "encoder" and has_one_head and not name.startswith(f"{model.base_model_prefix}.")


def _weights_of_its_class(config: Any, prefix: str) -> set[str]:
    """Returns the names of the weights, with and without the encoder's prefix, of the class that a checkpoint was saved from.

    What that class has and the loaded one has not is a head of the checkpoint's own, or XLNet's and Funnel's other parts.
    """
    names: set[str] = set()
    for class_name in config.architectures or ():
        model_class: Any = getattr(transformers, class_name, None)
        if getattr(model_class, "config_class", None) is type(config):
            with torch.device("meta"):
                names |= model_class(copy.deepcopy(config)).state_dict().keys()
    return names | {name.removeprefix(f"{prefix}.") for name in names}


def _check_finite(tensors: Mapping[str, torch.Tensor], where: str, path: Any) -> None:
    """Raises M316 where a weight is NaN or infinite: such a model gives the first class for every text."""
    unique = {tensor.data_ptr(): name for name, tensor in tensors.items() if tensor.is_floating_point()}  # tied ones once
    # A sum that is finite has no part that is not; it is faster, and may overflow only where weights are huge.
    broken = [
        name for name in unique.values() if not tensors[name].sum().isfinite() and not torch.isfinite(tensors[name]).all()
    ]
    if broken:
        raise MbertError(
            "M316",
            f"{len(broken)} tensors of this model hold NaN or infinite numbers: {', '.join(broken[:4])}",
            where=f"{where} {path}",
            allowed="Weights that are finite numbers.",
            fix="Take another copy of the model, or an earlier checkpoint; one that diverged is trained again at a lower rate.",
        )


TRIAL_LENGTH = 11  # odd and prime: a type that reads only multiples of a length is found


def check_forward(model: Any, *, where: str, training: bool = False) -> None:
    """Raises M334 if a type without an entry of its own fails, M335 if its logits do not depend on the text.

    training  with dropout, as it will be trained: Reformer then reads rows of one length alone
    """
    if model_type_of(model.config) in ARCHITECTURES or hasattr(model, "look") or model.device.type == "meta":
        return
    ids_2T = _two_rows(model.config).to(model.device)
    was_training = model.training
    model.train(training)
    try:
        # Not inference mode: what a model caches in its first pass, such as rotations, is used in training later.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = model(input_ids=ids_2T)
    except Exception as error:  # a foreign architecture fails in more ways than can be listed
        raise _failing(model, where, error, training) from error
    finally:
        model.train(was_training)
    logits: Any = getattr(output, "logits", None)
    is_classifier = logits is not None and logits.dim() == 2
    if is_classifier and not training and torch.equal(logits[0], logits[1]):
        raise _deaf(model, where)


def _two_rows(config: Any) -> torch.Tensor:
    """Returns two rows with the same first and last token, which heads read, and others between them."""
    shape = model_shape(config)
    length, vocabulary = min(TRIAL_LENGTH, shape.positions or TRIAL_LENGTH), max(1, shape.vocabulary)
    steps = torch.arange(length)
    ids_2T = torch.stack([steps, vocabulary - 1 - steps]) % vocabulary
    ids_2T[ids_2T == getattr(config, "pad_token_id", None)] = vocabulary // 2
    ids_2T[:, [0, -1]] = vocabulary // 2
    return ids_2T


def _failing(model: Any, where: str, error: Exception, training: bool) -> MbertError:
    reason = shortened(f"{type(error).__name__}: {error}")
    return MbertError(
        "M334",
        f'the architecture "{model_type_of(model.config)}" fails{" in training" if training else ""} inside '
        f"transformers {transformers.__version__}: {reason}",
        where=where,
        allowed="A model whose forward pass takes rows of any length up to its positions.",
        fix="Take a model of another architecture, or another version of transformers.",
    )


def _deaf(model: Any, where: str) -> MbertError:
    return MbertError(
        "M335",
        f'this model of "{model_type_of(model.config)}" gives the same answer to different texts: it does not read them',
        where=where,
        allowed="A model whose answer depends on its text. Some architectures need a kernel for GPUs, and without it "
        "their attention is zero.",
        fix="Use it where its kernel is installed, or take a model of another architecture.",
    )
