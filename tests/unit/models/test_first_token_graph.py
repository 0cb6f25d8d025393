"""The top layer of an exported graph computes the first token alone: exact, smaller work, and only where the head allows it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_classifiers import FAMILIES, batch, tiny

from microbert_cli.models.capture import removable_layers
from microbert_cli.models.graphs.first_token import FirstTokenLayer, first_token_on_top
from microbert_cli.models.graphs.layer_norm import separate_sums
from microbert_cli.models.onnx import torch_logits, write_onnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


def scattered(family: str) -> torch.nn.Module:
    """A model whose biases are not zero: those of keys must cancel, those of values be added once."""
    model = tiny(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter)))
    return model


def test_a_layer_by_hand() -> None:
    """The first row of the whole layer, for any mask as transformers gives it: [B, T], or [B, 1, T, T] to be added."""
    model = scattered("bert")
    layer = model.bert.encoder.layer[-1]
    hidden_BTd = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(0))
    mask_BT = (torch.arange(7) < torch.tensor([7, 4, 1])[:, None]).long()
    added = (1.0 - mask_BT.float())[:, None, None].expand(3, 1, 7, 7) * torch.finfo(torch.float32).min
    first = FirstTokenLayer(layer).eval()
    with torch.inference_mode():
        whole = layer(hidden_BTd, added)
        whole_B1d = (whole[0] if isinstance(whole, tuple) else whole)[:, :1]
        for mask in (added, mask_BT):
            torch.testing.assert_close(first(hidden_BTd, mask), whole_B1d, rtol=1e-5, atol=2e-6)
        assert not torch.allclose(first(hidden_BTd), whole_B1d, atol=1e-2)  # the mask matters


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_same_and_the_model_comes_back(family: str) -> None:
    model = scattered(family)
    model.set_attn_implementation("eager")
    inputs = batch(5, 19, model.config)
    expected = torch_logits(model)(inputs)
    layers = list(removable_layers(model.base_model))
    with first_token_on_top(model):
        replaced = isinstance(removable_layers(model.base_model)[-1], FirstTokenLayer)
        assert np.abs(torch_logits(model)(inputs) - expected).max() <= 2e-5
    assert replaced == (family != "distilbert")
    assert list(removable_layers(model.base_model)) == layers and not model.training


def test_a_decoder_keeps_its_layer() -> None:
    model = tiny("bert", is_decoder=True)
    with first_token_on_top(model):
        assert not isinstance(model.bert.encoder.layer[-1], FirstTokenLayer)


@pytest.mark.slow
def test_the_feed_forward_network_of_the_top_layer_has_one_row(tmp_path: Path) -> None:
    """By the shapes that ONNX infers: two dimensions in the top layer, three below it."""
    write_onnx(scattered("bert"), tmp_path / "model.onnx")
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "model.onnx"), data_prop=True).graph
    sizes = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    assert [sizes[node.output[0]] for node in graph.node if node.op_type == "Gelu"] == [3, 2]


def test_separate_sums_change_no_answer(tmp_path: Path) -> None:
    """Between a sum and its normalisation a Reshape, and the same bits as before it."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = {name: random.standard_normal(8).astype(np.float32) for name in ("g", "b")}
    tokens = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", 8])
    inner = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "length", 8]) for name in ("n", "a")]
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "b"], ["n"]),
        helper.make_node("Add", ["n", "x"], ["a"]),
        helper.make_node("LayerNormalization", ["a", "g", "b"], ["y"]),
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", 8])
    parts = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "graph", [tokens], [out], parts, value_info=inner)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    values = random.standard_normal((2, 5, 8)).astype(np.float32)

    def answer() -> np.ndarray:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        answered: np.ndarray = session.run(["y"], {"x": values})[0]
        return answered

    before = answer()
    separate_sums(model)
    np.testing.assert_array_equal(answer(), before)
    assert [node.op_type for node in model.graph.node] == ["LayerNormalization", "Add", "Reshape", "LayerNormalization"]
