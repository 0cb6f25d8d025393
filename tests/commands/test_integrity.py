"""What was written is what is read: damage is found before use and named, and what can be made anew is."""

import errno
import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mbert_command import mbert, refused, works
from recording import RecordingReporter
from tiny_folder import tiny_folder

from microbert_cli.errors import MbertError
from microbert_cli.runs import atomic, cache, manifest
from microbert_cli.runs.verify import verify_directory

RECIPE = """
stages = ["finetune", "general-distill", "augment", "task-distill", "evaluate"]
task = "sst2"
base = "base"
student = "bert-1x8"
method = "tinybert"
seed = 3
corpus.source = "text.txt"
corpus.max_length = 24
data.max_length = 16
general = { steps = 3, batch_size = 4 }
finetune = { steps = 12, batch_size = 8, learning_rate = 1e-3 }
teacher.allow_weak = true
augment = { copies = 1 }
phases.intermediate = { steps = 12, batch_size = 8 }
phases.prediction = { steps = 12, batch_size = 8, learning_rates = [] }
"""


ROOT = Path(__file__).resolve().parents[2]
RUN = ("run", "small.toml", "-o", "runs/small")


def flip(path: Path, position: int | None = None) -> None:
    """Alters one bit, in the middle unless told."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 4
    path.write_bytes(content)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A run of a small recipe and its cache; tests work on copies."""
    place = tmp_path_factory.mktemp("made")
    with tiny_folder(place, RECIPE, dropout=0.1) as patch:
        patch.setenv("MBERT_CACHE", str(place / "cache"))
        patch.setenv("MBERT_DATA", "glue")
        works("run", "small.toml", "-o", "runs/small")
    return place


@pytest.fixture
def here(finished_run, tmp_path, monkeypatch):
    place = tmp_path / "here"
    shutil.copytree(finished_run, place)
    monkeypatch.chdir(place)
    monkeypatch.setenv("MBERT_CACHE", str(place / "cache"))
    monkeypatch.setenv("MBERT_DATA", "glue")
    return place


def results(root: str = "runs/small") -> dict[str, str]:
    stages = [path.parent for path in sorted(Path(root).glob("*/manifest.json")) if ".old-" not in path.parent.name]
    return {stage.name: manifest.read(stage)["result"] for stage in stages}


# --- sealed text -----------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_sealed_text_is_found_or_harmless():
    values = {"name": "öl", "numbers": [1, 2.5, None, True], "inner": {"key": "value"}}
    sealed = atomic.dump_with_checksum(values).encode()
    assert atomic.load_with_checksum(sealed.decode()) == values
    detected = 0
    for position in range(len(sealed)):
        for bit in range(8):
            altered = bytearray(sealed)
            altered[position] ^= 1 << bit
            try:
                assert atomic.load_with_checksum(altered.decode()) == values
            except ValueError:
                detected += 1
    assert detected > 6 * len(sealed)


