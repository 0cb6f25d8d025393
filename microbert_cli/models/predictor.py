"""Opens any classifier for prediction: a Hugging Face directory, a Hub id, an export through ONNX Runtime, or a cascade."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from microbert_cli.errors import MbertError
from microbert_cli.models.cascade.answers import BIG, PARTS, SMALL, CascadeAnswers, Rule
from microbert_cli.models.exits.speed import check_exits_file, chosen_speed, has_exits
from microbert_cli.models.exported.config import read_exported_config
from microbert_cli.models.exported.files import EXPORTED_FILES, file_of, is_export, precisions
from microbert_cli.models.exported.session import ExitSession, OnnxClassifier
from microbert_cli.models.exported.tokenizer import read_exported_tokenizer
from microbert_cli.models.find import find_model, is_cascade
from microbert_cli.models.labels import check_names_differ, check_one_score, match_labels, names_settle_order
from microbert_cli.recipe.task import Task
from microbert_cli.runs.manifest import model_home


@dataclass
class Predictor:
    """A classifier ready for prediction: `answers.logits(batch)`, its configuration `model.config`, its tokenizer.

    columns          the model's output for each label of the task; None: as they stand
    order_is_settled whether names have settled this, so that scores need not be asked
    sends_to         of a cascade its big model, whose tokens a batch has beside its own; None for a single model
    """

    answers: Any
    model: Any
    tokenizer: Any
    source: str
    columns: list[int] | None = None
    order_is_settled: bool = True
    sends_to: "Predictor | None" = None


def open_predictor(
    source: str,
    task: Task | None,
    *,
    precision: str = "auto",
    where: str = "model",
    task_name: str | None = None,
    label_order: Sequence[str] | None = None,
    in_the_making: bool = False,
    speed: float | None = None,
) -> Predictor:
    """Opens a classifier; with a task, its outputs are put into the order of the task's labels.

    precision  auto: an export directory answers through ONNX Runtime, in fp32 where it has that; one of EXPORTED_FILES: in
               that one; torch: its safetensors are loaded. Naming a file itself chooses it, too.
    task_name  which task's answers a model of several gives, where there is no `task`
    label_order   names of the model's outputs, over those in its configuration
    speed      of a model with exits: how unsure an answer may be that leaves early; None = as its configuration says
    in_the_making  an export that this process writes, and measures before it has a manifest; all else is compared with its own
    """
    path = Path(source)
    if is_cascade(path):
        if speed:
            raise _no_speed(path, where)
        return _open_cascade(path, task, precision, where, in_the_making)
    if precision in EXPORTED_FILES or (precision == "auto" and is_export(path)):
        if path.exists() and not in_the_making:
            find_model(model_home(path), where=where)
        return _open_export(path, task, precision, where, label_order, speed)
    return _open_torch(source, task, where, task_name, label_order, speed)


def _open_torch(
    source: str, task: Task | None, where: str, task_name: str | None, label_order: Sequence[str] | None, speed: float | None
) -> Predictor:
    from microbert_cli.models.exits.frozen import ExitingModel, TorchModel
    from microbert_cli.models.load import load_model

    loaded = load_model(source, "classifier", where=where, task=task.name if task else task_name)
    if task is None:
        check_names_differ(loaded.model.config, where=f"{where} {source}")
    columns = match_labels(loaded.model.config, task, where=where, source=source, order=label_order) if task else None
    settled = task is None or names_settle_order(loaded.model.config, task, label_order)
    speed = chosen_speed(loaded.model.config, speed, where=f"{where} {source}")
    answers = (
        ExitingModel(loaded.model, columns, speed) if has_exits(loaded.model.config) else TorchModel(loaded.model, columns)
    )
    return Predictor(answers, loaded.model, loaded.tokenizer, source, columns, settled)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Returns the softmax over the last axis."""
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    softmax: np.ndarray = exponentials / exponentials.sum(-1, keepdims=True)
    return softmax


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Returns 1 / (1 + exp(-z)) of every element, in the precision of the logits."""
    small = np.exp(-np.abs(logits))  # never above 1, so that nothing overflows
    shares: np.ndarray = np.where(logits >= 0, 1.0, small) / (1.0 + small)
    return shares


def _open_export(
    path: Path, task: Task | None, precision: str, where: str, label_order: Sequence[str] | None, speed: float | None
) -> Predictor:
    if precision == "auto" and path.is_dir() and "fp32" not in precisions(path):
        raise _no_default(path, precisions(path), where)
    config, tokenizer = _read_without_transformers(model_home(path))
    session = OnnxClassifier(path, precision=None if precision == "auto" or path.is_file() else precision, config=config)
    check_one_score(session.config, where=f"{where} {path}")
    if task is None:
        check_names_differ(session.config, where=f"{where} {path}")
    tokenizer = tokenizer or _load_tokenizer(session, where)
    # A file that is named is asked whole, unless a speed is named too.
    default = speed is None and (path.is_file() or precision != "auto")
    speed = 0.0 if default else chosen_speed(session.config, speed, where=f"{where} {path}")
    predictor = session_predictor(session, tokenizer, task, source=str(path), where=where, label_order=label_order)
    if speed > 0:
        check_exits_file(session.precision, where=f"{where} {path}")
        predictor.answers = _ExitSessionModel(ExitSession(session.directory, speed), predictor.columns, speed)
    return predictor


def _read_without_transformers(directory: Path) -> tuple[Any, Any]:
    """Returns configuration and tokenizer of an export, or None for both where transformers has to read them."""
    config = read_exported_config(directory)
    tokenizer = None if config is None else read_exported_tokenizer(directory, config)
    return (None, None) if tokenizer is None else (config, tokenizer)


def _load_tokenizer(session: OnnxClassifier, where: str) -> Any:
    from microbert_cli.models.tokenizers import load_tokenizer

    return load_tokenizer(session.directory, session.config, where=where)


def session_predictor(
    session: OnnxClassifier, tokenizer: Any, task: Task | None, *, source: str, where: str, label_order: Sequence[str] | None
) -> Predictor:
    """Returns an open ONNX model as a classifier whose outputs are in the order of the task's labels."""
    columns = match_labels(session.config, task, where=where, source=source, order=label_order) if task else None
    settled = task is None or names_settle_order(session.config, task, label_order)
    return Predictor(_OnnxModel(session, columns), session, tokenizer, source, columns, settled)


