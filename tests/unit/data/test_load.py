"""Examples of tasks from every source: the same rows wherever they lie, and a plain word where they cannot be had."""

import csv
import gzip
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recording import RecordingReporter
from tiny_glue import TASKS as TINY
from tiny_glue import tiny_glue, tiny_glue_hub, tiny_rows

from microbert_cli.data.augmented_files import load_augmented, write_augmented
from microbert_cli.data.examples import Examples
from microbert_cli.data.held_out import held_out
from microbert_cli.data.load import BUILT_IN_TASKS, load_split, own_task
from microbert_cli.data.own_files import complete
from microbert_cli.errors import MbertError
from microbert_cli.recipe.task import Task, load_task

TASKS = Path(__file__).resolve().parents[3] / "microbert_cli" / "catalog" / "tasks"
TINY_SPLITS = {"dev": "dev_matched", "test": "test_matched"}


def builtin(name: str) -> Task:
    return load_task(TASKS / f"{name}.toml")


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_glue(tmp_path_factory.mktemp("glue"), rows=12)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MBERT_DATA", raising=False)


def refused(code: str, exit_code: int, call: Any, *args: Any, **options: Any) -> MbertError:
    with pytest.raises(MbertError) as caught:
        call(*args, **options)
    error = caught.value
    assert (error.code, error.exit_code) == (code, exit_code), error
    assert all((error.what, error.where, error.allowed, error.fix))
    return error


def expected(name: str, split: str) -> tuple[list[Any], list[Any] | None]:
    rows = tiny_rows(name, 12)
    key = TINY_SPLITS.get(split, split) if name == "mnli" else split
    texts = [texts for texts, _ in rows[key]]
    return texts, None if split.startswith("test") else [label for _, label in rows[key]]


# A folder in the official layouts


@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("inside", [False, True])
def test_official_layouts(glue: Path, name: str, inside: bool) -> None:
    task = builtin(name)
    folder = glue / TINY[name].folder if inside else glue
    for split in task.splits:
        rows = load_split(task, split, data_dir=folder)
        assert (rows.texts, rows.labels) == expected(name, split)
        assert rows.ids == [str(i) for i in range(len(rows))] or name == "mnli"
        assert rows.augmented is None and rows.source is None


def test_labels_by_id_and_by_name_are_the_same(tmp_path: Path) -> None:
    task = builtin("rte")
    for folder, labels in (("a", "entailment not_entailment"), ("b", "0 1")):
        (tmp_path / folder).mkdir()
        first, second = labels.split()
        text = f"index\tsentence1\tsentence2\tlabel\n7\ta\tb\t{first}\n9\tc\td\t{second}\n"
        (tmp_path / folder / "dev.tsv").write_text(text)
    a, b = (load_split(task, "dev", data_dir=tmp_path / folder) for folder in "ab")
    assert a.labels == b.labels == [0, 1] and a.ids == ["7", "9"] and a.fingerprint == b.fingerprint


def write_tsv(folder: Path, name: str, *lines: str) -> Path:
    (folder / name).write_bytes(("\n".join(lines) + "\n").encode())
    return folder


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("fine\t2", "M351", "2"),
        ("fine\tpositve", "M351", 'Did you mean "positive"?'),
        ("fine\t-1", "M351", "-1"),
        ("fine\t", "M351", '""'),
        ("\t1", "M352", "empty"),
        ("  \u3000\t1", "M352", "empty"),
        ("fine", "M350", "too few"),
    ],
)
def test_bad_rows_name_their_line(tmp_path: Path, line: str, code: str, message: str) -> None:
    write_tsv(tmp_path, "dev.tsv", "sentence\tlabel", "good\t1", line, "bad\t0")
    error = refused(code, 5, load_split, builtin("sst2"), "dev", data_dir=tmp_path)
    assert error.where.endswith("dev.tsv, line 3") and message in str(error)


def test_a_row_without_text_is_kept_where_the_official_files_have_some(tmp_path: Path) -> None:
    reporter = RecordingReporter()
    write_tsv(tmp_path, "dev.tsv", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "0\t1\t2\tWhy?\t\t0", "x\ty")
    rows = load_split(builtin("qqp"), "dev", data_dir=tmp_path, reporter=reporter)
    assert rows.texts == [("Why?", "")] and rows.labels == [0]
    assert any("1 empty" in warning for warning in reporter.warnings)
    assert any("1 rows with a wrong number" in warning for warning in reporter.warnings)


