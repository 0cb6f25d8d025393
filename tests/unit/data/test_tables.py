"""Files of rows: what is read, and every way a file can be wrong."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recording import RecordingReporter

from microbert_cli.data.tables import Table, read_table
from microbert_cli.errors import MbertError
from microbert_cli.table_format import TableFormat


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path: Path, code: str, exit_code: int = 5, **options: bool) -> MbertError:
    with pytest.raises(MbertError) as caught:
        table = read_table(path, TableFormat(**options))
        [table.column(name) for name in table.names]
    assert caught.value.code == code and caught.value.exit_code == exit_code
    assert str(path) in caught.value.where
    return caught.value


def columns(table: Table) -> dict[str, list[object]]:
    return {name: table.read(name) for name in table.names}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
def test_quoted_tables(tmp_path: Path, mark: bytes, end: str, name: str) -> None:
    delimiter = "\t" if ".tsv" in name else ","
    lines = ["text,label", '"one, two",a', "", '"say ""hi""",b', '5" pipe,c', f'"two{end}lines",d', "last,e"]
    content = mark + end.join(lines).replace(",", delimiter).encode()
    path = write(tmp_path, name, gzip.compress(content) if name.endswith("gz") else content)
    table = read_table(path)
    comma = "one, two".replace(",", delimiter)
    assert columns(table)["text"] == [comma, 'say "hi"', '5" pipe', f"two{end}lines", "last"]
    assert columns(table)["label"] == list("abcde")
    assert list(table.lines) == [2, 4, 5, 6, 8]
    assert table.where(4) == f"{path}, line 8"


def test_unquoted_quotes_are_characters(tmp_path: Path) -> None:
    text = 'a\tb\n"open\t1\n" spaced "\t2\r\nmid"dle\t"3\n'
    table = read_table(write(tmp_path, "a.tsv", text), TableFormat(quoting=False))
    assert columns(table) == {"a": ['"open', '" spaced "', 'mid"dle'], "b": ["1", "2", '"3']}


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    odd = "one\u2028two\x0bthree\x85four\x1cfive"
    table = read_table(write(tmp_path, "a.tsv", f"a\tb\n{odd}\t1"), TableFormat(quoting=False))
    assert columns(table) == {"a": [odd], "b": ["1"]}


def test_without_a_header_columns_are_positions(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "a.tsv", "x\t1\t\tone\ny\t0\t*\ttwo\n"), TableFormat(quoting=False, header=False))
    assert table.column(3) == ["one", "two"] and table.column(1) == ["1", "0"]
    with pytest.raises(MbertError) as caught:
        table.column(4)
    assert caught.value.code == "M253"


def test_a_missing_column_names_the_nearest(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "a.csv", "text,stars\nfine,5\n"))
    with pytest.raises(MbertError) as caught:
        table.column("star")
    assert caught.value.code == "M253" and caught.value.exit_code == 4
    assert 'Did you mean "stars"?' in caught.value.allowed
    assert table.column(("label", "stars")) == ["5"]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_that_is_not_utf8_is_named(tmp_path: Path, mark: bytes) -> None:
    path = write(tmp_path, "a.tsv", mark + b"text\tlabel\nfine\t1\ncaf\xe9\t0\n")
    error = refused(path, "M353")
    assert error.where.endswith("line 3") and "0xe9" in error.what and f"offset {21 + len(mark)}" in error.what


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('text,label\na,1\n"never closed,0\nb,1\n', 3),
        ('text,label\n"two\nlines","open\nc,0\n', 3),
        ('text,label\na,1\n"closed" late,0\nb,1\n', 3),
        ('text,label\n"open,1\n"second",0\n', 2),
        ('text,label\r\n"ok\r\nok",1\r\n"a ""b,0\r\n', 4),
        ('text,label\nx,"', 2),
    ],
)
def test_unbalanced_quotes_name_the_line_they_open_in(tmp_path: Path, text: str, line: int) -> None:
    error = refused(write(tmp_path, "a.csv", text), "M354")
    assert error.where.endswith(f"line {line}"), error


@pytest.mark.parametrize(("row", "message"), [("only", "too few columns: 1, not 2"), ("a\tb\tc", "too many columns: 3")])
@pytest.mark.parametrize("quoting", [True, False])
def test_rows_of_another_width_are_refused(tmp_path: Path, row: str, message: str, quoting: bool) -> None:
    path = write(tmp_path, "a.tsv", f"text\tlabel\nx\t1\n{row}\ny\t0\n")
    error = refused(path, "M350", quoting=quoting)
    assert error.where.endswith("line 3") and message in error.what


def test_some_broken_rows_may_be_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", "text\tlabel\nx\t1\nbroken\n\ny\t0\n\n")
    reporter = RecordingReporter()
    table = read_table(path, TableFormat(quoting=False), skip_broken_rows=2, reporter=reporter)
    assert table.column("text") == ["x", "y"] and list(table.lines) == [2, 5]
    assert len(reporter.warnings) == 1 and "2 rows" in reporter.warnings[0] and "line 3" in reporter.warnings[0]
    with pytest.raises(MbertError):
        read_table(path, TableFormat(quoting=False), skip_broken_rows=1)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_files_without_rows(tmp_path: Path, name: str) -> None:
    refused(write(tmp_path, name, ""), "M357")


def test_columns_of_the_same_name(tmp_path: Path) -> None:
    refused(write(tmp_path, "a.csv", "text,text\na,b\n"), "M356")


def test_jsonl(tmp_path: Path) -> None:
    rows = [{"a": "é\n", "b": 1.5}, {"b": None, "a": "x"}]
    text = "\ufeff" + "\n\n".join(json.dumps(row) for row in rows) + "\n"
    table = read_table(write(tmp_path, "a.jsonl", text))
    assert columns(table) == {"a": ["é\n", "x"], "b": [1.5, None]} and list(table.lines) == [1, 3]


@pytest.mark.parametrize(
    ("line", "message"), [("{'a': 1}", "not JSON"), ("[1]", "no object"), ('{"b": 1}', 'no key "a"'), ('{"a": 1', "JSON")]
)
def test_bad_jsonl(tmp_path: Path, line: str, message: str) -> None:
    error = refused(write(tmp_path, "a.jsonl", f'{{"a": 1}}\n{line}\n'), "M355")
    assert error.where.endswith("line 2") and message in error.what


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array(["x", "y"]).dictionary_encode(), "label": [1, None]}), path)
    table = read_table(path)
    assert columns(table) == {"text": ["x", "y"], "label": [1, None]}
    assert table.where(1) == f"{path}, row 2"


def test_damaged_parquet_and_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"] * 1000}), path)
    write(tmp_path, "b.parquet", path.read_bytes()[:-20])
    refused(tmp_path / "b.parquet", "M356")
    refused(write(tmp_path, "c.csv.gz", gzip.compress(b"a,b\n1,2\n" * 99)[:-9]), "M356")
    refused(write(tmp_path, "d.csv.gz", b"a,b\n1,2\n"), "M356")


def test_a_file_that_is_not_there_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", "a\n1\n")
    error = refused(tmp_path / "trian.csv", "M252", exit_code=4)
    assert 'Did you mean "train.csv"?' in error.allowed
    refused(tmp_path / "none" / "a.parquet", "M252", exit_code=4)
