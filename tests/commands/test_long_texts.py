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


@pytest.mark.slow
def test_predictions_of_a_model_and_of_its_export_are_the_same() -> None:
    works("export", "teacher", *OWN, "--set", "export.optimize=false", "-o", "exported")
    assert config_of("exported")["mbert_windows"] == config_of("teacher")["mbert_windows"]
    card = Path("exported", "README.md").read_text(encoding="utf-8")
    assert f"Texts of more than {LENGTH} tokens are read in windows" in card and "by the max of their logits" in card
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


def transfer(*more: str) -> tuple[str, ...]:
    Path("texts.txt").write_text("\n".join(text for text, _ in rows(12, 7)) + "\na lovely boat\n", encoding="utf-8")
    return (*WINDOWS, *BRIEF, "--set", "data.transfer_file=texts.txt", "--set", "phases.distillation.losses.hard_label=0",
            "--set", "phases.distillation.data=transfer", *more)  # fmt: skip


def test_every_window_of_an_unlabelled_text_is_a_row() -> None:
    each = works(*DISTIL, "--teacher", "teacher", *transfer(), "-o", "windows-as-rows")
    assert "13 rows are 37 windows" in each.err
    tiny_bert("strange", kind="encoder", vocab=("market", "boat", "dreary", "lovely"), dropout=0.0)
    works("finetune", "--model", "strange", *WINDOWS, "--set", "finetune.steps=2", "-o", "other-tokens")
    other = (*DISTIL[:1], "--student", "teacher", *DISTIL[3:], "--teacher", "other-tokens", *transfer())
    error = refused(6, "M484", *other, "-o", "other")
    # Whole texts are rows of both, however many windows each of them makes of one.
    works(*other, *error["fix"].split(), "-o", "whole-texts")


@pytest.mark.parametrize("key", ["data.windows=mean", "data.transfer_windows=true"])
def test_a_run_of_several_tasks_has_no_windows(key: str) -> None:
    tiny_glue("glue", ["sst2", "rte"], rows=16)
    words = ("task-distill", "--data", "glue", "--set", 'tasks=["sst2", "rte"]', "--set", "teachers.sst2=teacher",
             "--student", "bert-1x16")  # fmt: skip
    refused(6, "M483", *words, "--set", key, "-o", "several")


def test_a_cascade_has_no_windows() -> None:
    refused(6, "M482", "cascade", "teacher", "teacher", *OWN, *SIZES, "-o", "two")
    tiny_bert("short", labels=("high", "low"))
    error = refused(6, "M482", "cascade", "short", "short", *WINDOWS, "-o", "two")
    assert error["fix"] == "--set data.windows=none"


def test_a_model_that_writes_has_no_windows() -> None:
    texts = [{"source": "the boat", "target": "the lamp"}] * 4
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts), encoding="utf-8")
    words = ("--train-file", "pairs.jsonl", "--dev-file", "pairs.jsonl", "--text", "source", "--label", "target",
             "--set", "data.kind=text_generation")  # fmt: skip
    refused(6, "M482", "finetune", "--model", "base", *words, "--set", "data.windows=mean", "-o", "writer")


def test_a_loss_of_layers_and_logits_has_no_windows() -> None:
    words = ("task-distill", "--student", "bert-1x16", "--set", "method=microbert", "--set", "teacher.allow_weak=true",
             "--teacher", "teacher", *WINDOWS)  # fmt: skip
    error = refused(6, "M485", *words, "-o", "judged")
    assert error["where"] == "phases.all.losses.discriminator"
    assert error["fix"].endswith("--set phases.all.losses.discriminator.input=cls")
    brief = ("--set", "phases.alignment.steps=1", "--set", "phases.all.steps=2")
    works(*words, *brief, "--set", "phases.all.losses.discriminator.input=cls", "-o", "judged")


def test_a_stride_that_fills_a_window_is_refused() -> None:
    error = refused(6, "M481", "finetune", "--model", "base", *WINDOWS, "--set", "data.stride=10", "-o", "stuck")
    works("finetune", "--model", "base", *WINDOWS, "--set", "finetune.steps=1", *error["fix"].split(), "-o", "moved")


RECIPE = f"""
base = "base"
student = "bert-1x16"
method = "kd"
stages = ["finetune", "task-distill"]
[data]
train_file = "train.tsv"
dev_file = "dev.tsv"
text = "text"
label = "stars"
max_length = {LENGTH}
[teacher]
allow_weak = true
[finetune]
steps = 4
[phases.distillation]
epochs = 1.0
batch_size = 16
"""


