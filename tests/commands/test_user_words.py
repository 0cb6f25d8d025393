"""The words users type, verbatim: in an offline directory with an `mbert.toml` and a GLUE folder, from the shell."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mbert_command import mbert, works
from tiny_models import tiny_bert, tiny_glue

RECIPE = """
base    = "models/base"
student = "bert-1x16"
method  = "tinybert"
corpus  = "text.txt"
data.folder = "glue"

[finetune]
learning_rate = 1e-2
batch_size = 8
epochs = 12

[general]
steps = 3
batch_size = 8

[augment]
copies = 2
sources = ["masked_lm"]

[phases.intermediate]
steps = 3
[phases.prediction]
steps = 3

[export]
int8 = false
onnx = false
"""

SCRIPT = """
set -euo pipefail

mbert augment --task sst2
GENERAL=$(mbert general-distill)
OUT=$(mbert task-distill --task sst2 --teacher teacher --student "$GENERAL")
mbert evaluate "$OUT" --task sst2
mbert export "$OUT" --task sst2 -o shipped

test -f "$OUT/model.safetensors"
test -f "$OUT/../evaluate/metrics.json"
test -f shipped/README.md
echo "done: $OUT"
"""


def furnish(place: Path) -> Path:
    """What the user has: a recipe, a GLUE folder, text, and a model."""
    (place / "mbert.toml").write_text(RECIPE, encoding="utf-8")
    (place / "text.txt").write_text("\n\n".join(f"The baker sold boat {i}. It is lovely." for i in range(30)), encoding="utf-8")
    tiny_glue(place / "glue", ["sst2"], rows=40)
    tiny_bert(place / "models" / "base", kind="masked-lm", dropout=0.0)
    return place


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        place = furnish(tmp_path_factory.mktemp("home"))
        patch.chdir(place)
        patch.setenv("MBERT_CACHE", str(place / ".cache"))
        patch.delenv("MBERT_DATA", raising=False)
        yield place


def test_general_distill(home: Path) -> None:
    done = works("general-distill")
    assert done.out == "runs/mbert/general-distill\n"
    assert (home / "runs/mbert/general-distill/manifest.json").is_file()
    again = works("general-distill")
    assert again.out == done.out and "up to date" in again.err


def test_augment(home: Path) -> None:
    done = works("augment", "--task", "sst2")
    assert done.out == "runs/sst2/augment\n"
    assert (home / "runs/sst2/augment/augmented.parquet").is_file()


def test_the_recipe_in_this_folder_is_the_default(home: Path) -> None:
    explained = works("general-distill", "--explain-config", "--json").json
    assert explained["general.steps"] == {"value": 3, "from": "mbert.toml"}
    assert mbert("finetune").code == 3, "mbert.toml names no task here"


@pytest.fixture(scope="module")
def path_with_mbert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH on which `mbert` is the command under test."""
    folder = tmp_path_factory.mktemp("bin")
    shim = folder / "mbert"
    root = Path(__file__).resolve().parents[2]
    shim.write_text(f'#!/bin/sh\nPYTHONPATH="{root}" exec "{sys.executable}" -m microbert_cli "$@"\n', encoding="utf-8")
    shim.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.slow
def test_a_shell_script_of_the_subcommands(tmp_path: Path, path_with_mbert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    works("finetune", "--task", "sst2", "-o", "teacher")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MBERT_")}
    env = kept | {"PATH": path_with_mbert, "HF_HUB_OFFLINE": "1", "MBERT_CACHE": str(tmp_path / ".cache")}
    done = subprocess.run(["bash", "-c", SCRIPT], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done: runs/sst2/task-distill"
    assert "Traceback" not in done.stderr and "it/s]" not in done.stderr, "stderr has no other library's bars"
    wrong = subprocess.run(
        ["bash", "-c", 'set -euo pipefail\nOUT=$(mbert task-distill --task sst3)\necho "not reached"'],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert wrong.returncode == 3 and wrong.stdout == "" and "[M005]" in wrong.stderr
