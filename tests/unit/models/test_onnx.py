"""Export: ONNX says what the model says, on padded batches of many shapes, in every family."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from recording import RecordingReporter
from tiny_classifiers import BERT, FAMILIES, POSITIONS, batch, rows, tiny, tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification

from microbert_cli.errors import MbertError
from microbert_cli.exporting.directory import _warn_of_drop, export_model, parity_batches
from microbert_cli.exporting.onnx_fusion import operators, write_optimized
from microbert_cli.models import onnx
from microbert_cli.models.capture import first_token_layer
from microbert_cli.models.exported.files import export_forms, is_export, precisions
from microbert_cli.models.onnx import (
    ONNX_FILES,
    LogitsFunction,
    OnnxClassifier,
    quantise,
    torch_logits,
    write_onnx,
)

FORMS = ("fp32", "int8", "fp32-optimized", "int8-optimized")  # what an export has where nobody says which
FILES = [ONNX_FILES[form] for form in FORMS]
OPTIMIZED = ONNX_FILES["fp32-optimized"]


@dataclass
class Exported:
    model: Any
    path: Path


@dataclass
class Done:
    path: Path
    model: Any
    metrics: dict[str, Any]
    reporter: RecordingReporter


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A whole export of a BERT with named labels; the score is a stand-in: the mean answer."""
    path, reporter = tmp_path_factory.mktemp("export") / "out", RecordingReporter()
    model = tiny("bert", id2label={0: "no", 1: "maybe", 2: "yes"}, label2id={"no": 0, "maybe": 1, "yes": 2})
    dev = list(parity_batches(rows(20), 0, longest=POSITIONS))

    def score(logits: LogitsFunction) -> Mapping[str, float]:
        return {"accuracy": float(np.mean([logits(each).argmax(-1).mean() for each in dev]))}

    metrics = export_model(model, tokenizer(), path, rows(20), score=score, primary="accuracy", reporter=reporter)
    return Done(path, model, metrics, reporter)


@pytest.fixture(
    scope="module", params=["bert", *(pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES if family != "bert")]
)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, done: Done) -> Exported:
    """One model of each family in ONNX, fp32 and int8, both optimised, too."""
    if request.param == "bert":
        return Exported(done.model, done.path)
    path = tmp_path_factory.mktemp(request.param)
    model = tiny(request.param)
    model.config.save_pretrained(path)
    write_onnx(model, path / ONNX_FILES["fp32"])
    quantise(path / ONNX_FILES["fp32"], path / ONNX_FILES["int8"], rows=rows(20))
    write_optimized(model, path, rows=rows(20))
    return Exported(model, path)


@pytest.mark.parametrize("precision", ["fp32", "fp32-optimized"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (3, 17), (8, 64), (32, 21), (2, POSITIONS - 2)])
def test_fp32_says_what_the_model_says(written: Exported, shape: tuple[int, int], precision: str) -> None:
    inputs = batch(*shape, written.model.config)
    expected = torch_logits(written.model)(inputs)
    answered = OnnxClassifier(written.path, precision=precision).logits(inputs)
    assert answered.shape == (shape[0], written.model.config.num_labels) and answered.dtype == np.float32
    assert np.abs(answered - expected).max() <= 1e-4


@pytest.mark.parametrize("precision", FORMS)
def test_the_mask_matters(written: Exported, precision: str) -> None:
    """What the parity above is worth: the same batch without its mask answers differently."""
    inputs = batch(4, 20, written.model.config)
    model = OnnxClassifier(written.path, precision=precision)
    bare = inputs | {"attention_mask": torch.ones_like(inputs["input_ids"])}
    assert np.abs(model.logits(inputs) - model.logits(bare)).max() > 0.01


def test_int8_is_near_and_smaller(written: Exported) -> None:
    inputs = batch(16, 33, written.model.config)
    whole, small = (OnnxClassifier(written.path, precision=name) for name in ("fp32", "int8"))
    expected = whole.logits(inputs)
    difference = np.abs(small.logits(inputs) - expected)
    assert 0 < difference.mean() < 0.3 * expected.std()
    assert small.path.stat().st_size < 0.6 * whole.path.stat().st_size
    fused = OnnxClassifier(written.path, precision="int8-optimized")
    assert np.abs(fused.logits(inputs) - small.logits(inputs)).mean() < 0.5 * difference.mean()  # the same scales
    assert fused.path.stat().st_size < 0.6 * whole.path.stat().st_size


