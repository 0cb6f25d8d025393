"""Tables as people save them: delimiters, encodings, suffixes, quotes, empty rows, class names; read, or refused by name."""

import bz2
import gzip
import json
import lzma
import os
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from recording import RecordingReporter

from microbert_cli.data.held_out import held_out
from microbert_cli.data.labels import score_or_classes
from microbert_cli.data.load import load_split, own_task
from microbert_cli.data.tables import read_table
from microbert_cli.data.transfer_set import load_transfer
from microbert_cli.errors import MbertError
from microbert_cli.recipe.task import load_task
from microbert_cli.recipe.values import identity_values
from microbert_cli.reporter import Reporter
from microbert_cli.table_format import TableFormat, name_of_files

ROWS = [(f"the soup was warm, café {i}", ("bad", "good")[i % 2]) for i in range(12)]


def write(folder: Path, name: str, content: str | bytes, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def delimited(delimiter: str, rows: list[tuple[str, str]] = ROWS, header: str = "text{}label") -> str:
    lines = [header.format(delimiter)] if header else []
    lines += [delimiter.join(f'"{cell}"' if delimiter in cell else cell for cell in row) for row in rows]
    return "\n".join(lines) + "\n"


def texts(path: Path, form: TableFormat | None = None, reporter: Reporter | None = None) -> list[tuple[str, str]]:
    table = read_table(path, form or TableFormat(), reporter=reporter or Reporter())
    return list(zip(table.column("text"), table.column("label"), strict=True))


def refused(code: str, call: Any, *args: Any, **options: Any) -> MbertError:
    with pytest.raises(MbertError) as caught:
        call(*args, **options)
    assert caught.value.code == code, caught.value
    return caught.value


# --- delimiters -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "A.CSV", "a.csv.gz"])
def test_the_delimiter_is_that_of_the_header_and_said(tmp_path: Path, delimiter: str, name: str) -> None:
    reporter = RecordingReporter()
    content = delimited(delimiter).encode()
    path = write(tmp_path, name, gzip.compress(content) if name.endswith("gz") else content)
    assert texts(path, reporter=reporter) == ROWS
    usual = delimiter == ("\t" if "tsv" in name else ",")
    shown = "a tab" if delimiter == "\t" else f'"{delimiter}"'
    assert reporter.messages == [] if usual else shown in reporter.messages[0] and "data.delimiter=" in reporter.messages[0]


def test_a_delimiter_that_is_said_rules(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text;label\nsoup, warm;good\nsoup, cold;bad\n")
    assert texts(path, TableFormat(delimiter="semicolon")) == [("soup, warm", "good"), ("soup, cold", "bad")]
    path = write(tmp_path, "b.csv", "text:label\nsoup:good\n")
    assert texts(path, TableFormat(delimiter=":")) == [("soup", "good")]
    for wrong in ("", ";;", '"', "\n"):
        with pytest.raises(ValueError, match="one character"):
            TableFormat(delimiter=wrong)


def test_the_rows_decide_where_two_delimiters_divide_the_header(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text;label;size, in cm\nsoup;good;3,5\ntea;bad;12\n")
    assert texts(path) == [("soup", "good"), ("tea", "bad")]


def test_a_column_of_texts_alone_is_not_divided(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text\nwarm; lovely\ncold; stale\n")
    assert read_table(path).column("text") == ["warm; lovely", "cold; stale"]


def test_the_line_that_excel_writes_before_the_header(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "a.csv", "sep=;\r\ntext;label\r\nsoup;good\r\n"))
    assert table.column("text") == ["soup"] and table.where(0).endswith("line 3")


# --- quotes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        ['good\t"the soup was warm', "bad\tso it was"],
        ['good\t"the soup was warm', 'bad\tso she said"'],  # with quoting both lines are one row, without a word
        ['good\t"Great," he said, "so warm"', "bad\tso it was"],
    ],
)
@pytest.mark.parametrize("header", [True, False])
def test_quotes_of_a_tsv_are_characters_where_one_is_not_closed(tmp_path: Path, lines: list[str], header: bool) -> None:
    reporter = RecordingReporter()
    path = write(tmp_path, "a.tsv", "\n".join([*(["label\ttext"] if header else []), *lines, ""]))
    table = read_table(path, TableFormat(header=header), reporter=reporter)
    assert table.column("text" if header else "1") == [line.split("\t")[1] for line in lines]
    assert "quotation marks" in reporter.messages[0] and "data.quoting=true" in reporter.messages[0]
    assert len(read_table(path, TableFormat(header=header, quoting=False))) == 2


def test_quotes_of_a_tsv_enclose_where_all_are_closed(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", 'text\tlabel\n"say ""hi"""\tgood\nplain\tbad\n')
    assert texts(path) == [('say "hi"', "good"), ("plain", "bad")]


def test_the_error_about_quotes_says_how_they_are_read_as_characters(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'text,label\n"open,good\nx,bad\n')
    assert "data.quoting=false" in refused("M354", read_table, path).fix
    assert texts(path, TableFormat(quoting=False)) == [('"open', "good"), ("x", "bad")]


# --- encodings --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.tsv"])
def test_an_encoding_with_a_mark_is_read_and_said(tmp_path: Path, encoding: str, name: str) -> None:
    reporter = RecordingReporter()
    content = delimited("\t" if "tsv" in name else ",")
    if "json" in name:
        content = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS)
    assert texts(write(tmp_path, name, content, encoding), reporter=reporter) == ROWS
    assert encoding.upper() in reporter.messages[0]


@pytest.mark.parametrize(
    ("encoding", "word"),
    [("cp1252", "Windows-1252"), ("latin-1", "Windows-1252"), ("utf-16-le", "UTF-16"), ("utf-16-be", "UTF-16")],
)
def test_the_advice_about_an_encoding_works(tmp_path: Path, encoding: str, word: str) -> None:
    rows = [
        (f"it’s 5 € {i}" if encoding == "cp1252" else f"cafe {i}" if "16" in encoding else f"café {i}", "x") for i in range(9)
    ]
    path = write(tmp_path, "a.csv", delimited(",", rows), encoding)
    error = refused("M353", read_table, path)
    assert word in error.what and "data.encoding=" in error.fix
    assert texts(path, TableFormat(encoding=error.fix.rpartition("data.encoding=")[2])) == rows


def test_an_encoding_that_cannot_be_told_is_not_guessed(tmp_path: Path) -> None:
    russian = write(tmp_path, "a.csv", delimited(",", [("суп был тёплый и вкусный", "да")] * 5), "cp1251")
    assert "cp1251" in refused("M353", read_table, russian).what
    broken = write(tmp_path, "b.csv", delimited(",").encode() + b"caf\xe9,good\n")
    error = refused("M353", read_table, broken)
    assert "damaged" in error.what and error.where.endswith(f"line {len(ROWS) + 2}")
    refusal = refused("M353", read_table, broken, TableFormat(encoding="ascii"))
    assert "ascii" in refusal.what and refusal.where.endswith("line 2")
    for wrong in ("no-such", "base64", "rot13", "../x", "\0"):
        with pytest.raises(ValueError, match="encoding of text"):
            TableFormat(encoding=wrong)


# --- suffixes and packing ---------------------------------------------------------------------------------------------------


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def arrow_table() -> pa.Table:
    return pa.table({"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]})


def test_json_lines_and_arrays(tmp_path: Path) -> None:
    rows = [{"text": text, "label": label} for text, label in ROWS]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name, content in (
        ("a.json", lines),
        ("b.json", json.dumps(rows)),
        ("c.JSON", json.dumps(rows, indent=1)),
        ("d.jsonl", "[]"),
    ):
        path = write(tmp_path, name, content)
        if name == "d.jsonl":
            refused("M357", read_table, path)
        else:
            assert texts(path) == ROWS
    assert read_table(tmp_path / "b.json").where(2).endswith("row 3")


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ({"data": [{"text": "a", "label": "b"}]}, '"data"'),
        ({"text": {"0": "a"}, "label": {"0": "b"}}, "pandas"),
        ({"text": ["a"], "label": ["b"]}, "records"),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_one_object_is_not_taken_for_a_row(tmp_path: Path, value: Any, advice: str, indent: int | None) -> None:
    path = write(tmp_path, "a.json", json.dumps(value, indent=indent))
    assert advice in refused("M355", read_table, path).fix


def test_a_broken_array_names_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", '[{"text": "a"},\n{"text": \n]')
    assert refused("M355", read_table, path).where.endswith("line 3")
    path = write(tmp_path, "b.json", '[{"text": "a"}, 3, "x"]')
    assert "row 2 (also 3)" in refused("M355", read_table, path).where


def test_columns_in_every_suffix(tmp_path: Path) -> None:
    table = arrow_table()
    for name in ("a.parquet", "a.PARQUET", "a.pq"):
        pq.write_table(table, tmp_path / name)
        assert texts(tmp_path / name) == ROWS
    pq.write_table(table, tmp_path / "df.parquet.gzip", compression="gzip")  # as pandas does
    write(tmp_path, "b.parquet.gz", gzip.compress((tmp_path / "a.pq").read_bytes()))
    pyarrow.feather.write_feather(table, tmp_path / "a.feather")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("df.parquet.gzip", "b.parquet.gz", "a.feather", "a.arrow"):
        assert texts(tmp_path / name) == ROWS
    write(tmp_path, "c.arrow", (tmp_path / "a.arrow").read_bytes()[:200])
    refused("M356", read_table, tmp_path / "c.arrow")


def test_a_zip_whose_directory_lies_before_the_file_is_damaged(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"a.csv": b"text,label\na,b\n"})
    content = path.read_bytes()
    path.write_bytes(content[:-6] + (200).to_bytes(4, "little") + content[-2:])
    refused("M356", read_table, path)


def test_a_zip_of_one_table(tmp_path: Path) -> None:
    content = delimited(",").encode()
    for name in ("a.zip", "a.csv.zip", "A.ZIP"):
        assert texts(zipped(tmp_path / name, {"folder/data.csv": content, "__MACOSX/._data.csv": b"x"})) == ROWS
    pq.write_table(arrow_table(), tmp_path / "a.parquet")
    assert texts(zipped(tmp_path / "p.zip", {"a.parquet": (tmp_path / "a.parquet").read_bytes()})) == ROWS
    error = refused("M268", read_table, zipped(tmp_path / "two.zip", {"a.csv": content, "b.csv": content}))
    assert "a.csv, b.csv" in error.allowed
    refused("M268", read_table, zipped(tmp_path / "none.zip", {"readme.txt": b"x"}))
    refused("M372", read_table, zipped(tmp_path / "evil.zip", {"../a.csv": content}))
    refused("M356", read_table, write(tmp_path, "no.csv.zip", content))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (gzip.compress(b"text,label\n", mtime=0), "gzip"),
        (bz2.compress(b"text,label\n"), "bzip2"),
        (lzma.compress(b"text,label\n"), "xz"),
        (b"PK\x03\x04" + b"\0" * 30 + b"a.csv", "zip"),
        (b"PK\x03\x04" + b"\0" * 26 + b"[Content_Types].xml", "Excel"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Excel"),
        (b"PAR1 and so on", "Parquet"),
    ],
    ids=["gzip", "bzip2", "xz", "zip", "xlsx", "xls", "parquet"],
)
def test_another_format_under_a_tables_name_is_named(tmp_path: Path, content: bytes, word: str) -> None:
    assert word in refused("M383", read_table, write(tmp_path, "a.csv", content)).what


def test_the_advice_about_a_wrong_suffix_works(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", gzip.compress(delimited(",").encode()))
    assert os.system(refused("M383", read_table, path).fix.partition(": ")[2]) == 0
    assert texts(tmp_path / "a.csv.gz") == ROWS
    path = write(tmp_path, "b.parquet", gzip.compress(b"x"))
    assert "gzip" in refused("M383", read_table, path).what


def test_a_spreadsheet_is_refused_with_what_to_do(tmp_path: Path) -> None:
    error = refused("M030", own_task, tmp_path / "a.xlsx")
    assert ".csv" in error.allowed and "CSV" in error.fix and "rte" not in error.fix


# --- data sets saved by save_to_disk ----------------------------------------------------------------------------------------


def test_a_saved_data_set_and_its_class_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg", "none"])})
    rows = {"text": [text for text, _ in ROWS], "label": [i % 2 for i in range(len(ROWS))]}
    data = datasets.Dataset.from_dict(rows, features=features)
    data.save_to_disk(tmp_path / "ds", num_shards=3)
    data.to_parquet(tmp_path / "ds.parquet")
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "both")
    for path in (tmp_path / "ds", tmp_path / "ds.parquet", tmp_path / "both" / "train"):
        reporter = RecordingReporter()
        task = own_task(path, path, reporter=reporter)
        assert task.label.names == ("pos", "neg") and "named by the file" in reporter.messages[0]
        assert load_split(task, "train").labels == rows["label"]
        assert read_table(path).column("label")[:2] == ["pos", "neg"]
    error = refused("M268", read_table, tmp_path / "both")
    assert "test, train" in error.allowed and str(tmp_path / "both" / "test") in error.fix
    picked = data.select([3, 1])
    picked.save_to_disk(tmp_path / "picked")
    assert read_table(tmp_path / "picked").column("text") == [ROWS[3][0], ROWS[1][0]]


def test_many_named_classes_are_no_score(tmp_path: Path) -> None:
    import datasets

    names = [f"intent {i}" for i in range(40)]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    data = datasets.Dataset.from_dict(
        {"text": [f"row {i}" for i in range(45)], "label": [i % 40 for i in range(45)]}, features=features
    )
    data.to_parquet(tmp_path / "a.parquet")
    assert own_task(tmp_path / "a.parquet").label.names == tuple(names)


def test_other_folders_and_hostile_ones(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    write(tmp_path, "folder/train.csv", delimited(","))
    assert "train.csv" in refused("M268", read_table, tmp_path / "folder").fix
    write(tmp_path, "evil/state.json", json.dumps({"_data_files": [{"filename": "../folder/train.csv"}]}))
    refused("M356", read_table, tmp_path / "evil")
    write(tmp_path, "evil/state.json", "[")
    refused("M356", read_table, tmp_path / "evil")
    write(tmp_path, "evil/state.json", json.dumps({"_data_files": [{"filename": "gone.arrow"}]}))
    refused("M252", read_table, tmp_path / "evil")


# --- columns that nobody reads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "text,label,,,\nsoup,good,,,\ntea,bad,,x,\n",
        ",text,label\n0,soup,good\n1,tea,bad\n",
        "text,label,note,note\nsoup,good,a,b\ntea,bad,a,b\n",
        "text,label,,\nsoup,good\ntea,bad,\n",
        "text,label\nsoup,good,,\ntea,bad\n",
        "text, label\nsoup,good\ntea,bad\n",
    ],
)
def test_only_named_columns_can_be_wrong(tmp_path: Path, content: str) -> None:
    assert texts(write(tmp_path, "a.csv", content)) == [("soup", "good"), ("tea", "bad")]


def test_named_columns_are_wrong_where_they_are_twice_or_lacking(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "a.csv", "text,label,text\na,b,c\n"))
    assert refused("M356", table.column, "text").where.endswith("line 1")
    table = read_table(write(tmp_path, "a.jsonl", '{"text": "a", "x": 1}\n{"text": "b", "y": 2}\n{"text": "c", "x": 2}\n'))
    assert table.names == ("text", "x", "y") and table.column("text") == ["a", "b", "c"]
    error = refused("M355", table.column, "y")
    assert error.where.endswith("line 1 (also 3)") and '"y"' in error.what
    refused("M350", read_table, write(tmp_path, "b.csv", "text,label,\na\n"))
    refused("M350", read_table, write(tmp_path, "c.csv", "text,label,\na,b,c,d\n"))


def test_a_long_header_is_not_printed_whole(tmp_path: Path) -> None:
    article = "so it went on and on " * 200
    error = refused("M350", read_table, write(tmp_path, "a.tsv", f"{article}\tgood\nx\n"))
    assert len(str(error)) < 700
    error = refused("M253", read_table(write(tmp_path, "b.tsv", f"{article}\tgood\nx\tbad\n")).column, "text")
    assert len(str(error)) < 700


def test_a_file_without_header_is_suspected_and_the_advice_works(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "\n".join(f"{label},the soup was warm {i}" for i, (_, label) in enumerate(ROWS)))
    error = refused("M253", own_task, path)
    assert "first row" in error.what and "--set data.header=false --text 1 --label 0" in error.fix
    task = own_task(path, path, text=("1",), label="0", form=TableFormat(header=False))
    assert len(load_split(task, "train")) == len(ROWS) and task.label.names == ("bad", "good")
    assert "first row" not in refused("M253", own_task, write(tmp_path, "b.csv", "txt,label\na,b\nc,d\n")).what


# --- rows -------------------------------------------------------------------------------------------------------------------


def test_bad_rows_are_named_together(tmp_path: Path) -> None:
    rows = [("" if i % 3 == 0 else f"row {i}", "ab"[i % 2]) for i in range(60)]
    path = write(tmp_path, "a.csv", delimited(",", rows))
    error = refused("M352", load_split, own_task(path, path), "train")
    assert "line 2 (also 5, 8, 11, 14, 17, 20, 23, 26, 29, ...; 20 in all)" in error.where
    assert "19 more rows" in error.what and "data.skip_empty=true" in error.fix
    path = write(tmp_path, "b.csv", delimited(",", [("x", "a"), ("y", ""), ("z", "b"), ("w", "")]))
    assert "line 3 (also 5)" in refused("M365", own_task, path).where
    dev = write(tmp_path, "dev.csv", delimited(",", [("x", "a"), ("y", "c"), ("z", "d"), ("w", "a")]))
    train = write(tmp_path, "train.csv", delimited(",", [("x", "a"), ("y", "b")]))
    error = refused("M351", load_split, own_task(train, dev), "dev")
    assert "line 3 (also 4)" in error.where and '"c"' in error.what
    assert "line 2 (also 4)" in refused("M350", read_table, write(tmp_path, "w.csv", "a,b\n1\n1,2\n3\n")).where


def test_empty_rows_are_passed_over_where_that_is_said(tmp_path: Path) -> None:
    rows = [("warm", "good"), ("", "good"), ("  ", "bad"), ("cold", "bad"), ("tepid", ""), ("hot", "good")]
    path = write(tmp_path, "a.csv", delimited(",", rows))
    reporter = RecordingReporter()
    task = own_task(path, path, form=TableFormat(skip_empty=True), reporter=reporter)
    for _ in range(2):
        assert [row[0] for row in load_split(task, "train", reporter=reporter).texts] == ["warm", "cold", "hot"]
    assert [note for note in reporter.messages if "3 of 6 rows" in note and "passed over" in note] == reporter.messages[:1]
    lines = "".join(json.dumps(row) + "\n" for row in ({"text": "a", "label": 1}, {"label": 2}, {"text": "b", "label": 2}))
    path = write(tmp_path, "b.jsonl", lines)
    refused("M355", own_task, path, path)
    task = own_task(path, path, form=TableFormat(skip_empty=True))
    assert len(load_split(task, "train")) == len(load_transfer(path, task, form=TableFormat(skip_empty=True))) == 2
    blank = write(tmp_path, "c.csv", delimited(",", [(" ", "a"), ("", "b")]))
    refused("M357", own_task, blank, form=TableFormat(skip_empty=True))


@pytest.mark.parametrize("word", ["nan", "NaN", "NA", "null", "None", ""])
def test_a_word_for_nothing_beside_numbers_is_a_missing_label(tmp_path: Path, word: str) -> None:
    rows = [(f"row {i}", word if i == 7 else str(i / 4)) for i in range(12)]
    path = write(tmp_path, "a.csv", delimited(",", rows))
    error = refused("M365", own_task, path)
    assert error.where.endswith("line 9") and (not word or f'"{word}"' in error.what)
    task = own_task(path, path, form=TableFormat(skip_empty=True))
    assert task.label.kind == "score" and len(load_split(task, "train")) == 11


def test_a_class_may_be_called_none(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", delimited(",", [("x", "none"), ("y", "some"), ("z", "NA")]))
    assert own_task(path).label.names == ("NA", "none", "some")


@pytest.mark.parametrize("score", ["1e308", "-1e30", "inf", "1e999"])
def test_a_score_beyond_32_bits_is_named(tmp_path: Path, score: str) -> None:
    rows = [(f"row {i}", score if i == 3 else str(i / 4)) for i in range(12)]
    path = write(tmp_path, "a.csv", delimited(",", rows))
    error = refused("M351", load_split, own_task(path, path, kind="score"), "train")
    assert error.where.endswith("line 5") and score in error.what


@pytest.mark.parametrize("label", [["a"], [], {"name": "a"}, ["a", "b"], "['a', 'b']", "[]"])
def test_several_labels_a_row_are_refused(tmp_path: Path, label: Any) -> None:
    rows = [{"text": f"row {i}", "label": label} for i in range(9)]
    path = write(tmp_path, "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for options in ({}, {"labels": ["a", "b"]}, {"kind": "score"}, {"kind": "classes"}):
        error = refused("M378", lambda options=options: load_split(own_task(path, path, **options), "train"))
        assert "line 1" in error.where and "9 in all" not in error.where
    if not isinstance(label, str | dict):
        pq.write_table(pa.Table.from_pylist([{"text": "x", "label": label or ["a"]}] * 3), tmp_path / "a.parquet")
        refused("M378", own_task, tmp_path / "a.parquet")


def test_a_class_in_brackets_is_a_class(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", delimited(",", [("x", "[pos]"), ("y", "[neg]")]))
    assert own_task(path).label.names == ("[neg]", "[pos]")


def test_a_dev_part_of_one_class_is_said(tmp_path: Path) -> None:
    train = write(tmp_path, "train.csv", delimited(","))
    dev = write(tmp_path, "dev.csv", delimited(",", [("x", "good"), ("y", "good")]))
    reporter = RecordingReporter()
    load_split(own_task(train, dev), "dev", reporter=reporter)
    assert "all 2 rows of dev have the label good" in reporter.messages[-1]


# --- classes or a score -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (list(range(25)) * 40, "classes"),
        (list(range(1, 78)) * 12, "classes"),
        ([i for i in range(150) for _ in range(3 if i % 2 else 40)], "classes"),
        ([1000 + 37 * i for i in range(30)] * 20, "classes"),
        (list(range(25)), "score"),
        (list(range(101)) * 40, "score"),
        (list(range(18, 90)) * 20, "score"),
        ([i / 2 for i in range(5)] * 100, "score"),
        (list(range(5)) * 3, "classes"),
        (list(range(-60, 61)) * 20, "score"),
    ],
)
def test_what_numbers_are(values: list[float], kind: str) -> None:
    counts = Counter(str(value) for value in values)
    guess, hint = score_or_classes(counts)
    assert guess == kind
    assert bool(hint) == all(isinstance(value, int) for value in values) and (not hint or "data.kind=" in hint)


# --- the dev part of a training file ----------------------------------------------------------------------------------------


def split_of(labels: list[int]) -> tuple[list[int], list[int]]:
    return held_out([(f"text {i}",) for i in range(len(labels))], labels)


@pytest.mark.parametrize(
    "labels",
    [
        [0] * 100 + [1] * 100 + [label for label in range(2, 12) for _ in range(2)],
        [label for label in range(150) for _ in range(1 + label % 2)],
        [0] * 500 + [1],
        list(range(30)) + [0],
    ],
)
def test_every_class_keeps_a_row_in_train(labels: list[int]) -> None:
    train, dev = split_of(labels)
    assert {labels[i] for i in train} == set(labels) and dev
    assert sorted(train + dev) == list(range(len(labels)))
    again = split_of(labels)
    assert again == (train, dev)


def test_a_split_that_has_every_class_in_train_stays_as_it_was() -> None:
    labels = [i % 3 for i in range(300)]
    assert split_of(labels) == held_out([(f"text {i}",) for i in range(300)])


def test_a_stratified_dev_part_has_the_common_classes(tmp_path: Path) -> None:
    labels = [0] * 300 + [1] * 300 + list(range(2, 60))
    _, dev = split_of(labels)
    counts = Counter(labels[i] for i in dev)
    assert set(counts) == {0, 1} and abs(counts[0] - counts[1]) < 8 and len(dev) == 66


def test_classes_of_one_text_each_cannot_be_held_out(tmp_path: Path) -> None:
    rows = [(f"row {i}", f"c{i // 2}") for i in range(4)]
    path = write(tmp_path, "a.csv", delimited(",", [("same", "a"), ("same", "a"), ("other", "b"), ("other", "b")]))
    refused("M366", load_split, own_task(path), "train")
    reporter = RecordingReporter()
    path = write(tmp_path, "b.csv", delimited(",", rows))
    task = own_task(path)
    train, dev = load_split(task, "train", reporter=reporter), load_split(task, "dev")
    assert set(train.labels or ()) == {0, 1} and len(train) + len(dev) == 4


# --- names and identity -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/x/reviews.csv", "reviews"),
        ("/x/reviews/train.tsv", "reviews"),
        ("/x/reviews/data/Train.csv.gz", "reviews"),
        ("/x/tickets/train", "tickets"),
        ("/x/my file.csv", "my-file"),
        ("/train.csv", "train"),
        ("/data/test/train.csv", "train"),
    ],
)
def test_the_name_of_a_task(path: str, name: str) -> None:
    assert name_of_files(path) == name


def test_a_task_file_says_the_format(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", "text;label\ncafé;good\nthé;bad\n", "cp1252")
    toml = 'text = ["text"]\n[label]\nnames = ["bad", "good"]\n[files]\ntrain = "a.csv"\ndev = "a.csv"\n'
    write(tmp_path, "mine.toml", toml + 'encoding = "cp1252"\ndelimiter = ";"\nskip_empty = true\n')
    assert load_split(load_task(tmp_path / "mine.toml"), "train").texts == [("café",), ("thé",)]
    write(tmp_path, "wrong.toml", toml + 'encoding = "cp1252x"\n')
    refused("M030", load_task, tmp_path / "wrong.toml")


def test_what_is_not_said_of_the_format_is_not_in_the_identity() -> None:
    from microbert_cli.recipe.texts.tables import Data

    before = {"folder", "train_file", "dev_file", "test_file", "transfer_file"}
    plain = identity_values("data", Data().model_dump())
    assert not set(plain) & {"encoding", "delimiter", "header", "quoting", "skip_empty", *before}
    assert identity_values("data", Data(encoding="cp1252", header=False).model_dump())["encoding"] == "cp1252"
