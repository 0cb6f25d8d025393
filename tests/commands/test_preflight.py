"""What is doomed is refused before the first stage: by `mbert run`, `mbert compare`, and as far as names tell by --dry-run."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mbert_command import mbert, refused, works
from tiny_folder import tiny_folder
from tiny_models import tiny_bert

RECIPE = """
stages = ["finetune", "augment", "task-distill", "evaluate", "export"]
base = "base"
student = "bert-1x16"
method = "tinybert"
data = { train_file = "t.csv", text = "text", label = "label", max_length = 16 }
teacher.allow_weak = true
finetune = { steps = 2, batch_size = 8 }
augment = { copies = 1, sources = ["masked_lm"] }
phases.intermediate = { steps = 2, batch_size = 8 }
phases.prediction = { steps = 2, batch_size = 8 }
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a recipe of five stages and what it needs."""
    folder = tmp_path_factory.mktemp("preflight")
    with tiny_folder(folder, RECIPE):
        rows = [f"text {i},{'ab'[i % 2]}" for i in range(60)]
        Path("t.csv").write_text("\n".join(["text,label", *rows, ""]), encoding="utf-8")
        tiny_bert("classifier", labels=["a", "b"])
        yield folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("MBERT_CACHE", str(place / "cache"))


DOOMED = {
    "a file that is not there": ((4, "M252"), ["data.dev_file=none.csv"], True),
    "a transfer file that is not there": ((4, "M252"), ["data.transfer_file=none.txt"], True),
    "a masked-LM without its head": ((5, "M311"), ["augment.masked_lm=classifier"], True),
    "a classifier of this run as masked-LM": ((5, "M311"), ["augment.masked_lm=finetune"], True),
    "a teacher without a head": ((5, "M311"), ["teacher.model=base"], True),
    "vectors that are not there": ((4, "M242"), ["vectors.source=none.txt"], True),
    "a model that is not there": ((4, "M203"), ["teacher.model=./none/model"], True),
    "a column that is not there": ((4, "M253"), ["data.label=none"], False),
    "a layer map that does not fit": ((3, "M010"), ["layer_map=[1, 2]"], False),
}


@pytest.mark.parametrize("case", DOOMED)
def test_a_run_that_is_doomed_does_not_start(place: Path, case: str) -> None:
    (exit_code, code), settings, seen_by_name = DOOMED[case]
    words = ("run", "small.toml", "-o", "doomed", *(word for setting in settings for word in ("--set", setting)))
    error = refused(exit_code, code, *words)
    assert not Path("doomed").exists(), "nothing was begun"
    if seen_by_name:
        assert refused(exit_code, code, *words, "--dry-run") == error
    else:
        works(*words, "--dry-run")


def test_packages_of_a_late_stage_are_looked_for_first(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    refused(7, "M510", "run", "small.toml", "-o", "doomed")
    assert not Path("doomed").exists()


def test_the_disk_is_looked_at_first(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microbert_cli.plan.doctor.machine_checks.free_bytes", lambda path: 1000)
    refused(1, "M633", "run", "small.toml", "-o", "doomed", "--set", "student=classifier")
    assert not Path("doomed").exists()


def test_everything_is_told_at_once(place: Path) -> None:
    words = ("run", "small.toml", "-o", "doomed", "--set", "augment.masked_lm=classifier", "--set", "data.dev_file=none.csv")
    errors = mbert(*words, "--json").json["error"]["errors"]
    assert {error["code"] for error in errors} == {"M311", "M252"}


def test_one_stage_and_a_comparison_are_looked_at_too(place: Path) -> None:
    augment = ("augment", "small.toml", "--masked-lm", "classifier", "--dry-run")
    refused(5, "M311", *augment)
    refused(4, "M252", "finetune", "--model", "base", "--train-file", "none.csv", "--dry-run")
    compare = ("compare", "small.toml", "-o", "doomed", "--set", "augment.masked_lm=classifier")
    refused(5, "M311", *compare)
    refused(5, "M311", *compare, "--dry-run")
    assert not Path("doomed").exists()


def test_the_doctor_sees_a_masked_lm_without_its_head(place: Path) -> None:
    done = mbert("doctor", "small.toml", "--set", "augment.masked_lm=classifier")
    assert done.code == 1 and "M311" in done.out + done.err


@pytest.mark.slow
def test_what_is_fine_runs(place: Path) -> None:
    works("run", "small.toml", "-o", "fine", "--set", "export.onnx=false", "--set", "export.int8=false")