@pytest.mark.slow
def test_a_plan_counts_windows_and_the_doctor_says_what_they_cost() -> None:
    Path("long.toml").write_text(RECIPE, encoding="utf-8")
    cut, windows = (mbert("plan", "long.toml", "--set", f"data.windows={how}", "--json").json for how in ("none", "mean"))
    assert [stage["steps"] for stage in windows["stages"]] == [stage["steps"] for stage in cut["stages"]]
    ratios = [there["tokens"] / here["tokens"] for here, there in zip(cut["stages"], windows["stages"], strict=True)]
    assert ratios == pytest.approx([3.0, 3.0], rel=0.01)  # 24 words are windows of 12, 12 and 10 tokens
    done = mbert("doctor", "long.toml")
    assert "96 of 96 training rows are cut to 12 tokens (100.0%)" in done.out
    assert "in windows, at 3.0 times the tokens: --set data.windows=mean" in done.out
    done = mbert("doctor", "long.toml", "--set", "data.windows=mean")
    assert "96 of 96 training rows are longer than 12 tokens (100.0%); all are 288 windows, 3.0 times the tokens" in done.out


VARIANTS = {
    "exits": ("--set", "method=fastbert", "--set", "phases.branches.steps=4"),
    "experts": ("--student", "bert-1x16", "--set", "method=kd", *BRIEF, "--set", "moe.side=student", "--set", "moe.layers=all"),
    "pruned": ("--student", "bert-1x16x8", "--set", "method=kd", *BRIEF, "--set", "init=teacher",
               "--set", "phases.distillation.prune.every=1"),
    "by sensitivity": ("--student", "bert-1x16x24", "--set", "method=kd", *BRIEF, "--set", "initialise.by=teacher-slice",
                       "--set", "initialise.neurons=sensitivity"),
    "by layers": ("--student", "bert-2x16", "--set", "method=tinybert", "--set", "phases.intermediate.steps=2",
                  "--set", "phases.prediction.steps=2"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_other_students_read_windows_too(variant: str) -> None:
    out = variant.replace(" ", "-")
    works("task-distill", "--teacher", "teacher", "--set", "teacher.allow_weak=true", *WINDOWS, *VARIANTS[variant], "-o", out)
    model = out
    if variant == "experts":
        works("extract", out, *OWN, "-o", "plain")
        model = "plain"
    if variant == "exits":
        works("export", out, *OWN, "--set", "export.int8=false", "--set", "export.optimize=false", "--set", "export.speed=0.5",
              "-o", "left-early")  # fmt: skip
        words = (*(text for text, _ in rows(6, 3)), "--speed", "0.5", "--json")
        answers = [works("predict", model, *words).out.splitlines() for model in (out, "left-early")]
        by_torch, by_onnx = ([json.loads(line)["score"] for line in lines] for lines in answers)
        assert by_torch == pytest.approx(by_onnx, abs=1e-4)
    assert config_of(model)["mbert_windows"] == config_of("teacher")["mbert_windows"]
    works("evaluate", model, *OWN, "-o", f"{out}-scores")
    assert metrics_of(f"{out}-scores")["dev"]["accuracy"] == pytest.approx(metrics_of(out)["dev"]["accuracy"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("student", ["bert-2x16x32", "bi-1x16x32"])
def test_pairs_are_windows_of_the_second_text(student: str) -> None:
    tiny_glue("glue", ["mrpc"], rows=24)
    task = ("--task", "mrpc", "--data", "glue")
    words = (*task, "--set", "data.max_length=18", "--set", "data.windows=mean", "--set", "data.stride=2")
    if not Path("of-pairs").exists():
        works("finetune", "--model", "base", *words, "--set", "finetune.steps=2", "-o", "of-pairs")
    works("task-distill", "--teacher", "of-pairs", "--student", student, *DISTIL[3:], *words, *BRIEF, "-o", student)
    works("export", student, *task, "--set", "export.int8=false", "--set", "export.optimize=false", "-o", f"{student}-file")
    texts = [(" ".join(FILL), " ".join(FILL * 3)), ("a lovely boat", "the lamp")]
    by_torch, by_onnx = (api.predict(model=name, texts=texts) for name in (student, f"{student}-file"))
    assert [answer["score"] for answer in by_torch] == pytest.approx([answer["score"] for answer in by_onnx], abs=1e-4)
