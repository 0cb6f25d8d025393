"""Tables of embeddings in 8 and 4 bits: values by hand, the graph that reads them, and what stays as it is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_classifiers import BERT, FAMILIES, batch, rows, tiny, tokenizer

from microbert_cli.exporting.directory import export_model
from microbert_cli.exporting.onnx_fusion import optimise
from microbert_cli.models.graphs.embeddings import (
    BLOCK,
    LEAST_ROWS,
    LEAST_VALUES,
    Format,
    blocks_int4,
    quantise_tables,
    rows_int8,
    stored_tables,
    table_errors,
)
from microbert_cli.models.onnx import OnnxClassifier, quantise, torch_logits, write_onnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def table(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Rows of very different sizes, as those of words and of positions."""
    random = np.random.default_rng(seed)
    return (random.standard_normal((rows, width)) * np.exp(random.standard_normal((rows, 1)))).astype(np.float32)


def graph_of(path: Path, values: np.ndarray, *, also_multiplied: bool = False) -> Any:
    """A graph ids [B, T] -> rows of the table, and with `also_multiplied` its product with the table as well."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("Gather", ["words", "ids"], ["read"], "read")]
    if also_multiplied:
        nodes += [
            helper.make_node("Transpose", ["words"], ["turned"], "turn", perm=[1, 0]),
            helper.make_node("MatMul", ["read", "turned"], ["product"], "multiply"),
        ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])],
            [helper.make_tensor_value_info("product" if also_multiplied else "read", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(values, "words")],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(model, path)
    return model


def answer(path: Path, ids: np.ndarray) -> np.ndarray:
    import onnxruntime

    answered: np.ndarray = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"ids": ids})[0]
    return answered


def error(values: np.ndarray, original: np.ndarray) -> float:
    return float(np.linalg.norm(values - original) / np.linalg.norm(original))


def test_a_scale_per_row_by_hand() -> None:
    values, scale = rows_int8(np.array([[127.0, -63.6, 0.4], [-2.54, 1.27, 0.0], [0.0, 0.0, 0.0]], np.float32))
    np.testing.assert_allclose(scale[:, 0], [1.0, 0.02, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(values, [[127, -64, 0], [-127, 64, 0], [0, 0, 0]])  # 63.5 is rounded to the even 64
    assert values.dtype == np.int8 and scale.dtype == np.float32


def test_blocks_by_hand() -> None:
    """Multiples of a power of two from -8 to 7 are exact in 4 bits, a block of zeros too."""
    levels = np.concatenate([np.arange(-8, 8), np.arange(7, -9, -1)]).astype(np.float32)
    original = np.stack([np.concatenate([levels / 4, -levels / 4]), np.zeros(2 * BLOCK)]).astype(np.float32)
    packed, scale = blocks_int4(original)
    assert packed.shape == (2, BLOCK) and packed.dtype == np.uint8 and scale.shape == (2, 2)
    np.testing.assert_array_equal(scale[0], [0.25, -0.25])
    assert packed[0, 0] == (-8 + 8) | ((-7 + 8) << 4)


@pytest.mark.parametrize("width", [64, 72, 312])
def test_four_bits_are_as_near_as_sixteen_levels_can_be(width: int) -> None:
    original = table(200, width)
    packed, scale = blocks_int4(original)
    assert scale.shape == (200, -(-width // BLOCK)) and packed.shape == (200, width // 2)
    levels = np.stack([packed & 15, packed >> 4], -1).reshape(200, -1) - 8.0
    near = levels * np.repeat(scale.astype(np.float32), BLOCK, 1)[:, :width]
    assert 0.05 < error(near, original) < 0.09
    largest = np.repeat([np.abs(original[:, first : first + BLOCK]).max(1) for first in range(0, width, BLOCK)], BLOCK, 0).T
    plain = np.rint(original / largest[:, :width] * 7) / 7 * largest[:, :width]  # one scale a block, the largest value at 7
    assert error(near, original) < 0.9 * error(plain, original)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_the_graph_reads_the_table_it_stores(tmp_path: Path, form: Format) -> None:
    """The graph gives exactly q s of the rows asked for; and so it stays when ONNX Runtime optimises it."""
    original, path = table(300, 64), tmp_path / "graph.onnx"
    graph = graph_of(tmp_path / "fp32.onnx", original)
    names = quantise_tables(graph, form)
    onnx.save(graph, path)
    ids = np.array([[0, 299, 7, 7], [1, 2, 3, 4]])
    (stored,) = stored_tables(path).values()
    assert stored[0] == form
    # The rows in 4 bits are given as float16, as their scales are.
    np.testing.assert_allclose(answer(path, ids), stored[1][ids], rtol=0 if form == "int8" else 2**-10)
    if form == "int8":
        scale = np.abs(original).max(1, keepdims=True) / np.float32(127)
        np.testing.assert_array_equal(stored[1], np.rint(original / scale) * scale)
        assert np.abs(stored[1] - original).max(1) == pytest.approx(0.5 * scale[:, 0], rel=0.25)
    optimise(path, tmp_path / "optimised.onnx")
    assert table_errors(tmp_path / "fp32.onnx", tmp_path / "optimised.onnx") == table_errors(tmp_path / "fp32.onnx", path)
    np.testing.assert_array_equal(answer(tmp_path / "optimised.onnx", ids), answer(path, ids))
    values = {"int8": 300 * (64 + 4), "int4": 300 * (32 + 2 * 2)}[form]
    for file in (path, tmp_path / "optimised.onnx"):
        assert values < file.stat().st_size < values + 4000
    assert set(names) == {node.name for node in graph.graph.node}
    (measured,) = table_errors(tmp_path / "fp32.onnx", path).values()
    assert measured["relative_error"] == pytest.approx(error(stored[1], original)) and measured["rows"] == 300


def test_a_table_that_is_multiplied_as_well_stays_beside(tmp_path: Path) -> None:
    original = table(300, 64)
    graph = graph_of(tmp_path / "fp32.onnx", original, also_multiplied=True)
    quantise_tables(graph, "int8")
    onnx.save(graph, tmp_path / "small.onnx")
    assert {each.name for each in graph.graph.initializer} == {"words", "words.int8", "words.scale"}
    ids = np.array([[3, 5]])
    near, scale = rows_int8(original)
    np.testing.assert_allclose(answer(tmp_path / "small.onnx", ids), (near * scale)[ids] @ original.T, rtol=1e-4, atol=1e-3)


def test_small_tables_and_odd_widths(tmp_path: Path) -> None:
    for form, values, expected in (
        ("int8", table(LEAST_VALUES // 64 - 1, 64), {}),
        ("int8", table(LEAST_ROWS - 1, 640), {}),
        ("int8", table(LEAST_ROWS, 640), {"words": "int8"}),
        ("fp32", table(300, 64), {}),
        ("int4", table(300, 63), {"words": "int8"}),
    ):
        graph = graph_of(tmp_path / "fp32.onnx", values)
        assert quantise_tables(graph, form)
        onnx.save(graph, tmp_path / "small.onnx")
        assert {name: stored[0] for name, stored in stored_tables(tmp_path / "small.onnx").items()} == expected


OTHERS: dict[str, dict[str, Any]] = {
    "bert": {}, "roberta": {}, "distilbert": {}, "electra": {},
    "albert": {**BERT, "embedding_size": 16},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_every_family_is_exported(tmp_path: Path, family: str, form: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words in that format, positions with a scale per row, segments as they are; the answers near the model's."""
    monkeypatch.setitem(FAMILIES, "albert", OTHERS["albert"])
    model = tiny(family, vocab_size=600, max_position_embeddings=300)
    files = export_model(model, tokenizer(), tmp_path, rows(20), embeddings=form)["files"]
    for name in ("int8", "int8-optimized"):
        tables = files[name]["embeddings"]
        words, *others = tables.values()
        assert words["format"] == form and words["rows"] == 600
        assert words["relative_error"] <= (0.01 if form == "int8" else 0.09)
        assert all(each["format"] == "int8" and each["relative_error"] <= 0.01 for each in others)
        assert not any("token_type" in each for each in tables)
    assert files["int8"]["embeddings"] == files["int8-optimized"]["embeddings"] and files["fp32"]["embeddings"] is None
    inputs = batch(8, 21, model.config)
    expected = torch_logits(model)(inputs)
    near = OnnxClassifier(tmp_path, precision="int8").logits(inputs)
    assert np.abs(near - expected).mean() < 0.5 * expected.std()


@pytest.mark.slow
def test_the_bytes_are_the_same_again(tmp_path: Path) -> None:
    model = tiny("bert", vocab_size=600)
    write_onnx(model, tmp_path / "model.onnx")
    for form in ("int8", "int4", "fp32"):
        for file in ("a.onnx", "b.onnx"):
            quantise(tmp_path / "model.onnx", tmp_path / file, embeddings=form)
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
