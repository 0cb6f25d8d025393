"""Long texts through the commands: windows in fine-tuning, distillation, scores, exports and predictions; what has none."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mbert_command import mbert, refused, works
from tiny_models import tiny_bert, tiny_glue

from microbert_cli import api

GOOD, BAD = ("lovely", "splendid"), ("awful", "dreary")
FILL = "the boat of the baker is near the market and the lamp".split()
LENGTH = 12


def rows(count: int, seed: int) -> list[tuple[str, str]]:
    """Texts of 24 words, and labels that follow from one word of the last ten: 12 tokens do not show it."""
    draw = np.random.default_rng(seed)
    texts = []
    for number in range(count):
        words = draw.choice(FILL, 24).tolist()
        words[int(draw.integers(14, 24))] = str(draw.choice((BAD, GOOD)[number % 2]))
        texts.append((" ".join(words), ("low", "high")[number % 2]))
    return texts


def write(path: str, texts: list[tuple[str, str]]) -> None:
    Path(path).write_text("text\tstars\n" + "".join(f"{text}\t{label}\n" for text, label in texts), encoding="utf-8")


OWN = ("--train-file", "train.tsv", "--dev-file", "dev.tsv", "--text", "text", "--label", "stars")
SIZES = ("--set", f"data.max_length={LENGTH}")
WINDOWS = (*OWN, *SIZES, "--set", "data.windows=max")
TRAINING = {"steps": 60, "batch_size": 16, "learning_rate": "1e-2"}
FINETUNE = [word for key, value in TRAINING.items() for word in ("--set", f"finetune.{key}={value}")]
DISTIL = ("task-distill", "--student", "bert-1x16", "--set", "method=kd", "--set", "teacher.allow_weak=true")
BRIEF = ("--set", "phases.distillation.steps=4", "--set", "phases.distillation.batch_size=8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Rows of long texts, and a teacher that reads them in windows."""
    folder = tmp_path_factory.mktemp("long")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MBERT_CACHE", str(folder / "cache"))
        write("train.tsv", rows(96, 0))
        write("dev.tsv", rows(32, 1))
        tiny_bert("base", kind="encoder", dropout=0.0)
        works("finetune", "--model", "base", *WINDOWS, *FINETUNE, "-o", "teacher")
        yield folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def metrics_of(out: str) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads(Path(out, "metrics.json").read_text(encoding="utf-8"))
    return metrics


def config_of(out: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(Path(out, "config.json").read_text(encoding="utf-8"))
    return config


def test_windows_see_what_is_cut() -> None:
    assert metrics_of("teacher")["dev"]["accuracy"] > 0.9
    assert config_of("teacher")["mbert_windows"] == {"pool": "max", "max_length": LENGTH, "stride": LENGTH // 4}
    # The same weights that read the beginning alone see no evidence.
    works("evaluate", "teacher", *OWN, *SIZES, "--set", "data.windows=none", "-o", "cut")
    works("evaluate", "teacher", *OWN, "-o", "whole")
    assert metrics_of("cut")["dev"]["accuracy"] < 0.7
    assert metrics_of("whole")["dev"] == pytest.approx(metrics_of("teacher")["dev"], abs=1e-6)


def test_predictions_of_a_model_and_of_its_export_are_the_same() -> None:
    works("export", "teacher", *OWN, "--set", "export.optimize=false", "-o", "exported")
    assert config_of("exported")["mbert_windows"] == config_of("teacher")["mbert_windows"]
    texts = [text for text, _ in rows(8, 2)] + ["a lovely boat"]
    by_torch, by_onnx = (api.predict(model=name, texts=[(text,) for text in texts]) for name in ("teacher", "exported"))
    for torch_answer, onnx_answer in zip(by_torch, by_onnx, strict=True):
        assert torch_answer["label"] == onnx_answer["label"]
        assert torch_answer["probabilities"] == pytest.approx(onnx_answer["probabilities"], abs=1e-4)
    alone = [api.predict(model="exported", texts=[(text,)])[0] for text in texts]
    assert [answer["score"] for answer in alone] == pytest.approx([answer["score"] for answer in by_onnx], abs=1e-5)
    assert metrics_of("exported")["files"]["fp32"]["scores"]["accuracy"] == metrics_of("teacher")["dev"]["accuracy"]
    done = mbert("predict", "exported", *texts)
    assert done.out.split() == [answer["label"] for answer in by_onnx] and "longer" not in done.err


def test_a_student_learns_from_windows_of_its_teacher() -> None:
    works(*DISTIL, "--teacher", "teacher", *WINDOWS, *BRIEF, "-o", "student")
    assert config_of("student")["mbert_windows"] == config_of("teacher")["mbert_windows"]
    assert metrics_of("student")["teacher"] == pytest.approx(metrics_of("teacher")["dev"], abs=1e-6)
    # The cache holds answers of windows; without it the student is the same.
    works(*DISTIL, "--teacher", "teacher", *WINDOWS, *BRIEF, "--set", "cache.teacher=off", "-o", "uncached")
    assert metrics_of("uncached")["dev"] == pytest.approx(metrics_of("student")["dev"], abs=1e-5)