def test_the_optimised_graph_has_fused_attention(written: Exported) -> None:
    """One operator a layer for attention, its three maps inside; what ONNX Runtime fuses by itself does not have that.

    The top layer of a head that reads the first token has none: see graphs/first_token.py. Sums are not fused into their layer
    normalisations anywhere, which would be slower: see graphs/layer_norm.py.
    """
    layers = written.model.config.num_hidden_layers - (first_token_layer(written.model) is not None)
    plain, whole = (operators(written.path / ONNX_FILES[name]) for name in ("fp32", "fp32-optimized"))
    assert "Attention" not in plain["loaded"]["fused"]
    assert whole["written"]["fused"]["Attention"] == layers
    assert not any("SkipLayerNormalization" in operators(written.path / file)["loaded"]["fused"] for file in FILES)
    assert whole["written"]["fused"]["LayerNormalization"] >= 2 * layers + 1
    assert whole["written"]["fused"]["BiasGelu"] == layers
    assert whole["written"]["nodes"] < plain["loaded"]["nodes"] < plain["written"]["nodes"]
    small = operators(written.path / ONNX_FILES["int8-optimized"])
    assert small["written"]["fused"]["QAttention"] == layers
    assert small["written"]["nodes"] < operators(written.path / ONNX_FILES["int8"])["loaded"]["nodes"]


@pytest.mark.slow
def test_attention_of_another_make_stays_as_it_is(tmp_path: Path) -> None:
    """Queries and keys of MobileBERT have another source than its values: one operator, but not the maps before it."""
    torch.manual_seed(7)
    fields = {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16, "num_labels": 2}
    config = AutoConfig.for_model("mobilebert", **{**BERT, **fields}, vocab_size=200, max_position_embeddings=POSITIONS)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    model.config.save_pretrained(tmp_path)
    assert list(write_optimized(model, tmp_path, int8=False)) == ["fp32-optimized"]
    assert operators(tmp_path / OPTIMIZED)["written"]["fused"]["MultiHeadAttention"] == 2
    inputs = batch(3, 17, config)
    assert np.abs(OnnxClassifier(tmp_path).logits(inputs) - torch_logits(model)(inputs)).max() <= 1e-4


def test_it_takes_the_inputs_the_model_takes(written: Exported) -> None:
    names = OnnxClassifier(written.path).input_names
    assert ("token_type_ids" in names) == (getattr(written.model.config, "type_vocab_size", 0) > 1)


def test_tensors_arrays_lists_and_missing_segments(written: Exported) -> None:
    inputs = batch(3, 9, written.model.config)
    inputs["token_type_ids"].zero_()
    model = OnnxClassifier(written.path, threads=1)
    expected = model.logits(inputs)
    np.testing.assert_array_equal(model.logits({name: each.numpy() for name, each in inputs.items()}), expected)
    np.testing.assert_array_equal(model.logits({name: each.tolist() for name, each in inputs.items()}), expected)
    del inputs["token_type_ids"]
    np.testing.assert_array_equal(model.logits(inputs | {"labels": torch.zeros(3)}), expected)


def test_the_graph_names_free_axes_and_no_paths(written: Exported) -> None:
    import onnx

    graph = onnx.load(written.path / ONNX_FILES["fp32"])
    for each in graph.graph.input:
        assert [axis.dim_param for axis in each.type.tensor_type.shape.dim] == ["batch", "length"]
    (logits,) = graph.graph.output
    first, second = logits.type.tensor_type.shape.dim
    assert (first.dim_param, second.dim_value) == ("batch", written.model.config.num_labels)
    for file in FILES:
        content = (written.path / file).read_bytes()
        assert not re.search(rb"\.py\b", content) and str(Path.home()).encode() not in content