def test_a_file_is_hashed_again_once_it_changed(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = atomic.file_digest(path)
    path.write_bytes(b"two and more")
    assert atomic.file_digest(path) != first


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    atomic.write_text(tmp_path / "file", "old")
    with pytest.raises(RuntimeError), atomic.atomic_write(tmp_path / "file") as begun:
        begun.write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"


# --- directories -----------------------------------------------------------------------------------------------------------


def test_a_damaged_input_is_named_before_it_is_used(here):
    flip(here / "runs/small/finetune/model.safetensors")
    for words in (
        ("evaluate", "runs/small/finetune", "--task", "sst2", "-o", "other"),
        ("predict", "runs/small/finetune", "-"),
        ("task-distill", "--teacher", "runs/small/finetune", "--student", "bert-1x8", "--task", "sst2", "-o", "other"),
    ):
        assert "model.safetensors is damaged" in refused(5, "M306", *words, stdin="a text\n")["what"]


def test_damaged_augmented_data_are_named_before_they_are_used(here):
    flip(here / "runs/small/augment/augmented.parquet")
    words = (
        "task-distill",
        "small.toml",
        "--teacher",
        "runs/small/finetune",
        "--augmented",
        "runs/small/augment",
        "-o",
        "other",
    )
    assert "augmented.parquet is damaged" in refused(5, "M306", *words)["what"]


@pytest.mark.parametrize("file", ["model.safetensors", "manifest.json", "metrics.json", "config.json"])
@pytest.mark.parametrize("stage", ["finetune", "task-distill"])
def test_a_run_makes_what_is_damaged_anew(here, stage, file):
    before = results()
    flip(here / "runs/small" / stage / file)
    done = works(*RUN)
    assert f"{stage}: made anew" in done.err
    assert results() == before and (here / f"runs/small/{stage}.old-1").is_dir()
    assert "everything up to date" in works(*RUN).err


# --- caches ----------------------------------------------------------------------------------------------------------------


def test_every_damaged_file_of_the_cache_is_found_and_made_anew(here):
    before = results()
    entries = [
        path for path in (here / "cache").rglob("*") if path.is_file() and path.suffix != ".lock" and path.stat().st_size
    ]
    kinds = {path.relative_to(here / "cache").parts[0] for path in entries}
    assert kinds >= {"blocks", "teacher"}
    for path in entries:
        flip(path)
    shutil.rmtree(here / "runs")
    output = works(*RUN).err
    assert output.count("this entry of the cache is made anew") >= 3
    assert results() == before


def test_an_entry_without_its_last_bytes_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path))
    reporter = RecordingReporter()
    for expected in (False, True, False, True):
        with cache.entry("kind", "key", reporter=reporter) as (folder, ready):
            assert ready is expected
            if not ready:
                (folder / "numbers.bin").write_bytes(np.arange(1000).tobytes())
        if len(reporter.warnings) == 0 and expected:
            content = (folder / "numbers.bin").read_bytes()
            (folder / "numbers.bin").write_bytes(content[:-8])
            assert cache.find("kind", "key") is None
    assert len(reporter.warnings) == 1 and "numbers.bin is damaged" in reporter.warnings[0]


DELETED = {
    "while an entry is filled": "microbert_cli.runs.cache._mark_complete",
    "before blocks are opened": "microbert_cli.data.corpus.blocks._open_parts",
    "before the teacher's answers are opened": "microbert_cli.distillation.teacher_cache.CachedOutputs.__init__",
    "while it is locked": "microbert_cli.runs.cache._is_ready",
    "while it is measured": "microbert_cli.runs.cache.used_bytes",
}


@pytest.mark.parametrize("moment", DELETED)
def test_a_cache_that_is_deleted_while_it_is_in_use_is_made_again(here, monkeypatch, moment):
    before = results()
    shutil.rmtree(here / "runs")
    module, _, name = DELETED[moment].rpartition(".")
    owner = pkgutil.resolve_name(module)
    original, calls = getattr(owner, name), []

    def delete(*arguments, **options):
        if not calls:
            shutil.rmtree(here / "cache")
        calls.append(name)
        return original(*arguments, **options)

    if moment == "while an entry is filled":
        shutil.rmtree(here / "cache")
    monkeypatch.setattr(owner, name, delete)
    done = works(*RUN)
    assert calls and results() == before and "Traceback" not in done.err


def test_a_cache_that_is_deleted_again_and_again_is_told(here, monkeypatch):
    shutil.rmtree(here / "runs")
    shutil.rmtree(here / "cache")
    monkeypatch.setattr(cache, "_mark_complete", lambda directory: shutil.rmtree(here / "cache") or open(directory / "x"))
    error = refused(4, "M226", *RUN)
    assert "same command" in error["fix"]


@pytest.mark.parametrize("name", ["x" * 300, "loop", "closed/model"])
def test_paths_that_the_system_refuses_are_named(here, monkeypatch, name):
    Path("loop").symlink_to("loop")
    if name.startswith("closed"):
        # Permissions do not bind root, as whom tests may run.
        monkeypatch.setattr(os, "access", lambda path, mode, **more: not str(path).endswith("/closed") or mode == os.F_OK)
        isdir = Path.is_dir

        def is_dir(path):
            if "closed/" in str(path):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return isdir(path)

        monkeypatch.setattr(Path, "is_dir", is_dir)
    code = {"loop": "M203", "closed/model": "M225"}.get(name, "M224")
    error = refused(4, code, "predict", name, "a text")
    assert "written" not in error["what"]
    if name != "closed/model":
        refused(5 if name == "loop" else 4, "M370" if name == "loop" else "M224", "finetune", "small.toml", "-o", name)
        done = mbert("evaluate", "runs/small/finetune", "-o", "evaluated", "--test-file", f"{name}.csv")
        assert done.code in (3, 4)


