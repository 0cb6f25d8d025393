"""A classifier as int8 for OpenVINO.

    DIR/openvino/openvino_model_qint8_quantized.xml, .bin

Made of the float32 ONNX graph: the weights W [K, N] of every product become int8 with a scale per column,

    W ~ Q diag(s),  s_n = max_k |W_kn| / 127,  Q = round(W / s)

and OpenVINO quantises activations on the way, in groups of GROUP channels of a token, so that an outlier spoils its own group
alone. (The int8 ONNX file converted takes three times as long: its integer products are not recognised; docs/lab-notes.md.)
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from microbert_cli.models.exported.files import require_openvino
from microbert_cli.models.graphs.embeddings import Format, quantise_tables
from microbert_cli.models.onnx import require_onnx, silence

GROUP = 64
LARGEST = 127
FEWEST = 1024  # weights of a product that are worth a scale


def write_openvino(source: Path, target: Path, *, embeddings: Format = "int8") -> float:
    """Writes the float32 ONNX graph `source` as `target`, an .xml, with its weights in the .bin beside; returns the seconds.

    embeddings  fp32 = as they are; else int8 with a scale per row: OpenVINO has no 4-bit tables
    Raises M510, M511 (packages missing).
    """
    require_onnx("onnx")
    require_openvino()
    import onnx
    import openvino

    started = time.perf_counter()
    graph = onnx.load(source)
    del graph.graph.value_info[:]
    quantise_tables(graph, "fp32" if embeddings == "fp32" else "int8")
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, silence():
        plain = Path(folder) / "graph.onnx"
        plain.write_bytes(graph.SerializeToString(deterministic=True))
        model = openvino.convert_model(plain)
        for node in model.get_ordered_ops():
            if node.get_type_name() == "MatMul" and node.input_value(1).get_node().get_type_name() == "Constant":
                _store_as_int8(node)
        model.validate_nodes_and_infer_types()
        model.set_rt_info(str(GROUP), ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
        openvino.save_model(model, target, compress_to_fp16=False)
    return time.perf_counter() - started


def _store_as_int8(node: Any) -> None:
    """Puts a product with int8 weights and their scales in the place of one with float32 weights."""
    from openvino import opset13

    weights = node.input_value(1).get_node().get_data()
    if weights.ndim != 2 or weights.size < FEWEST:
        return
    attributes = node.get_attributes()
    weights_NK = weights if attributes["transpose_b"] else weights.T
    scales_N1 = np.abs(weights_NK).max(axis=1, keepdims=True) / LARGEST
    scales_N1 = np.where(scales_N1 > 0, scales_N1, 1).astype(np.float32)
    levels_NK = np.ascontiguousarray(np.round(weights_NK / scales_N1).astype(np.int8))
    stored = opset13.multiply(opset13.convert(opset13.constant(levels_NK), "f32"), opset13.constant(scales_N1))
    product = opset13.matmul(node.input_value(0), stored, attributes["transpose_a"], True)
    product.set_friendly_name(node.get_friendly_name())
    for consumer in list(node.output(0).get_target_inputs()):
        consumer.replace_source_output(product.output(0))
