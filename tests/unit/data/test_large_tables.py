"""Large tables: read a row at a time, kept on the disk, and the same as those that are read whole."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recording import RecordingReporter
from tiny_glue import WORDS
from tiny_models import tiny_tokenizer

from microbert_cli.data import held_out, own_files, tokenized
from microbert_cli.data.encoded import flat
from microbert_cli.data.encoded.distinct import distinct_rows
from microbert_cli.data.examples import Examples
from microbert_cli.data.load import load_augmented, load_split, own_task, write_augmented
from microbert_cli.data.tables import arrow, read_table, streamed
from microbert_cli.data.tables.stored import RowNumbers, StoredColumn, StoredRows, store
from microbert_cli.data.tokenized import TokenizedExamples, tokenize_examples
from microbert_cli.errors import MbertError
from microbert_cli.runs import cache
from microbert_cli.table_format import TableFormat

PIECES = [
    "a", "b", '"', '""', "\t", ",", ";", "\n", "\r\n", "\r", "\n\n", " ", "é", "日本", "\u2028", "\x85", "\x0b", "\x00",
    '"x"', '"a,b"', "sep=;\n", "\ufeff",
]  # fmt: skip
CELLS = ["a", "é", "日本", '"x"', '"a,b"', " ", '""', "12", "a b"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path / "cache"))
    own_files._read.clear()
    yield
    own_files._read.clear()


@pytest.fixture
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "LARGE_BYTES", 0)


def outcome(path: Path, form: TableFormat, skip: int) -> tuple[Any, ...]:
    """All that a user sees of a table: names, lines, columns, notes; or the error."""
    reporter = RecordingReporter()
    try:
        table = read_table(path, form, skip_broken_rows=skip, reporter=reporter)
        columns = [list(table.read(name)) for name in table.names]
    except MbertError as error:
        return error.code, error.what, error.where, error.allowed, error.fix, reporter.messages
    return table.place, table.names, list(map(int, table.lines)), columns, table.header_line, table.where(0), reporter.messages


def check_both_ways(path: Path, form: TableFormat, skip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asserts that a file is the same read whole, read a row at a time, and out of the cache, notes and errors included."""
    monkeypatch.setattr(streamed, "LARGE_BYTES", 2**60)
    whole = outcome(path, form, skip)
    monkeypatch.setattr(streamed, "LARGE_BYTES", 0)
    assert outcome(path, form, skip) == whole, path.read_bytes()
    assert outcome(path, form, skip) == whole


def strange_table(chance: random.Random) -> bytes:
    """A table that is often whole, with cells that readers stumble over; or any text at all."""
    if chance.random() < 0.3:
        content = "".join(chance.choice(PIECES) for _ in range(chance.randrange(1, 40)))
    else:
        delimiter, width = chance.choice("\t,;"), chance.randrange(1, 4)
        rows = [
            delimiter.join(chance.choice(CELLS) for _ in range(width + (chance.random() < 0.02)))
            for _ in range(chance.randrange(1, 70))
        ]
        content = chance.choice(["", "", "sep=;\n", "\ufeff"]) + "\n".join(rows) + chance.choice(["", "\n", "\n\n", "\r\n"])
    data = content.encode()
    return data if chance.random() < 0.95 else data[:9] + b"\xff" + data[9:]


def test_a_large_table_is_the_one_that_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance, stored = random.Random(3), 0
    for number in range(100):
        path = tmp_path / f"t{number}{chance.choice(['.csv', '.tsv'])}"
        path.write_bytes(strange_table(chance))
        form = TableFormat(header=chance.random() < 0.8, quoting=chance.choice([None, None, True, False]))
        skip = chance.choice([0, 0, 2])
        check_both_ways(path, form, skip, monkeypatch)
        stored += streamed.read_large(path, form, skip_broken_rows=skip) is not None
    assert stored > 30