def _no_default(path: Path, offered: Sequence[str], where: str) -> MbertError:
    files = [file_of(path, precision) for precision in offered]
    names = [file.relative_to(path).as_posix() for file in files]
    return MbertError(
        "M233",
        f"there is no {EXPORTED_FILES['fp32']} here, and {' and '.join(names)} may answer otherwise",
        where=f"{where} {path}",
        allowed=f"A whole export, or one of its files by name: {', '.join(offered)}.",
        fix=f"Name the file that shall answer, in place of its directory: {files[0]}",
    )


def _open_cascade(path: Path, task: Task | None, precision: str, where: str, in_the_making: bool) -> Predictor:
    """Opens both models of a cascade; whoever asks it gives the tokens of both (`data.encoded.cascade`)."""
    if precision != "auto":
        raise _one_form(path, precision, where)
    if not in_the_making:
        find_model(path, where=where, cascade=True)
    config = read_exported_config(path) or _read_config(path, where)
    rule = Rule.read(path, config.num_labels, where=where)
    forms = {part: next(iter(precisions(path / part)), "auto") for part in PARTS}  # one file each: what was checked
    parts = {part: _open_export(path / part, None, forms[part], where, None, speed=0.0) for part in PARTS}
    for part, predictor in parts.items():
        if predictor.model.config.num_labels != config.num_labels:
            raise _other_outputs(path, part, where)
        predictor.answers.columns = rule.columns[part]
    columns = match_labels(config, task, where=where, source=str(path)) if task else None
    answers = CascadeAnswers(
        parts[SMALL].answers, parts[BIG].answers, rule, {part: parts[part].model.config for part in PARTS}, columns
    )
    settled = task is None or names_settle_order(config, task)
    model = SimpleNamespace(config=config)
    return Predictor(answers, model, parts[SMALL].tokenizer, str(path), columns, settled, sends_to=parts[BIG])


def _read_config(path: Path, where: str) -> Any:
    from microbert_cli.models.config import read_config

    return read_config(path, where=where)


def _one_form(path: Path, precision: str, where: str) -> MbertError:
    return MbertError(
        "M281",
        f'a cascade answers with the two files that its threshold was checked with, and "{precision}" is asked for',
        where=f"{where} {path}",
        allowed="auto.",
        fix="Leave the precision out. Another form is another cascade: mbert cascade SMALL BIG --set cascade.precision=int8",
    )


def _no_speed(path: Path, where: str) -> MbertError:
    return MbertError(
        "M159",
        "both models of a cascade answer with all of their layers: its threshold was checked with these answers",
        where=f"{where} {path}, --speed",
        allowed="Speed 0.",
        fix="Leave the speed out. A model with exits by itself takes it.",
    )


def _other_outputs(path: Path, part: str, where: str) -> MbertError:
    return MbertError(
        "M349",
        f"the {part} model of this cascade has another number of outputs",
        where=f"{where} {path / part}",
        allowed="Two models with the labels of the config.json above them.",
        fix="Make the cascade again: mbert cascade SMALL BIG",
    )


class _ExitSessionModel:
    """An exported model with exits; `left` counts the rows by the layer behind which they left, from 1."""

    reads_arrays = True

    def __init__(self, session: ExitSession, columns: list[int] | None, speed: float):
        self.session, self.columns = session, columns
        self.speed, self.left = speed, Counter[int]()

    def logits(self, batch: Any) -> np.ndarray:
        logits, layers = self.session.answer(batch)
        self.left.update(layers.tolist())
        return logits[..., self.columns] if self.columns else logits


class _OnnxModel:
    """An ONNX session whose class columns are in the task's order."""

    reads_arrays = True

    def __init__(self, session: OnnxClassifier, columns: list[int] | None):
        self.session, self.columns = session, columns

    def logits(self, batch: Any) -> np.ndarray:
        logits = self.session.logits(batch)
        return logits[..., self.columns] if self.columns else logits
