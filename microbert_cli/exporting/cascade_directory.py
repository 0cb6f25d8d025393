"""The directory of a cascade: two folders with an ONNX file each, written or copied, checked and measured."""

import shutil
from pathlib import Path
from typing import Any

from microbert_cli.data.examples import Examples
from microbert_cli.data.task_data import TaskData
from microbert_cli.evaluation.compare_speed import BenchmarkModel, benchmark_models
from microbert_cli.exporting.directory import (
    FP32_TOLERANCE,
    compare,
    comparison_batches,
    exported_tokenizer,
    parity_rows,
    refuse_difference,
)
from microbert_cli.models.cascade.answers import BIG, PARTS, SMALL
from microbert_cli.models.config import read_config, writable_config
from microbert_cli.models.exported.files import EXPORTED_FILES, file_of, is_export, precisions
from microbert_cli.models.find import CASCADE_FILE, find_model
from microbert_cli.models.labels import check_one_score, match_labels
from microbert_cli.models.load import load_model
from microbert_cli.models.moe.extract import is_routed, no_plain_model
from microbert_cli.models.onnx import (
    ONNX_FILES,
    OnnxClassifier,
    inputs_of_export,
    quantise,
    torch_logits,
    write_onnx,
)
from microbert_cli.models.predictor import Predictor, open_predictor
from microbert_cli.models.tokenizers import load_tokenizer
from microbert_cli.models.windows.settings import POOLS, no_windows, windows_of_model
from microbert_cli.recipe.task_kinds import kind_of_model
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs.manifest import model_home

TIMED_ROWS = 64  # each of them once, so that the mean is over as many hard rows as there are
CASCADE = "cascade"


def check_part(source: str, data: TaskData, *, where: str) -> None:
    """Checks a model of a cascade by its configuration alone: M320, M321 for other labels than the task's, M482 for windows."""
    path = Path(source)
    directory = find_model(model_home(path) if path.is_file() else source, where=where)
    config = read_config(directory, where=where)
    by_model = windows_of_model(config, where=where)
    if by_model or data.windows.pool in POOLS:
        fix = "Name a model that was trained with data.windows=none." if by_model else "--set data.windows=none"
        raise no_windows("a cascade", "Two models that read the beginning of a long text.", fix)
    if not is_routed(config):  # of a model of several tasks the head of this one is known when it is loaded
        check_one_score(config, where=f"{where} {source}")
        match_labels(config, data.task, where=where, source=source)


def write_part(
    source: str, directory: Path, data: TaskData, *, precision: str, where: str, train: Examples | None = None
) -> Predictor:
    """Writes one model of a cascade as a folder with an ONNX file, and opens it from there, in the order of the task's labels.

    source     a classifier, whose ONNX file is written and compared with it; or an export, or a file of it, which is copied
    precision  the form of the file, where `source` names none
    train      rows that set the scales of an int8 file; dev rows where there are none
    Raises M320, M321 (other labels), M612 (the file answers differently), and what loading and exporting raise.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    path = Path(source)
    if is_export(path):
        find_model(model_home(path), where=where)
        session = OnnxClassifier(path, precision=None if path.is_file() else precision)
        match_labels(session.config, data.task, where=where, source=source)
        copy_file(session.path, directory / EXPORTED_FILES[session.precision])
        config, tokenizer = session.config, load_tokenizer(session.directory, session.config, where=where)
    else:
        config, tokenizer = _write_file(source, directory, data, precision, where, train)
    writable_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return open_predictor(str(directory), data.task, precision=form_of(directory), where=where, in_the_making=True)


def _write_file(
    source: str, directory: Path, data: TaskData, precision: str, where: str, train: Examples | None
) -> tuple[Any, Any]:
    """Writes the ONNX file of a classifier; returns its configuration, and the tokenizer that gives the file's inputs."""
    loaded = load_model(source, "classifier", where=where, task=data.task.name)
    if is_routed(loaded.model.config):
        raise no_plain_model(data.task.name)
    match_labels(loaded.model.config, data.task, where=where, source=source)
    rows = parity_rows(data.encode("dev", loaded, where=where))
    batches = comparison_batches(rows, loaded.tokenizer, loaded.model)
    model_logits = torch_logits(loaded.model)
    expected = [model_logits(batch) for batch in batches]
    inputs, fp32 = inputs_of_export(loaded.model, loaded.tokenizer), directory / ONNX_FILES["fp32"]
    write_onnx(loaded.model, fp32, inputs=inputs)
    loaded.model.config.save_pretrained(directory)  # what makes it an export that can be opened
    answers = OnnxClassifier(fp32)
    difference = compare(answers.logits, batches, expected, kind_of_model(loaded.model.config))["max_difference"]
    refuse_difference(fp32, difference, FP32_TOLERANCE)
    if precision == "int8":
        calibration = data.calibration_rows(loaded, where=where, train=train)
        quantise(fp32, directory / ONNX_FILES["int8"], rows=calibration)
        fp32.unlink()
    length = data.length_for(loaded.model.config, where=where)
    return loaded.model.config, exported_tokenizer(loaded.tokenizer, inputs, length)


def copy_file(source: Path, target: Path) -> None:
    """Copies a file of an export, with OpenVINO's weights where they lie beside it."""
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, target)
    if (weights := source.with_suffix(".bin")).is_file() and source.suffix == ".xml":
        shutil.copyfile(weights, target.with_suffix(".bin"))


def write_labels(directory: Path, small: Predictor, data: TaskData) -> None:
    """Writes the config.json of a cascade: the small model's, with the labels of the task in their order."""
    config = writable_config(small.model.config)
    data.task.kind.configure(config)
    config.save_pretrained(directory)


def copy_cascade(source: Path, target: Path) -> None:
    """Copies the files that make a cascade, without what tells of how it was made."""
    for part in PARTS:
        shutil.rmtree(target / part, ignore_errors=True)
        shutil.copytree(source / part, target / part)
    for name in (CASCADE_FILE, "config.json"):
        shutil.copyfile(source / name, target / name)


def form_of(directory: Path) -> str:
    """Returns the form of the one file that answers in a folder."""
    return precisions(directory)[0]


def file_names(directory: Path) -> dict[str, str]:
    """Returns the name of the file that answers for each model of a cascade, below the model's folder."""
    return {
        part: file_of(directory / part, form_of(directory / part)).relative_to(directory / part).as_posix() for part in PARTS
    }


def measure_speed(directory: Path, cascade: Predictor, data: TaskData, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Times both models of a cascade and the whole in one interleaved run, on single rows and batches of dev."""
    entrants = [BenchmarkModel(part, str(directory / part), form_of(directory / part), in_the_making=True) for part in PARTS]
    entrants.append(BenchmarkModel(CASCADE, str(directory), opened=cascade))
    return benchmark_models(entrants, data, rounds=TIMED_ROWS, reporter=reporter)


def latency(speeds: dict[str, Any], sent: float) -> dict[str, float]:
    """Returns milliseconds a row: of both models, the mean of the cascade, and what the share of rows sent on leads to.

    expected = small + sent * big
    """
    models = speeds["models"]
    small, big = (models[part]["latency_ms"] for part in (SMALL, BIG))
    mean = models[CASCADE]["latency_mean_ms"]
    return {"small": small, "big": big, "cascade": mean, "expected": small + sent * big}
