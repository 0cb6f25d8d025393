"""Output directories: whole or not there, found again, never overwritten, one run at a time; and their manifests."""

import errno
import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from recording import RecordingReporter

from microbert_cli.errors import MbertError
from microbert_cli.models.find import find_model
from microbert_cli.runs import atomic, manifest, reuse
from microbert_cli.runs.output_dir import differences, is_up_to_date, stage_output
from microbert_cli.runs.stage_registry import all_stages
from microbert_cli.training import checkpoint

IDENTITY = {"recipe": {"seed": 1, "finetune": {"epochs": 3.0}}, "model": "abc"}


def make(out, identity=IDENTITY, text="result", **options):
    """A stage that writes one file; returns whether it had anything to do."""
    with stage_output(out, stage="test", identity=identity, **options) as work:
        if not work.done:
            (work.path / "file.txt").write_text(text)
        return not work.done


def stop(out, name="half.txt", identity=IDENTITY):
    """A stage that is stopped in the middle."""
    with pytest.raises(KeyboardInterrupt), stage_output(out, stage="test", identity=identity) as work:
        (work.path / name).write_text("half")
        raise KeyboardInterrupt


def refused(code, out, identity=IDENTITY, **options):
    with pytest.raises(MbertError) as caught:
        make(out, identity, **options)
    assert caught.value.code == code
    return caught.value


