"""The default method needs no key: from a table to a student, alone and as the recipe own-data."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mbert_command import refused, works
from tiny_models import tiny_bert, tiny_rows

# The recipe's own schedule is for real models; these have a few rows and no time.
BRIEF = {
    "finetune.epochs": 12,
    "finetune.batch_size": 8,
    "finetune.learning_rates": "[1e-2, 3e-3]",
    "phases.distillation.min_steps": 60,
    "phases.distillation.epochs": 1,
    "augment.copies": 1,
    "vocabulary.keep_first": 0,
    "teacher.allow_weak": "true",
}
SETS = [word for key, value in BRIEF.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("default")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MBERT_CACHE", str(folder / "cache"))
        patch.delenv("MBERT_DATA", raising=False)
        tiny_bert("base", kind="masked-lm", layers=4, hidden=16, intermediate=32, dropout=0.0)
        single = [f'"{texts[0].strip()}, they say",{["bad", "good"][int(y)]}' for texts, y in tiny_rows("sst2", 80)["train"]]
        Path("reviews.csv").write_text("\n".join(["text,stars", *single, ""]), encoding="utf-8")
        pairs = [{"a": texts[0], "b": texts[1], "same": int(y)} for texts, y in tiny_rows("mrpc", 80)["train"]]
        Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
        yield folder


def metrics_of(directory: str) -> Any:
    return json.loads((Path(directory) / "metrics.json").read_text(encoding="utf-8"))


def run(file: str, *columns: str, out: str) -> Any:
    return works("run", "own-data", "--train-file", file, *columns, "--base", "base", *SETS, "-o", out)


def test_two_commands_without_a_key() -> None:
    finetune = [word for key, value in BRIEF.items() if key.startswith("finetune") for word in ("--set", f"{key}={value}")]
    works("finetune", "--model", "base", "--train-file", "reviews.csv", "--label", "stars", *finetune)
    short = ("--set", "phases.distillation.min_steps=60", "--set", "teacher.allow_weak=true")
    works("task-distill", "--train-file", "reviews.csv", "--label", "stars", *short)
    metrics = metrics_of("runs/reviews/task-distill")
    assert metrics["start"]["by"] == "teacher-slice" and metrics["start"]["neurons"] == "sensitivity"
    assert metrics["budget"]["share"] == 1 and metrics["phases"]["distillation"]["steps"] >= 60
    config = json.loads(Path("runs/reviews/task-distill/config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]) == (2, 16, 3)


@pytest.mark.slow
def test_the_recipe_own_data_in_one_command() -> None:
    done = run("reviews.csv", "--label", "stars", out="whole")
    assert "recombine is left out: it makes pairs of texts" in done.err
    report = metrics_of("whole/report")
    assert report["verdict"]["sentence"] in done.err
    teacher = next(row for row in report["table"] if row["kind"] == "teacher")
    assert teacher["score"] == pytest.approx(metrics_of("whole/finetune")["dev"]["accuracy"]), "not the trimmed one's"
    assert {"commonest", "linear", "teacher"} <= {row.get("kind") for row in report["table"]} or report["table"]
    rows = metrics_of("whole/trim")["rows"]
    assert rows["after"] < rows["before"]
    embeddings = metrics_of("whole/export")["files"]["int8"]["embeddings"]
    assert embeddings, "the format of the tables is recorded"
    assert "everything up to date" in run("reviews.csv", "--label", "stars", out="whole").err


@pytest.mark.slow
def test_a_table_to_a_student_in_one_command() -> None:
    words = ("distill", "reviews.csv", "--label", "stars", "--base", "base", "--budget", "10m", *SETS)
    done = works(*words)
    assert done.out.strip() == "runs/reviews" and metrics_of("runs/reviews/report")["verdict"]["sentence"] in done.err
    budget = metrics_of("runs/reviews/task-distill")["budget"]
    assert budget["budget"] == "10m" and budget["share"] == 1
    assert "everything up to date" in works(*words).err
    taught = works("distill", "reviews.csv", "--label", "stars", "--teacher", "runs/reviews/finetune", *SETS, "-o", "taught")
    assert taught.out.strip() == "taught" and not Path("taught/finetune").exists()
    assert metrics_of("taught/report")["verdict"]["sentence"] in taught.err


def test_one_table_and_a_time_that_is_some() -> None:
    assert "reviews.csv" in refused(2, "M174", "distill", "reviews.csv", "--train-file", "pairs.jsonl")["fix"]
    assert refused(2, "M174", "distill", "reviews.csv", "--task", "sst2")["fix"] == "mbert run own-data --task sst2"
    assert "30m" in refused(3, "M003", "distill", "reviews.csv", "--label", "stars", "--budget", "soon")["allowed"]


@pytest.mark.slow
def test_pairs_are_paired_anew() -> None:
    done = run("pairs.jsonl", "--text", "a", "--text", "b", "--label", "same", out="pairs")
    assert "windows is left out: it makes rows of one text" in done.err
    assert metrics_of("pairs/augment")["unlabelled"] > 0
    assert metrics_of("pairs/task-distill")["phases"]["distillation"]["split"] == "augmented"


def test_phases_of_a_method_that_is_not_named_are_refused() -> None:
    error = refused(3, "M069", "task-distill", "--teacher", "base", "--task", "sst2", "--set", "phases.prediction.epochs=2")
    assert "tinybert" in error["fix"] or "soft-targets" in error["fix"]
    assert "distillation" in error["allowed"]