@pytest.mark.parametrize("score", ["5.1", "-0.5", "nan", "inf", "high"])
def test_scores_outside_the_range(tmp_path: Path, score: str) -> None:
    header = "index genre filename year old_index source1 source2 sentence1 sentence2 score".replace(" ", "\t")
    write_tsv(tmp_path, "dev.tsv", header, "0\tg\tf\t1\t1\tn\tn\ta\tb\t2.5", f"1\tg\tf\t1\t1\tn\tn\ta\tb\t{score}")
    error = refused("M351", 5, load_split, builtin("stsb"), "dev", data_dir=tmp_path)
    assert error.where.endswith("line 3") and score in error.what


def test_the_folder_of_another_task_is_no_match(glue: Path) -> None:
    refused("M253", 4, load_split, builtin("sst2"), "dev", data_dir=glue / "RTE")
    refused("M253", 4, load_split, builtin("cola"), "dev", data_dir=glue / "SST-2")


def test_hidden_labels_cannot_be_trained_on(tmp_path: Path) -> None:
    write_tsv(tmp_path, "train.tsv", "sentence\tlabel", "good\t-1", "bad\t-1")
    refused("M359", 5, load_split, builtin("sst2"), "train", data_dir=tmp_path)


# Where rows are looked for


def test_the_named_folder_comes_before_the_environment(glue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tiny_glue(glue.parent / "other", ["sst2"], rows=20)
    monkeypatch.setenv("MBERT_DATA", str(other))
    assert len(load_split(builtin("sst2"), "train")) == 20
    assert len(load_split(builtin("sst2"), "train", data_dir=glue)) == 12


def test_a_named_folder_without_the_rows_is_an_error(tmp_path: Path, glue: Path) -> None:
    error = refused("M250", 4, load_split, builtin("sst2"), "train", data_dir=tmp_path)
    assert str(tmp_path / "SST-2" / "train.tsv") in error.allowed and "Hub" not in error.allowed
    assert error.where == "--data"


def test_offline_all_places_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: pytest.fail("the Hub was asked"))
    monkeypatch.setenv("MBERT_DATA", str(tmp_path / "glue"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = refused("M250", 4, load_split, builtin("mnli"), "dev_mismatched")
    assert str(tmp_path / "glue/MNLI/dev_mismatched.tsv") in error.allowed
    assert str(tmp_path / "cache") in error.allowed and "HF_HUB_OFFLINE" in error.allowed
    assert "--data DIR" in error.fix and "MBERT_DATA" in error.fix


def hub_dataset(folder: Path, name: str, config: str, split: str) -> Any:
    import datasets

    files = tiny_glue_hub([config], rows=12)
    folder.mkdir(exist_ok=True)
    path = folder / f"{config}-{split}.parquet"
    path.write_bytes(files[f"{config}/{split}-00000-of-00001.parquet"])
    return datasets.Dataset.from_parquet(str(path), cache_dir=str(folder / "made"))


@pytest.mark.parametrize("name", sorted(TINY))
def test_the_hub_gives_the_same_rows(tmp_path: Path, glue: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[str, str, str]] = []

    def load_dataset(repository: str, config: str, *, split: str) -> Any:
        asked.append((repository, config, split))
        return hub_dataset(tmp_path, repository, config, split)

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("microbert_cli.data.load.ask_hub", lambda *args: None)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    task, reporter = builtin(name), RecordingReporter()
    for split in task.splits:
        rows = load_split(task, split, reporter=reporter)
        assert (rows.texts, rows.labels) == expected(name, split)
        assert rows.fingerprint == load_split(task, split, data_dir=glue).fingerprint
    assert len(reporter.notes) == len(task.splits) == len(asked) and all("Hub" in note for note in reporter.notes)
    assert asked[0][:2] == ("nyu-mll/glue", name)


def test_what_the_datasets_library_has_kept_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: pytest.fail("the Hub was asked"))
    folder = tmp_path / "cache/nyu-mll___glue/mnli/0.0.0/abc"
    folder.mkdir(parents=True)
    for split in ("validation_matched", "validation_mismatched"):
        rows = hub_dataset(tmp_path / "hub", "glue", "mnli", split)
        for part, name in enumerate((f"glue-{split}-00000-of-00002", f"glue-{split}-00001-of-00002")):
            half = rows.select(range(part * 3, part * 3 + 3)).data.table.combine_chunks()
            with pa.OSFile(str(folder / f"{name}.arrow"), "wb") as sink, pa.ipc.new_stream(sink, half.schema) as out:
                out.write_table(half)
    for split in ("dev", "dev_mismatched"):
        rows = load_split(builtin("mnli"), split)
        assert (rows.texts, rows.labels) == expected("mnli", split)


def test_labels_of_other_names_on_the_hub_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["positive", "bad"])}
    )
    rows = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [0, 1]}, features=features)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: rows)
    monkeypatch.setattr("microbert_cli.data.load.ask_hub", lambda *args: None)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert "bad" in refused("M351", 5, load_split, builtin("sst2"), "dev").what


