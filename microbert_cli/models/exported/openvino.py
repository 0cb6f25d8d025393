"""An export's file for OpenVINO, open; it comes with `pip install "microbert-cli[openvino]"`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from microbert_cli.errors import MbertError, first_line
from microbert_cli.models.exported.files import require_openvino


class OpenVinoSession:
    """A graph of OpenVINO on the CPU that is asked like a session of ONNX Runtime.

    Products run in the precision that the file says, all else in float32. Raises M511 (not installed), M377 (unreadable file).
    """

    def __init__(self, path: Path, threads: int):
        require_openvino()
        import openvino

        core = openvino.Core()
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        try:
            model = core.compile_model(core.read_model(path), "CPU", options)
        except Exception as error:
            raise MbertError(
                "M377",
                f"OpenVINO cannot read this file: {first_line(error)}",
                where=str(path),
                allowed="A whole graph, with its weights beside it: the .xml and the .bin of the same name.",
                fix=f"Export it again: mbert export MODEL -o {path.parent.parent} --force",
            ) from error
        self._request = model.create_infer_request()
        self._names = [each.get_any_name() for each in model.inputs]

    def get_inputs(self) -> list[SimpleNamespace]:
        """Returns the inputs, each with its `name`."""
        return [SimpleNamespace(name=name) for name in self._names]

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Returns the outputs of these names."""
        answers = self._request.infer(dict(inputs))
        return [np.array(answers[name]) for name in outputs]
