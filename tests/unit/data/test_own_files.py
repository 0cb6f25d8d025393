"""Data of the user's own through the whole chain: finetune, augment, task-distill, evaluate, predict, export.

A two-column CSV with string labels, and a JSONL file of pairs with a score; once from flags, once from a task TOML.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mbert_command import refused, works
from tiny_models import tiny_bert, tiny_rows

SETTINGS = """
method = "tinybert"
[finetune]
learning_rate = 1e-2
batch_size = 8
epochs = 16
[augment]
copies = 2
sources = ["masked_lm"]
[phases.intermediate]
steps = 4
[phases.prediction]
steps = 4
[teacher]
margin = 0.0
"""


@dataclass(frozen=True)
class Case:
    """A file, the words that describe it, what the chain must find, and a text to predict."""

    file: str
    flags: tuple[str, ...]
    task: str
    primary: str
    classes: list[str] | None
    asked: tuple[str, ...]


REVIEWS = Case(
    "reviews.csv",
    ("--train-file", "reviews.csv", "--text", "review", "--label", "verdict"),
    'text = ["review"]\nmax_length = 32\n[label]\ncolumn = "verdict"\n[files]\ntrain = "reviews.csv"\n',
    "accuracy",
    ["awful", "great"],
    ("the lovely boat, they say",),
)
PAIRS = Case(
    "pairs.jsonl",
    ("--train-file", "pairs.jsonl", "--text", "one", "--text", "other", "--label", "likeness"),
    'text = ["one", "other"]\nmax_length = 32\n[label]\ncolumn = "likeness"\n[files]\ntrain = "pairs.jsonl"\n',
    "pearson",
    None,
    ("--pairs", "A baker mended a boat.\tA baker nearly mended a boat near the valley."),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The two files, a model, and an mbert.toml with small numbers."""
    home = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("MBERT_CACHE", str(home / ".cache"))
        patch.delenv("MBERT_DATA", raising=False)
        reviews = [
            f'"{texts[0].strip()}, they say",{["awful", "great"][int(y)]}' for texts, y in tiny_rows("sst2", 80)["train"]
        ]
        Path("reviews.csv").write_text("\n".join(["review,verdict", *reviews, ""]), encoding="utf-8")
        pairs = [{"one": texts[0], "other": texts[1], "likeness": y} for texts, y in tiny_rows("stsb", 80)["train"]]
        Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
        tiny_bert("base", kind="masked-lm", dropout=0.0)
        Path("mbert.toml").write_text(f'base = "base"\nstudent = "bert-1x16"\n{SETTINGS}', encoding="utf-8")
        yield home


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


@pytest.mark.slow
@pytest.mark.parametrize("case", [REVIEWS, PAIRS], ids=lambda case: case.file)
@pytest.mark.parametrize("described", ["by flags", "by a task file"])
def test_the_whole_chain(case: Case, described: str, place: Path) -> None:
    flags = case.flags
    if described == "by a task file":
        stem = f"{Path(case.file).stem}-task"
        (place / f"{stem}.toml").write_text(case.task, encoding="utf-8")
        flags = ("--task", f"{stem}.toml")
    out = Path("runs") / (Path(case.file).stem if described == "by flags" else stem)

    teacher = works("finetune", *flags, "--json").json
    assert teacher["dev"][case.primary] > 0.5
    assert works("augment", *flags, "--json").json["rows_out"] > teacher_rows(out)
    student = works("task-distill", *flags, "--json").json
    assert student["teacher"] == pytest.approx(teacher["dev"], abs=1e-6) and student["primary"] == case.primary
    assert (out / "augment/augmented.parquet").is_file()
    manifest = json.loads((out / "task-distill/manifest.json").read_text())
    assert manifest["data"]["augmented"]["rows"] > manifest["data"]["train"]["rows"]

    scores = works("evaluate", *flags, "--json").json
    assert scores["dev"] == pytest.approx(student["dev"], abs=1e-4) and scores["model"] == "../task-distill"
    assert scores["splits"]["dev"].get("labels") == case.classes
    repeated = works("evaluate", out / "task-distill", "-o", out / "again", "--json").json
    assert repeated["dev"] == scores["dev"], "the model's manifest says what it was made for"

    answers = works("predict", out / "finetune", *case.asked, "--json").json
    assert set(answers.get("probabilities", {})) == set(case.classes or [])
    output = works("predict", out / "finetune", *case.asked).out.strip()
    assert output == (answers["label"] if case.classes else f"{answers['score']:.4f}")

    without_onnx = ("--set", "export.onnx=false", "--set", "export.int8=false")
    assert works("export", *flags, *without_onnx).out == f"{out}/export\n"
    card = (out / "export" / "README.md").read_text(encoding="utf-8")
    assert case.primary in card
    config = json.loads((out / "export/config.json").read_text())
    assert [config["id2label"][str(i)] for i in range(len(case.classes or ["LABEL_0"]))] == (case.classes or ["LABEL_0"])


