"""Files under examples/: the service answers as mbert does, the image has what an export has, the workflow names a command."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from mbert_command import works
from tiny_folder import tiny_folder

from microbert_cli.models.exported.files import EXPORTED_FILES

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECIPE = """
task   = "sst2"
data   = "glue"
base   = "base"
stages = ["finetune"]
finetune = { learning_rate = 1e-2, epochs = 8, batch_size = 8 }
"""
TEXTS = ["a fine film", "bad plot and poor acting , " * 30, "x"]  # the second is longer than the model reads


def load_service() -> Any:
    spec = importlib.util.spec_from_file_location("serve", EXAMPLES / "serve.py")
    assert spec and spec.loader
    service = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(service)
    return service


@pytest.mark.slow
def test_the_service_answers_as_mbert_does(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    with tiny_folder(tmp_path, RECIPE, name="recipe.toml", dropout=0.0) as patch:
        works("run", "recipe.toml", "-o", "run")
        works("export", "run/finetune", "-o", "run/export")
        lines = works("predict", "run/export/onnx/model_quantized.onnx", *TEXTS, "--json").out.splitlines()
        patch.setenv("EXPORT", "run/export")
        service = load_service()
        answers = service.predict(service.Texts(texts=TEXTS))
        copied = re.findall(r"\$\{EXPORT\}/(\S+)", (EXAMPLES / "Dockerfile").read_text(encoding="utf-8"))
        assert copied and all((Path("run/export") / name).is_file() for name in copied)
    for line, answer in zip(lines, answers, strict=True):
        assert json.loads(line)["probabilities"] == pytest.approx(answer, abs=0.02)  # int8 scales are those of the batch


def clients_table() -> Any:
    spec = importlib.util.spec_from_file_location("clients_table", EXAMPLES / "clients" / "table.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it there
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_clients_answer_as_mbert_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are at hand: MBERT_NPM names a folder where npm installed @huggingface/transformers."""
    table, npm = clients_table(), os.environ.get("MBERT_NPM")
    with tiny_folder(tmp_path, RECIPE, name="recipe.toml", dropout=0.0):
        works("run", "recipe.toml", "-o", "run")
        works("export", "run/finetune", "--set", "export.optimize=false", "-o", "export")
        clients = table.clients(tmp_path / "export", Path(npm) if npm else None, None, False)
        rows = [table.try_client(client, tmp_path / "export", False) for client in clients]
    passed = {row["client"] for row in rows if row["result"] == "passed"}
    assert {"onnxruntime + tokenizers", "transformers pipeline"} <= passed, rows
    assert not [row for row in rows if row["result"].startswith(("failed", "other"))], rows
    if npm is None or shutil.which("node") is None:
        pytest.skip("transformers.js was not tried: MBERT_NPM or node is missing; the other clients passed")
    assert {"transformers.js, q8", "transformers.js, fp32"} <= passed, rows


def test_what_clients_are_named_after_is_what_an_export_has() -> None:
    table = clients_table()
    assert {table.FP32, table.INT8, table.Q4, table.OPENVINO} <= set(EXPORTED_FILES.values())


def test_a_client_with_other_answers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = clients_table()
    monkeypatch.setattr(table, "predict", lambda model, text: {"a": 0.9, "b": 0.1})
    answers = {"same": {"a": 0.9, "b": 0.1}, "near": {"a": 0.91, "b": 0.09}, "far": {"a": 0.2, "b": 0.8}}
    results = {}
    for name, answer in answers.items():
        command = (sys.executable, "-c", f"import sys\nfor _ in sys.stdin: print('{json.dumps(answer)}')")
        for file in (table.FP32, table.INT8):
            results[name, file] = table.try_client(table.Client(name, command, file), tmp_path, False)["result"]
    assert [results["same", table.FP32], results["near", table.INT8]] == ["passed"] * 2
    assert {results["near", table.FP32], results["far", table.FP32], results["far", table.INT8]} == {"other answers"}
    broken = table.Client("broken", (sys.executable, "-c", "raise SystemExit('no such model')"), table.FP32)
    assert table.try_client(broken, tmp_path, False)["result"] == "failed: no such model"


def test_the_image_runs_without_rights_and_copies_what_is_there() -> None:
    lines = (EXAMPLES / "Dockerfile").read_text(encoding="utf-8").splitlines()
    words = [line.split()[0] for line in lines if line and not line.startswith("#")]
    assert words.index("USER") < words.index("CMD") and "USER serve" in lines
    assert (EXAMPLES.parent / "examples" / "serve.py").is_file() and "COPY examples/serve.py /home/serve/" in lines


def test_workflows_are_read_and_their_commands_exist() -> None:
    from microbert_cli.cli.main import app

    workflow = yaml.safe_load((EXAMPLES / "evaluate.yml").read_text(encoding="utf-8"))
    command = next(step["run"] for step in workflow["jobs"]["evaluate"]["steps"] if step.get("run", "").startswith("mbert"))
    name, *words = shlex.split(command)[1:]
    typer.main.get_command(app).commands[name].make_context(name, words)  # type: ignore[attr-defined]
    check = yaml.safe_load((EXAMPLES.parent / ".github/workflows/check.yml").read_text(encoding="utf-8"))
    assert "make check" in [step.get("run") for step in check["jobs"]["check"]["steps"]]
