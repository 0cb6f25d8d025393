"""Inputs that mbert once handled wrongly, each with what is right: tables as people save them, label names, foreign models.

Tables are in `inputs/`, a folder a case; `models.py` builds the tiny models.
"""

import json
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mbert_command import Done, mbert, refused, works

HERE = Path(__file__).resolve().parent
STEPS = ("--set", "finetune.steps=2", "--set", "data.max_length=32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the tables and the models."""
    root = tmp_path_factory.mktemp("cases")
    shutil.copytree(HERE / "inputs", root / "inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MBERT_CACHE", str(root / "cache"))
        patch.setattr(sys, "argv", ["models.py", str(root / "models")])
        runpy.run_path(str(HERE / "models.py"))
        yield root


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in that folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MBERT_CACHE", str(folder / "cache"))


def table(case: str, name: str) -> str:
    """The path of a case's file, as a user types it."""
    return str(next(Path("inputs").glob(f"{case}-*")) / name)


def finetune(out: str, file: str, *more: str, model: str = "models/bert", columns: tuple[str, str] = ("text", "label")) -> Done:
    """Two steps of training on a table, which must end well."""
    text, label = columns
    about = ("--train-file", file, "--text", text, "--label", label)
    return works("finetune", "--model", model, *about, *STEPS, "-o", f"out-{out}", *more)


def facts(out: str) -> dict[str, Any]:
    """What the manifest says of the data."""
    return json.loads((Path(f"out-{out}") / "manifest.json").read_text(encoding="utf-8"))["data"]


def rows(out: str) -> int:
    """Rows that were read, in train and dev together."""
    return sum(split["rows"] for split in facts(out).values())


# --- tables -----------------------------------------------------------------------------------------------------------------


def test_rare_classes_keep_a_row_in_train() -> None:
    done = finetune("01", table("01", "tickets.csv"))
    labels = json.loads(Path("out-01/config.json").read_text())["id2label"]
    assert len(labels) == 12
    assert "class" in done.err and "train" in done.err


def test_columns_without_a_name_are_passed_over() -> None:
    finetune("02", table("02", "spam.csv"), columns=("v2", "v1"))
    assert rows("02") > 10


def test_a_column_that_is_there_twice_and_not_named_is_passed_over() -> None:
    finetune("02b", table("02b", "a.csv"))


def test_a_column_that_is_there_twice_and_named_is_refused() -> None:
    about = ("--train-file", table("02b", "a.csv"), "--text", "note", "--label", "label")
    refused(5, "M356", "finetune", "--model", "models/bert", *about, *STEPS, "-o", "out-twice")


def test_windows_1252_is_named_and_its_advice_works() -> None:
    about = ("--train-file", table("03", "cp.csv"), "--text", "text", "--label", "label")
    error = refused(5, "M353", "finetune", "--model", "models/bert", *about, *STEPS, "-o", "out-03")
    assert "Windows-1252" in error["what"] and "data.encoding=cp1252" in error["fix"]
    finetune("03", table("03", "cp.csv"), "--set", "data.encoding=cp1252")


def test_utf_16_is_read_and_said() -> None:
    done = finetune("04", table("04", "u.tsv"))
    assert "UTF-16" in done.err


def test_quotes_in_a_tsv_are_characters() -> None:
    finetune("05b", table("05b", "sms.tsv"))


def test_semicolons_are_noticed_and_said() -> None:
    done = finetune("06", table("06", "s.csv"))
    assert '";"' in done.err


@pytest.mark.parametrize("name", ["lines.json", "array.json", "DATA.CSV", "df.parquet.gzip", "data.csv.zip", "ds"])
def test_files_as_people_name_them(name: str) -> None:
    finetune(f"07-{name}", table("07", name))
    assert rows(f"07-{name}") == rows("07-lines.json") if Path("out-07-lines.json").exists() else True


def test_predict_reads_the_header_of_a_table_with_an_upper_case_suffix() -> None:
    finetune("07-predict", table("07", "DATA.CSV"))
    done = works("predict", "out-07-predict", "--file", table("07", "DATA.CSV"))
    assert len(done.out.splitlines()) == rows("07-predict")


@pytest.mark.parametrize(("case", "label"), [("08", "labels"), ("08b", "label")])
def test_labels_that_are_lists_or_objects_are_refused(case: str, label: str) -> None:
    about = ("--train-file", table(case, "m.jsonl"), "--text", "text", "--label", label)
    error = refused(5, "M378", "finetune", "--model", "models/bert", *about, *STEPS, "-o", f"out-{case}")
    assert "line 1" in error["where"]


# --- label names ------------------------------------------------------------------------------------------------------------


def rename_outputs(source: str, target: str, names: list[str]) -> None:
    """A copy of a model whose outputs are called otherwise, as a foreign checkpoint; the manifest stays behind."""
    shutil.copytree(source, target)
    for name in ("manifest.json", "metrics.json", "recipe.resolved.toml", "log.jsonl"):
        (Path(target) / name).unlink(missing_ok=True)
    path = Path(target) / "config.json"
    config = json.loads(path.read_text())
    config |= {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}
    path.write_text(json.dumps(config))


LEARNT = ("--set", "finetune.epochs=8", "--set", "finetune.learning_rate=2e-3", "--set", "data.max_length=16")


def accuracy(model: str, train: str, dev: str, *more: str) -> float:
    """The dev accuracy that `mbert evaluate` prints."""
    about = ("--train-file", train, "--dev-file", dev, "--text", "text", "--label", "label", "--set", "data.max_length=16")
    out = f"out-evaluate-{len(list(Path().glob('out-evaluate-*')))}"
    return works("evaluate", model, *about, "-o", out, "--json", *more).json["dev"]["accuracy"]


@pytest.fixture(scope="module")
def twelve(folder: Path) -> str:
    """A classifier of twelve classes that is right on every dev row, and calls its outputs LABEL_k."""
    about = ("--train-file", table("10", "ti.csv"), "--dev-file", table("10", "di.csv"), "--text", "text", "--label", "label")
    kind = ("--set", "data.kind=classes")
    works("finetune", "--model", "models/bert-12", *about, *LEARNT, *kind, "-o", "out-twelve")
    rename_outputs("out-twelve", "twelve", [f"LABEL_{i}" for i in range(12)])
    return "twelve"


@pytest.mark.parametrize(("train", "dev"), [("ti.csv", "di.csv"), ("t.csv", "d.csv"), ("ts.csv", "ds.csv")])
def test_numbered_labels_are_matched_by_number(twelve: str, train: str, dev: str) -> None:
    files = (table("10", train), table("10", dev))
    more = ("--set", "data.kind=classes") if train == "ti.csv" else ()
    # How good the classifier is depends a little on the machine; a wrong order gives 0.17 at most.
    expected = json.loads(Path("out-twelve/metrics.json").read_text())["dev"]["accuracy"]
    assert accuracy(twelve, *files, *more) == pytest.approx(expected) and expected > 0.7


def test_labels_that_differ_by_case_alone_are_matched_exactly() -> None:
    about = ("--train-file", table("09", "t.csv"), "--dev-file", table("09", "d.csv"), "--text", "text", "--label", "label")
    works("finetune", "--model", "models/bert-12", *about, *LEARNT, "-o", "out-09")
    score = accuracy("out-09", table("09", "t.csv"), table("09", "d.csv"))
    config = json.loads(Path("out-09/config.json").read_text())
    names = [config["id2label"][str(i)] for i in range(2)]
    from safetensors.torch import load_file, save_file

    rename_outputs("out-09", "swapped", names[::-1])
    weights = load_file("swapped/model.safetensors")
    weights |= {name: weights[name].flip(0).contiguous() for name in ("classifier.weight", "classifier.bias")}
    save_file(weights, "swapped/model.safetensors", metadata={"format": "pt"})
    assert accuracy("swapped", table("09", "t.csv"), table("09", "d.csv")) == score > 0.6


STARS = ["1 star", "2 stars", "3 stars", "4 stars", "5 stars"]
ORDER = ("--set", 'teacher.label_order=["1", "2", "3", "4", "5"]')


@pytest.mark.slow
def test_the_order_of_a_teachers_outputs_is_honoured_by_evaluate_and_export() -> None:
    files = ("--train-file", table("21", "t.csv"), "--dev-file", table("21", "d.csv"), "--text", "text", "--label", "label")
    kind = ("--set", "data.kind=classes")
    works("finetune", "--model", "models/bert-12", *files, *kind, *LEARNT, "-o", "out-21")
    rename_outputs("out-21", "stars", STARS)
    works("evaluate", "out-21", "--teacher", "stars", *files, *kind, *ORDER, "-o", "out-21-evaluate")
    works("export", "out-21", "--teacher", "stars", *files, *kind, *ORDER, "-o", "out-21-export")


# --- scores -----------------------------------------------------------------------------------------------------------------


SCORES = ("--set", "data.kind=score", "--set", "data.max_length=24", "--text", "text", "--label", "label")
LINES = {"unit": (1, 0), "hundred": (100, 0), "thousand": (1000, 0), "kelvin": (10, 273)}


def scores_table(name: str) -> str:
    """A table of the same texts whose scores are a line of those of the first."""
    if name != "kelvin":
        return table("24b", f"{name}.csv")
    lines = Path(table("24b", "unit.csv")).read_text().splitlines()
    rows = [line.rsplit(",", 1) for line in lines[1:]]
    slope, shift = LINES[name]
    Path("kelvin.csv").write_text("\n".join([lines[0], *(f"{text},{float(score) * slope + shift}" for text, score in rows)]))
    return "kelvin.csv"


@pytest.fixture(scope="module")
def scored(folder: Path) -> dict[str, str]:
    """Models fine-tuned on the same scores in different units."""
    train = ("--set", "finetune.epochs=8", "--set", "finetune.learning_rate=3e-4")
    for name in LINES:
        about = ("--train-file", scores_table(name), *SCORES, *train)
        works("finetune", "--model", "models/bert-12", *about, "-o", f"out-24b-{name}")
    return {name: f"out-24b-{name}" for name in LINES}


def pearson(out: str) -> float:
    """The dev Pearson of a stage's output."""
    return json.loads((Path(out) / "metrics.json").read_text())["dev"]["pearson"]


def predicted(out: str) -> np.ndarray:
    """The scores of a few texts."""
    texts = ("the garden was messy and the soup seemed rude 8377", "the ticket was tidy and the parcel seemed bright 5867")
    return np.array([works("predict", out, text, "--json").json["score"] for text in texts])


@pytest.mark.slow
def test_the_scale_of_a_score_does_not_matter(scored: dict[str, str]) -> None:
    unit = predicted(scored["unit"])
    assert unit.std() > 0.001 and 0.2 < unit.mean() < 0.8
    for name, (slope, shift) in LINES.items():
        assert pearson(scored[name]) == pytest.approx(pearson(scored["unit"]), abs=0.01), name
        assert (predicted(scored[name]) - shift) / slope == pytest.approx(unit, abs=0.002), "plain units"


@pytest.mark.slow
def test_the_scale_of_a_score_does_not_matter_to_a_student(scored: dict[str, str]) -> None:
    """Two seeds of a student of each, one of a teacher in other units, and an export in plain units."""
    train = (
        "--set",
        "phases.distillation.epochs=6",
        "--set",
        "phases.distillation.learning_rate=1e-3",
        "--set",
        "seeds=[1, 2]",
    )
    for name, teacher in (*zip(LINES, LINES, strict=True), ("other", "thousand")):
        data = scores_table("unit" if name == "other" else name)
        about = ("--train-file", data, *SCORES, "--set", "method=kd", "--teacher", scored[teacher], "--student", "bert-1x32")
        done = works("task-distill", *about, *train, "-o", f"out-24b-student-{name}")
        assert ("other units" in done.err) == (name == "other")
    unit = predicted("out-24b-student-unit")
    assert unit.std() > 0.001 and 0.2 < unit.mean() < 0.8
    for name, (slope, shift) in LINES.items():
        out = f"out-24b-student-{name}"
        assert pearson(out) == pytest.approx(pearson("out-24b-student-unit"), abs=0.01), name
        assert (predicted(out) - shift) / slope == pytest.approx(unit, abs=0.002), name
        assert (predicted(f"{out}/seed-1") - shift) / slope == pytest.approx(
            predicted("out-24b-student-unit/seed-1"), abs=0.002
        )
    assert pearson("out-24b-student-other") > 0.8 and 0.2 < predicted("out-24b-student-other").mean() < 0.8
    about = ("--train-file", scores_table("thousand"), *SCORES)
    works("export", "out-24b-student-thousand", *about, "-o", "out-24b-export")
    assert predicted("out-24b-export") == pytest.approx(predicted("out-24b-student-thousand"), rel=0.05, abs=20)


# --- models -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "model"), [("13", "distilbert-bert-tokenizer"), ("14", "e5-like")])
@pytest.mark.slow
def test_an_exported_graph_takes_what_its_tokenizer_gives(case: str, model: str) -> None:
    import onnxruntime
    from transformers import AutoTokenizer

    about = ("--train-file", table(case, "p.csv"), "--text", "a", "--text", "b", "--label", "label")
    works("finetune", "--model", f"models/{model}", *about, *STEPS, "-o", f"out-{case}")
    works("export", f"out-{case}", *about, "-o", f"out-{case}-export")
    tokenizer = AutoTokenizer.from_pretrained(f"out-{case}-export")
    graphs = sorted(Path(f"out-{case}-export").rglob("*.onnx"))
    assert len(graphs) == 4
    for graph in graphs:
        session = onnxruntime.InferenceSession(str(graph))
        for texts in (["the soup was warm"], ["the soup", "the soup was warm and lovely", "a"]):
            logits = session.run(None, dict(tokenizer(texts, padding=True, return_tensors="np")))[0]
            assert logits.shape == (len(texts), 2) and np.isfinite(logits).all()


def test_a_roberta_of_130_positions_answers() -> None:
    assert works("predict", "models/roberta-130", "the soup was lovely").out.split()[0] in ("NEG", "POS")


@pytest.mark.slow
def test_an_albert_is_exported_and_its_operations_are_counted_or_not_told() -> None:
    finetune("albert", table("06", "s.csv"), model="models/albert")
    about = ("--train-file", table("06", "s.csv"), "--text", "text", "--label", "label")
    works("export", "out-albert", *about, "-o", "out-albert-export")
    report = works("bench", "out-albert", *about, "--json").json
    flops = report["models"]["out-albert"]["flops"]
    assert flops is None or flops > 1e4


def test_a_teacher_of_several_labels_a_row_is_refused() -> None:
    about = ("--train-file", table("21", "t.csv"), "--text", "text", "--label", "label")
    done = mbert("evaluate", "models/multi-label", *about, "-o", "out-multi", "--json")
    assert done.code == 5 and done.json["error"]["code"] == "M379"
    more = ("--teacher", "models/multi-label", "--student", "bert-1x16", *about)
    for words in (("task-distill", *more), ("task-distill", *more, "--dry-run")):
        refused(5, "M379", *words)


def test_a_teacher_of_several_labels_a_row_teaches_such_a_task() -> None:
    answer = works("predict", "models/multi-label", "fine", "--json").json
    assert set(answer["probabilities"]) == {"toxic", "insult", "threat"} and len(set(answer["probabilities"].values())) == 3
    assert answer["labels"] == [name for name, share in answer["probabilities"].items() if share > 0.5]
    rows = [{"text": f"row {i} is fine", "label": [["toxic"], ["insult", "threat"], []][i % 3]} for i in range(30)]
    Path("several.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    about = ("--train-file", "several.jsonl", "--text", "text", "--label", "label", "--set", "data.kind=labels")
    weak = ("--set", "teacher.allow_weak=true", "--set", "method=kd", "--set", "phases.distillation.steps=2")
    works("task-distill", "--teacher", "models/multi-label", "--student", "bert-1x16", *about, *weak, "-o", "out-several")
    assert set(json.loads(Path("out-several/config.json").read_text())["label_thresholds"]) == {"toxic", "insult", "threat"}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("lora", ["adapter", "merge_and_unload"]),
        ("trainer-run", ["checkpoint-100"]),
        ("no-tokenizer", ["no tokenizer"]),
        ("old-sentence", ["sentence-transformers", "models/old-sentence/0_Transformer"]),
    ],
)
def test_folders_that_are_no_whole_model_are_called_what_they_are(model: str, words: list[str]) -> None:
    done = mbert("predict", f"models/{model}", "the soup was lovely", "--json")
    error = done.json["error"]
    assert done.code in (4, 5)
    assert all(word in json.dumps(error) for word in words)
