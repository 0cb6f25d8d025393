"""Files under examples/: the service answers as mbert does, the image has what an export has, the workflow names a command."""

import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from mbert_command import works
from tiny_folder import tiny_folder

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