def test_a_hub_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(*args: Any, **options: Any) -> Any:
        raise ConnectionError("no route\nmore")

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("microbert_cli.data.load.ask_hub", lambda *args: None)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    error = refused("M254", 4, load_split, builtin("sst2"), "dev")
    assert "no route" in error.what and "more" not in error.what


def test_a_split_that_the_task_has_not(glue: Path) -> None:
    error = refused("M251", 4, load_split, builtin("mnli"), "dev_mismatch", data_dir=glue)
    assert 'Did you mean "dev_mismatched"?' in error.allowed
    refused("M251", 4, load_split, builtin("ax"), "train", data_dir=glue)


def test_built_in_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task({"name": "own", "text": ["text"], "label": {"names": ["no", "yes"]}, "builtin": "python-docs"})
    monkeypatch.setitem(BUILT_IN_TASKS, "python-docs", lambda split: ([("a",), ("b",)], [0, "yes"]))
    assert load_split(task, "dev").labels == [0, 1]
    other = load_task({**task.model_dump(), "builtin": "pyton-docs"})
    assert "python-docs" in refused("M032", 3, load_split, other, "dev").allowed


# Examples


def test_rows_are_taken_and_limited_the_same_way_each_time() -> None:
    rows = Examples([(str(i),) for i in range(50)], list(range(50)), augmented=[i % 2 == 1 for i in range(50)])
    some = rows.take([3, 1])
    assert (some.texts, some.labels, some.ids, some.augmented) == ([("3",), ("1",)], [3, 1], ["3", "1"], [True, True])
    assert rows.limit(9).labels == rows.limit(9).labels == sorted(rows.limit(9).labels or [])
    assert rows.limit(9, seed=1).labels != rows.limit(9, seed=2).labels
    assert rows.limit(None) is rows and rows.limit(50) is rows


def test_the_fingerprint_is_of_texts_labels_and_flags() -> None:
    base = Examples([("a", "b"), ("c", "d")], [0, 1])
    same = Examples([("a", "b"), ("c", "d")], [0, 1], ids=["x", "y"])
    assert base.fingerprint == same.fingerprint and len(base.fingerprint) == 64
    others = [
        Examples([("a", "b"), ("c", "d")], [1, 0]),
        Examples([("a", "b"), ("c", "d")], None),
        Examples([("a", "b"), ("c", "d")], [0.0, 1.0]),
        Examples([("ab", ""), ("c", "d")], [0, 1]),
        Examples([("a", "b"), ("c", "d")], [0, 1], augmented=[False, True]),
    ]
    assert len({rows.fingerprint for rows in (base, *others)}) == 6


# A user's own files


def write_own(folder: Path, rows: list[dict[str, Any]], suffix: str, stem: str = "train") -> Path:
    path = folder / f"{stem}{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if suffix.startswith(".jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        sink = io.StringIO()
        writer = csv.DictWriter(sink, rows[0], delimiter="," if suffix.startswith(".csv") else "\t")
        writer.writeheader()
        writer.writerows(rows)
        text = sink.getvalue()
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith(".gz") else text.encode())
    return path


def reviews(count: int = 200) -> list[dict[str, Any]]:
    return [{"text": f'row "{i}", told\nin two lines', "stars": ("good", "bad", "Ünsure")[i % 3]} for i in range(count)]