def litter(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@pytest.mark.parametrize(("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0o077, 0o600, 0o700)])
def test_every_output_has_the_permissions_of_the_umask(tmp_path, umask, file, folder):
    """safetensors writes 0600 whatever the umask says; a temporary folder that is moved into place has 0700."""
    before = os.umask(umask)
    try:
        with stage_output(tmp_path / "out", stage="finetune", identity={}) as work:
            for name in ("model.safetensors", "resume/projection.safetensors"):
                (work.path / name).parent.mkdir(exist_ok=True, mode=0o700)
                (work.path / name).write_bytes(b"weights")
                (work.path / name).chmod(0o600)
        checkpoint.save_batches([{"input_ids": torch.zeros(1, 2)}], tmp_path / "out" / "diverged.safetensors")
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*")}
    assert set(modes) >= {tmp_path / "out/resume/projection.safetensors", tmp_path / "out/manifest.json"}
    assert all(mode == (folder if path.is_dir() else file) for path, mode in modes.items())


def test_a_new_output_is_whole(tmp_path):
    assert make(tmp_path / "out")
    assert litter(tmp_path) == ["out"]
    assert litter(tmp_path / "out") == ["file.txt", "manifest.json"]
    record = manifest.read(tmp_path / "out")
    assert record["status"] == "complete" and record["stage"] == "test" and record["identity"] == IDENTITY
    assert record["outputs"] == {"file.txt": atomic.file_digest(tmp_path / "out" / "file.txt")}
    assert {"argv", "versions", "started", "finished", "schema", "result", "git"} <= record.keys()


def test_an_empty_directory_is_as_good_as_none(tmp_path):
    (tmp_path / "out").mkdir()
    assert make(tmp_path / "out")


def test_nothing_is_there_before_the_end(tmp_path):
    out = tmp_path / "out"
    with stage_output(out, stage="test", identity=IDENTITY) as work:
        (work.path / "file.txt").write_text("x")
        assert not out.exists() and work.path == manifest.partial_path(out)
        assert not (work.path / manifest.FILE).exists()


def test_up_to_date(tmp_path):
    out = tmp_path / "out"
    make(out)
    before = manifest.read(out)
    assert not make(out)
    assert manifest.read(out) == before
    assert is_up_to_date(out, dict(reversed(IDENTITY.items())))


def test_another_recipe_is_refused_with_the_differing_keys(tmp_path):
    out = tmp_path / "out"
    make(out)
    other = {"recipe": {"seed": 2, "finetune": {"epochs": 3.0}}, "model": "abc", "teacher": "t"}
    error = refused("M110", out, other)
    assert "recipe.seed: 1 -> 2" in error.what and "teacher: (none) -> t" in error.what and "epochs" not in error.what
    assert (out / "file.txt").read_text() == "result"
    assert differences(out, other) == ["recipe.seed: 1 -> 2", "teacher: (none) -> t"]


def test_renew_moves_the_old_one_aside_and_says_why(tmp_path):
    out, reporter = tmp_path / "out", RecordingReporter()
    make(out)
    assert make(out, {**IDENTITY, "model": "xyz"}, "second", renew=True, reporter=reporter)
    assert (out / "file.txt").read_text() == "second"
    assert (tmp_path / "out.old-1" / "file.txt").read_text() == "result"
    assert any("model: abc -> xyz" in text for text in reporter.notes)


def test_force_never_deletes(tmp_path):
    out = tmp_path / "out"
    for text in ("one", "two", "three"):
        assert make(out, text=text, force=True)
    kept = [(tmp_path / f"out.old-{n}" / "file.txt").read_text() for n in (1, 2)]
    assert kept == ["one", "two"] and (out / "file.txt").read_text() == "three"


def test_what_something_else_made_is_refused_unless_forced(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    refused("M111", out)
    assert litter(tmp_path) == ["out"]
    make(out, force=True)
    assert (tmp_path / "out.old-1" / "thesis.txt").read_text() == "mine"


def test_begun_work_is_found_again(tmp_path):
    out, reporter = tmp_path / "out", RecordingReporter()
    stop(out)
    assert litter(tmp_path) == ["out.partial"]
    with stage_output(out, stage="test", identity=IDENTITY, reporter=reporter) as work:
        assert work.resumed and (work.path / "half.txt").read_text() == "half"
    assert "begun.json" not in litter(out)
    assert reporter.notes


def test_begun_work_of_another_kind_is_refused(tmp_path):
    stop(tmp_path / "out")
    with pytest.raises(MbertError, match="recipe.finetune.epochs: 3.0 -> 5.0") as caught:
        make(tmp_path / "out", identity={**IDENTITY, "recipe": {**IDENTITY["recipe"], "finetune": {"epochs": 5.0}}})
    assert caught.value.code == "M117" and (tmp_path / "out.partial" / "half.txt").is_file()


@pytest.mark.parametrize(
    "options", [{"identity": {"model": "other"}, "renew": True}, {"resume": False}, {"force": True}], ids=str
)
def test_begun_work_of_another_kind_is_moved_aside(tmp_path, options):
    out = tmp_path / "out"
    stop(out)
    assert make(out, **options)
    assert litter(out) == ["file.txt", "manifest.json"]
    assert (tmp_path / "out.partial.old-1" / "half.txt").is_file()


def test_work_that_fails_before_it_wrote_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="early"), stage_output(tmp_path / "a" / "out", stage="test", identity=IDENTITY):
        raise ValueError("early")
    assert litter(tmp_path) == []


def test_a_damaged_beginning_is_not_resumed(tmp_path):
    out = tmp_path / "out"
    stop(out)
    (manifest.partial_path(out) / "begun.json").write_text("{")
    make(out)
    assert not (out / "half.txt").exists()


def hold(out, ready, end):
    with stage_output(Path(out), stage="test", identity=IDENTITY) as work:
        (work.path / "file.txt").write_text("x")
        ready.set()
        end.wait(20)


def test_one_run_at_a_time(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    other = context.Process(target=hold, args=(str(tmp_path / "out"), ready, end))
    other.start()
    try:
        assert ready.wait(20)
        refused("M112", tmp_path / "out")
        refused("M112", tmp_path / "out", force=True)
        assert make(tmp_path / "neighbour")
    finally:
        end.set()
        other.join(20)
    assert not make(tmp_path / "out")
    assert litter(tmp_path) == ["neighbour", "out"]


@pytest.mark.parametrize("where", ["fsync", "rename"])
def test_a_full_disk_keeps_what_is_done(tmp_path, monkeypatch, where):
    out = tmp_path / "out"

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os if where == "fsync" else Path, where, full)
        with pytest.raises(MbertError) as caught, stage_output(out, stage="test", identity=IDENTITY) as work:
            (work.path / "file.txt").write_text("x")
    assert caught.value.code == "M220" and not out.exists()
    make(out)
    assert (out / manifest.FILE).is_file()


def test_a_full_disk_in_the_middle_is_resumed(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(MbertError) as caught, stage_output(out, stage="test", identity=IDENTITY) as work:
        (work.path / "half.txt").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.code == "M220" and int(caught.value.exit_code) == 4
    with stage_output(out, stage="test", identity=IDENTITY) as work:
        assert work.resumed and (work.path / "half.txt").is_file()


def test_another_failure_stays_itself(tmp_path):
    with pytest.raises(OSError, match="odd"), stage_output(tmp_path / "out", stage="test", identity=IDENTITY):
        raise OSError(errno.ECHILD, "odd")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.EIO, "odd"), "M221"),
        (OSError(errno.EACCES, "odd"), "M221"),
        (OSError(errno.ENOSPC, "odd"), "M220"),
        (ValueError("Error while serializing: I/O error: Input/output error (os error 5)"), "M221"),
        (ValueError("Error while serializing: I/O error: No space left on device (os error 28)"), "M220"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"), "M221"),
    ],
    ids=str,
)
def test_what_a_disk_refuses_is_an_error_that_helps(tmp_path, error, code):
    with pytest.raises(MbertError) as caught, stage_output(tmp_path / "out", stage="test", identity=IDENTITY):
        raise error
    assert caught.value.code == code


def test_readers_refuse_what_is_unfinished_and_name_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/mbert", "finetune", "--task", "sst2"])
    out = tmp_path / "out"
    stop(out, "config.json")
    for place in (out, manifest.partial_path(out)):
        with pytest.raises(MbertError) as caught:
            find_model(place, where="--model")
        assert caught.value.code == "M210"
        assert caught.value.fix == "Finish it: mbert finetune --task sst2"
    with pytest.raises(MbertError) as caught:
        manifest.read(manifest.partial_path(out))
    assert caught.value.code == "M210"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"identity": 1}'])
