"""The int8 copy of a classifier: the file that its export would have as int8, written once and kept in the cache.

ONNX, weights as int8, activations quantised dynamically. Nothing is trained for it, so it is the first thing that a user would
try with a teacher that is too slow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from microbert_cli.data.examples import Examples
from microbert_cli.data.task_data import TaskData
from microbert_cli.errors import MbertError
from microbert_cli.evaluation.compare_speed import BenchmarkModel
from microbert_cli.evaluation.scoring import score_predictor
from microbert_cli.models.config import read_config
from microbert_cli.models.find import find_model
from microbert_cli.models.graphs.products import Row
from microbert_cli.models.labels import match_labels
from microbert_cli.models.load import load_model
from microbert_cli.models.moe.extract import is_routed
from microbert_cli.models.onnx import ONNX_FILES, OnnxClassifier, inputs_of_export, quantise, require_onnx, write_onnx
from microbert_cli.models.predictor import session_predictor
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import cache, manifest
from microbert_cli.runs.atomic import digest
from microbert_cli.runs.disk import disk_error
from microbert_cli.signals import Interrupted, WorkInterrupted

FORMAT = 4
INT8 = "int8"


def int8_session(
    model: Any, tokenizer: Any, *, weights: Mapping[str, Any], name: str, rows: Sequence[Row], reporter: Reporter
) -> OnnxClassifier:
    """Returns a loaded classifier's int8 copy, open; it is written to the cache where it is not there.

    weights  identifies the model's weights in the cache;  name  what messages call the model
    rows     of the model's task, as its tokenizer encodes them; they set the scales of activations, see `quantise`
    Raises M510 (ONNX packages missing), M611 (no ONNX for this architecture).
    """
    require_onnx("onnx", "onnxscript", "onnxruntime")
    # torch's exporter writes the graph, so another version may write another one.
    key = digest({"weights": weights, "torch": torch.__version__, "rows": list(rows), "format": FORMAT})
    with cache.entry("int8", key, reporter=reporter) as (directory, ready):
        if not ready:
            reporter.note(f"{name}: an int8 copy is written to {directory}")
            model.config.save_pretrained(directory)
            write_int8(model, tokenizer, directory, rows)
        return OnnxClassifier(directory, precision=INT8)


def write_int8(model: Any, tokenizer: Any, directory: Path, rows: Sequence[Row] = ()) -> None:
    """Writes a classifier's int8 file, as an export has it that is calibrated on these rows."""
    exported = directory / ONNX_FILES["fp32"]
    write_onnx(model, exported, inputs=inputs_of_export(model, tokenizer))
    quantise(exported, directory / ONNX_FILES[INT8], rows=rows)
    exported.unlink()


@dataclass(frozen=True)
class Int8Copy:
    """The int8 copy of a model of one task; `note` says why there is none.

    entrant  it, open, for a benchmark
    scores   the task's metrics on dev
    """

    name: str
    entrant: BenchmarkModel | None = None
    scores: Mapping[str, float] | None = None
    note: str | None = None


def int8_copy(
    name: str,
    source: str,
    data: TaskData,
    *,
    train: Examples | None = None,
    label_order: Any = None,
    reporter: Reporter = SILENT,
) -> Int8Copy:
    """Returns the int8 copy of the classifier `source`, scored on dev; where it cannot be made, a note says why.

    train  the rows that calibrate it; where there are none, rows of dev without their labels
    """
    try:
        loaded = load_model(source, "classifier", where=name, task=data.task.name)
        if is_routed(loaded.model.config):
            return Int8Copy(name, note="a mixture of experts by token has no ONNX file")
        columns = match_labels(loaded.model.config, data.task, where=name, source=source, order=label_order)
        weights = {"weights": manifest.identify(source), "columns": _unless_sorted(columns), **_part(source, data)}
        rows = data.calibration_rows(loaded, where=name, train=train)
        session = int8_session(loaded.model, loaded.tokenizer, weights=weights, name=name, rows=rows, reporter=reporter)
        predictor = session_predictor(
            session, loaded.tokenizer, data.task, source=str(session.path), where=name, label_order=label_order
        )
        scores = score_predictor(data, predictor)
    except (Interrupted, WorkInterrupted, cache.CacheDeletedError):
        raise
    except MbertError as error:
        return Int8Copy(name, note=f"{error.what} [{error.code}]")
    except Exception as error:  # exporter and quantiser fail in more ways than can be listed, and a table can do without them
        if disk_error(error, cache.root()) is not None:
            raise  # the same command goes on when there is room; a table without the row would be kept as it is
        return Int8Copy(name, note=f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
    return Int8Copy(name, BenchmarkModel(name, str(session.directory), INT8, opened=predictor), scores)


def _unless_sorted(columns: list[int] | None) -> list[int] | None:
    return columns if columns and columns != sorted(columns) else None


def _part(source: str, data: TaskData) -> dict[str, str]:
    """Returns which task's model is taken out of one for several."""
    return {"task": data.task.name} if is_routed(read_config(find_model(source, where="model"), where="model")) else {}
