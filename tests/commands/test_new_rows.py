"""`mbert augment` with augmenters that make rows: no model is needed, and what they make teaches a student by its teacher."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mbert_command import mbert, refused, works
from stopping import StopAt
from tiny_glue import tiny_glue
from tiny_models import tiny_bert

from microbert_cli import api
from microbert_cli.reporter import Reporter
from microbert_cli.signals import Halted

RECOMBINE = ("--set", 'augment.sources=["recombine"]', "--set", "augment.copies=3")
PER_TASK = {"mrpc": "recombine", "sst2": "windows", "cola": "perturb"}
STEPS = (
    "--set",
    "phases.distillation.steps=3",
    "--set",
    "phases.distillation.batch_size=8",
    "--set",
    "teacher.allow_weak=true",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an invented GLUE and teachers; the base model has no head, so that nobody could ask it for words."""
    folder = tmp_path_factory.mktemp("new-rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MBERT_CACHE", str(folder / "cache"))
        tiny_glue("glue", list(PER_TASK), rows=60)
        tiny_bert("base", kind="encoder", layers=1)
        tiny_bert("pairs", labels=["not_equivalent", "equivalent"])
        yield folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("MBERT_DATA", "glue")
    monkeypatch.setenv("MBERT_CACHE", str(place / "cache"))


@pytest.mark.parametrize("task", PER_TASK)
def test_no_model_is_needed(task: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    works("augment", "--task", task, "--set", f'augment.sources=["{PER_TASK[task]}"]', "--set", "augment.copies=3", "-o", out)
    metrics = json.loads((out / "metrics.json").read_text())
    rows = pq.read_table(out / "augmented.parquet").to_pylist()
    assert metrics["rows_out"] == len(rows) > 2 * metrics["rows_in"]
    assert metrics["unlabelled"] == sum(row["label"] is None for row in rows) == sum(row["augmented"] for row in rows)
    record = json.loads((out / "manifest.json").read_text())
    assert record["inputs"] == {"masked_lm": None, "vectors": None}
    assert ("dev" in record["data"]) == (task == "sst2"), "dev is read for its lengths alone, and only then"


def test_plan_and_doctor_know_them(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(
        'task = "mrpc"\nbase = "base"\nstudent = "bert-1x16"\nmethod = "kd"\nteacher.model = "pairs"\n'
        'teacher.allow_weak = true\nstages = ["augment", "task-distill"]\n'
        'augment.sources = ["recombine", "perturb"]\naugment.copies = 2\n'
    )
    plan = works("plan", tmp_path / "r.toml", "--json").json
    augmentation = next(stage for stage in plan["stages"] if stage["name"] == "augment")
    assert "rows out" in " ".join(augmentation["notes"]) and augmentation["tokens"] == 0
    works("doctor", tmp_path / "r.toml")


def test_a_student_learns_from_new_rows_by_its_teacher(tmp_path: Path) -> None:
    works("augment", "--task", "mrpc", *RECOMBINE, "-o", tmp_path / "rows")
    words = ("task-distill", "--task", "mrpc", "--teacher", "pairs", "--student", "bert-1x16", "--augmented", tmp_path / "rows")
    works(*words, "--set", "method=kd", *STEPS, "-o", tmp_path / "student")
    metrics = json.loads((tmp_path / "student" / "metrics.json").read_text())
    assert metrics["phases"]["distillation"]["split"] == "augmented"


def test_a_loss_that_takes_every_label_is_refused(tmp_path: Path) -> None:
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "gold.py").write_text(
        "import torch.nn.functional as F\nneeds = {'logits', 'labels'}\nover = 'batch'\n"
        "def gold(student_BC, labels_B):\n    return F.cross_entropy(student_BC.float(), labels_B)\n"
    )
    works("augment", "--task", "mrpc", *RECOMBINE, "-o", tmp_path / "rows")
    words = ("task-distill", "--task", "mrpc", "--teacher", "pairs", "--student", "bert-1x16", "--include", tmp_path, *STEPS)
    words = (*words, "--set", "method=kd", "--set", "phases.distillation.losses.gold=1", "--augmented", tmp_path / "rows")
    error = refused(2, "M144", *words, "-o", tmp_path / "student")
    assert "gold" in error["what"] and "phases.distillation.data=original" in error["fix"]
    works(*words, "--set", "phases.distillation.data=original", "-o", tmp_path / "student")


def test_a_run_that_is_stopped_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(out: Path, reporter: Reporter) -> bytes:
        keys = {"augment__sources": ["recombine", "perturb"], "augment__copies": 2}
        return (api.augment(task="mrpc", out=out, reporter=reporter, **keys).out / "augmented.parquet").read_bytes()

    with monkeypatch.context() as patch, pytest.raises(Halted):
        patch.setattr("microbert_cli.stages.augment.run.SAVE_SECONDS", 0.0)
        make(tmp_path / "stopped", StopAt(("augment", 24)))
    assert len(list(tmp_path.glob("stopped.partial/shards/*.parquet"))) == 2
    assert make(tmp_path / "stopped", Reporter()) == make(tmp_path / "whole", Reporter())


def test_the_wrong_number_of_texts_is_refused(tmp_path: Path) -> None:
    words = ("augment", "--task", "sst2", *RECOMBINE, "-o", tmp_path / "out")
    assert "windows" in refused(4, "M246", *words)["fix"]
    names = mbert("list", "augmenters", "--names").out.split()
    assert names == ["masked_lm", "perturb", "recombine", "rules", "windows", "word_vectors"]
    assert "Augmented SBERT" in works("show", "augmenters", "recombine").out
