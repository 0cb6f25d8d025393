"""Exported classifiers that answer through ONNX Runtime; it comes with `pip install "microbert-cli[onnx]"`."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from microbert_cli.errors import MbertError
from microbert_cli.models.exported.files import EXITS_FILE, ONNX_FILES, chosen_precision, exits_file, file_of, require_onnx
from microbert_cli.runs.manifest import model_home

Batch = Mapping[str, Any]
PROCESSORS = Path("/proc/cpuinfo")


class OnnxClassifier:
    """An exported classifier that answers through ONNX Runtime, or through OpenVINO.

    path       an export directory, or one of its files
    precision  one of EXPORTED_FILES, or None: what the path says, else fp32
    threads    for one operation; None = as many as torch uses
    config     that of the directory, where it has been read
    Raises M510, M511 (packages missing), M231 (no such export or precision), M333 (unreadable file).
    """

    def __init__(self, path: Path, *, precision: str | None = None, threads: int | None = None, config: Any = None):
        self.precision = chosen_precision(path, precision)
        if self.precision in ONNX_FILES:
            require_onnx("onnxruntime")
        self.directory = model_home(path)
        self.path = path if path.is_file() else file_of(self.directory, self.precision)
        self.config = _read_config(self.directory) if config is None else config
        self._session = open_session(self.path, threads or thread_count())
        self.input_names = tuple(each.name for each in self._session.get_inputs())

    def logits(self, batch: Batch) -> np.ndarray:
        """Logits [B, C] float32 of a batch of torch tensors, arrays or lists.

        What the model does not take (labels, segments) is left alone; missing segments are 0, as in transformers.
        """
        answer: np.ndarray = self._session.run(["logits"], feed(batch, self.input_names))[0]
        return answer


class ExitSession:
    """An exported model with exits; `logits` as those of `OnnxClassifier`.

    path  of the file, or of the directory that it is in. Raises M234 where there is none, M333 where it cannot be read.
    """

    def __init__(self, path: Path, speed: float, *, threads: int | None = None):
        require_onnx("onnxruntime")
        path = exits_file(path) if path.is_dir() else path
        if not path.is_file():
            raise _no_exits(path)
        self.speed = speed
        self._session = open_session(path, threads or thread_count())
        self.input_names = tuple(each.name for each in self._session.get_inputs() if each.name != "speed")

    def answer(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Returns logits [B, C] and layers [B]."""
        inputs = {**feed(batch, self.input_names), "speed": np.array(self.speed, np.float32)}
        logits, layers = self._session.run(["logits", "layers"], inputs)
        return logits, layers

    def logits(self, batch: Batch) -> np.ndarray:
        """Returns the logits [B, C]."""
        return self.answer(batch)[0]


def feed(batch: Batch, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns what a graph takes of a batch as int64 arrays; segments that it takes and a batch lacks are 0."""
    inputs = {name: _integers(batch[name]) for name in names if name in batch}
    if "token_type_ids" in names:
        inputs.setdefault("token_type_ids", np.zeros_like(inputs["input_ids"]))
    return inputs


def _integers(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.ascontiguousarray(values, dtype=np.int64)


def open_session(path: Path, threads: int) -> Any:
    """Returns the session of a file on the CPU: of ONNX Runtime, for an .xml of OpenVINO; raises M333, M377."""
    if path.suffix == ".xml":
        from microbert_cli.models.exported.openvino import OpenVinoSession

        return OpenVinoSession(path, threads)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Idle threads would spin, and steal the processor from whatever runs next: with a 4 x 312 model on 2 cores torch's
    # forward pass went from 5 to 15 ms in turn with a spinning session; without spinning neither is slower.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what fails is raised; it need not be logged as well
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise MbertError(
            "M333",
            f"ONNX Runtime cannot read this file: {str(error).splitlines()[0]}",
            where=str(path),
            allowed="It has to be a whole ONNX model; a copy that was cut short is the usual cause.",
            fix=f"Export it again: mbert export MODEL -o {model_home(path)} --force",
        ) from error


def thread_count() -> int:
    """Returns the threads for one operation: torch's where it is loaded, else as many as it would take.

    That is OMP_NUM_THREADS or MKL_NUM_THREADS, else the physical cores that this process may use.
    """
    if (torch := sys.modules.get("torch")) is not None:
        return int(torch.get_num_threads())
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        first = os.environ.get(name, "").split(",")[0].strip()
        if first.isdecimal() and int(first):
            return int(first)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, _physical_cores() or usable)


def _physical_cores() -> int:
    """Returns the physical cores of the machine; 0 where the system does not say."""
    try:
        lines = PROCESSORS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    values = [[line.partition(":")[2] for line in lines if line.startswith(key)] for key in ("physical id", "core id")]
    return len(set(zip(*values, strict=False)))


def _read_config(directory: Path) -> Any:
    from microbert_cli.models.config import read_config  # loads transformers, which a caller with a configuration does without

    return read_config(directory, where="model")


def _no_exits(path: Path) -> MbertError:
    return MbertError(
        "M234",
        f"this export answers whole: it has no {EXITS_FILE}, which rows could leave early",
        where=str(path.parent),
        allowed="An export of a model with exits, which has that file; or its safetensors: evaluate.precision torch.",
        fix=f"Leave the speed out, or export the model with exits again: mbert export MODEL -o {path.parent} --force",
    )