def test_a_damaged_manifest(tmp_path, text):
    make(tmp_path / "out")
    (tmp_path / "out" / manifest.FILE).write_text(text)
    with pytest.raises(MbertError) as caught:
        manifest.read(tmp_path / "out")
    assert caught.value.code == "M301"
    refused("M301", tmp_path / "out")


def test_identity_of_an_output_is_its_result_not_its_talk(tmp_path):
    for name, text in (("a", "x"), ("b", "y")):
        with stage_output(tmp_path / name, stage="test", identity={"from": name}) as work:
            (work.path / "file.txt").write_text("same")
            (work.path / "log.jsonl").write_text(text)
            (work.path / "README.md").write_text(text)
    make(tmp_path / "c", text="other")
    a, b, c = (manifest.identify(tmp_path / name) for name in "abc")
    assert a == b != c


def test_identity_of_a_plain_directory_a_file_and_a_name(tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "config.json").write_text("{}")
    before = manifest.identify(plain)
    assert before == manifest.identify(plain)
    (plain / "config.json").write_text("{ }")
    assert manifest.identify(plain) != before
    assert manifest.identify(plain / "config.json") == atomic.file_digest(plain / "config.json")
    assert manifest.identify("google-bert/bert-base-uncased") == "google-bert/bert-base-uncased"
    assert manifest.identify(None) is None


def test_linked_files_count_as_the_hubs_cache_has_them(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"blob-{name}").write_text(name)
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").symlink_to(tmp_path / f"blob-{name}")
    assert manifest.identify(tmp_path / "one") != manifest.identify(tmp_path / "two")


def test_text_is_written_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    atomic.write_text(path, "old")

    def broken(_):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(os, "fsync", broken)
        atomic.write_text(path, "new")
    assert path.read_text() == "old"


def test_digest_ignores_key_order():
    assert atomic.digest({"a": 1, "b": [1, 2]}) == atomic.digest(json.loads('{"b": [1, 2], "a": 1}'))
    assert atomic.digest({"a": 1}) != atomic.digest({"a": "1"})


def test_two_runs_may_write_the_same_file_at_once(tmp_path):
    """Each through a temporary file of its own: neither takes away the other's before it is renamed."""
    import subprocess
    import sys

    program = "import sys\nfrom pathlib import Path\nfrom microbert_cli.runs.atomic import write_text\n"
    program += "for i in range(200): write_text(Path(sys.argv[1]), str(i))"
    runs = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "run.json")]) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_what_killed_writers_left_is_swept_and_a_living_one_keeps_its_own(tmp_path, monkeypatch):
    import subprocess
    import sys

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, begun, other = (f".run.json.{ended.pid}.tmp", f".run.json.{os.getpid()}.tmp", ".log.json.1.tmp")
    for name in (left, begun, other, ".run.json.none.tmp"):
        (tmp_path / name).write_text("half")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    atomic.remove_stale_temporaries(tmp_path / "run.json")
    assert (tmp_path / left).is_file()
    monkeypatch.setenv("RANK", "0")
    atomic.remove_stale_temporaries(tmp_path / "run.json")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([begun, other])