FORMATS = [".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz", ".jsonl.gz"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_own_classes(tmp_path: Path, suffix: str) -> None:
    reporter = RecordingReporter()
    path = write_own(tmp_path, reviews(), suffix)
    task = own_task(path, text=("text",), label="stars", reporter=reporter)
    assert task.label.names == ("bad", "good", "Ünsure") and task.name == tmp_path.name
    assert task.metrics == ("accuracy", "macro_f1", "matthews") and task.primary == "accuracy"
    assert "bad, good, Ünsure" in reporter.notes[0]
    train, dev = load_split(task, "train", reporter=reporter), load_split(task, "dev")
    assert len(train) + len(dev) == 200 and len(dev) == 50
    assert not {*train.texts} & {*dev.texts}
    assert any("held out" in note for note in reporter.notes)
    assert train.texts[0][0].endswith("told\nin two lines")


@pytest.mark.parametrize("suffix", FORMATS)
def test_own_pairs_with_a_score(tmp_path: Path, suffix: str) -> None:
    rows = [{"a": f"one {i}", "b": f"two {i}", "score": i % 9 / 2} for i in range(60)]
    path = write_own(tmp_path, rows, suffix)
    task = own_task(path, dev_file=path, text=("a", "b"), label="score", name="pairs")
    assert task.kind.name == "score" and task.kind.num_outputs == 1 and task.metrics == ("pearson", "spearman")
    assert load_split(task, "train").labels == [row["score"] for row in rows]
    assert load_split(task, "dev").texts[7] == ("one 7", "two 7")


def inferred(tmp_path: Path, values: list[Any], suffix: str = ".jsonl", **options: Any) -> Task:
    rows = [{"text": f"row {i}", "label": value} for i, value in enumerate(values)]
    return own_task(write_own(tmp_path, rows, suffix), **options)


def test_what_a_label_is(tmp_path: Path) -> None:
    def names(values: list[Any], **options: Any) -> Any:
        return inferred(tmp_path, values, **options).label.names

    assert names([10, 9, 2, 10]) == ("2", "9", "10")
    assert names(["10", "9", "-2"]) == ("-2", "9", "10")
    assert names([1.0, 2.0, 1.0]) == ("1", "2")
    assert names([True, False]) == ("false", "true")
    assert names(["b", "a", "B"]) == ("B", "a", "b")
    assert names(["1", "2", "many"]) == ("1", "2", "many")
    assert names([0.5, 1, 2]) is None
    assert names(list(range(21))) is None
    assert names(list(range(20))) == tuple(str(i) for i in range(20))
    assert names(list(range(21)) * 2, kind="classes") == tuple(str(i) for i in range(21))
    assert names([1, 2, 3], kind="score") is None
    assert names([1, 2], labels=["2", "1"]) == ("2", "1")
    numbered = [f"LABEL_{i}" for i in range(12)]
    assert names(sorted(numbered)) == tuple(numbered), "by number, not as texts"
    assert names([f"{i} stars" for i in (10, 9, 1)] + ["none"]) == ("1 stars", "9 stars", "10 stars", "none")
    assert names(["1.5", "-2.5", "10.5"], kind="classes") == ("-2.5", "1.5", "10.5")


def test_whole_numbers_as_classes_are_names_not_ids(tmp_path: Path) -> None:
    task = inferred(tmp_path, [1, 2, 3, 1, 2, 3])
    path = write_own(tmp_path, [{"text": "x", "label": 1}, {"text": "y", "label": 3}], ".csv", "dev")
    other = own_task(task.files and task.files.train, path)
    assert load_split(other, "dev").labels == [0, 2]
    write_own(tmp_path, [{"text": "x", "label": 0}], ".csv", "dev")
    assert "1, 2, 3" in refused("M351", 5, load_split, other, "dev").allowed


def test_a_task_file_of_ones_own_is_completed(tmp_path: Path) -> None:
    write_own(tmp_path, reviews(), ".csv")
    (tmp_path / "mine.toml").write_text(
        'text = ["text"]\nlabel = { column = "stars" }\nfiles = { train = "train.csv" }\nmax_length = 32\n'
    )
    task = complete(load_task(tmp_path / "mine.toml"))
    assert task.label.names == ("bad", "good", "Ünsure") and task.max_length == 32 and task.name == "mine"
    assert task.primary == "accuracy" and complete(task) is task
    assert len(load_split(task, "train")) == 150


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = write_own(tmp_path, reviews(), ".csv")
    error = refused("M253", 4, own_task, path, text=("txt",), label="stars")
    assert 'Did you mean "text"?' in error.allowed and "stars" in error.allowed
    refused("M253", 4, own_task, path, label="star")
    task = own_task(path, label="stars", labels=["bad", "good", "Ünsure"], text=("txt",))
    refused("M253", 4, load_split, task, "train")


@pytest.mark.parametrize(
    ("values", "code", "message"),
    [
        (["a"] * 9, "M358", '"a"'),
        ([3] * 9, "M358", '"3"'),
        (["a", None, "b"], "M365", "no label"),
        ([f"text {i}" for i in range(99)], "M363", "99 different"),
    ],
)
def test_labels_that_make_no_task(tmp_path: Path, values: list[Any], code: str, message: str) -> None:
    assert message in str(refused(code, 5, inferred, tmp_path, values))


def test_a_class_that_no_row_has(tmp_path: Path) -> None:
    task = inferred(tmp_path, ["a", "b"] * 50, labels=["a", "b", "c"])
    error = refused("M358", 5, load_split, task, "train")
    assert "c" in error.what and error.where.endswith("train.jsonl")


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"text": "", "label": "a"}, "M352"),
        ({"text": " \n ", "label": "a"}, "M352"),
        ({"text": None, "label": "a"}, "M352"),
        ({"text": 5, "label": "a"}, "M352"),
        ({"text": "half \ud800", "label": "a"}, "M352"),
        ({"text": "x", "label": "c"}, "M351"),
        ({"text": "x", "label": None}, "M351"),
    ],
)
def test_bad_own_rows_name_their_line(tmp_path: Path, row: dict[str, Any], code: str) -> None:
    rows = [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}]
    dev = write_own(tmp_path, [*rows, row, *rows], ".jsonl", "dev")
    task = own_task(write_own(tmp_path, rows, ".jsonl"), dev)
    assert refused(code, 5, load_split, task, "dev").where.endswith("dev.jsonl, line 3")


