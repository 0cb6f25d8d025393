"""Columns of a user's table as the teacher: a student learns from them what it would learn from the model that gave them."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mbert_command import refused, works
from safetensors.numpy import load_file
from tiny_glue import tiny_rows
from tiny_models import tiny_bert

from microbert_cli import api

COLUMNS = ("--set", 'data.label_probabilities=["p_negative", "p_positive"]')
LABELS = ("--set", 'data.labels=["negative", "positive"]')
STEPS = (
    "--set",
    "phases.distillation.steps=12",
    "--set",
    "phases.distillation.learning_rate=1e-3",
    "--set",
    "phases.distillation.batch_size=8",
    "--set",
    "precision=fp32",
)
SOFT_ALONE = (
    "--set", "method=kd", "--set", "phases.distillation.losses.hard_label=0",
    "--set", "phases.distillation.losses.soft_target={weight=1.0, temperature=1.0, divergence='kl'}",
)  # fmt: skip
FILES = ("--train-file", "labelled.csv", "--dev-file", "dev.csv", "--text", "text", "--label", "label")


def write(path: str, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A teacher, and tables that hold its probabilities of the rows, with labels and without."""
    folder = tmp_path_factory.mktemp("soft-labels")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MBERT_CACHE", str(folder / "cache"))
        tiny_bert("base", kind="encoder", layers=2, dropout=0.0)
        names = ("negative", "positive")
        splits = {
            name: [(texts[0], names[int(label)]) for texts, label in tiny_rows("sst2", 48)[name]] for name in ("train", "dev")
        }
        for split, rows in splits.items():
            write(f"{split}.csv", ("text", "label"), rows)
        columns = {"train_file": "train.csv", "dev_file": "dev.csv", "text": "text", "label": "label"}
        api.finetune(
            model="base", out="teacher", **{f"data__{key}": value for key, value in columns.items()},
            finetune__steps=60, finetune__learning_rate=3e-3, finetune__batch_size=8,
        )  # fmt: skip
        for split, rows in splits.items():
            answers = [
                json.loads(line) for line in works("predict", "teacher", "--file", f"{split}.csv", "--json").out.splitlines()
            ]
            probs = [[answer["probabilities"][name] for name in names] for answer in answers]
            both = [(*row, *p) for row, p in zip(rows, probs, strict=True)]
            if split == "train":
                write("labelled.csv", ("text", "label", "p_negative", "p_positive"), both)
                write("unlabelled.csv", ("text", "p_negative", "p_positive"), [(row[0], *row[2:]) for row in both])
                objects = [(row[0], json.dumps(dict(zip(names, p, strict=True)))) for row, p in zip(rows, probs, strict=True)]
                write("objects.csv", ("text", "answer"), objects)
            else:
                write("dev-answers.csv", ("text", "label", "p_negative", "p_positive"), both)
        yield folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("MBERT_CACHE", str(place / "cache"))


def distilled(out: Path, *words: str | Path) -> dict[str, Any]:
    works("task-distill", *words, *STEPS, "-o", out)
    return json.loads((out / "metrics.json").read_text())


def weights(out: Path) -> dict[str, np.ndarray]:
    return load_file(out / "model.safetensors")


def test_probabilities_teach_what_the_model_teaches_that_gave_them(tmp_path: Path) -> None:
    """Both runs begin as the base model's layers, and at temperature 1 a softmax is all that a loss sees of a teacher."""
    student = ("--student", "base", *SOFT_ALONE, *LABELS)
    by_model = distilled(tmp_path / "model", *FILES, "--teacher", "teacher", "--set", "teacher.allow_weak=true", *student)
    by_table = distilled(tmp_path / "table", *FILES, *COLUMNS, *student)
    assert by_table["teacher"] is None and by_model["teacher"]
    first, second = weights(tmp_path / "model"), weights(tmp_path / "table")
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_allclose(array, second[name], rtol=0, atol=5e-5, err_msg=name)
    start = load_file("base/model.safetensors")
    moved = max(
        np.abs(first[name] - start[name.removeprefix("bert.")]).max() for name in first if name.removeprefix("bert.") in start
    )
    assert moved > 1e-3, "there was something to learn"


def test_labels_are_not_needed_to_train_on(tmp_path: Path) -> None:
    files = ("--train-file", "unlabelled.csv", "--dev-file", "dev-answers.csv", "--text", "text", "--label", "label")
    student = ("--student", "bert-1x16", "--set", "base=base", *SOFT_ALONE)
    metrics = distilled(tmp_path / "a", *files, *COLUMNS, *student)
    assert metrics["teacher"]["accuracy"] > metrics["majority"], "the columns of dev are scored"
    objects = ("--train-file", "objects.csv", *files[2:], "--set", "data.label_probabilities=answer", *student)
    distilled(tmp_path / "b", *objects)
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all((first[name] == second[name]).all() for name in first), "the form of the columns is no matter"
    error = refused(2, "M144", "task-distill", *files, *COLUMNS, "--student", "bert-1x16", "--set", "base=base",
                    "--set", "method=kd", *STEPS, "-o", tmp_path / "c")  # fmt: skip
    assert "hard_label" in error["what"] and "hard_label=0" in error["fix"]


def test_a_new_student_begins_as_the_base_model(tmp_path: Path) -> None:
    """Where no model teaches, weights come from the base model; the student of the method `compact` fits any."""
    metrics = distilled(tmp_path / "out", *FILES, *COLUMNS, "--set", "base=base", "--set", "method=compact")
    assert metrics["start"]["of"] == "base" and metrics["start"]["by"] in ("teacher-slice", "teacher-layers")


def test_a_transfer_file_with_columns(tmp_path: Path) -> None:
    words = ("--train-file", "train.csv", *FILES[2:], "--transfer-file", "unlabelled.csv", *COLUMNS, "--student", "base")
    metrics = distilled(tmp_path / "out", *words, *SOFT_ALONE)
    assert metrics["phases"]["distillation"]["split"] == "transfer"
    error = refused(
        2,
        "M148",
        "task-distill",
        *words,
        *SOFT_ALONE,
        *STEPS,
        "--set",
        "phases.distillation.data=original",
        "-o",
        tmp_path / "no",
    )
    assert "train rows" in error["what"]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    words = ("task-distill", *FILES, *COLUMNS, "--student", "bert-1x16", "--set", "method=kd", "-o", tmp_path / "out")
    assert "base" in refused(3, "M022", *words)["where"]
    error = refused(2, "M146", *words, "--set", "base=base", "--set", "method=tinybert")
    assert "hidden_states" in error["what"] and "method=kd" in error["fix"]
    assert "teacher.model" in refused(2, "M145", *words, "--teacher", "teacher", "--set", "method=kd")["where"]


def test_plan_and_doctor_know_them(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(
        'stages = ["task-distill", "evaluate"]\nmethod = "kd"\nstudent = "bert-1x16"\nbase = "base"\n'
        "phases.distillation.steps = 4\n[data]\n"
        'train_file = "labelled.csv"\ndev_file = "dev.csv"\nlabel_probabilities = ["p_negative", "p_positive"]\n'
    )
    plan = works("plan", tmp_path / "r.toml", "--json").json
    assert next(stage for stage in plan["stages"] if stage["name"] == "task-distill")["steps"] == 4
    works("doctor", tmp_path / "r.toml")
    works("run", tmp_path / "r.toml", "-o", tmp_path / "run", "--set", "method=compact")