def teacher_rows(out: Path) -> int:
    """How many rows the teacher was trained on."""
    rows: int = json.loads((out / "finetune/manifest.json").read_text())["data"]["train"]["rows"]
    return rows


def test_a_table_is_answered_row_by_row(place: Path) -> None:
    works("finetune", *REVIEWS.flags)
    lines = works("predict", "runs/reviews/finetune", "--file", "reviews.csv", "--text", "review").out.splitlines()
    assert len(lines) == 80 and set(lines) == {"awful", "great"}
    right = [line.rpartition(",")[2] for line in Path("reviews.csv").read_text(encoding="utf-8").splitlines()[1:]]
    assert sum(a == b for a, b in zip(lines, right, strict=True)) > 60


def test_a_test_file_without_labels_is_not_scored(place: Path) -> None:
    works("finetune", *REVIEWS.flags)
    Path("hidden.csv").write_text("review\na lovely boat\nan awful boat\n", encoding="utf-8")
    words = ("evaluate", "runs/reviews/finetune", *REVIEWS.flags, "--test-file", "hidden.csv", "-o", "runs/hidden")
    assert list(works(*words, "--json").json["splits"]) == ["dev"]


def test_a_test_file_alone_is_scored_by_what_the_model_remembers(place: Path, tmp_path: Path) -> None:
    works("finetune", *REVIEWS.flags)
    rows = Path("reviews.csv").read_text(encoding="utf-8").splitlines()
    one_class = [row for row in rows[1:] if row.endswith("awful")][:5]
    (tmp_path / "t.csv").write_text("\n".join([rows[0], *one_class, ""]), encoding="utf-8")
    words = ("evaluate", "runs/reviews/finetune", "--test-file", tmp_path / "t.csv", "-o", tmp_path / "scores")
    output = works(*words, "--min-score", "accuracy=0.5", "--json").json
    assert list(output["splits"]) == ["test"] and output["splits"]["test"]["rows"] == 5 and "dev" not in output
    assert output["test"] == output["splits"]["test"]["metrics"] and output["out"] == str(tmp_path / "scores")
    works(*words, "--min-score", "test.accuracy=0.5", "--baseline", tmp_path / "scores/metrics.json")
    assert "test accuracy" in refused(1, "M620", *words, "--min-score", "test.accuracy=1.01")["what"]
    dev = (*words[:-1], tmp_path / "dev")
    assert "test.accuracy" in refused(2, "M104", *dev, "--min-score", "dev.accuracy=0.5")["allowed"]
    (tmp_path / "old.json").write_text('{"dev": {"accuracy": 1.0}}', encoding="utf-8")
    refused(4, "M262", *dev, "--baseline", tmp_path / "old.json")
    (tmp_path / "hidden.csv").write_text("review\na lovely boat\n", encoding="utf-8")
    hidden = ("evaluate", "runs/reviews/finetune", "--test-file", tmp_path / "hidden.csv", "-o", tmp_path / "dev")
    assert '"verdict"' in refused(4, "M260", *hidden)["allowed"]
    assert not (tmp_path / "dev").exists(), "gates are looked at before any work"


def test_a_minimum_names_its_split_where_several_are_scored(place: Path, tmp_path: Path) -> None:
    works("finetune", *REVIEWS.flags)
    words = ("evaluate", "runs/reviews/finetune", *REVIEWS.flags, "--test-file", "reviews.csv", "-o", tmp_path / "scores")
    error = refused(2, "M104", *words, "--min-score", "accuracy=0.5")
    assert "several splits" in error["what"] and "dev.accuracy=" in error["fix"] and not (tmp_path / "scores").exists()
    output = works(*words, "--min-score", "test.accuracy=0.5", "--json").json
    assert output["dev"] == output["splits"]["dev"]["metrics"] and output["test"] == output["splits"]["test"]["metrics"]
    only = (*words[:-1], tmp_path / "only", "--set", 'evaluate.splits=["test"]')
    output = works(*only, "--min-score", "accuracy=0.5", "--json").json
    assert "dev" not in output and output["test"]["accuracy"] > 0.5


def test_the_same_data_elsewhere_is_the_same_data(place: Path) -> None:
    """Outputs know their inputs by content: another folder, another name, still up to date."""
    words = ("--text", "review", "--label", "verdict", "--task", "reviews", "-o", "runs/moved", "--set", "finetune.steps=1")
    works("finetune", "--train-file", "reviews.csv", *words)
    Path("elsewhere").mkdir()
    moved = Path("elsewhere/r.csv")
    moved.write_bytes(Path("reviews.csv").read_bytes())
    assert "up to date" in works("finetune", "--train-file", str(moved.resolve()), *words).err
