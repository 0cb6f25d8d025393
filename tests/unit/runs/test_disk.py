"""Where a result goes that the user asked for by name; and the checksums of large files, which are remembered."""

import errno
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from microbert_cli.errors import MbertError
from microbert_cli.runs import atomic, cache
from microbert_cli.runs.disk import check_writable, write_file

ROOT = Path(__file__).resolve().parents[3]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_that_is_there_keeps_its_mode_and_a_new_one_has_the_usual(tmp_path: Path) -> None:
    old, new, usual = tmp_path / "old", tmp_path / "new", tmp_path / "usual"
    usual.touch()
    for number in (0o600, 0o640, 0o755):
        old.write_text("before, and longer")
        old.chmod(number)
        write_file(old, "after\n")
        assert (old.read_text(), mode(old)) == ("after\n", number)
    write_file(new, "öl\n")
    assert new.read_bytes() == "öl\n".encode() and mode(new) == mode(usual)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old", "usual"]


def test_a_reader_of_the_old_file_goes_on_reading_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")
    with (tmp_path / "file").open() as reader:
        write_file(tmp_path / "file", "after")
        assert reader.read() == "before"


@pytest.mark.parametrize("there", [True, False])
def test_of_a_link_the_target_is_written(tmp_path: Path, there: bool) -> None:
    (tmp_path / "folder").mkdir()
    target, middle, link = tmp_path / "folder" / "target", tmp_path / "folder" / "middle", tmp_path / "link"
    if there:
        target.write_text("before")
    middle.symlink_to("target")
    link.symlink_to("folder/middle")
    write_file(link, "after")
    assert target.read_text() == "after" and link.is_symlink() and middle.is_symlink() and not target.is_symlink()


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(MbertError, match=os.strerror(errno.ELOOP)):
        write_file(tmp_path / "a", "text")


def test_a_fifo_and_a_device_are_written_into(tmp_path: Path) -> None:
    fifo, link, seen = tmp_path / "fifo", tmp_path / "null", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: seen.append(fifo.read_text()))
    reader.start()
    write_file(fifo, "one\ntwo\n")
    reader.join(10)
    assert seen == ["one\ntwo\n"] and stat.S_ISFIFO(fifo.stat().st_mode)
    link.symlink_to("/dev/null")
    for place in (Path("/dev/null"), link):
        write_file(place, "text")
        assert stat.S_ISCHR(Path("/dev/null").stat().st_mode) and link.is_symlink()


@pytest.mark.parametrize("place", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "LINK"])
def test_standard_output_is_written_into_also_where_it_is_a_file(tmp_path: Path, place: str) -> None:
    """Appended to by `>>`: what was there stays, and so does what others write to it."""
    (tmp_path / "LINK").symlink_to("/dev/stdout")
    (tmp_path / "log").write_text("before\n")
    code = f"from pathlib import Path; from microbert_cli.runs.disk import *; write_file(Path({place!r}), 'text\\n')"
    code += f"; assert is_standard_output(Path({place!r})); print('after')"
    with (tmp_path / "log").open("a") as log:
        subprocess.run([sys.executable, "-c", code], stdout=log, check=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert (tmp_path / "log").read_text() == "before\ntext\nafter\n"


def test_a_file_in_a_folder_that_takes_no_other_is_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EBUSY, "busy", str(self))

    monkeypatch.setattr(Path, "replace", refuse)  # as a file that a container mounts by itself
    (tmp_path / "file").write_text("before, and longer")
    write_file(tmp_path / "file", "after")
    assert (tmp_path / "file").read_text() == "after" and [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(MbertError):
        write_file(tmp_path / "new", "after")


@pytest.mark.parametrize("place", ["no/such/folder/file", "file/below", "folder"])
def test_a_place_that_takes_nothing_is_refused_before_the_work(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("before")
    with pytest.raises(MbertError) as before:
        check_writable(tmp_path / place)
    with pytest.raises(MbertError) as after:
        write_file(tmp_path / place, "text")
    assert before.value.code == after.value.code == "M221" and before.value.what == after.value.what
    for fine in ("file", "new", "folder/new"):
        check_writable(tmp_path / fine)
    for fine in ("/dev/null", "/dev/stdout", "/proc/self/fd/1"):
        check_writable(Path(fine))
    assert (tmp_path / "file").read_text() == "before" and not (tmp_path / "new").exists()


# --- checksums of large files ---------------------------------------------------------------------------------------------


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was read for its checksum; every file counts as a large one that was written long ago."""
    paths: list[Path] = []
    read = hashlib.file_digest

    def note(file: Any, name: str) -> Any:
        paths.append(Path(file.name))
        return read(file, name)

    monkeypatch.setattr(hashlib, "file_digest", note)
    monkeypatch.setattr(atomic, "LARGE_FILE", 4)
    monkeypatch.setattr(cache, "SETTLED_NS", -1)
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path / "cache"))
    return paths


def start_again() -> None:
    atomic._digests.clear()


def test_a_large_file_is_read_once_until_it_changes(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    first = cache.remembered_digest(path)
    start_again()
    assert cache.remembered_digest(path) == first and reads == [path]
    path.write_bytes(b"Weights")
    start_again()
    assert cache.remembered_digest(path) != first and len(reads) == 2
    other = tmp_path / "other"
    other.write_bytes(b"another")
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    other.replace(path)  # of the same size and time
    start_again()
    assert cache.remembered_digest(path) == hashlib.sha256(b"another").hexdigest()


def test_a_small_file_is_read_always(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"one")
    time = path.stat().st_mtime_ns
    first = cache.remembered_digest(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(time, time))
    assert cache.remembered_digest(path) != first


def test_a_damaged_or_unwritable_memory_only_costs_time(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    first = cache.remembered_digest(path)
    (entry,) = (tmp_path / "cache" / "digests").iterdir()
    for text in ("", "{", "[]", '{"path": 1}', entry.read_text().replace(first, "0" * 64)):
        entry.write_text(text)
        start_again()
        assert cache.remembered_digest(path) == first
    entry.unlink()
    entry.mkdir()
    start_again()
    assert cache.remembered_digest(path) == first
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("no folder")
    start_again()
    assert cache.remembered_digest(path) == first