def test_own_test_files_need_no_labels(tmp_path: Path) -> None:
    train = write_own(tmp_path, reviews(), ".csv")
    test = write_own(tmp_path, [{"text": "x"}, {"text": "y"}], ".csv", "test")
    task = own_task(train, test_file=test, label="stars")
    assert load_split(task, "test").labels is None
    refused("M253", 4, load_split, own_task(train, test, label="stars"), "dev")
    refused("M256", 4, load_split, own_task(train, label="stars"), "test")
    refused("M256", 4, load_split, own_task(dev_file=train, label="stars"), "train")
    assert len(load_split(own_task(dev_file=train, label="stars"), "dev")) == 200


def test_files_that_are_not_there_and_formats_that_are_not_read(tmp_path: Path) -> None:
    refused("M252", 4, own_task, tmp_path / "none.csv")
    refused("M030", 3, own_task, tmp_path / "none.xlsx")
    refused("M256", 4, own_task)


@pytest.mark.parametrize(("count", "dev"), [(9, 3), (60, 20), (200, 50), (400, 50), (1000, 100), (2000, 200)])
def test_how_much_is_held_out(count: int, dev: int) -> None:
    train, held = held_out([(f"row {i}",) for i in range(count)])
    assert len(held) == dev and sorted(train + held) == list(range(count))


def test_equal_texts_are_held_out_together() -> None:
    texts = [(f"Row  {i % 40}" if i % 2 else f"row {i % 40} ", "x") for i in range(400)]
    train, dev = held_out(texts)

    def sides(part: list[int]) -> Counter[str]:
        return Counter(" ".join(texts[i][0].split()).lower() for i in part)

    assert not sides(train).keys() & sides(dev).keys() and len(dev) >= 50
    order = list(range(399, -1, -1))
    again = held_out([texts[i] for i in order])[1]
    assert sorted(order[i] for i in again) == dev


# Augmented data


@pytest.mark.parametrize("format", ["parquet", "tsv"])
@pytest.mark.parametrize("name", ["rte", "stsb", "sst2"])
def test_augmented_rows_come_back_as_they_were(tmp_path: Path, format: Any, name: str) -> None:
    task = builtin(name)
    texts = [('"a\t', "b\nc"), ("two", "'three"), ("é\u2028", 'x"')]
    rows = Examples(
        [pair[: len(task.text)] for pair in texts],
        [0.5, 3.8, 5.0] if task.kind.name == "score" else [1, 0, 1],
        ["0", "0-a1", "1"],
        [False, True, False],
        [0, 0, 1],
    )
    write_augmented(rows, tmp_path / f"augmented.{format}", task, format)
    back = load_augmented(tmp_path, task)
    assert back == rows and back.fingerprint == rows.fingerprint
    assert load_augmented(tmp_path / f"augmented.{format}", task) == rows
    names = {"rte": "not_entailment", "sst2": "positive"}
    if format == "tsv" and name in names:
        assert names[name] in (tmp_path / "augmented.tsv").read_text()


