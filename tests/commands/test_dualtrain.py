"""DualTrain as a user has it: a student with a vocabulary of its own, its teacher kept, then the task in two vocabularies."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mbert_command import mbert
from safetensors.torch import load_file
from stopping import stopped_everywhere
from tiny_models import tiny_bert, tiny_glue, tiny_rows

from microbert_cli import api
from microbert_cli.models.load import load_model
from microbert_cli.reporter import Reporter
from microbert_cli.runs.stage_result import StageResult

RECIPE = """
method  = "dualtrain"
task    = "sst2"
base    = "base"
student = "bert-2x8x16"
stages  = ["finetune", "general-distill", "task-distill", "evaluate"]
data    = { folder = "glue", max_length = 24 }
teacher = { allow_weak = true }
corpus   = { source = "text.txt", max_length = 24, heldout = 0.2 }
finetune = { steps = 20, batch_size = 8, evaluations = 1 }
phases.labels = { steps = 6, batch_size = 8, evaluations = 1 }

[general]
steps       = 6
batch_size  = 8
evaluations = 2

[general.dual]
vocabulary = 90
keep       = true
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("dualtrain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MBERT_CACHE", str(folder / "cache"))
        tiny_bert("base", kind="masked-lm", vocab=("the", "baker"))
        tiny_glue("glue", ["sst2"], rows=48)
        texts = [texts[0] for texts, _ in tiny_rows("sst2", 60)["train"]]
        Path("text.txt").write_text("\n\n".join("\n".join(texts[i : i + 4]) for i in range(0, 60, 4)), encoding="utf-8")
        Path("dual.toml").write_text(RECIPE, encoding="utf-8")
        done = mbert("run", "dual.toml", "-o", "run")
        assert done.code == 0, done.err
        yield folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def test_a_whole_run_in_two_vocabularies(place: Path) -> None:
    metrics = json.loads((place / "run/general-distill/metrics.json").read_text())
    assert metrics["vocabulary"] <= 90 and 0 < metrics["new_pieces"] < metrics["vocabulary"]
    assert set(metrics["heldout"]) == {"loss", "masked_lm", "teacher_masked_lm", "shared_projection", "minus_loss"}
    student = load_model("run/general-distill", "masked-lm", where="student")
    teacher = load_model("base", "masked-lm", where="base")
    assert len(student.tokenizer) == metrics["vocabulary"] == student.model.config.vocab_size
    assert student.tokenizer.get_vocab() != teacher.tokenizer.get_vocab()
    taught = load_model("run/task-distill", "classifier", where="student")
    assert taught.tokenizer.get_vocab() == student.tokenizer.get_vocab()
    scores = json.loads((place / "run/evaluate/metrics.json").read_text())
    assert np.isfinite(scores["dev"]["accuracy"])
    assert mbert("run", "dual.toml", "-o", "run").code == 0
    assert mbert("verify", "run/task-distill").code == 0


