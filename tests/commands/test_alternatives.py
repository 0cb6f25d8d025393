"""What a user would take instead, in every table: report, compare, bench and model card, for tasks of every kind."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mbert_command import mbert, works
from tiny_models import tiny_bert, tiny_glue

from microbert_cli.errors import MbertError
from microbert_cli.evaluation.alternatives import int8_copy as int8
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.runs.stage_inputs import step

RECIPE = """
task = "sst2"
base = "base"
init = "small"
student = "small"
method = "soft-targets"
stages = ["finetune", "task-distill", "labels", "report"]
data = { folder = "glue", max_length = 24 }
teacher = { allow_weak = true }
finetune = { learning_rate = 1e-2, epochs = 8, batch_size = 8, evaluations = 1 }
phases.prediction = { steps = 20, batch_size = 8, learning_rate = 2e-2, evaluations = 1 }

[variant.task-distill]
seeds = [1, 2]

[variant.labels]
stage = "finetune"
finetune = { model = "small", epochs = 2, learning_rate = 2e-2 }
"""
SEVERAL = """
tasks = ["sst2", "stsb"]
base = "base"
init = "small"
student = "small"
method = "soft-targets"
stages = ["teacher-sst2", "teacher-stsb", "task-distill", "report"]
data = { folder = "glue", max_length = 24 }
teacher = { model = "teacher-{task}", allow_weak = true }
finetune = { learning_rate = 1e-2, epochs = 4, batch_size = 8, evaluations = 1 }
phases.prediction = { steps = 20, batch_size = 8, learning_rate = 2e-2, evaluations = 1 }

[variant.teacher-sst2]
stage = "finetune"
tasks = []
task = "sst2"

[variant.teacher-stsb]
stage = "finetune"
tasks = []
task = "stsb"
"""
FIRST = ["commonest class", "linear, TF-IDF", "teacher", "teacher, int8"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with models, rows, and a finished run with a report in runs/two."""
    place = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("MBERT_CACHE", str(place / ".cache"))
        tiny_glue("glue", ["sst2", "stsb"])
        tiny_bert("base", kind="masked-lm", dropout=0.0)
        tiny_bert("small", kind="encoder", layers=1, hidden=16, seed=3)
        Path("two.toml").write_text(RECIPE, encoding="utf-8")
        Path("several.toml").write_text(SEVERAL, encoding="utf-8")
        works("run", "two.toml")
        yield place


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("MBERT_CACHE", str(home / ".cache"))


def read(path: Path | str) -> dict:
    return json.loads((Path(path) / "metrics.json").read_text(encoding="utf-8"))


def check_shares(rows: list[dict], key: str = "model") -> None:
    """Shares of the teacher and above the floor, worked out from the scores of the same table."""
    by_kind = {row["kind"]: row for row in rows}
    floor, teacher = by_kind["majority"]["score"], by_kind["teacher"]["score"]
    for row in rows:
        if row["score"] is not None and teacher > floor:
            assert row["retention"] == pytest.approx(row["score"] / teacher), row[key]
            assert row["above_floor"] == pytest.approx((row["score"] - floor) / (teacher - floor)), row[key]


# --- report -----------------------------------------------------------------------------------------------------------------


def test_the_report_has_every_row() -> None:
    metrics = read("runs/two/report")
    rows = {row["model"]: row for row in metrics["table"]}
    assert list(rows) == [*FIRST, "task-distill", "labels", "task-distill, int8"]
    check_shares(metrics["table"])
    assert rows["commonest class"]["score"] == 0.5 and rows["commonest class"]["latency_ms"] is None
    for name in ("linear, TF-IDF", "teacher, int8", "task-distill, int8"):
        assert rows[name]["latency_ms"] > 0 and rows[name]["megabytes"] > 0 and 0 <= rows[name]["score"] <= 1, name
    assert rows["teacher"]["score"] == read("runs/two/finetune")["dev"]["accuracy"]
    assert rows["teacher, int8"]["megabytes"] < rows["teacher"]["megabytes"]
    assert rows["task-distill"]["seeds"] == 2 and rows["task-distill"]["spread"] is not None


def test_the_verdict_is_in_metrics_report_and_summary() -> None:
    verdict = read("runs/two/report")["verdict"]
    assert verdict["student"] == "task-distill" and verdict["worth_it"] is (not verdict["reasons"])
    text = Path("runs/two/report/report.md").read_text(encoding="utf-8")
    assert f"task-distill: {verdict['sentence']}" in text
    done = works("run", "two.toml")
    assert verdict["sentence"] in " ".join(done.err.split()) and done.out == "runs/two\n"
    assert works("run", "two.toml", "--json").json["report"]["verdict"] == verdict


@pytest.mark.slow
def test_an_exported_student_is_the_int8_row() -> None:
    works(
        "run", "two.toml", "--set", 'stages=["finetune", "task-distill", "labels", "export", "report"]', "-o", "runs/two", "-q"
    )
    metrics = read("runs/two/report")
    kinds = {row["model"]: row["kind"] for row in metrics["table"]}
    assert kinds["export, int8"] == "student-int8" and kinds["export, fp32"] == "export"
    assert "task-distill, int8" not in kinds and metrics["verdict"]["student"] == "task-distill"