def strange_objects(chance: random.Random) -> bytes:
    """Objects a line that are often whole; or with a key less, a value of another type, a line that is none."""
    keys = chance.sample(["text", "label", "id", "ü"], chance.randrange(1, 4))
    values: dict[str, list[Any]] = {
        "text": CELLS,
        "label": [0, 1, 2.5, True],
        "id": ["a", "\ud800"],
        "ü": [["a", 1], [], {"b": None}],
    }
    rows = [{key: chance.choice(values[key]) for key in keys} for _ in range(chance.randrange(1, 40))]
    if chance.random() < 0.3:
        row = chance.choice(rows)
        row[chance.choice([*keys, "other"])] = chance.choice([None, 3, "b", [1]])
    if chance.random() < 0.1:
        chance.choice(rows).clear()
    lines = [json.dumps(row, ensure_ascii=chance.random() < 0.9 or "\ud800" in row.values()) for row in rows]
    if chance.random() < 0.2:
        lines.insert(
            chance.randrange(len(lines) + 1), chance.choice(["", " \t", "[1]", "{", '{"text": "a"} {}', "null", "7" * 5000])
        )
    content = (
        chance.choice(["", "", "\ufeff", "\ufeff\ufeff"])
        + chance.choice(["\n", "\n", "\r\n"]).join(lines)
        + chance.choice(["", "\n"])
    )
    data = content.encode()
    return data if chance.random() < 0.95 else data[:9] + b"\xff" + data[9:]


def test_large_objects_are_those_that_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance, stored = random.Random(4), 0
    for number in range(150):
        path = tmp_path / f"t{number}{chance.choice(['.jsonl', '.ndjson', '.json'])}"
        path.write_bytes(strange_objects(chance))
        form = TableFormat(skip_empty=chance.random() < 0.2)
        check_both_ways(path, form, 0, monkeypatch)
        if table := streamed.read_large(path, form):
            stored += 1
            assert all(isinstance(table.read(name), StoredColumn) for name in table.names if name in ("text", "id"))
    assert stored > 50


@pytest.mark.parametrize(
    "content", ['[{"text": "a"}, {"text": "b"}]', '{"text": {"0": "a"}, "label": {"0": 1}}', '{"text": "a"}']
)
def test_json_of_another_form_is_read_whole(tmp_path: Path, small_is_large: None, content: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(content, encoding="utf-8")
    assert streamed.read_large(path, TableFormat()) is None


def test_texts_of_a_large_parquet_file_lie_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, texts = tmp_path / "a.parquet", [f"é {n}" for n in range(20_000)]
    columns = {"text": texts, "label": ["a", "b"] * 10_000, "some": [None, "x"] * 10_000, "number": range(20_000)}
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path)
    monkeypatch.setattr(arrow, "MANY_ROWS", 1)
    for _ in range(2):
        table = read_table(path)
        assert {name: list(table.read(name)) for name in table.names} == {name: list(each) for name, each in columns.items()}
        kinds = [isinstance(table.read(name), StoredColumn) for name in ("text", "label", "some", "number")]
        assert kinds == [True, True, False, False]


def test_augmented_rows_of_a_large_file_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = own_task(table_of(tmp_path, 60))
    rows = load_split(task, "train")
    write_augmented(rows, tmp_path / "augmented.parquet", task)
    small = load_augmented(tmp_path, task)
    monkeypatch.setattr(arrow, "MANY_ROWS", 1)
    large = load_augmented(tmp_path, task)
    assert isinstance(large.texts, StoredRows) and large.fingerprint == small.fingerprint == rows_flagged(small).fingerprint
    assert list(large.ids or ()) == list(small.ids or ()) and list(large.texts) == list(small.texts)


def rows_flagged(rows: Examples) -> Examples:
    return Examples(list(rows.texts), rows.labels, rows.ids, rows.augmented, rows.source)


def test_a_changed_file_is_read_again(tmp_path: Path, small_is_large: None) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,x\n")
    assert list(read_table(path).read("text")) == ["a"]
    path.write_text("text,label\nb,x\n")
    assert list(read_table(path).read("text")) == ["b"]


def test_a_damaged_column_is_made_anew(tmp_path: Path, small_is_large: None) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\nabc,x\n")
    read_table(path)
    (column,) = cache.root().glob("tables/*/0.txt")
    column.write_bytes(b"abd")
    assert list(read_table(path).read("text")) == ["abc"]


