"""A model with exits through the commands: made, scored, timed and exported at several speeds; what is wrong is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from advice import follow
from mbert_command import refused, works
from safetensors.torch import load_file
from tiny_models import tiny_bert, tiny_glue, tiny_rows

from microbert_cli import api

ROWS = {"data__folder": "glue", "data__max_length": 24}
STEPS = ("--set", "phases.branches.steps=60", "--set", "phases.branches.learning_rate=1e-2", "--set", "teacher.allow_weak=true")
BRIEF = ("--set", "phases.branches.steps=2")


def exits(teacher: str, task: str, *more: str) -> tuple[str, ...]:
    return ("task-distill", "--teacher", teacher, "--task", task, "--data", "glue", "--set", "method=fastbert",
            "--set", "data.max_length=24", *STEPS, *more)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Data, fine-tuned models of two tasks, and both with exits."""
    folder = tmp_path_factory.mktemp("exits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MBERT_CACHE", str(folder / "cache"))
        tiny_glue("glue", ["sst2", "stsb"], rows=64)
        tiny_bert("base", kind="encoder", layers=3, dropout=0.0)
        for task in ("sst2", "stsb"):
            api.finetune(model="base", out=f"teacher-{task}", task=task, **ROWS, finetune__steps=60, finetune__batch_size=16,
                         finetune__learning_rate=1e-2)  # fmt: skip
        works(*exits("teacher-sst2", "sst2"), "-o", "sst2")
        works(*exits("teacher-stsb", "stsb", "--set", "early_exit.branch=linear"), "-o", "stsb")
        yield folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def metrics_of(out: str) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads(Path(out, "metrics.json").read_text(encoding="utf-8"))
    return metrics


@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_the_model_within_stays_what_it_was_to_the_bit(task: str) -> None:
    before, after = (load_file(f"{name}/model.safetensors") for name in (f"teacher-{task}", task))
    assert all(torch.equal(value, after[f"backbone.{name}"]) for name, value in before.items())
    assert {name.split(".")[0] for name in after} == {"backbone", "branches"}
    works("evaluate", f"teacher-{task}", "--task", task, "--data", "glue", "-o", f"plain-{task}")
    works("evaluate", task, "--task", task, "--data", "glue", "-o", f"whole-{task}")
    plain, whole = metrics_of(f"plain-{task}"), metrics_of(f"whole-{task}")
    # Of equal weights, but of sums that may begin elsewhere in memory: a last bit may differ.
    assert plain["dev"] == pytest.approx(whole["dev"], abs=1e-6)
    assert whole["splits"]["dev"]["exits"]["left"] == {"3": 1.0}


@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_branches_learn_what_the_model_says(task: str) -> None:
    metrics = metrics_of(task)
    assert list(metrics["exits"]) == ["1", "2", "3"]
    primary = "accuracy" if task == "sst2" else "mean"
    assert metrics["exits"]["3"][primary] == pytest.approx(metrics["dev"][primary], abs=1e-6)
    assert metrics["exits"]["2"][primary] > (0.8 if task == "sst2" else 0.5)
    assert "dev" not in metrics["phases"]["branches"]  # the model's own score, which cannot change, chooses no weights


@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_it_is_scored_at_a_speed(task: str) -> None:
    result = api.evaluate(model=task, task=task, out=f"fast-{task}", evaluate__speed=0.95, **ROWS)
    facts, whole = result.metrics["splits"]["dev"]["exits"], api.evaluate(model=task, task=task, out=f"slow-{task}", **ROWS)
    slow = whole.metrics["splits"]["dev"]["exits"]
    assert (
        facts["speed"] == 0.95 and sum(facts["left"].values()) == pytest.approx(1.0) and facts["layers"] < 3 == slow["layers"]
    )
    assert result.metrics["dev"].keys() == whole.metrics["dev"].keys()
    assert facts["flops"] > 0 < slow["flops"]