def copied(out, *runs, identity=IDENTITY, **options):
    """Whether the output was taken from one of these runs instead of made here."""
    reporter = RecordingReporter()
    was_run = make(out, identity, text="made here", reuse=[str(run) for run in runs], reporter=reporter, **options)
    taken = any("copied from" in note for note in reporter.notes)
    assert taken != was_run
    return taken


def test_what_another_run_made_of_the_same_is_copied(tmp_path):
    make(tmp_path / "one/teacher", text="made there")
    assert copied(tmp_path / "two/finetune", tmp_path / "gone", tmp_path / "one")
    assert litter(tmp_path / "two") == ["finetune"]
    assert (tmp_path / "two/finetune/file.txt").read_text() == "made there"
    assert manifest.read_verified(tmp_path / "two/finetune") == manifest.read_verified(tmp_path / "one/teacher")
    assert not make(tmp_path / "two/finetune"), "afterwards it is up to date by itself"
    assert copied(tmp_path / "three", tmp_path / "one/teacher"), "a single output may be named, too"


def test_nothing_else_is_taken(tmp_path):
    """Another identity, another stage, a damaged output, one that is not finished; and nothing where the user said --force."""
    make(tmp_path / "other/x", {**IDENTITY, "model": "xyz"})
    with stage_output(tmp_path / "stage/x", stage="another", identity=IDENTITY) as work:
        (work.path / "file.txt").write_text("result")
    make(tmp_path / "damaged/x")
    (tmp_path / "damaged/x/file.txt").write_text("resulT")
    make(tmp_path / "partial/x.old")
    (tmp_path / "partial/x.old/manifest.json").rename(tmp_path / "partial/x.old/manifest")
    for number, run in enumerate(("other", "stage", "damaged", "partial")):
        assert not copied(tmp_path / f"out/{number}", tmp_path / run)
    make(tmp_path / "whole/x")
    assert not copied(tmp_path / "out/forced", tmp_path / "whole", force=True)
    assert litter(tmp_path / "out") == ["0", "1", "2", "3", "forced"]


def test_the_stages_that_reuse_are_those_that_say_so():
    """`mbert plan` and `--dry-run` go by their records."""
    places = Path(reuse.__file__).parents[1].glob("stages/*/run.py")
    reusing = sorted(path.parent.name.replace("_", "-") for path in places if "recipe.reuse" in path.read_text())
    assert [stage.name for stage in all_stages() if stage.reusable] == reusing


def test_begun_work_goes_on_and_is_not_replaced_by_a_copy(tmp_path):
    make(tmp_path / "run/x")
    stop(tmp_path / "out")
    assert not copied(tmp_path / "out", tmp_path / "run")
    assert litter(tmp_path) == ["out", "run"]


@pytest.mark.parametrize("name", ["../escaped.txt", "/tmp/escaped.txt", "in/../../escaped.txt"])
def test_a_manifest_of_others_writes_nothing_outside_the_copy(tmp_path, name):
    make(tmp_path / "run/x")
    (tmp_path / "run/escaped.txt").write_text("theirs")
    file = tmp_path / "run/x/manifest.json"
    values = atomic.load_with_checksum(file.read_text())
    values["outputs"][name] = atomic.file_digest(tmp_path / "run/escaped.txt")
    file.write_text(atomic.dump_with_checksum(values))
    assert not copied(tmp_path / "out/x", tmp_path / "run")
    assert litter(tmp_path / "out") == ["x"]


def test_a_copy_that_was_cut_short_is_made_anew(tmp_path):
    make(tmp_path / "run/x")
    (tmp_path / ".out.copy").mkdir()
    (tmp_path / ".out.copy/half.txt").write_text("half")
    assert copied(tmp_path / "out", tmp_path / "run")
    assert litter(tmp_path) == ["out", "run"]


def test_a_copy_is_not_written_through_a_link(tmp_path):
    make(tmp_path / "run/x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".out.copy").symlink_to(tmp_path / "elsewhere")
    assert copied(tmp_path / "out", tmp_path / "run")
    assert litter(tmp_path / "elsewhere") == [] and litter(tmp_path) == ["elsewhere", "out", "run"]