def test_stored_texts_are_taken_by_row_and_slice(tmp_path: Path) -> None:
    texts = ["", "é", "abc", "", "日本語", "x" * 40, "\ud800", "end"]
    store([texts[:3], [], texts[3:]], tmp_path, "0")
    column = StoredColumn(tmp_path, "0")
    assert list(column) == texts and column[4] == "日本語" and column[-1] == "end" and column[1:6:2] == texts[1:6:2]
    order = [7, 0, 4, 4, 1]
    assert list(column.take(order)) == [texts[i] for i in order]
    assert list(column.take(order).take([2, 0])) == ["日本語", "end"]
    with pytest.raises(IndexError):
        column[8]
    rows = StoredRows([column, column])
    assert rows[2] == ("abc", "abc") and rows[:2] == [("", ""), ("é", "é")] and len(rows.take([1])) == 1
    assert list(RowNumbers(range(5)).take([3, 1])) == ["3", "1"] and RowNumbers(range(5))[4] == "4"


def table_of(tmp_path: Path, rows: int) -> Path:
    path = tmp_path / "rows.csv"
    lines = [f"{WORDS[i % len(WORDS)]} number {i} {i * i},{'no' if i % 3 else 'yes'}" for i in range(rows)]
    path.write_text("text,label\n" + "\n".join(lines) + "\n")
    return path


def test_train_and_dev_of_a_large_file_are_those_of_a_small_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table_of(tmp_path, 700)
    small = [load_split(own_task(path), split) for split in ("train", "dev")]
    monkeypatch.setattr(streamed, "LARGE_BYTES", 0)
    large = [load_split(own_task(path), split) for split in ("train", "dev")]
    for a, b in zip(small, large, strict=True):
        assert isinstance(b.texts, StoredRows) and not isinstance(a.texts, StoredRows)
        assert (a.fingerprint, list(a.texts), a.labels, list(a.ids or ())) == (
            b.fingerprint, list(b.texts), b.labels, list(b.ids or ()))  # fmt: skip


def test_dev_of_a_large_table_is_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table_of(tmp_path, 700)
    whole = set(load_split(own_task(path), "dev").texts)
    assert len(whole) == 70
    monkeypatch.setattr(held_out, "MOST_HELD_OUT", 60)
    monkeypatch.setattr(own_files, "MOST_HELD_OUT", 60)
    reporter = RecordingReporter()
    train, dev = load_split(own_task(path), "train", reporter=reporter), load_split(own_task(path), "dev")
    assert len(dev) == 60 and set(dev.texts) < whole and len(train) == 640
    assert any("60 rows instead of a tenth: 640 rows remain" in line for line in reporter.messages)


@pytest.mark.parametrize("pairs", [False, True])
def test_token_ids_on_the_disk_are_those_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: bool) -> None:
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    texts = [(" ".join(WORDS[i % 7 : i % 7 + i % 12]) or "x",) * (1 + pairs) for i in range(5000)]
    rows = Examples(texts, [i % 2 for i in range(5000)])
    memory = tokenize_examples(rows, tokenizer, 12)
    monkeypatch.setattr(tokenized, "MANY_ROWS", 100)
    for _ in range(2):  # made, and from the cache
        disk = tokenize_examples(rows, tokenizer, 12)
        assert isinstance(disk.ids, np.memmap) and disk.truncated == memory.truncated > 0
        for name in ("ids", "types", "offsets"):
            assert np.array_equal(getattr(disk, name), getattr(memory, name))
        monkeypatch.setattr(flat, "_write", None)
    with pytest.raises(TypeError):  # other ids, which have to be made
        tokenize_examples(rows, tokenizer, 9)


def naive(encoded: TokenizedExamples) -> tuple[list[int], list[int]]:
    """Distinct rows by a table of their bytes."""
    first: dict[tuple[int, ...], int] = {}
    keys = [tuple(encoded.row(i)["input_ids"]) for i in range(len(encoded))]
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    order = sorted(first.values(), key=lambda row: (-len(keys[row]), row))
    return [order.index(first[key]) for key in keys], order


def test_distinct_rows_are_numbered_by_length_and_first_occurrence(tmp_path: Path) -> None:
    chance = random.Random(1)
    texts = [(" ".join(chance.choices(WORDS[:4], k=chance.randrange(1, 4))),) for _ in range(300)]
    encoded = tokenize_examples(Examples(texts), tiny_tokenizer(tmp_path), 12)
    slot, first = distinct_rows(encoded)
    assert (slot.tolist(), first.tolist()) == naive(encoded)
