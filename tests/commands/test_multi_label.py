"""Several labels a row through the commands: teacher, student, evaluation, export, predict, and what transformers says."""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from mbert_command import refused, works
from safetensors.numpy import load_file
from stopping import StopAt
from tiny_models import tiny_bert

from microbert_cli import api
from microbert_cli.errors import MbertError
from microbert_cli.signals import Halted

pytestmark = pytest.mark.slow

NAMES = ("boat", "garden", "lovely")
OTHER = ("the", "baker", "sold", "a", "was", "and", "it")
ABOUT = (
    "--train-file", "train.jsonl", "--dev-file", "dev.jsonl", "--text", "text", "--label", "topics",
    "--set", "data.kind=labels",
    "--set", "precision=fp32",
)  # fmt: skip
TEXT = "the boat was lovely"


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Texts of ordinary words and some of NAMES, which are their labels; the first two are more frequent than the last."""
    random = Random(seed)
    examples = []
    for _ in range(count):
        labels = [name for name, share in zip(NAMES, (0.5, 0.4, 0.15), strict=True) if random.random() < share]
        words = [*random.choices(OTHER, k=4), *labels]
        random.shuffle(words)
        examples.append({"text": " ".join(words), "topics": sorted(labels)})
    return examples


def write(path: str, table: list[dict[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("multi-label")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MBERT_CACHE", str(folder / "cache"))
        tiny_bert("base", kind="encoder", layers=2, dropout=0.0, vocab=(*NAMES, *OTHER))
        write("train.jsonl", rows(160, 0))
        write("dev.jsonl", rows(60, 1))
        steps = [f"finetune.{key}" for key in ("steps=120", "learning_rate=5e-3", "batch_size=16", "evaluations=2")]
        works("finetune", "--model", "base", *ABOUT, *(word for step in steps for word in ("--set", step)), "-o", "teacher")
        works("augment", *ABOUT[:-2], "--set", 'augment.sources=["windows"]', "--set", "augment.copies=1", "-o", "augmented")
        works("task-distill", "--teacher", "teacher", "--student", "compact", "--augmented", "augmented", *ABOUT, *distil(60),
              "-o", "student")  # fmt: skip
        works("evaluate", "student", "--teacher", "teacher", *ABOUT[:-2], "-o", "evaluation")
        works("export", "student", "--teacher", "teacher", *ABOUT[:-2], "-o", "export")
        yield folder


def distil(steps: int, *more: str) -> tuple[str, ...]:
    values = (f"phases.distillation.steps={steps}", "phases.distillation.min_steps=1", "phases.distillation.batch_size=16",
              "phases.distillation.learning_rate=3e-3", "phases.distillation.evaluations=2", *more)  # fmt: skip
    return tuple(word for value in values for word in ("--set", value))


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("MBERT_CACHE", str(place / "cache"))


def read(path: str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def test_teacher_and_student_learn_and_keep_thresholds() -> None:
    teacher, student = read("teacher/metrics.json"), read("student/metrics.json")
    assert teacher["primary"] == "micro_f1" and teacher["dev"]["micro_f1"] > 0.8 > teacher["majority"]
    assert student["dev"]["micro_f1"] > 0.7 and student["teacher"] == teacher["dev"], "read with its own thresholds"
    for model in ("teacher", "student", "export"):
        config = read(f"{model}/config.json")
        assert config["problem_type"] == "multi_label_classification" and set(config["label_thresholds"]) == {*NAMES}
    assert read("export/metrics.json")["dev"] == pytest.approx(student["dev"])


def test_evaluation_scores_labels_with_the_models_thresholds() -> None:
    dev, student = read("evaluation/metrics.json")["splits"]["dev"], read("student/metrics.json")
    assert dev["metrics"] == pytest.approx(student["dev"])
    assert (
        dev["labels"] == list(NAMES)
        and dev["classes"]["boat"]["threshold"] == read("student/config.json")["label_thresholds"]["boat"]
    )
    assert 0 <= dev["calibration_error"] <= 1 and 0 <= dev["teacher"]["teacher_calibration_error"] <= 1
    assert {"agreement", "label_agreement", "kl"} <= dev["teacher"].keys()
    table = pq.read_table("evaluation/predictions.parquet").to_pydict()
    given = [json.loads(cell) for cell in table["prediction"]]
    limits = read("student/config.json")["label_thresholds"]
    assert given == [[n for n in NAMES if table[f"p_{n}"][row] > limits[n]] for row in range(60)]
    assert [sorted(json.loads(cell)) for cell in table["label"]] == [row["topics"] for row in rows(60, 1)]


def test_predict_gives_labels_and_all_probabilities() -> None:
    answers = {}
    for model in ("student", "export"):
        record = works("predict", model, TEXT, "--json").json
        assert list(record) == ["labels", "probabilities"] and set(record["probabilities"]) == {*NAMES}
        limits = read(f"{model}/config.json")["label_thresholds"]
        assert record["labels"] == [name for name in NAMES if record["probabilities"][name] > limits[name]]
        answers[model] = record
        assert works("predict", model, TEXT).out.strip() == "|".join(record["labels"])
    for name in NAMES:
        assert answers["student"]["probabilities"][name] == pytest.approx(answers["export"]["probabilities"][name], abs=1e-4)


def test_the_pipeline_of_transformers_gives_the_same_probabilities() -> None:
    from transformers import pipeline

    classify = pipeline("text-classification", model="export", top_k=None, device="cpu")
    texts = [row["text"] for row in rows(20, 2)]
    Path("texts.txt").write_text("\n".join(texts), encoding="utf-8")
    records = [json.loads(line) for line in works("predict", "export", "--file", "texts.txt", "--json").out.splitlines()]
    for answer, record in zip(classify(texts), records, strict=True):
        for each in answer:
            assert each["score"] == pytest.approx(record["probabilities"][each["label"]], abs=1e-4)


def test_a_row_is_answered_alike_alone_and_in_a_batch() -> None:
    long = " ".join(["baker"] * 40)
    together = works("predict", "student", TEXT, long, "a garden", "--json").out.splitlines()
    alone = works("predict", "student", TEXT, "--json").json
    for name, share in json.loads(together[0])["probabilities"].items():
        assert share == pytest.approx(alone["probabilities"][name], abs=1e-6)


def test_files_of_the_export_agree_with_the_model() -> None:
    files = read("export/metrics.json")["files"]
    assert files["fp32"]["max_difference"] < 1e-4 and files["fp32-optimized"]["max_difference"] < 1e-4
    assert set(files["int8"]["scores"]) == {"micro_f1", "macro_f1", "mean_average_precision", "subset_accuracy"}
    card = Path("export/README.md").read_text(encoding="utf-8")
    assert "any number of: boat, garden, lovely" in card and "top_k=None" in card and "label_thresholds" in card


def test_alternatives_and_report() -> None:
    table = read("export/metrics.json")["alternatives"]
    assert table[0]["model"] == "commonest labels" and 0 < table[0]["score"] < 1
    assert table[1]["score"] > 0.9, "a linear model of words, with thresholds as a student has them"
    works("report", ".")
    page = Path("report.html").read_text(encoding="utf-8")
    assert "label by label" in page and "Confusion matrices" not in page and "Expected calibration error" in page


@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--task", "python-topics"), ("--task", "glued.toml")])
def test_a_submission_is_refused_before_any_work(more: tuple[str, ...], tmp_path: Path) -> None:
    """Also where the task's TOML has a table [submission]: the server's files hold one label a row."""
    task = f'text = ["text"]\n[files]\ndev = "{Path("dev.jsonl").resolve()}"\n[label]\ncolumn = "topics"\nkind = "labels"\n'
    task += f"names = {list(NAMES)}\n[submission]\nfiles = {{ test = 'X.tsv' }}\nlabels = 'names'\nfiller = 'x'\n"
    Path("glued.toml").write_text(task, encoding="utf-8")
    about = more if "--task" in more else (*ABOUT, *more)
    refused(2, "M142", "evaluate", "student", *about, "--submission", "-o", tmp_path / "no")
    assert not list(tmp_path.iterdir())
    with pytest.raises(MbertError, match="several labels a row"):
        api.evaluate(out=tmp_path / "no", model="student", task="python-topics", submission=True)


def test_weights_of_classes_are_said_in_the_report(tmp_path: Path) -> None:
    more = (
        "--set",
        "data.class_weights=balanced",
        "--set",
        "finetune.losses.hard_label.gamma=1",
        "--set",
        "data.primary=macro_f1",
    )
    steps = [f"finetune.{key}" for key in ("steps=40", "learning_rate=5e-3", "batch_size=16", "evaluations=1")]
    words = [word for step in steps for word in ("--set", step)]
    works("finetune", "--model", "base", *ABOUT, *words, *more, "-o", tmp_path / "weighted")
    metrics = json.loads((tmp_path / "weighted" / "metrics.json").read_text())
    assert metrics["primary"] == "macro_f1"
    works("evaluate", tmp_path / "weighted", "--teacher", tmp_path / "weighted", *ABOUT[:-2], "-o", tmp_path / "evaluation")
    works("report", tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "trained with class_weights = balanced" in page


def test_other_losses_other_teachers_and_a_table_teach_too(tmp_path: Path) -> None:
    student = ("--student", "bert-1x16", "--set", "teacher.allow_weak=true")
    losses = ("--set", "phases.distillation.losses.logit_mse=1", "--set", "phases.distillation.losses.discriminator=0.1")
    ensemble = ("--set", 'teacher.models=["teacher", "student"]', "--set", "method=kd")
    works("task-distill", *ensemble, *student, *ABOUT, *distil(2), "-o", tmp_path / "ensemble")
    works(
        "task-distill",
        "--teacher",
        "teacher",
        "--set",
        "method=kd",
        *losses,
        *student,
        *ABOUT,
        *distil(2),
        "-o",
        tmp_path / "a",
    )
    int8 = ("--set", "teacher.precision=int8", "--set", "method=kd")
    works("task-distill", "--teacher", "teacher", *int8, *student, *ABOUT, *distil(2), "-o", tmp_path / "int8")
    names = ("microbert", "tinybert", "cofi")
    for name in names[:1]:
        phases = [f"phases.{phase}.steps=2" for phase in ("alignment", "all")]
        words = [word for phase in phases for word in ("--set", phase)]
        works(
            "task-distill", "--teacher", "teacher", "--set", f"method={name}", *words, *student, *ABOUT, "-o", tmp_path / name
        )
    soft = [{**row, "p": [0.9 if name in row["topics"] else 0.2 for name in NAMES]} for row in rows(60, 3)]
    write("soft.jsonl", soft)
    files = ("--train-file", "soft.jsonl", *ABOUT[2:], "--set", "data.label_probabilities=p", "--set", "base=base")
    works("task-distill", *files, "--student", "bert-1x16", "--set", "method=kd", *distil(2), "-o", tmp_path / "table")
    assert set(json.loads((tmp_path / "table" / "config.json").read_text())["label_thresholds"]) == {*NAMES}


def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    steps = {"phases__distillation__steps": 12, "phases__distillation__min_steps": 1, "phases__distillation__batch_size": 8}
    about = {"data__train_file": "train.jsonl", "data__dev_file": "dev.jsonl", "data__text": "text", "data__label": "topics",
             "data__kind": "labels", "precision": "fp32", "phases__distillation__checkpoint_steps": 3}  # fmt: skip

    given: dict[str, Any] = {"teacher": "teacher", "student": "bert-1x16", **about, **steps, "method": "kd"}
    api.distill(out=tmp_path / "whole", **given)
    with pytest.raises(Halted):
        api.distill(out=tmp_path / "parts", reporter=StopAt(("distillation", 7), at_once=True), **given)
    api.distill(out=tmp_path / "parts", **given)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("whole", "parts")]
    assert configs[0]["label_thresholds"] == configs[1]["label_thresholds"]


def test_plans_checks_speeds_and_comparisons(tmp_path: Path) -> None:
    recipe = f"""
method = "kd"
student = "bert-1x16"
stages = ["finetune", "task-distill"]
[data]
train_file = "{Path("train.jsonl").resolve()}"
dev_file = "{Path("dev.jsonl").resolve()}"
text = "text"
label = "topics"
kind = "labels"
[finetune]
model = "{Path("base").resolve()}"
steps = 4
[phases.distillation]
steps = 4
"""
    Path("recipe.toml").write_text(recipe, encoding="utf-8")
    assert "labels a row" in works("doctor", "recipe.toml", "-o", tmp_path / "run").out
    works("plan", "recipe.toml", "-o", tmp_path / "run")
    works("bench", "student", "teacher", *ABOUT[:-2], "-o", tmp_path / "bench")
    done = works("compare", "recipe.toml", "--ablate", "soft", "-o", tmp_path / "compared", "--set", "teacher.allow_weak=true")
    assert "micro_f1" in done.err + done.out