@pytest.mark.slow
def test_the_model_comes_back_as_it_was(
    done: Done, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From training mode, in another attention; the same weights give the same bytes; and nobody hears of it."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # the test runner's; without any, logging would add one
    model = tiny("bert").train()
    assert model.config._attn_implementation == "sdpa"
    write_onnx(model, tmp_path / ONNX_FILES["fp32"])
    quantise(tmp_path / ONNX_FILES["fp32"], tmp_path / ONNX_FILES["int8"], rows=rows(20))
    write_optimized(model, tmp_path, rows=rows(20))
    assert model.training and model.config._attn_implementation == "sdpa"
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == [] and logging.root.manager.disable == 0
    before = done.model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for file in FILES:
        assert (tmp_path / file).read_bytes() == (done.path / file).read_bytes()


def test_what_is_an_export(written: Exported, tmp_path: Path) -> None:
    assert precisions(written.path) == FORMS
    assert precisions(written.path / ONNX_FILES["int8"]) == ("int8",)
    assert not is_export(written.path / "config.json") and not is_export(tmp_path) and not is_export(tmp_path / "none")
    assert OnnxClassifier(written.path).precision == "fp32"
    assert OnnxClassifier(written.path / ONNX_FILES["int8"]).precision == "int8"
    (tmp_path / "onnx").mkdir()
    (tmp_path / ONNX_FILES["int8"]).write_bytes((written.path / ONNX_FILES["int8"]).read_bytes())
    assert not is_export(tmp_path)  # no config.json
    written.model.config.save_pretrained(tmp_path)
    assert OnnxClassifier(tmp_path).precision == "int8"


@pytest.mark.parametrize("precision", ["fp32", "int4", None])
def test_an_export_that_is_not_there(tmp_path: Path, precision: str | None) -> None:
    with pytest.raises(MbertError) as caught:
        OnnxClassifier(tmp_path, precision=precision)
    assert caught.value.code == "M231" and str(tmp_path) in str(caught.value)


def test_a_file_cut_short(written: Exported, tmp_path: Path) -> None:
    written.model.config.save_pretrained(tmp_path)
    content = (written.path / ONNX_FILES["fp32"]).read_bytes()
    (tmp_path / "onnx").mkdir()
    (tmp_path / ONNX_FILES["fp32"]).write_bytes(content[: len(content) // 2])
    with pytest.raises(MbertError) as caught:
        OnnxClassifier(tmp_path)
    assert caught.value.code == "M333" and caught.value.exit_code == 5


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MbertError) as caught:
        export_model(tiny("bert"), tokenizer(), tmp_path / "out", rows(4))
    assert caught.value.code == "M510" and caught.value.exit_code == 7
    assert package in caught.value.what and 'pip install "microbert-cli[onnx]"' in caught.value.fix
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_architecture_that_decides_by_value(tmp_path: Path) -> None:
    class EarlyExit(transformers.BertForSequenceClassification):
        def forward(self, input_ids: torch.Tensor, **rest: Any) -> Any:
            output = super().forward(input_ids, **rest)
            if output.logits.max() > 0.5:
                output.logits = output.logits * 2
            return output

    torch.manual_seed(0)
    model = EarlyExit(tiny("bert", num_hidden_layers=1).config)
    with pytest.raises(MbertError) as caught:
        write_onnx(model, tmp_path / ONNX_FILES["fp32"])
    assert caught.value.code == "M611" and "EarlyExit" in str(caught.value)
    assert not (tmp_path / ONNX_FILES["fp32"]).exists()


def test_too_large_for_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "MOST_BYTES", 10_000)
    with pytest.raises(MbertError, match="2") as caught:
        write_onnx(tiny("bert"), tmp_path / ONNX_FILES["fp32"])
    assert caught.value.code == "M611"


def test_export_measures_all_forms(done: Done) -> None:
    files = done.metrics["files"]
    assert list(files) == ["safetensors", "fp32", "int8", "fp32-optimized", "int8-optimized"]
    assert files["fp32-optimized"]["max_difference"] <= 1e-4 and files["fp32-optimized"]["agreement"] == 1.0
    assert files["safetensors"]["graph"] is None and files["int8"]["graph"]["loaded"]["fused"]["LayerNormalization"] > 0
    assert files["safetensors"]["max_difference"] <= 1e-6 and files["fp32"]["max_difference"] <= 1e-4
    assert files["fp32"]["agreement"] == 1.0 and 0.5 < files["int8"]["agreement"] <= 1.0
    assert files["int8"]["max_difference"] > 1e-4
    for each in files.values():
        assert each["bytes"] == (done.path / each["file"]).stat().st_size
        assert set(each["scores"]) == {"accuracy"}
    assert files["fp32"]["scores"] == files["safetensors"]["scores"]
    assert done.metrics["parity"]["shapes"][:3] == [[1, 8], [3, 17], [8, 64]] and done.metrics["parity"]["rows"] == 44
    assert (
        len(done.reporter.notes) == 5
        and "onnx/model_quantized.onnx" in done.reporter.notes[2]
        and "1 QAttention" in done.reporter.notes[4]
    )
    json.dumps(done.metrics)


def test_export_directory_holds_all_it_needs(done: Done) -> None:
    names = {path.relative_to(done.path).as_posix() for path in done.path.rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", *FILES} <= names
    assert not [name for name in names if name.startswith(".") or name == "resume"]
    assert is_export(done.path)


ALONE = """
import json, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "microbert_cli":
            raise ImportError("blocked")
sys.meta_path.insert(0, Blocker())
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
inputs = tokenizer(["w1 w2 w3", "w4"], ["w5", "w6 w7 w8 w9"], padding=True, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
try:
    import microbert_cli
except ImportError:
    print(json.dumps({"logits": logits.tolist(), "labels": model.config.id2label, "ids": inputs["input_ids"].tolist(),
                      "class": type(model).__name__, "attention": model.config._attn_implementation}))
"""


@pytest.mark.slow
def test_transformers_alone_reads_it(done: Done, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(done.path)], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    output = json.loads(ran.stdout)
    inputs = tokenizer()(["w1 w2 w3", "w4"], ["w5", "w6 w7 w8 w9"], padding=True, return_tensors="pt")
    assert output["ids"] == inputs["input_ids"].tolist() and output["ids"][0][-1] == 0
    assert np.abs(np.array(output["logits"]) - torch_logits(done.model)(inputs)).max() <= 1e-6
    assert output["labels"] == {"0": "no", "1": "maybe", "2": "yes"}
    assert (output["class"], output["attention"]) == ("BertForSequenceClassification", "sdpa")


def test_a_file_that_answers_differently_is_refused(done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_another_model(model: Any, path: Path, **_: Any) -> float:
        path.parent.mkdir()
        path.write_bytes((done.path / ONNX_FILES["fp32"]).read_bytes())
        return 0.0

    monkeypatch.setattr("microbert_cli.exporting.directory.write_onnx", of_another_model)
    model = tiny("bert")
    model.classifier.bias.data += 0.001
    with pytest.raises(MbertError) as caught:
        export_model(model, tokenizer(), tmp_path, rows(4), int8=False)
    assert caught.value.code == "M612" and "0.001" in caught.value.what and caught.value.exit_code == 1


@pytest.mark.slow
def test_an_optimised_file_that_answers_differently_is_refused(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_another_model(model: Any, directory: Path, **_: Any) -> dict[str, float]:
        (directory / OPTIMIZED).write_bytes((done.path / OPTIMIZED).read_bytes())
        return {"fp32-optimized": 0.0}

    monkeypatch.setattr("microbert_cli.exporting.directory.write_optimized", of_another_model)
    model = tiny("bert")
    model.classifier.bias.data += 0.001
    with pytest.raises(MbertError) as caught:
        export_model(model, tokenizer(), tmp_path, rows(4), int8=False)
    assert caught.value.code == "M612" and OPTIMIZED in caught.value.where


@pytest.mark.slow
def test_parts_that_are_left_out(tmp_path: Path) -> None:
    assert export_forms() == FORMS
    assert export_forms(optimize=False) == ("fp32", "int8")
    assert export_forms(int8=False) == ("fp32", "fp32-optimized")
    assert export_forms(onnx=False) == ()
    metrics = export_model(tiny("bert"), tokenizer(), tmp_path, rows(4), int8=False, optimize=False)
    assert list(metrics["files"]) == ["safetensors", "fp32"]
    assert precisions(tmp_path) == ("fp32",)


def test_nan_is_refused(tmp_path: Path) -> None:
    model = tiny("bert")
    model.classifier.bias.data[0] = float("nan")
    with pytest.raises(MbertError) as caught:
        export_model(model, tokenizer(), tmp_path, rows(4), onnx=False)
    assert caught.value.code == "M612"


def test_safetensors_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ONNX none of its packages is needed."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    metrics = export_model(tiny("distilbert"), tokenizer(), tmp_path, rows(4, segments=False), onnx=False)
    assert list(metrics["files"]) == ["safetensors"] and metrics["files"]["safetensors"]["agreement"] is None
    assert not is_export(tmp_path)


def test_a_drop_by_int8_is_said() -> None:
    reporter = RecordingReporter()
    for small in (0.89, 0.80):
        scores = {"fp32": {"scores": {"f1": 0.9}}, "int8": {"scores": {"f1": small}}}
        _warn_of_drop(scores, "int8", "f1", reporter)
    assert len(reporter.warnings) == 1 and "0.8000" in reporter.warnings[0]


@pytest.mark.parametrize("count", [1, 5, 200])
def test_parity_batches_are_padded_and_of_several_shapes(count: int) -> None:
    batches = list(parity_batches(rows(count), 9, longest=30))
    assert [tuple(each["input_ids"].shape)[0] for each in batches] == [1, 3, 8, 32]
    assert all(each["input_ids"].shape[1] <= 30 for each in batches)
    for each in batches[1:]:
        assert (each["attention_mask"] == 0).any()
    for each in batches:
        assert (each["input_ids"][each["attention_mask"] == 0] == 9).all()
        assert (each["attention_mask"].sum(1) >= 1).all()
    with pytest.raises(ValueError):
        list(parity_batches([], 0, longest=30))


@pytest.mark.slow
def test_a_real_shape(tmp_path: Path) -> None:
    """4 x 312 with the whole vocabulary: four times smaller as int8."""
    shape = {"hidden_size": 312, "num_hidden_layers": 4, "num_attention_heads": 12, "intermediate_size": 1200}
    model = tiny("bert", **shape, vocab_size=30522, max_position_embeddings=512, initializer_range=0.05)
    files = export_model(model, tokenizer(), tmp_path, rows(50))["files"]
    assert files["fp32"]["max_difference"] <= 1e-4
    assert files["fp32"]["bytes"] > 3.8 * files["int8"]["bytes"]
