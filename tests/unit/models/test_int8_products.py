"""Outliers of activations are scaled away exactly; weights are rounded by what they do; the quantiser keeps their levels."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from microbert_cli.models.graphs.products import CALIBRATION_ROWS, evenly, prepare_products
from microbert_cli.models.graphs.rounding import round_to_levels
from microbert_cli.models.onnx import LEVELS, quantise

WORDS, WIDTH, OUT = 50, 64, 16
ROWS = [{"input_ids": [(7 * row + column) % WORDS for column in range(12)]} for row in range(40)]


def graph(*, outliers: bool = True, shared: bool = False, gemm: bool = False) -> onnx.ModelProto:
    """Words -> X, of which two channels are 30 times the others -> tanh(X W) V, and X's sum beside it."""
    random = np.random.default_rng(0)
    table = random.normal(size=(WORDS, WIDTH)).astype(np.float32)
    mixed = (table @ random.normal(size=(WIDTH, WIDTH)) / 8).astype(np.float32)
    if outliers:
        mixed[:, [3, 40]] *= 30
    second = random.normal(size=(WIDTH, OUT)).astype(np.float32)
    first = random.normal(size=(WIDTH, WIDTH)).astype(np.float32) * 0.05
    values = {"table": mixed, "w": first, "v": second.T if gemm else second, "shape": np.array([-1, WIDTH])}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"], "words"),
        helper.make_node("MatMul", ["x", "w"], ["y"], "first"),
        helper.make_node("Tanh", ["y"], ["a"], "activation"),
        helper.make_node("Reshape", ["a", "shape"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "v"], ["logits"], "second", transB=1)
        if gemm
        else helper.make_node("MatMul", ["flat", "v"], ["logits"], "second"),
        helper.make_node("ReduceSum", ["x"], ["sum"], "sum", keepdims=0),
    ]
    if shared:
        nodes.insert(2, helper.make_node("MatMul", ["y", "w"], ["again"], "again"))
        nodes[3].input[0] = "again"
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "test",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])],
            [
                helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["tokens", OUT]),
                helper.make_tensor_value_info("sum", TensorProto.FLOAT, []),
            ],
            [numpy_helper.from_array(value, name) for name, value in values.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.checker.check_model(model)
    return model


def answers(model: onnx.ModelProto | Path) -> list[np.ndarray]:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return session.run(None, {"input_ids": np.array([row["input_ids"] for row in ROWS])})  # type: ignore[no-any-return]


def weight(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(each for each in model.graph.initializer if each.name == name))


@pytest.mark.parametrize("gemm", [False, True])
def test_scaling_changes_no_answer(gemm: bool) -> None:
    """With so many levels that rounding is lost in float32, only the scales are left."""
    before, after = graph(gemm=gemm), graph(gemm=gemm)
    prepare_products(after, ROWS, levels=2**22)
    onnx.checker.check_model(after)
    assert [node.op_type for node in after.graph.node].count("Mul") == 1  # before "first"; "second" reads no outliers
    assert next(node for node in after.graph.node if node.name == "sum").input[0] == "x"
    for expected, actual in zip(answers(before), answers(after), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(weight(after, "w")[[3, 40]]).max() > 5 * np.abs(weight(before, "w")).max()


def test_no_operator_where_there_are_no_outliers() -> None:
    model = graph(outliers=False)
    prepare_products(model, ROWS, levels=LEVELS)
    assert [node.op_type for node in model.graph.node] == [node.op_type for node in graph().graph.node]


def test_weights_of_several_products_stay() -> None:
    model = graph(shared=True)
    prepare_products(model, ROWS, levels=LEVELS)
    assert np.array_equal(weight(model, "w"), weight(graph(), "w"))
    assert not np.array_equal(weight(model, "v"), weight(graph(), "v"))


def test_the_quantiser_keeps_the_levels_and_loses_less(tmp_path: Path) -> None:
    onnx.save(graph(), tmp_path / "model.onnx")
    prepared = graph()
    prepare_products(prepared, ROWS, levels=LEVELS)
    expected = answers(graph())[0]
    errors = []
    for name, rows in (("plain", []), ("calibrated", ROWS), ("again", ROWS)):
        quantise(tmp_path / "model.onnx", tmp_path / name, embeddings="fp32", rows=rows)
        errors.append(np.abs(answers(tmp_path / name)[0] - expected).mean())
    assert errors[1] < 0.5 * errors[0]
    assert (tmp_path / "again").read_bytes() == (tmp_path / "calibrated").read_bytes()
    stored = onnx.load(tmp_path / "calibrated")
    for name in ("w", "v"):
        levels = weight(stored, f"{name}_quantized").astype(np.float32)
        assert np.array_equal(np.abs(levels).max(axis=0), np.full(levels.shape[1], LEVELS))
        np.testing.assert_allclose(levels * weight(stored, f"{name}_scale"), weight(prepared, name), rtol=1e-6)


def test_rounding_by_moments_changes_the_product_less_than_the_nearest_levels() -> None:
    random = np.random.default_rng(1)
    inputs = (random.normal(size=(400, 8)) @ random.normal(size=(8, 48)) + 0.1 * random.normal(size=(400, 48))).astype(
        np.float32
    )
    weights = random.normal(size=(48, 20)).astype(np.float32)
    weights[:, 4] = 0
    rounded = round_to_levels(weights, inputs.T @ inputs, LEVELS)
    nearest = round_to_levels(weights, np.eye(48, dtype=np.float32), LEVELS)
    scale = np.abs(weights).max(axis=0) / LEVELS
    assert np.abs(nearest - weights).max() <= 0.5001 * scale.max()
    assert not rounded[:, 4].any()
    assert np.array_equal(np.abs(rounded).max(axis=0), np.abs(weights).max(axis=0))
    levels = rounded[:, scale > 0] / scale[scale > 0]
    assert np.abs(levels - np.rint(levels)).max() < 1e-3
    assert np.linalg.norm(inputs @ (rounded - weights)) < 0.5 * np.linalg.norm(inputs @ (nearest - weights))


@pytest.mark.parametrize("moments", [np.zeros((6, 6)), np.full((6, 6), np.nan), np.full((6, 6), 1e30), -np.eye(6)])
def test_without_an_inverse_the_nearest_level_is_taken(moments: np.ndarray) -> None:
    weights = np.random.default_rng(2).normal(size=(6, 5)).astype(np.float32)
    rounded = round_to_levels(weights, moments.astype(np.float32), LEVELS)
    assert np.isfinite(rounded).all()
    assert np.abs(rounded - weights).max() <= 2 * np.abs(weights).max() / LEVELS


def test_calibration_takes_rows_evenly() -> None:
    assert evenly(3) == [0, 1, 2] and evenly(0) == []
    assert len(evenly(10_000)) == CALIBRATION_ROWS and evenly(10_000)[-1] == 9_999