def test_answers_do_not_depend_on_the_batch() -> None:
    texts = [row[0][0] for row in tiny_rows("sst2", 64)["train"][:20]]
    Path("texts.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    outs = [
        works("predict", "sst2", "--file", "texts.txt", "--speed", 0.95, "--batch-size", size, "--json").out for size in (20, 1)
    ]
    batched, single = ([json.loads(line) for line in out.splitlines()] for out in outs)
    assert [row["label"] for row in batched] == [row["label"] for row in single]
    for left, right in zip(batched, single, strict=True):
        assert left["probabilities"] == pytest.approx(right["probabilities"], abs=1e-5)


def test_bench_at_several_speeds(tmp_path: Path) -> None:
    words = ("bench", "sst2", "teacher-sst2", "--task", "sst2", "--data", "glue", "--rows", 16, "--rounds", 2, "--passes", 1)
    measured = works(*words, "--speed", "0,0.5,1", "--no-baselines", "--json", "-o", tmp_path / "bench").json
    rows = measured["speeds"]["sst2"]
    assert [row["speed"] for row in rows] == [0, 0.5, 1] and measured["plot"] is None
    assert rows[0]["layers"] == 3 and rows[2]["layers"] == 1 and rows[0]["layers"] >= rows[1]["layers"] >= rows[2]["layers"]
    assert {"teacher-sst2", "sst2, speed 0", "sst2, speed 1"} < measured["models"].keys()
    assert measured["models"]["sst2, speed 0"]["flops"] == measured["models"]["teacher-sst2"]["flops"]
    error = refused(2, "M160", "bench", "teacher-sst2", "--task", "sst2", "--data", "glue", "--speed", "0.5")
    assert "method=fastbert" in error["fix"]


