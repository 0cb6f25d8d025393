"""No damaged model answers: whatever has a manifest is compared with it, wherever a model is opened for its answers."""

import functools
import json
import math
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mbert_command import mbert, refused, works
from safetensors.torch import load_file, save_file
from strange_inputs import TEXTS
from tiny_folder import tiny_folder

from microbert_cli import api
from microbert_cli.errors import MbertError
from microbert_cli.runs import manifest
from microbert_cli.runs.output_dir import stage_output
from microbert_cli.stages import predict

ROOT = Path(__file__).resolve().parents[2]
TEXT = "a lovely boat"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def exchange_labels(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    names = list(config["id2label"].values())[::-1]
    (model / "config.json").write_text(json.dumps({**config, "id2label": dict(enumerate(names))}))


def change_a_word(model: Path) -> None:
    text = (model / "tokenizer.json").read_text()
    assert '"lovely"' in text
    (model / "tokenizer.json").write_text(text.replace('"lovely"', '"awfuls"'))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "config.json is damaged": exchange_labels,
    "tokenizer.json is damaged": change_a_word,
    "onnx/model.onnx is gone": lambda model: (model / "onnx/model.onnx").unlink(),
    "onnx/model.onnx is damaged": lambda model: shutil.copy(model / "onnx/model_quantized.onnx", model / "onnx/model.onnx"),
    "onnx/model_quantized.onnx is damaged": lambda model: flip(model / "onnx/model_quantized.onnx"),
    "model.safetensors is damaged": lambda model: flip(model / "model.safetensors"),
    "vocab.txt was added": lambda model: (model / "vocab.txt").write_text("[PAD]\n"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A teacher and its export with fp32 and int8."""
    home = tmp_path_factory.mktemp("answers")
    with tiny_folder(home, "") as patch:
        patch.setenv("MBERT_CACHE", str(home / "cache"))
        patch.setenv("MBERT_DATA", "glue")
        steps = ("--set", "finetune.steps=2", "--set", "data.max_length=16")
        works("finetune", "--model", "base", "--task", "sst2", "-o", "teacher", *steps)
        works("export", "teacher", "-o", "export", "--set", "export.optimize=false")
        yield home


@pytest.fixture
def export(place: Path) -> Iterator[Path]:
    """A copy of the export."""
    copy = place / "copy"
    shutil.copytree("export", copy)
    yield copy
    shutil.rmtree(copy)


HOSTILE = ["a\nb\r\nc\x85d\u2028e\x1b[2Jf\tg", "\x0b\x0c\x1c\u202e öl"]
PREDICTORS: dict[Path, Any] = {}


@pytest.fixture(scope="module")
def hostile_model(place: Path) -> Path:
    """A foreign model whose labels hold all that ends a line."""
    model = plain("teacher", place / "hostile")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "id2label": dict(enumerate(HOSTILE)), "label2id": {}}))
    return model


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_export_answers_nothing(export: Path, damage: str) -> None:
    DAMAGES[damage](export)
    for model in (export, export / "onnx/model_quantized.onnx"):
        error = refused(5, "M306", "predict", str(model), TEXT)
        assert damage in error["what"] and str(export) in error["where"]
    with pytest.raises(MbertError, match=damage):
        api.predict(export, [TEXT])


def test_every_command_that_opens_a_model_refuses_a_damaged_one(export: Path) -> None:
    exchange_labels(export)
    about = ("--task", "sst2")
    for words in (
        ("evaluate", export, *about, "-o", "out"),
        ("evaluate", "teacher", "--teacher", export, *about, "-o", "out"),
        ("evaluate", export / "onnx/model_quantized.onnx", *about, "-o", "out"),
        ("bench", "teacher", export, *about),
        ("export", export, *about, "-o", "out"),
        ("extract", export, *about, "-o", "out"),
        ("finetune", "--model", export, *about, "-o", "out"),
        ("task-distill", "--teacher", export, "--student", "bert-1x8", *about, "-o", "out"),
    ):
        assert "config.json is damaged" in refused(5, "M306", *words)["what"], words


def test_the_advice_about_what_was_added_helps(export: Path) -> None:
    (export / "added_tokens.json").write_text("{}")
    fix = refused(5, "M306", "predict", str(export), TEXT)["fix"]
    assert fix.endswith(f"rm {export / 'added_tokens.json'}")
    (export / "added_tokens.json").unlink()
    works("predict", str(export), TEXT)


def test_an_export_without_its_manifest(export: Path) -> None:
    answer = works("predict", str(export), TEXT).out
    (export / "manifest.json").unlink()
    refused(4, "M210", "predict", str(export), TEXT)
    (export / "recipe.resolved.toml").unlink()  # the model's own files alone
    assert works("predict", str(export), TEXT).out == answer
    (export / "onnx/model.onnx").unlink()
    error = refused(4, "M233", "predict", str(export), TEXT)
    assert error["fix"].endswith(str(export / "onnx/model_quantized.onnx"))
    works("predict", str(export / "onnx/model_quantized.onnx"), TEXT)


def test_a_manifest_is_sealed(export: Path) -> None:
    exchange_labels(export)
    path = export / "manifest.json"
    facts = json.loads(path.read_text())
    facts["outputs"]["config.json"] = manifest.output_digests(export)["config.json"]
    path.write_text(json.dumps(facts))
    refused(5, "M301", "predict", str(export), TEXT)


def several(out: Path) -> None:
    """An output with models of two seeds and two tasks in it."""
    with stage_output(out, stage="test", identity={}) as work:
        for number, part in enumerate((".", "best/sst2", "best/mrpc", "seed-1", "seed-2", "seed-1/best/sst2")):
            shutil.copytree("teacher", work.path / part, dirs_exist_ok=True, ignore=lambda *_: ["manifest.json"])
            config = json.loads((work.path / part / "config.json").read_text())
            (work.path / part / "config.json").write_text(json.dumps({**config, "number": number}))


@pytest.mark.parametrize("part", ["best/sst2", "seed-2", "seed-1/best/sst2"])
def test_a_part_of_an_output_is_compared_with_its_manifest(place: Path, part: str) -> None:
    out = place / "student"
    shutil.rmtree(out, ignore_errors=True)
    several(out)
    works("predict", str(out / part), TEXT)
    other = "best/mrpc" if "best" in part else "seed-1"
    shutil.copy(out / other / "config.json", out / part / "config.json")
    for words in (("predict", out / part, TEXT), ("evaluate", out / part, "--task", "sst2", "-o", "out")):
        assert f"{part}/config.json is damaged" in refused(5, "M306", *words)["what"]
    works("predict", str(out / other), TEXT)
    refused(5, "M307", "verify", out / part)
    (out / "manifest.json").unlink()
    refused(4, "M210", "predict", str(out / other), TEXT)


def test_a_manifest_of_something_else_above_a_model_is_left_alone(place: Path, tmp_path: Path) -> None:
    model = plain("teacher", tmp_path / "best" / "model")
    (tmp_path / "manifest.json").write_text('{"name": "a web page", "start_url": "/"}')
    works("predict", model, TEXT)


def test_a_damaged_part_is_refused_also_where_its_scores_are_there(place: Path, export: Path) -> None:
    words = (
        "evaluate",
        export / "onnx/model_quantized.onnx",
        "--task",
        "sst2",
        "--set",
        "data.max_length=16",
        "-o",
        "out-int8",
    )
    works(*words)
    works(*words)
    change_a_word(export)
    refused(5, "M306", *words)


def test_answers_are_written_where_they_are_wanted(place: Path) -> None:
    answer = works("predict", "teacher", TEXT).out
    words = [sys.executable, "-m", "microbert_cli", "predict", "teacher", TEXT, TEXT, "-o", "/dev/stdout", "-q"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (0, answer * 2)  # without the path among the answers
    assert works("predict", "teacher", TEXT, "-o", "/dev/null").out == "/dev/null\n"
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    refused(4, "M220", "predict", "teacher", TEXT, "-o", "/dev/full")
    refused(4, "M221", "predict", "no/such/model", TEXT, "-o", "no/such/folder/file")
    Path("texts").write_text(f"{TEXT}\n")
    Path("same").symlink_to("texts")
    for out in ("texts", "same"):
        refused(2, "M147", "predict", "teacher", "--file", "texts", "-o", out)
    assert Path("texts").read_text() == f"{TEXT}\n"


@pytest.mark.slow
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.one_of(TEXTS, st.text(alphabet="ab \r\x0b\x0c\x1c\x85\u2028\u2029\0\x1b", max_size=6)), min_size=1, max_size=4)
)
def test_one_answer_a_text_whatever_the_texts_and_labels_are(hostile_model: Path, texts: list[str]) -> None:
    texts = [text.replace("\n", " ") for text in texts]
    stdin = "".join(f"{text}\n" for text in texts)
    with_one_predictor = functools.cache(predict.open_predictor)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "open_predictor", PREDICTORS.setdefault(hostile_model, with_one_predictor))
        for more in ((), ("--json",)):
            out = works("predict", hostile_model, *more, stdin=stdin).out
            assert len(out.splitlines()) == out.count("\n") == len(texts)
            works("predict", hostile_model, *more, "-o", "answers", stdin=stdin)
            assert Path("answers").read_bytes().decode() == out
    assert {json.loads(line)["label"] for line in out.splitlines()} <= set(HOSTILE)


def test_what_is_copied_goes_into_a_pipe_and_through_a_link(place: Path) -> None:
    os.mkfifo("fifo")
    Path("link.toml").symlink_to("target.toml")
    with ThreadPoolExecutor() as pool:
        read = pool.submit(Path("fifo").read_text)
        works("copy", "recipes", "quickstart", "-o", "fifo")
        text = read.result(20)
    works("copy", "recipes", "quickstart", "-o", "link.toml")
    assert Path("target.toml").read_text() == text and Path("link.toml").is_symlink()
    assert mbert("copy", "recipes", "quickstart", "-o", "link.toml").code == 2  # nothing is overwritten


# --- numbers that are none ------------------------------------------------------------------------------------------------


def plain(source: str, target: Path, **weights: Callable[[torch.Tensor], object]) -> Path:
    """A copy as a foreign model, some of its weights changed in place."""
    shutil.copytree(source, target, ignore=lambda *_: ["manifest.json", "recipe.resolved.toml", "log.jsonl", "begun.json"])
    tensors = load_file(target / "model.safetensors")
    for name, change in weights.items():
        change(tensors[name.replace("__", ".")])
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_refused_and_named(place: Path, tmp_path: Path, number: float) -> None:
    model = plain("teacher", tmp_path / "broken", classifier__bias=lambda tensor: tensor[:1].fill_(number))
    about = ("--task", "sst2", "--set", "data.max_length=16")
    for words in (
        ("predict", model, TEXT),
        ("evaluate", model, *about, "-o", "out"),
        ("evaluate", "teacher", "--teacher", model, *about, "-o", "out"),
        ("bench", model, *about),
        ("export", model, *about, "-o", "out"),
        ("finetune", "--model", model, *about, "-o", "out"),
        ("task-distill", "--teacher", model, "--student", "bert-1x8", *about, "-o", "out"),
    ):
        error = refused(5, "M316", *words)
        assert "classifier.bias" in error["what"] and str(model) in error["where"], words


def test_a_row_whose_logits_are_no_numbers_is_named(place: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    word = AutoTokenizer.from_pretrained("teacher").convert_tokens_to_ids("lovely")
    name = "bert__embeddings__word_embeddings__weight"
    model = plain("teacher", tmp_path / "huge", **{name: lambda tensor: tensor[word].fill_(3e38)})
    texts = ("the boat", TEXT, "a boat", TEXT)
    assert refused(5, "M317", "predict", model, *texts)["where"] == "text 2, 4"
    assert len(works("predict", model, "the boat", "a boat").out.splitlines()) == 2


def test_an_export_whose_logits_are_no_numbers(place: Path, tmp_path: Path) -> None:
    model = plain("export", tmp_path / "broken")
    graph = onnx.load(model / "onnx/model.onnx")
    for weights in graph.graph.initializer:
        if weights.data_type == onnx.TensorProto.FLOAT:
            weights.CopyFrom(onnx.numpy_helper.from_array(np.full(weights.dims, np.nan, np.float32), weights.name))
    onnx.save(graph, model / "onnx/model.onnx")
    about = ("--task", "sst2", "--set", "data.max_length=16")
    assert "text 1, 2" in refused(5, "M317", "predict", model, TEXT, TEXT)["where"]
    assert "dev, row 1, 2, 3" in refused(5, "M317", "evaluate", model, *about, "-o", "out")["where"]
    refused(5, "M317", "evaluate", "teacher", "--teacher", model, *about, "-o", "out")
    refused(5, "M317", "bench", model, *about)