def test_losses_of_every_step_are_logged_and_the_projection_sinks(place: Path) -> None:
    lines = [json.loads(line) for line in (place / "run/general-distill/log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 7))
    for line in steps:
        parts = line["masked_lm"] + line["teacher_masked_lm"]
        weight = (line["loss"] - parts) / line["shared_projection"]
        assert weight == pytest.approx((steps[0]["loss"] - steps[0]["masked_lm"] - steps[0]["teacher_masked_lm"])
                                       / steps[0]["shared_projection"], rel=1e-4)  # fmt: skip


def test_the_teacher_is_kept_in_its_own_shape_with_other_weights(place: Path) -> None:
    kept, before = load_file("run/general-distill/teacher/model.safetensors"), load_file("base/model.safetensors")
    assert {name: value.shape for name, value in kept.items()} == {name: value.shape for name, value in before.items()}
    assert any(not torch.equal(value, before[name]) for name, value in kept.items())
    model = load_model("run/general-distill/teacher", "masked-lm", where="teacher")
    assert model.tokenizer.get_vocab() == load_model("base", "masked-lm", where="base").tokenizer.get_vocab()
    done = mbert("finetune", "--model", "run/general-distill/teacher", "--task", "sst2", "--data", "glue", "--set",
                 "data.max_length=24", "--set", "finetune.steps=2", "-o", "from-kept")  # fmt: skip
    assert done.code == 0, done.err


def test_the_teacher_of_the_run_is_not_touched(place: Path) -> None:
    """What DualTrain trains is its own copy: the base model's files stay, and no other method keeps or moves a teacher."""
    done = mbert("general-distill", "dual.toml", "--set", "method=sharedproj", "-o", "alone")
    assert done.code == 0 and "nothing to keep" in done.err
    assert not (place / "alone/teacher").exists()


def general(out: Path, reporter: Reporter, **changed: object) -> StageResult:
    values = {"method": "dualtrain", "general__dual__vocabulary": 90, "general__dual__keep": True, **changed}
    return api.general_distill(
        out=out, reporter=reporter, teacher="base", student="bert-2x8x16", corpus="text.txt", corpus__max_length=24,
        general__steps=5, general__batch_size=8, general__evaluations=2, general__accumulate=2, **values,
    )  # fmt: skip


def test_stopped_anywhere_it_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kept teacher too, which is trained with dropout; the vocabulary is trained anew in a cache that is empty."""
    assert stopped_everywhere(general, tmp_path / "stopped", fresh_cache=monkeypatch) >= 5


KILLED = (
    "general-distill", "dual.toml", "--set", "general.steps=30", "--set", "general.checkpoint_steps=1",
)  # fmt: skip


@pytest.mark.slow
def test_killed_at_any_time_it_ends_the_same(place: Path) -> None:
    """Twice without a warning, after some steps; then to its end."""
    assert mbert(*KILLED, "-o", "whole").code == 0
    for steps in (4, 12):
        process = subprocess.Popen(
            [sys.executable, "-m", "microbert_cli", *KILLED, "-o", "killed"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        log = place / "killed.partial" / "log.jsonl"
        while process.poll() is None and (not log.is_file() or log.read_text().count('"norm"') < steps):
            time.sleep(0.01)
        assert process.poll() is None, "it was over before it was killed"
        process.kill()
        process.wait()
    done = mbert(*KILLED, "-o", "killed")
    assert done.code == 0 and "going on after step" in done.err
    for file in ("model.safetensors", "teacher/model.safetensors", "tokenizer.json"):
        assert (place / "killed" / file).read_bytes() == (place / "whole" / file).read_bytes(), file


def test_pairs_of_segments_and_a_student_that_goes_on(tmp_path: Path) -> None:
    """Two segments, padded to the full length as the released code does; a student that goes on from the first one."""
    first = general(tmp_path / "first", Reporter(), normalisation="reference", corpus__format="pairs", method="dualtrain-down")
    again = api.general_distill(
        out=tmp_path / "again", teacher="base", student=str(first.out), method="dualtrain", corpus="text.txt",
        corpus__max_length=24, general__steps=2, general__batch_size=8, general__dual__vocabulary=4928,
    )  # fmt: skip
    assert again.metrics["vocabulary"] == first.metrics["vocabulary"]


def test_a_plan_counts_the_teachers_steps_and_the_projection(place: Path) -> None:
    done = mbert("plan", "dual.toml", "--on", "h200", "-o", "planned", "--json")
    assert done.code == 0, done.err
    stages = {stage["name"]: stage for stage in done.json["stages"]}
    parts = {part["what"]: part for part in stages["general-distill"]["parts"]}
    assert {"vocabulary", "teacher, trained too: steps", "weights", "held-out text: teacher"} <= parts.keys()
    assert parts["teacher, trained too: steps"]["flops"] > parts["distillation: steps"]["flops"] > 0
    alone = mbert("plan", "dual.toml", "--on", "h200", "--set", "method=sharedproj", "-o", "planned", "--json").json["stages"]
    names = {part["what"] for stage in alone for part in stage["parts"] if stage["name"] == "general-distill"}
    assert "weights" in names and "teacher, trained too: steps" not in names


def test_the_doctor_takes_a_step_and_knows_both_vocabularies(place: Path) -> None:
    done = mbert("doctor", "dual.toml", "-o", "examined")
    assert done.code == 0, done.out + done.err
    assert "its teacher reads both" in done.out and "general-distill: finite losses" in done.out


def test_what_two_vocabularies_cannot_be_compared_by(place: Path) -> None:
    done = mbert("general-distill", "dual.toml", "--set", "general.losses.hidden_states=1", "-o", "refused", "--json")
    assert done.json["error"]["code"] == "M312"


def test_other_recipes_keep_their_identity() -> None:
    from microbert_cli.recipe.schema import Recipe

    assert "dual" not in Recipe().identity("general")["general"]