def test_a_teacher_from_elsewhere_has_its_rows() -> None:
    """A run that only distils: the teacher is a directory that another run made."""
    words = ("--set", 'stages=["task-distill", "report"]', "--set", "teacher.model=runs/two/finetune", "-o", "runs/apart", "-q")
    works("run", "two.toml", *words)
    metrics = read("runs/apart/report")
    assert [row["model"] for row in metrics["table"]][:4] == FIRST
    teacher = next(row for row in metrics["table"] if row["kind"] == "teacher")
    assert teacher["score"] == read("runs/two/finetune")["dev"]["accuracy"] and teacher["latency_ms"] > 0


@pytest.mark.parametrize(
    ("planned", "teacher"),
    [(("labels",), None), (("labels", "task-distill"), "elsewhere"), (("finetune", "labels"), "here")],
)
def test_a_run_that_distils_nothing_takes_no_teacher_from_elsewhere(
    planned: tuple[str, ...], teacher: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "two.toml").write_text(RECIPE.replace('"small"', '"bert-1x16"'), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    lying_around = Path("runs/mbert/finetune")
    lying_around.mkdir(parents=True)
    (lying_around / "manifest.json").write_text("{}", encoding="utf-8")
    resolved = resolve(catalog=Catalog(), environment={}, recipe="two.toml")
    report = step("report", resolved, tmp_path / "run", Catalog(), planned=planned)
    places = {"elsewhere": str(lying_around), "here": str(tmp_path / "run/finetune")}
    assert report.inputs["teacher"] == (places[teacher] if teacher else None)


@pytest.mark.slow
def test_a_report_on_several_tasks_has_a_table_for_each() -> None:
    done = works("run", "several.toml", "-o", "runs/several")
    sections = read("runs/several/report")["tasks"]
    assert list(sections) == ["sst2", "stsb"]
    for task, section in sections.items():
        assert [row["kind"] for row in section["table"]][:4] == ["majority", "linear", "teacher", "teacher-int8"], task
        assert section["verdict"]["student"] == "task-distill"
        assert section["verdict"]["sentence"] in " ".join(done.err.split())
        check_shares(section["table"])
    floors = {task: section["table"][0] for task, section in sections.items()}
    assert floors["stsb"]["model"] == "mean score" and floors["stsb"]["score"] == 0
    text = Path("runs/several/report/report.md").read_text(encoding="utf-8")
    assert "## sst2" in text and "## stsb" in text
    assert "everything up to date" in works("run", "several.toml", "-o", "runs/several").err


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MbertError("M510", "the package onnx is not installed", where="", allowed="", fix=""), "[M510]"),
        (MbertError("M611", "it cannot be written as ONNX", where="", allowed="", fix=""), "[M611]"),
        (RuntimeError("the quantiser gave up"), "the quantiser gave up"),
    ],
)
def test_without_an_int8_file_the_row_says_why(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(int8, "int8_session", fails)
    shutil.rmtree("runs/two/report", ignore_errors=True)  # the models stay: only the report is made anew
    done = works("run", "two.toml", "-o", "runs/two", "--set", 'stages=["finetune", "task-distill", "report"]')
    row = next(row for row in read("runs/two/report")["table"] if row["kind"] == "teacher-int8")
    assert reason in row["note"] and row["score"] is row["latency_ms"] is None
    assert reason in " ".join(done.err.split())
    assert reason.strip("[]") in Path("runs/two/report/report.md").read_text(encoding="utf-8")


# --- compare, bench, card ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_compare_with_and_without_baselines() -> None:
    words = ("compare", "two.toml", "-o", "runs/compared", "--json")
    section = works(*words).json["tasks"]["sst2"]
    assert [row["row"] for row in section["rows"]] == ["task-distill", "labels"]
    names = ["task-distill, int8", "labels, int8", "teacher, int8", "linear, TF-IDF", "commonest class"]
    assert [row["row"] for row in section["alternatives"]] == names
    assert section["verdict"] in [row["verdict"] for row in section["rows"]]
    assert all(row["above_floor"] is not None for row in section["rows"])
    table = Path("runs/compared/comparison/table.md").read_text(encoding="utf-8")
    assert section["verdict"]["sentence"] in table and all(f"| {name} | " in table for name in [*names, "teacher"])
    section = works(*words, "--no-baselines").json["tasks"]["sst2"]
    assert section["alternatives"] == [] and section["rows"][0]["verdict"]["worth_it"] in (None, False)
    assert "commonest class" in Path("runs/compared/comparison/table.md").read_text(encoding="utf-8")


def test_bench_finds_the_teacher_and_scores_everything() -> None:
    words = ("bench", "runs/two/task-distill", "--rows", 8, "--rounds", 2, "--passes", 1)
    result = works(*words, "--json").json
    names = [*FIRST[:2], "teacher", "teacher, int8", "runs/two/task-distill", "runs/two/task-distill, int8"]
    assert [row["model"] for row in result["rows"]] == names
    check_shares(result["rows"])
    assert result["verdict"]["student"] == "runs/two/task-distill"
    assert set(result["models"]) == set(names) - {"commonest class"}
    alone = works(*words, "--no-baselines", "--json").json
    assert list(alone["models"]) == ["runs/two/task-distill"] and "rows" not in alone
    shown = works(*words).out
    assert "linear, TF-IDF" in shown and "above_floor" in shown


@pytest.mark.slow
def test_bench_of_a_model_without_a_manifest_and_of_a_teacher_beside_its_student() -> None:
    quick = ("--rows", 8, "--rounds", 1, "--passes", 1, "--json")
    named = works("bench", "runs/two/finetune", "runs/two/task-distill", *quick).json
    kinds = {row["model"]: row["kind"] for row in named["rows"]}
    assert kinds["runs/two/finetune"] == "teacher" and list(kinds.values()).count("teacher") == 1
    tiny_bert("foreign", num_labels=2)
    foreign = works("bench", "foreign", "--task", "sst2", "--data", "glue", *quick).json
    assert [row["model"] for row in foreign["rows"]] == [*FIRST[:2], "foreign", "foreign, int8"]
    assert foreign["rows"][2]["retention"] is None


@pytest.mark.slow
def test_the_card_says_what_the_model_is_worth() -> None:
    works("export", "runs/two/task-distill", "--teacher", "runs/two/finetune", "-o", "shipped")
    metrics = read("shipped")
    assert [row["model"] for row in metrics["alternatives"]] == [*FIRST, "this model", "this model, int8"]
    check_shares(metrics["alternatives"])
    card = Path("shipped/README.md").read_text(encoding="utf-8")
    part = card[card.index("## What it is worth") : card.index("## Files")]
    assert metrics["verdict"]["sentence"] in part and "| linear, TF-IDF |" in part
    student = read("runs/two/task-distill")
    teacher = student["teacher"]["accuracy"]
    assert metrics["verdict"]["retention"] == pytest.approx(student["mean"]["accuracy"] / teacher), "the mean over seeds"


# --- own data ---------------------------------------------------------------------------------------------------------------


def write_table(name: str, rows: list[tuple[object, ...]], columns: tuple[str, ...] = ("text", "label")) -> str:
    with Path(name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return name


CHINESE = ["这部电影非常好看我很喜欢", "太难看了浪费时间不值得看"]
OWN = {
    "classes": [(text, label) for text, label in (("good film", "yes"), ("bad film", "no"), ("fine", "so")) for _ in range(12)],
    "scores": [(f"worth {number % 7} stars", number % 7 / 2) for number in range(40)],
    "chinese": [(CHINESE[number % 2] + str(number), "ab"[number % 2]) for number in range(40)],
    "hardly a word": [("?!"[number % 2], "ab"[number % 2]) for number in range(40)],
}


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.slow
def test_own_data_of_every_kind(kind: str) -> None:
    name = kind.replace(" ", "-")
    train, dev = write_table(f"{name}.csv", OWN[kind]), write_table(f"{name}-dev.csv", OWN[kind][::3])
    about = ("--train-file", train, "--dev-file", dev, "--text", "text", "--label", "label")
    quick = ("--set", "finetune.steps=4", "--set", "finetune.batch_size=8", "-q")
    works("finetune", "--model", "small", *about, *quick, "-o", f"{name}-model")
    result = works("bench", f"{name}-model", "--rows", 8, "--rounds", 1, "--passes", 1, "--json").json
    rows = {row["kind"]: row for row in result["rows"]}
    assert rows["majority"]["model"] == ("mean score" if kind == "scores" else "commonest class")
    assert rows["linear"]["score"] >= rows["majority"]["score"] and rows["linear"]["latency_ms"] > 0
    if kind != "scores":
        assert rows["linear"]["score"] == 1.0, "every text has its class written in it"


@pytest.mark.slow
def test_training_rows_that_are_gone_are_said_to_be() -> None:
    """Scored on a dev file alone: there is nothing to fit a linear model on, and nothing fails."""
    train, dev = write_table("gone.csv", OWN["classes"]), write_table("gone-dev.csv", OWN["classes"][::2])
    about = ("--train-file", train, "--dev-file", dev, "--text", "text", "--label", "label")
    works("finetune", "--model", "small", *about, "--set", "finetune.steps=2", "-q", "-o", "gone-model")
    words = ("bench", "gone-model", "--dev-file", dev, "--rows", 8, "--rounds", 1, "--passes", 1, "--json")
    row = next(row for row in works(*words).json["rows"] if row["kind"] == "linear")
    assert row["score"] is None and "no training rows" in row["note"]


def test_wrong_options_are_refused() -> None:
    assert mbert("bench", "runs/two/finetune", "--baselines=maybe").code == 2
    assert mbert("compare", "two.toml", "--no-baseline", "--dry-run").code == 2
    assert "--no-baselines" in works("compare", "--help").out and "--no-baselines" in works("bench", "--help").out
