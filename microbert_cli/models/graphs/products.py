"""Products of an ONNX graph made ready for int8: activations without outliers, and weights on their 7-bit levels.

ONNX Runtime quantises the activations of a product with one scale for the tensor. In BERT a few channels behind a layer
normalisation, and a few neurons of the feed-forward network, are ten times as large as the others and decide that scale. Both
steps below take real rows without labels; the graph stays one of standard operators.

Scaling   For Y = X W with X [n, K], W [K, N]:  Y = (X / s) (s W),  s_k = max(1, max |X_k| / m),  m the quantile QUANTILE of
          max |X_k| over the channels k. It is exact before quantisation, and costs a Mul for each X that has outliers. After
          SmoothQuant (Xiao et al. 2023, arXiv:2211.10438), whose factors are all channels' and depend on W, too.
Rounding  W is rounded row by row, and the error of a row is carried to the rows that are not rounded yet, so that |X W - X Q|
          is small rather than |W - Q|: see rounding.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from microbert_cli.models.graphs.rounding import round_to_levels

QUANTILE = 0.95
LEAST_RATIO = 2.0  # of the largest channel to that quantile: below it nothing is gained by a Mul
CALIBRATION_ROWS = 256
TOKENS_AT_ONCE = 512  # one large product is faster than many small ones
# Products with more channels keep nearest rounding: their second moments [K, K] would take 64 MiB and more each.
MOST_CHANNELS = 4096

Row = Mapping[str, Sequence[int]]


@dataclass
class Activations:
    """What rows had as X, the first factor of products: max |X_k| [K], and X^T X [K, K] summed over tokens.

    products  the nodes that multiply X by constant weights
    waiting   X of rows that are not in the sums yet
    """

    products: list[Any] = field(default_factory=list)
    waiting: list[np.ndarray] = field(default_factory=list)
    largest_K: np.ndarray = field(default_factory=lambda: np.zeros(1, np.float32))
    moments_KK: np.ndarray = field(default_factory=lambda: np.zeros((1, 1), np.float32))

    def add(self, values: np.ndarray) -> None:
        """Adds the X of one row."""
        self.waiting.append(values.reshape(-1, values.shape[-1]))
        if sum(len(each) for each in self.waiting) >= TOKENS_AT_ONCE:
            self.sum_up()

    def sum_up(self) -> None:
        """Brings what waits into the sums."""
        if self.waiting:
            values_nK = np.concatenate(self.waiting)
            self.waiting.clear()
            self.largest_K = np.maximum(self.largest_K, np.abs(values_nK).max(axis=0))
            self.moments_KK = self.moments_KK + values_nK.T @ values_nK

    def scales(self) -> np.ndarray:
        """Returns s [K]; all 1 where no channel is an outlier."""
        usual = float(np.quantile(self.largest_K, QUANTILE))
        ratio_K = self.largest_K / usual if usual > 0 else np.ones_like(self.largest_K)
        return np.maximum(ratio_K, 1).astype(np.float32) if ratio_K.max() >= LEAST_RATIO else np.ones_like(self.largest_K)


def prepare_products(graph: Any, rows: Sequence[Row], *, levels: int) -> None:
    """Scales and rounds the weights of an ONNX model's products in place, for a quantiser with one scale per column.

    graph   an onnx.ModelProto in float32
    rows    real rows as the tokenizer encodes them, not padded: at most CALIBRATION_ROWS of them are used, evenly
    levels  the quantiser's largest level: column n of the weights is q s_n with whole |q| <= levels, one of them = levels
    Weights that several products read stay as they are.
    """
    weights = _weights(graph)
    activations = _activations(graph, weights)
    if not activations:
        return
    _measure(graph, activations, rows)
    for name, measured in activations.items():
        scale_K = measured.scales()
        if scale_K.max() > 1:
            _divide(graph, name, measured.products, scale_K)
        moments_KK = measured.moments_KK / np.outer(scale_K, scale_K)
        for node in measured.products:
            transposed = _transposed(node)
            weight_KN = weights[node.input[1]].T if transposed else weights[node.input[1]]
            rounded_KN = round_to_levels(weight_KN * scale_K[:, None], moments_KK, levels)
            _set(graph, node.input[1], rounded_KN.T if transposed else rounded_KN)


def _weights(graph: Any) -> dict[str, np.ndarray]:
    """Returns the constant float32 matrices that one node alone reads."""
    from onnx import TensorProto, numpy_helper

    readers = [name for node in graph.graph.node for name in set(node.input)]
    return {
        each.name: numpy_helper.to_array(each)
        for each in graph.graph.initializer
        if each.data_type == TensorProto.FLOAT and len(each.dims) == 2 and readers.count(each.name) == 1
    }


def _activations(graph: Any, weights: Mapping[str, np.ndarray]) -> dict[str, Activations]:
    """Returns the products with constant weights by the name of their X."""
    activations: dict[str, Activations] = {}
    constants = {each.name for each in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type in ("MatMul", "Gemm", "Attention") and node.input[1] in weights and node.input[0] not in constants:
            plain = node.op_type != "Gemm" or not any(a.name == "transA" and a.i for a in node.attribute)
            if plain and max(weights[node.input[1]].shape) <= MOST_CHANNELS:
                activations.setdefault(node.input[0], Activations()).products.append(node)
    return activations


def _transposed(node: Any) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _measure(graph: Any, activations: Mapping[str, Activations], rows: Sequence[Row]) -> None:
    """Runs the rows one at a time through a copy of the graph that also returns every X."""
    import onnxruntime
    from onnx import ModelProto, TensorProto, helper

    copy = ModelProto.FromString(graph.SerializeToString())
    del copy.graph.output[:]
    copy.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in activations)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # sums in another order would be other bytes
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    for row in (rows[position] for position in evenly(len(rows))):
        feed = {name: _one_row(row, name) for name in names}
        for measured, values in zip(activations.values(), session.run(list(activations), feed), strict=True):
            measured.add(values)
    for measured in activations.values():
        measured.sum_up()


def evenly(count: int) -> list[int]:
    """Returns which of `count` rows calibrate: at most CALIBRATION_ROWS, from the first to the last."""
    return [int(index) for index in np.linspace(0, count - 1, min(count, CALIBRATION_ROWS)).round()]


def _one_row(row: Row, name: str) -> np.ndarray:
    ids_1T = np.asarray([row["input_ids"]], np.int64)
    if name in row:
        return np.asarray([row[name]], np.int64)
    return np.ones_like(ids_1T) if name == "attention_mask" else np.zeros_like(ids_1T)


def _divide(graph: Any, name: str, products: Sequence[Any], scale_K: np.ndarray) -> None:
    """Puts X / s before the products that read X; whatever else reads X still reads X."""
    from onnx import helper, numpy_helper

    inverse, divided = f"{name}.inverse_scale", f"{name}.divided"
    graph.graph.initializer.append(numpy_helper.from_array((1 / scale_K).astype(np.float32), inverse))
    index = min(position for position, node in enumerate(graph.graph.node) if any(node is each for each in products))
    for node in products:
        node.input[0] = divided
    graph.graph.node.insert(index, helper.make_node("Mul", [name, inverse], [divided], f"{name}.divide"))


def _set(graph: Any, name: str, values: np.ndarray) -> None:
    from onnx import numpy_helper

    tensor = next(each for each in graph.graph.initializer if each.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