# --- ancestry --------------------------------------------------------------------------------------------------------------


def test_verify_goes_through_the_whole_ancestry(here):
    states = {(d.place, d.role.partition(" of ")[0]): d.state for d in verify_directory(Path("runs/small/evaluate"))}
    assert states == {
        ("runs/small/evaluate", "itself"): "whole",
        ("runs/small/task-distill", "model"): "whole",
        ("runs/small/finetune", "teacher"): "whole",
        ("base", "model"): "whole",
        ("runs/small/general-distill", "student"): "whole",
        ("text.txt", "corpus"): "whole",
        ("runs/small/augment", "augmented"): "whole",
    }
    done = works("verify", "runs/small/evaluate")
    assert "7 examined, nothing wrong" in done.out
    assert len(works("verify", "runs/small", "--json").json["directories"]) == 7


@pytest.mark.parametrize(
    ("place", "state"),
    [
        ("base/model.safetensors", "changed"),
        ("text.txt", "changed"),
        ("runs/small/finetune/config.json", "damaged"),
        ("runs/small/augment/manifest.json", "damaged"),
        ("runs/small/evaluate/metrics.json", "damaged"),
    ],
)
def test_verify_names_what_is_no_longer_what_it_was(here, place, state):
    flip(here / place)
    error = refused(5, "M307", "verify", "runs/small/evaluate")
    assert place.rpartition("/")[0] in error["where"] and state in error["what"]
    directories = mbert("verify", "runs/small/evaluate", "--json").json["directories"]
    assert [d["state"] for d in directories].count("whole") == len(directories) - 1


def test_verify_of_a_moved_tree_and_of_one_whose_ancestors_stayed_behind(here, tmp_path):
    shutil.move(here, tmp_path / "there")
    assert len(verify_directory(tmp_path / "there/runs/small/evaluate")) == 7
    shutil.copytree(tmp_path / "there/runs/small/task-distill", tmp_path / "alone/task-distill")
    checked = verify_directory(tmp_path / "alone/task-distill")
    assert [d.state for d in checked] == ["whole", *["not here"] * (len(checked) - 1)] and len(checked) > 1


def test_verify_sees_what_was_added_and_what_was_replaced(here):
    (here / "runs/small/finetune/pytorch_model.bin").write_bytes(b"?")
    (directory, *_) = verify_directory(Path("runs/small/finetune"))
    assert directory.state == "whole" and directory.notes == ["pytorch_model.bin was added"]
    works("finetune", "small.toml", "-o", "runs/small/finetune", "--force", "--set", "finetune.steps=2")
    states = {d.place: d.state for d in verify_directory(Path("runs/small/task-distill"))}
    assert states["runs/small/finetune"] == "changed"


def test_verify_where_there_is_nothing(here):
    refused(4, "M207", "verify", "nowhere")
    refused(4, "M210", "verify", "glue")


def test_a_manifest_of_the_first_schema_has_no_checksum(tmp_path):
    plain = {"schema": 1, "identity": {}, "identity_hash": "", "result": "r", "outputs": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(plain))
    assert manifest.read(tmp_path)["result"] == "r"
    (tmp_path / "manifest.json").write_text(json.dumps({**plain, "schema": 2}))
    with pytest.raises(MbertError):
        manifest.read(tmp_path)


# --- signals ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "wait"), [(signal.SIGTERM, 143, 0.3), (signal.SIGINT, 130, 1.0)])
def test_a_signal_before_and_between_steps_of_training(here, number, code, wait):
    """Sent while libraries are imported, models loaded or texts varied, where no training loop listens."""
    shutil.rmtree(here / "runs")
    with subprocess.Popen(**process(*RUN)) as running:
        running.stderr.readline()
        time.sleep(wait)
        running.send_signal(number)
        _, output = running.communicate(timeout=60)
    assert running.returncode == code, output
    assert "Traceback" not in output and "the same command goes on from here" in output


def process(*words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "microbert_cli", *words]
    return {"args": command, "env": environment, "stderr": subprocess.PIPE, "text": True}
