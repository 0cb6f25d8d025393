"""Files that are written where they are named: 4 bits, OpenVINO; which come by `export.formats`, and what they need."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_classifiers import batch, rows, tiny, tokenizer

from microbert_cli.errors import MbertError
from microbert_cli.exporting.directory import export_model
from microbert_cli.models.exported.files import (
    EARLIER_FILES,
    EXPORTED_FILES,
    ONNX_FILES,
    exits_file,
    export_forms,
    export_parts,
    file_of,
    precisions,
    require_openvino,
)
from microbert_cli.models.exported.session import OnnxClassifier
from microbert_cli.models.onnx import torch_logits
from microbert_cli.models.size import weights_bytes
from microbert_cli.recipe.schema import Export, Recipe
from microbert_cli.runs.manifest import identify, model_home
from microbert_cli.stages.export import STAGE


@pytest.mark.parametrize(
    ("keys", "forms"),
    [
        ({}, ("fp32", "int8", "fp32-optimized", "int8-optimized")),
        ({"int8": False}, ("fp32", "fp32-optimized")),
        ({"onnx": False}, ()),
        ({"formats": []}, ()),
        ({"formats": ["onnx"]}, ("fp32",)),
        ({"formats": ["int8"]}, ("fp32", "int8")),
        ({"formats": ["q4", "openvino"], "optimize": True}, ("fp32", "q4", "openvino")),
        ({"formats": ["optimized", "onnx"]}, ("fp32", "fp32-optimized")),
        ({"formats": ["onnx", "int8", "optimized", "q4", "openvino"]}, tuple(EXPORTED_FILES)),
    ],
)
def test_which_files_an_export_has(keys: dict[str, Any], forms: tuple[str, ...]) -> None:
    assert export_forms(**export_parts(Export(**keys))) == forms


def test_an_export_as_before_keeps_its_identity() -> None:
    assert "formats" not in Recipe().identity("export")["export"]
    named = Recipe.model_validate({"export": {"formats": ["onnx"]}})
    assert named.identity("export")["export"]["formats"] == ["onnx"]


@pytest.mark.parametrize(("formats", "extras"), [(None, ("onnx",)), (["openvino"], ("onnx", "openvino")), ([], ())])
def test_what_the_stage_needs(formats: list[str] | None, extras: tuple[str, ...]) -> None:
    assert STAGE.extras(Recipe.model_validate({"export": {"formats": formats}})) == extras


def test_without_openvino_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microbert_cli.models.exported.files.find_spec", lambda name: None)
    with pytest.raises(MbertError) as caught:
        export_model(tiny("bert"), tokenizer(), tmp_path / "out", rows(4), openvino=True)
    assert caught.value.code == "M511" and caught.value.exit_code == 7 and "[openvino]" in caught.value.fix
    assert not (tmp_path / "out").exists()


def test_openvino_is_imported_without_the_package_that_sends_usage_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microbert_cli.models.exported.files.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "openvino_telemetry", sys)  # whatever it is, it is as before afterwards
    del sys.modules["openvino_telemetry"]
    require_openvino()
    with pytest.raises(ImportError):
        importlib.import_module("openvino_telemetry")


def touch(home: Path, *names: str) -> None:
    for name in names:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(name.encode())


def test_both_layouts_are_found_and_the_newer_one_goes_first(tmp_path: Path) -> None:
    touch(tmp_path, "config.json", *EARLIER_FILES.values(), "model.exits.onnx")
    assert precisions(tmp_path) == tuple(EARLIER_FILES)
    for precision, name in EARLIER_FILES.items():
        assert file_of(tmp_path, precision) == tmp_path / name and precisions(tmp_path / name) == (precision,)
        assert model_home(tmp_path / name) == tmp_path
    assert exits_file(tmp_path) == tmp_path / "model.exits.onnx"
    touch(tmp_path, *EXPORTED_FILES.values(), "onnx/model_exits.onnx")
    assert precisions(tmp_path) == tuple(EXPORTED_FILES)
    for precision, name in EXPORTED_FILES.items():
        assert file_of(tmp_path, precision) == tmp_path / name and precisions(tmp_path / name) == (precision,)
        assert model_home(tmp_path / name) == tmp_path
    assert exits_file(tmp_path) == tmp_path / "onnx/model_exits.onnx"


def test_a_file_of_another_name_or_place_is_no_export(tmp_path: Path) -> None:
    touch(tmp_path, "config.json", "onnx/model_fp16.onnx", "other/model.onnx", "model_quantized.onnx")
    for name in ("onnx/model_fp16.onnx", "other/model.onnx", "model_quantized.onnx", "config.json"):
        assert precisions(tmp_path / name) == ()
    assert precisions(tmp_path) == ()
    touch(tmp_path / "bare", "onnx/model.onnx")
    assert precisions(tmp_path / "bare" / "onnx" / "model.onnx") == ()


def test_a_graph_of_openvino_is_known_by_its_weights_too(tmp_path: Path) -> None:
    touch(tmp_path, "config.json", EXPORTED_FILES["openvino"])
    file = file_of(tmp_path, "openvino")
    weights = file.with_suffix(".bin")
    weights.write_bytes(b"1" * 100)
    before = identify(file)
    assert weights_bytes(file) == 100 + file.stat().st_size
    weights.write_bytes(b"2" * 100)
    assert identify(file) != before


@pytest.mark.slow
def test_four_bits_are_near_and_smaller(tmp_path: Path) -> None:
    model = tiny("bert", hidden_size=128, intermediate_size=512)
    done = export_model(model, tokenizer(), tmp_path, rows(20), int8=False, optimize=False, q4=True)
    measured = done["files"]["q4"]
    assert measured["file"] == ONNX_FILES["q4"] and measured["graph"]["loaded"]["fused"]["MatMulNBits"] >= 6
    inputs = batch(8, 33, model.config)
    whole, small = (OnnxClassifier(tmp_path, precision=name) for name in ("fp32", "q4"))
    expected = whole.logits(inputs)
    assert 0 < np.abs(small.logits(inputs) - expected).mean() < expected.std()  # independent answers: 1.13 times
    assert small.path.stat().st_size < 0.5 * whole.path.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_openvino_answers_like_the_model(family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    model = tiny(family)
    segments = {} if family == "bert" else {"segments": False}
    done = export_model(model, tokenizer(), tmp_path, rows(20, **segments), optimize=False, openvino=True)
    measured = done["files"]["openvino"]
    assert measured["file"] == EXPORTED_FILES["openvino"] and measured["graph"] is None
    assert measured["bytes"] == weights_bytes(tmp_path / EXPORTED_FILES["openvino"])
    for shape in ((1, 8), (3, 17), (8, 33)):
        inputs = batch(*shape, model.config)
        expected, answered = torch_logits(model)(inputs), OnnxClassifier(tmp_path, precision="openvino").logits(inputs)
        assert answered.shape == expected.shape and 0 < np.abs(answered - expected).max() < 0.2 * np.abs(expected).max() + 0.02
    bare = inputs | {"attention_mask": np.ones_like(inputs["input_ids"])}
    assert np.abs(OnnxClassifier(tmp_path, precision="openvino").logits(bare) - answered).max() > 0.01
    assert capfd.readouterr().err == ""
    path = tmp_path / EXPORTED_FILES["openvino"]
    path.write_text("no graph", encoding="utf-8")
    with pytest.raises(MbertError) as caught:
        OnnxClassifier(path)
    assert caught.value.code == "M377" and caught.value.exit_code == 5
