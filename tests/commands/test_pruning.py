"""Commands on a pruned student: the plan prices its first size, the doctor takes its first step, a run makes a plain model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from mbert_command import works
from tiny_folder import tiny_folder
from tiny_models import tiny_bert

from microbert_cli.models.size import forward_flops
from microbert_cli.plan import calibration

RECIPE = """
task    = "sst2"
method  = "kd"
init    = "teacher"
student = "bert-2x16x24"
data    = "glue"
stages  = ["task-distill", "evaluate"]
seeds   = [1, 2]

[teacher]
model      = "taught"
allow_weak = true

[phases.distillation]
steps         = 40
batch_size    = 8
learning_rate = 1e-3
prune         = { start = 0.1, end = 0.5, every = 4 }
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A recipe that prunes a teacher of 4 x 32, 64 neurons."""
    place = tmp_path_factory.mktemp("pruning")
    with tiny_folder(place, RECIPE, layers=2, hidden=16):
        tiny_bert("taught", layers=4, hidden=32, heads=4, labels=["negative", "positive"])
        yield place


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path / "cache"))


def planned(*words: str) -> dict[str, Any]:
    stage: dict[str, Any] = works("plan", "small.toml", "--json", *words).json["stages"][0]
    return stage


def test_the_plan_prices_the_first_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "rehearse", lambda job, shapes, **_: dict.fromkeys(shapes, 1e-3))
    stage = planned()
    training = [part for part in stage["parts"] if part["what"].endswith(": steps")]
    assert [part["what"] for part in training] == ["distillation, at first: steps", "distillation: steps"] * 2  # two seeds
    assert stage["steps"] == 2 * 40
    # 40 (0.1 + 0.4 / 4) = 8 steps of 40 at the teacher's size; its rows have as many tokens as the others' have on average
    shares = [part["seconds"] / (training[0]["seconds"] + training[1]["seconds"]) for part in training[:2]]
    assert shares == pytest.approx([0.2, 0.8], abs=0.01)
    whole, small = (
        transformers.BertConfig(num_hidden_layers=layers, hidden_size=width, num_attention_heads=4, intermediate_size=inner)
        for layers, width, inner in ((4, 32, 64), (2, 16, 24))
    )
    per_step = (training[0]["flops"] / 8) / (training[1]["flops"] / 32)
    assert per_step == pytest.approx(forward_flops(whole, 8) / forward_flops(small, 8), rel=0.25)  # type: ignore[operator]
    at_once = planned("--set", "phases.distillation.prune=false", "--set", "init=new")
    assert stage["memory"] > at_once["memory"] and stage["flops"] > at_once["flops"]


def test_doctor_and_run(tmp_path: Path) -> None:
    checks = works("doctor", "small.toml", "--json").json
    assert checks["passed"] is True
    works("run", "small.toml", "-o", str(tmp_path / "out"))
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out" / "task-distill")
    assert [config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads] == [
        2,
        16,
        24,
        4,
    ]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "task-distill")
    assert (
        model.num_parameters()
        < 0.5 * transformers.AutoModelForSequenceClassification.from_pretrained("taught").num_parameters()
    )
    explained = works("run", "small.toml", "--explain-config").out
    assert "phases.distillation.prune.decay" in explained