def test_bad_augmented_files(tmp_path: Path) -> None:
    task = builtin("sst2")
    refused("M255", 4, load_augmented, tmp_path, task)
    for flag, source, code in (("maybe", "0", "M364"), ("true", "-1", "M364"), ("true", "x", "M364")):
        rows = [{"sentence": "x", "label": "positive", "source": source, "augmented": flag, "id": "0"}]
        refused(code, 5, load_augmented, write_own(tmp_path, rows, ".tsv"), task)
    rows = [{"sentence": "x", "label": "positive", "source": 0, "augmented": True}]
    refused("M253", 4, load_augmented, write_own(tmp_path, rows, ".parquet"), task)


def test_a_column_name_that_augmented_data_needs(tmp_path: Path) -> None:
    task = load_task(
        {"name": "own", "text": ["id"], "label": {"names": ["a", "b"]}, "files": {"train": str(tmp_path / "x.csv")}}
    )
    refused("M031", 3, write_augmented, Examples([("x",)], [0]), tmp_path / "a.tsv", task, "tsv")
    assert not (tmp_path / "a.tsv").exists()


# The real files

REAL = {
    "cola": {"train": 8551, "dev": 1043, "test": 1063},
    "sst2": {"train": 67349, "dev": 872, "test": 1821},
    "mrpc": {"train": 3668, "dev": 408, "test": 1725},
    "stsb": {"train": 5749, "dev": 1500, "test": 1379},
    "rte": {"train": 2490, "dev": 277, "test": 3000},
    "wnli": {"train": 635, "dev": 71, "test": 146},
    "qnli": {"dev": 5463, "test": 5463},
    "ax": {"test": 1104},
}
SAMPLES = {"mnli": {"train": 8999, "dev": 9815}, "qnli": {"train": 8999, "dev": 1000}, "qqp": {"train": 8999, "dev": 1000}}


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read_whole(shared: Path, name: str) -> None:
    task = builtin(name)
    for split, count in REAL[name].items():
        reporter = RecordingReporter()
        rows = load_split(task, split, data_dir=shared / "data/glue", reporter=reporter)
        assert len(rows) == count and reporter.warnings == []
        assert len(set(rows.ids or ())) == count
        assert (rows.labels is None) == (split == "test")


@pytest.mark.parametrize("name", SAMPLES)
def test_real_samples_are_read_whole(shared: Path, name: str) -> None:
    for split, count in SAMPLES[name].items():
        rows = load_split(builtin(name), split, data_dir=shared / "data/glue_samples")
        assert len(rows) == count and set(rows.labels or ()) == set(range(builtin(name).kind.num_outputs))


def test_quirks_of_the_real_files(shared: Path) -> None:
    glue = shared / "data/glue"
    mrpc = load_split(builtin("mrpc"), "train", data_dir=glue)
    assert mrpc.labels and sum(mrpc.labels) == 2474 and any('"' in text for text, _ in mrpc.texts)
    qnli = load_split(builtin("qnli"), "dev", data_dir=glue)
    assert any((question + sentence).count('"') % 2 for question, sentence in qnli.texts)
    assert qnli.labels and qnli.labels.count(0) == 2702
    ax = load_split(builtin("ax"), "test", data_dir=glue)
    assert ax.ids and ax.ids[-1] == "1103" and not ax.texts[-1][1].endswith("\n")
    sst2 = load_split(builtin("sst2"), "dev", data_dir=glue)
    assert sst2.labels and sum(sst2.labels) == 444
    stsb = load_split(builtin("stsb"), "train", data_dir=glue)
    assert stsb.labels and (min(stsb.labels), max(stsb.labels)) == (0.0, 5.0)


def test_official_columns_of_mnli(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_bytes((shared / "data/glue_samples/MNLI/official_layout_train.tsv").read_bytes())
    rows = load_split(builtin("mnli"), "train", data_dir=tmp_path)
    assert len(rows) == 48 and rows.texts[0][0] == "War, Blockades, and Peace"
    assert set(rows.labels or ()) == {0, 1, 2}
    assert rows.ids and rows.ids[0] == "191713"
