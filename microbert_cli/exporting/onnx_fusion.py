"""The same classifier as a graph of fused operators, which ONNX Runtime alone can run.

    DIR/onnx/model_optimized.onnx, DIR/onnx/model_optimized_quantized.onnx

ONNX Runtime fuses at load whatever it recognises: a residual with its LayerNorm, GELU with its bias. Attention as torch's
exporter writes it, with the construction of its mask, it does not recognise, nor do its own tool for Transformers and
quantiser. So attention is written as one operator from the start:

    softmax(Q K^T s + mask) V,  [Q K V] = X [W_Q W_K W_V] + [b_Q b_K b_V]      com.microsoft.Attention(X, W, b, mask)

X [B, T, d], W [d, 3 d], b [3 d], mask [B, T] with 1 for real tokens, s the scale. Quantised, it is QAttention: X is quantised
once instead of three times. The rest ONNX Runtime fuses, after quantisation: residuals and biases that are fused before it
keep products from being fused with their scales (a fifth slower; docs/lab-notes.md). What is written is what it runs.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from microbert_cli.models.graphs.embeddings import Format
from microbert_cli.models.graphs.products import Row
from microbert_cli.models.onnx import ONNX_FILES, quantise, require_onnx, silence, write_onnx

ATTENTION = "mbert-one-operator"
DOMAIN = "com.microsoft"
FUSED_STANDARD = ("Gelu", "LayerNormalization")  # operators of standard ONNX that stand for several


def write_optimized(
    model: Any,
    directory: Path,
    *,
    int8: bool = True,
    embeddings: Format = "int8",
    inputs: Sequence[str] = (),
    rows: Sequence[Row] = (),
) -> dict[str, float]:
    """Writes the optimised graph of a classifier, and with int8 its quantised form; returns the seconds each took.

    An architecture whose attention does not pass through transformers' interface keeps it as it is: `operators` tells.
    Raises M510 (packages missing), M611 (too large, or the exporter cannot follow the architecture).
    """
    require_onnx("onnx", "onnxscript", "onnxruntime")
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        fp32, int8_graph = Path(folder) / "graph.onnx", Path(folder) / "small.onnx"
        started = time.perf_counter()
        write_onnx(model, fp32, attention=ATTENTION, inputs=inputs)
        _pack(fp32)
        optimise(fp32, directory / ONNX_FILES["fp32-optimized"])
        seconds["fp32-optimized"] = time.perf_counter() - started
        if int8:
            started = time.perf_counter()
            quantise(fp32, int8_graph, embeddings=embeddings, rows=rows)
            optimise(int8_graph, directory / ONNX_FILES["int8-optimized"])
            seconds["int8-optimized"] = time.perf_counter() - started
    return seconds


def optimise(source: Path, target: Path) -> None:
    """Writes the graph that ONNX Runtime makes of `source` at load on a CPU, whatever processor that is."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # One level more would choose layouts for this machine's processor.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    target.parent.mkdir(exist_ok=True)
    with silence():
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    _keep_inputs(source, target)


def _keep_inputs(source: Path, target: Path) -> None:
    """Gives a graph back the inputs that it does not read: whoever calls it still gives what the tokenizer gives."""
    import onnx

    inputs = list(onnx.load(source, load_external_data=False).graph.input)
    graph = onnx.load(target)
    if {each.name for each in inputs} <= {each.name for each in graph.graph.input}:
        return
    del graph.graph.input[:]
    graph.graph.input.extend(inputs)
    target.write_bytes(graph.SerializeToString(deterministic=True))


def operators(path: Path) -> dict[str, Any]:
    """Counts the operators of an ONNX file, as `written` and as ONNX Runtime runs it once `loaded`.

    Returns {"written": counts, "loaded": counts}, counts = {"nodes": all of them, "fused": {operator: how often}}. Fused are
    ONNX Runtime's own operators, and those of standard ONNX that stand for several: GELU and LayerNorm.
    """
    with tempfile.TemporaryDirectory() as folder:
        loaded = Path(folder) / "loaded.onnx"
        optimise(path, loaded)
        return {"written": _count(path), "loaded": _count(loaded)}


def _count(path: Path) -> dict[str, Any]:
    import onnx

    nodes = onnx.load(path).graph.node
    fused = Counter(node.op_type for node in nodes if node.domain == DOMAIN or node.op_type in FUSED_STANDARD)
    return {"nodes": len(nodes), "fused": dict(sorted(fused.items()))}


def _one_operator(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask_BT: Tensor, scaling: float | None = None, **_: Any
) -> tuple[Tensor, None]:
    """transformers' attention call as one operator; query, key, value [B, A, T, h]."""
    B, A, T, h = query.shape
    parts = [each.transpose(1, 2).reshape(B, T, A * h) for each in (query, key, value)]
    attributes = {
        "num_heads": A,
        "scale": h**-0.5 if scaling is None else float(scaling),
        "mask_filter_value": float(torch.finfo(torch.float32).min),
    }
    inputs = [*parts, None, mask_BT.int()]
    shape = (B, T, A * h)
    mixed_BTd = torch.onnx.ops.symbolic(
        f"{DOMAIN}::MultiHeadAttention", inputs, attributes, dtype=query.dtype, shape=shape, version=1
    )
    return mixed_BTd, None  # transformers reshapes it to this shape


def _mask_as_it_comes(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> Tensor | None:
    return attention_mask


AttentionInterface.register(ATTENTION, _one_operator)
AttentionMaskInterface.register(ATTENTION, _mask_as_it_comes)


def _pack(path: Path) -> None:
    """Moves the three linear maps before every attention into its operator, where all three read the same X."""
    import onnx
    from onnxruntime.transformers.onnx_model import OnnxModel

    graph = OnnxModel(onnx.load(path))
    for node in graph.get_nodes_by_op_type("MultiHeadAttention"):
        inputs = [_linear(graph, name) for name in node.input[:3]]
        linear_maps = [linear_map for linear_map in inputs if linear_map is not None]
        if len(linear_maps) == 3 and len({source for source, _, _ in linear_maps}) == 1:
            _replace(graph, node, linear_maps)
    graph.prune_graph()
    graph.topological_sort(is_deterministic=True)
    graph.save_model_to_file(str(path))


def _linear(graph: Any, name: str) -> tuple[str, np.ndarray, np.ndarray] | None:
    """Returns X, W and b where `name` is X W + b, perhaps reshaped; else None."""
    producers = graph.output_name_to_node()
    node = producers.get(name)
    while node is not None and node.op_type == "Reshape":
        node = producers.get(node.input[0])
    if node is None or node.op_type != "Add":
        return None
    product, bias = producers.get(node.input[0]), graph.get_constant_value(node.input[1])
    if product is None or product.op_type != "MatMul" or bias is None:
        return None
    weight = graph.get_constant_value(product.input[1])
    return None if weight is None else (product.input[0], weight, bias)


def _replace(graph: Any, node: Any, maps: list[tuple[str, np.ndarray, np.ndarray]]) -> None:
    from onnx import helper, numpy_helper

    names = [f"{node.output[0]}.{part}" for part in ("weight", "bias")]
    weight_dD, bias_D = (np.concatenate([linear_map[index] for linear_map in maps], axis=-1) for index in (1, 2))
    for name, values in zip(names, (weight_dD, bias_D), strict=True):
        graph.add_initializer(numpy_helper.from_array(values, name))
    inputs = [maps[0][0], *names, node.input[4]]
    packed = helper.make_node("Attention", inputs, list(node.output), node.name, domain=DOMAIN)
    packed.attribute.extend(node.attribute)
    graph.remove_node(node)
    graph.add_node(packed)
