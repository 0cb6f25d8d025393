"""The files and the zip that GLUE's test server takes."""

import hashlib
import zipfile
from pathlib import Path

import pytest
from recording import RecordingReporter

from microbert_cli.errors import MbertError
from microbert_cli.evaluation.scoring import hidden_labels
from microbert_cli.evaluation.submission import TASKS, assemble_zip, file_name, format_predictions, write_submission
from microbert_cli.recipe.task import Task, load_task

OFFICIAL = {
    "CoLA.tsv": 1063,
    "SST-2.tsv": 1821,
    "MRPC.tsv": 1725,
    "STS-B.tsv": 1379,
    "QQP.tsv": 390965,
    "MNLI-m.tsv": 9796,
    "MNLI-mm.tsv": 9847,
    "QNLI.tsv": 5463,
    "RTE.tsv": 3000,
    "WNLI.tsv": 146,
    "AX.tsv": 1104,
}


def task(name: str) -> Task:
    return load_task(TASKS / f"{name}.toml")


def cells(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


def test_the_zip_has_all_files_with_the_official_number_of_rows(tmp_path: Path) -> None:
    rte = tmp_path / "RTE.tsv"
    write_submission(task("rte"), "test", [str(i) for i in range(3000)], [i % 2 for i in range(3000)], rte)
    reporter = RecordingReporter()
    missing = assemble_zip({"RTE.tsv": rte}, tmp_path / "glue.zip", reporter=reporter)
    assert missing == [name for name in OFFICIAL if name != "RTE.tsv"]
    assert len(reporter.warnings) == 10 and all("missing" in warning for warning in reporter.warnings)
    with zipfile.ZipFile(tmp_path / "glue.zip") as bundle:
        files = {name: cells(bundle.read(name).decode()) for name in bundle.namelist()}
    assert list(files) == list(OFFICIAL)
    for name, rows in files.items():
        assert rows[0] == ["index", "prediction"]
        assert [row[0] for row in rows[1:]] == [str(i) for i in range(OFFICIAL[name])]
    assert files["RTE.tsv"][1:4] == [["0", "entailment"], ["1", "not_entailment"], ["2", "entailment"]]
    assert {row[1] for row in files["STS-B.tsv"][1:]} == {"2.500"}
    assert {row[1] for row in files["WNLI.tsv"][1:]} == {"0"}
    for name in ("MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv", "QNLI.tsv"):
        assert {row[1] for row in files[name][1:]} == {"entailment"}


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    wnli = tmp_path / "w.tsv"
    write_submission(task("wnli"), "test", [str(i) for i in range(146)], [1] * 146, wnli)
    for out in ("a.zip", "b.zip"):
        assemble_zip({"WNLI.tsv": wnli}, tmp_path / out, tasks=[task("wnli"), task("rte")])
        wnli.touch()
    digests = {hashlib.sha256((tmp_path / out).read_bytes()).hexdigest() for out in ("a.zip", "b.zip")}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("name", "predictions", "written"),
    [
        ("mnli", [0, 1, 2], ["entailment", "neutral", "contradiction"]),
        ("ax", [2, 1, 0], ["contradiction", "neutral", "entailment"]),
        ("qnli", [1, 0], ["not_entailment", "entailment"]),
        ("rte", [1, 0], ["not_entailment", "entailment"]),
        ("wnli", [1, 0], ["1", "0"]),
        ("cola", [1, 0], ["1", "0"]),
        ("stsb", [-0.2, 5.7, 3.14159, 5.0], ["0.000", "5.000", "3.142", "5.000"]),
    ],
)
def test_label_forms(name: str, predictions: list[float], written: list[str]) -> None:
    assert format_predictions(task(name), predictions) == written


def test_what_cannot_be_a_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="no class"):
        format_predictions(task("rte"), [2])
    with pytest.raises(ValueError, match="no score"):
        format_predictions(task("stsb"), [float("nan")])


def test_mnli_has_a_file_for_each_half() -> None:
    mnli = task("mnli")
    assert (file_name(mnli, "test"), file_name(mnli, "test_mismatched")) == ("MNLI-m.tsv", "MNLI-mm.tsv")
    with pytest.raises(MbertError) as caught:
        file_name(mnli, "dev")
    assert caught.value.code == "M257"


def test_a_file_of_another_length_is_spoken_of(tmp_path: Path) -> None:
    reporter = RecordingReporter()
    write_submission(task("wnli"), "test", ["0", "1"], [0, 1], tmp_path / "WNLI.tsv", reporter=reporter)
    assert "2 rows" in reporter.warnings[0] and "146" in reporter.warnings[0]
    reporter = RecordingReporter()
    assemble_zip({"WNLI.tsv": tmp_path / "WNLI.tsv"}, tmp_path / "z.zip", tasks=[task("wnli")], reporter=reporter)
    assert "146" in reporter.warnings[0]


@pytest.mark.parametrize(
    ("files", "code"),
    [({"WNLI.tsv": "there is none"}, "M258"), ({"Wnli.tsv": "x"}, "M259"), ({"WNLI.tsv": "bad"}, "M362")],
)
def test_bad_files_leave_no_zip(tmp_path: Path, files: dict[str, str], code: str) -> None:
    (tmp_path / "bad").write_text("0\t1\n")
    with pytest.raises(MbertError) as caught:
        paths = {name: tmp_path / path for name, path in files.items()}
        assemble_zip(paths, tmp_path / "z.zip", tasks=[task("wnli")])
    assert caught.value.code == code
    assert not (tmp_path / "z.zip").exists()


def test_own_tasks_are_not_submitted(tmp_path: Path) -> None:
    custom = load_task({"name": "own", "text": ["t"], "label": {"names": ["a", "b"]}, "files": {"train": "x.csv"}})
    with pytest.raises(MbertError) as caught:
        write_submission(custom, "test", [], [], tmp_path / "x.tsv")
    assert caught.value.code == "M130"


def test_hidden_labels_advise_a_submission_where_there_is_one() -> None:
    assert "--submission" in hidden_labels(task("rte"), "test").fix
    assert "--submission" not in hidden_labels(task("python-topics"), "test").fix