@pytest.mark.slow
def test_the_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    words = (
        "bench",
        "sst2",
        "--task",
        "sst2",
        "--data",
        "glue",
        "--rows",
        16,
        "--rounds",
        2,
        "--passes",
        1,
        "--speed",
        "0,0.5,1",
    )
    measured = works(*words, "--json", "-o", tmp_path / "bench").json
    assert measured["plot"] == str(tmp_path / "bench" / "speed.svg")
    drawn = Path(measured["plot"]).read_text(encoding="utf-8")
    assert "MFLOPs a row" in drawn and "rows a second" in drawn and ">0.5<" in drawn
    scores = [row["score"] for row in measured["speeds"]["sst2"]]
    assert scores[0] == metrics_of("sst2")["dev"]["accuracy"] and scores[2] == metrics_of("sst2")["exits"]["1"]["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_it_is_exported_as_a_graph_that_rows_leave(task: str) -> None:
    pytest.importorskip("onnxruntime")
    exported = works("export", task, "--task", task, "--data", "glue", "-o", f"shipped-{task}", "--speed", 0.95,
                     "--set", "export.int8=false", "--json").json  # fmt: skip
    text = ["x"] if task == "sst2" else ["x\ty", "--pairs"]
    facts = exported["exits"]
    assert facts["max_difference"] < 1e-4 and facts["speed"] == 0.95 and facts["layers"] == [1, 2, 3]
    assert exported["files"]["fp32"]["max_difference"] < 1e-4
    expected = api.evaluate(model=task, task=task, out=f"at-{task}", evaluate__speed=0.95, **ROWS).metrics
    answered = api.evaluate(model=f"shipped-{task}", task=task, out=f"onnx-{task}", **ROWS).metrics
    assert answered["dev"] == pytest.approx(expected["dev"]) and facts["scores"] == pytest.approx(expected["dev"])
    assert answered["splits"]["dev"]["exits"]["left"] == expected["splits"]["dev"]["exits"]["left"]
    whole = api.evaluate(model=f"shipped-{task}", task=task, out=f"all-{task}", evaluate__speed=0, **ROWS).metrics
    assert whole["dev"] == pytest.approx(metrics_of(task)["dev"]) and "exits" not in whole["splits"]["dev"]
    _follow_the_page(f"shipped-{task}", exported)
    card = Path(f"shipped-{task}", "README.md").read_text(encoding="utf-8")
    assert "onnx/model_exits.onnx" in card and "speed 0.95" in card
    refused(2, "M158", "predict", f"shipped-{task}/onnx/model_optimized.onnx", "--speed", "0.5", *text)


def _follow_the_page(shipped: str, exported: dict[str, Any]) -> None:
    """Runs the code of docs/early-exit.md on this export."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "early-exit.md").read_text(encoding="utf-8")
    code = next(block.split("```")[0] for block in page.split("```python\n")[1:] if "onnxruntime" in block)
    names: dict[str, Any] = {}
    exec(code.replace("shipped", shipped), names)
    assert names["logits"].shape[0] == 2 and {*names["layers"].tolist()} <= {*exported["exits"]["layers"]}


def test_plan_doctor_and_lists_know_it() -> None:
    assert "fastbert" in works("list", "methods").out
    Path("exits.toml").write_text(
        'task = "sst2"\nmethod = "fastbert"\ndata = "glue"\nstages = ["task-distill", "evaluate"]\n'
        '[teacher]\nmodel = "teacher-sst2"\nallow_weak = true\n[phases.branches]\nsteps = 2\n[evaluate]\nspeed = 0.5\n',
        encoding="utf-8",
    )
    planned = works("plan", "exits.toml", "--json").json
    assert planned["stages"][0]["steps"] == 2
    assert any("MFLOPs, by the exit" in note for note in planned["stages"][0]["notes"])
    assert works("doctor", "exits.toml").code == 0


def test_it_is_trimmed_and_teaches_like_the_model_within() -> None:
    trimmed = api.trim(model="sst2", out="trimmed", task="sst2", **ROWS)
    assert trimmed.metrics["rows"]["after"] < trimmed.metrics["rows"]["before"]
    scores = [
        api.evaluate(model=name, task="sst2", out=f"{name}-scored", evaluate__speed=0.95, **ROWS)
        for name in ("trimmed", "sst2")
    ]
    assert scores[0].metrics["splits"]["dev"]["exits"]["left"] == scores[1].metrics["splits"]["dev"]["exits"]["left"]
    words = ("task-distill", "--teacher", "sst2", "--task", "sst2", "--data", "glue", "--set", "teacher.allow_weak=true",
             "--set", "method=kd", "--student", "bert-1x16x8", "--set", "phases.distillation.steps=2")  # fmt: skip
    works(*words, "-o", "taught")
    assert json.loads(Path("taught/config.json").read_text())["model_type"] == "bert"


def test_unlabelled_rows_teach_the_branches() -> None:
    Path("more.txt").write_text("".join(f"{row[0][0]}\n" for row in tiny_rows("sst2", 64)["train"][:24]), encoding="utf-8")
    works(*exits("teacher-sst2", "sst2", *BRIEF, "--transfer-file", "more.txt"), "-o", "by-texts")
    assert metrics_of("by-texts")["phases"]["branches"]["split"] == "transfer"


def test_what_is_wrong_is_refused(tmp_path: Path) -> None:
    words = exits("teacher-sst2", "sst2", *BRIEF)
    error = refused(3, "M036", *words, "--set", "early_exit.layers=[1,3]", "-o", "no")
    assert "1 to 2" in error["allowed"] and follow(error, (*words, "-o", "no-1"), tmp_path, {}) == 1
    error = refused(3, "M038", *words, "--set", "early_exit.branch=none", "-o", "no")
    assert "early_exit.branch=attention" in error["fix"]
    refused(3, "M039", *words, "--set", "moe.side=student", "-o", "no")
    refused(3, "M037", *exits("sst2", "sst2", *BRIEF, "--set", "early_exit.branch=linear"), "-o", "no")
    works(*exits("sst2", "sst2", *BRIEF), "-o", "further")  # the same exits learn on
    assert not Path("no").exists()
    for words in (("predict", "sst2", "a text"), ("bench", "sst2", "--task", "sst2", "--data", "glue")):
        error = refused(2, "M155", *words, "--speed", "1.5")
        assert "--speed 0" in error["fix"]
    refused(2, "M156", "bench", "sst2", "--task", "sst2", "--data", "glue", "--speed", "0,quick")
    refused(2, "M157", "predict", "teacher-sst2", "a text", "--speed", "0.5")
    error = refused(3, "M003", "evaluate", "sst2", "--task", "sst2", "--data", "glue", "--speed", "2", "-o", "no")
    assert "speed" in error["where"]
