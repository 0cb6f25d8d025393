"""Tasks as data: what the catalogue's say, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from microbert_cli.errors import MbertError
from microbert_cli.recipe.task import load_task

TASKS = Path(__file__).resolve().parents[3] / "microbert_cli" / "catalog" / "tasks"
GLUE = ["ax", "cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"]
OWN: dict[str, Any] = {
    "name": "own",
    "text": ["review"],
    "label": {"column": "stars", "names": ["bad", "good"]},
    "files": {"train": "a.csv"},
}


def refused(values: dict[str, Any]) -> MbertError:
    with pytest.raises(MbertError) as caught:
        load_task(values)
    assert caught.value.code == "M030" and caught.value.exit_code == 3
    return caught.value


@pytest.mark.parametrize("name", GLUE)
def test_every_task_of_glue_is_whole(name: str) -> None:
    task = load_task(TASKS / f"{name}.toml")
    assert task.name == name and task.kind.is_complete
    assert task.hub and task.hub.id == "nyu-mll/glue" and task.hub.config == name
    assert task.folder and set(task.folder.splits) == set(task.hub.splits) == set(task.splits)
    assert not task.folder.quoting
    assert task.submission and set(task.submission.files) == set(task.submission.rows)
    assert set(task.submission.files) == {split for split in task.splits if split.startswith("test")}


def test_labels_have_the_order_of_the_hub() -> None:
    names = {name: load_task(TASKS / f"{name}.toml").label.names for name in GLUE}
    assert names["mnli"] == names["ax"] == ("entailment", "neutral", "contradiction")
    assert names["qnli"] == names["rte"] == ("entailment", "not_entailment")
    assert names["wnli"] == ("not_entailment", "entailment")
    assert names["mrpc"] == ("not_equivalent", "equivalent")
    assert names["stsb"] is None and load_task(TASKS / "stsb.toml").kind.num_outputs == 1


def test_the_halves_of_mnli_are_apart() -> None:
    task = load_task(TASKS / "mnli.toml")
    assert task.splits == ("train", "dev", "dev_mismatched", "test", "test_mismatched")
    assert task.hub and task.hub.splits["dev"] == "validation_matched"
    assert task.hub.splits["dev_mismatched"] == "validation_mismatched"


def test_a_folder_may_be_written_on_one_line() -> None:
    folder = {"name": "RTE", "train": "train.tsv", "dev": ["dev.tsv", "validation.tsv"], "quoting": False}
    task = load_task({**OWN, "files": None, "folder": folder})
    assert task.folder and task.folder.splits["train"].files == ("train.tsv",)
    assert task.folder.splits["dev"].files == ("dev.tsv", "validation.tsv")


def test_own_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'text = ["review"]\nlabel = { column = "stars" }\nfiles = { train = "rows/a.csv.gz" }\n'
    )
    task = load_task(tmp_path / "mine.toml")
    assert task.name == "mine" and not task.kind.is_complete and task.metrics == ()
    assert task.files and task.files.train == tmp_path / "rows/a.csv.gz"


def test_metrics_follow_from_the_label() -> None:
    assert load_task(OWN).metrics == ("accuracy", "macro_f1", "matthews")
    score = load_task({**OWN, "label": {"column": "stars", "kind": "score"}})
    assert score.metrics == ("pearson", "spearman") and score.primary == "pearson" and score.kind.name == "score"


def test_a_misspelt_key_names_its_neighbour() -> None:
    error = refused({**OWN, "label": {"column": "stars", "nmaes": ["a", "b"]}, "max_lenght": 12})
    assert 'Did you mean "names"?' in str(error) and 'Did you mean "max_length"?' in str(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": []}, "at least 1"),
        ({"text": ["a", "b", "c"]}, "at most 2"),
        ({"text": ["a", "a"]}, "different columns"),
        ({"text": ["stars"]}, "different columns"),
        ({"files": None}, "source of rows"),
        ({"files": {"train": "a.xlsx"}}, ".csv, .tsv"),
        ({"files": None, "folder": {"name": "F", "train": "t.tsv"}, "label": {"column": "y"}}, "needs names"),
        ({"label": {"names": ["only"]}}, "two or more"),
        ({"label": {"names": ["a", "a"]}}, "different"),
        ({"label": {"names": ["a", "b"], "kind": "score"}}, "no names"),
        ({"label": {"kind": "score", "range": [5, 0]}}, "lower end first"),
        ({"metrics": ["acuracy"]}, 'Did you mean "accuracy"?'),
        ({"metrics": ["pearson"]}, "needs a score"),
        ({"label": {"kind": "score"}, "metrics": ["f1"]}, "needs classes"),
        ({"label": {"names": ["a", "b", "c"]}, "metrics": ["f1"]}, "macro_f1"),
        ({"metrics": ["accuracy"], "primary": "f1"}, "one of the metrics"),
        ({"name": "../x"}, "pattern"),
        ({"max_length": 0}, "greater than"),
    ],
)
def test_what_makes_no_task_is_refused(change: dict[str, Any], message: str) -> None:
    assert message in str(refused({**OWN, **change}))


def test_all_errors_are_said_at_once() -> None:
    assert str(refused({"name": "x", "txt": ["a"]})).count("[M030]") == 3


def test_a_task_never_changes() -> None:
    task = load_task(OWN)
    with pytest.raises(ValueError, match="frozen"):
        task.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(("content", "code"), [(None, "M201"), (b"a = [", "M001"), (b'a = "\xff"', "M001")])
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | None, code: str) -> None:
    path = tmp_path / "t.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MbertError) as caught:
        load_task(path)
    assert caught.value.code == code
