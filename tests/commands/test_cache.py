"""`mbert cache`: what is in it, by kind and by run, and what goes."""

import os
import time
from pathlib import Path

import pytest
from filelock import FileLock
from mbert_command import refused, works

from microbert_cli.runs import cache


@pytest.fixture(autouse=True)
def three_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of two runs, one of them old, and answers of a teacher that both runs used."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path / "cache"))
    for kind, key, outputs in (("blocks", "a", ["runs/x/general"]), ("blocks", "b", ["runs/y/general"]), ("teacher", "c", ["runs/x/d", "runs/y/d"])):  # fmt: skip  # noqa: E501
        for output in outputs:
            with cache.used_for(Path(output)), cache.entry(kind, key) as (directory, ready):
                if not ready:
                    (directory / "numbers.bin").write_bytes(b"x" * 1_000_000)
    month = time.time() - 30 * 86400
    for file in cache.entry_path("blocks", "b").iterdir():
        os.utime(file, (month, month))


def left() -> list[str]:
    return [entry.directory.name for entry in cache.entries()]


def test_sizes_by_kind_and_by_run() -> None:
    kinds = works("cache", "--json").json["kinds"]
    assert {kind: row["entries"] for kind, row in kinds.items()} == {"blocks": 2, "teacher": 1}
    assert 1_000_000 <= kinds["teacher"]["bytes"] < 1_010_000
    runs = works("cache", "--runs", "--json").json["runs"]
    assert {Path(run).name: row["entries"] for run, row in runs.items()} == {"x": 2, "y": 2}
    assert "(gone)" in works("cache", "--runs").out and "2.0" in works("cache").out


def test_only_what_is_asked_for_goes() -> None:
    assert "would remove 1 of 1" in works("cache", "--clean", "--older", "7d", "--dry-run").out
    assert left() == ["a", "b", "c"]
    works("cache", "--clean", "--older", "7d")
    assert left() == ["a", "c"]
    works("cache", "--clean", "--run", "runs/x")  # c was made with y, too
    assert left() == ["c"]
    works("cache", "--clean", "--kind", "teacher")
    assert left() == [] and works("cache", "--json").json["bytes"] == 0


def test_what_a_run_is_using_stays() -> None:
    with FileLock(cache.entry_path("teacher", "c").with_suffix(".lock")):
        result = works("cache", "--clean")
    assert "removed 2 of 3" in result.out and "in use" in result.err and left() == ["c"]
    assert cache.find("teacher", "c")


def test_what_is_refused() -> None:
    assert "teacher" in refused(2, "M172", "cache", "--kind", "teachers")["allowed"]
    refused(2, "M173", "cache", "--clean", "--older", "soon")
    assert left() == ["a", "b", "c"]
