"""A run that did not change says so without torch; a changed input, key or output is noticed."""

import os
import subprocess
import sys

import pytest

from microbert_cli.errors import MbertError
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.runs import atomic, manifest, run_record
from microbert_cli.runs.stage_inputs import steps

RECIPE = """
task = "sst2"
stages = ["finetune", "evaluate"]
[data]
folder = "glue"
[finetune]
model = "teacher"
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run of two stages whose outputs are stand-ins: only hashes matter here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(RECIPE)
    for place in ("glue/SST-2", "teacher", "runs/mine/finetune", "runs/mine/evaluate"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "glue/SST-2/train.tsv").write_text("sentence\tlabel\ngood\t1\n")
    (tmp_path / "teacher/config.json").write_text("{}")
    for stage in ("finetune", "evaluate"):
        (tmp_path / "runs/mine" / stage / "model.safetensors").write_text(stage)
        manifest.write(tmp_path / "runs/mine" / stage, stage=stage, identity={})
    return tmp_path


def planned(**flags):
    resolved = resolve(catalog=Catalog(), recipe="mine.toml", flags=flags)
    return steps(resolved, manifest.Path("runs/mine"), Catalog())


def unchanged(root, **flags):
    return run_record.is_unchanged(root / "runs/mine", "mine", planned(**flags))


def test_unchanged_then_each_change_is_noticed(run):
    assert not unchanged(run)
    run_record.write(run / "runs/mine", "mine", planned())
    assert unchanged(run)
    assert not unchanged(run, **{"finetune.epochs": 7.0})
    (run / "glue/SST-2/train.tsv").write_text("sentence\tlabel\nbad\t0\n")
    assert not unchanged(run)
    (run / "glue/SST-2/train.tsv").write_text("sentence\tlabel\ngood\t1\n")
    assert unchanged(run)
    (run / "teacher/config.json").write_text('{"x": 1}')
    assert not unchanged(run)
    (run / "teacher/config.json").write_text("{}")
    (run / "runs/mine/evaluate/manifest.json").unlink()
    assert not unchanged(run)


def test_another_recipe_in_the_folder(run):
    root = run / "runs/mine"
    run_record.claim(root, "mine")
    run_record.claim(root, "mine")
    with pytest.raises(MbertError) as error:
        run_record.claim(root, "other")
    assert error.value.code == "M115" and "mine" in str(error.value)
    run_record.claim(root, "other", force=True)
    assert atomic.load_with_checksum((root / "run.json").read_text()) == {"recipe": "other"}


def test_no_torch_is_loaded(run, repo):
    run_record.write(run / "runs/mine", "mine", planned())
    for stage in ("finetune", "evaluate"):
        (run / "runs/mine" / stage / "metrics.json").write_text("{}")
        manifest.write(run / "runs/mine" / stage, stage=stage, identity={})
    run_record.write(run / "runs/mine", "mine", planned())
    code = (
        "import sys; sys.argv = ['mbert', 'run', 'mine.toml']\n"
        "from microbert_cli.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(repo)}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "runs/mine\n" and "everything up to date (2 stages)" in done.stderr
