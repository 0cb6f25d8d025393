"""Checks before the run: each passes where it should and fails where it should, and none leaves anything behind."""

import functools
import io
import json
from pathlib import Path

import pytest
import torch
from mbert_command import mbert, works
from packaging.requirements import Requirement
from tiny_folder import tiny_folder
from tiny_models import WORDS, tiny_bert

from microbert_cli.cli.console import show_marked
from microbert_cli.errors import MbertError
from microbert_cli.hub import NAMES, is_offline, no_network
from microbert_cli.plan.doctor import data_checks, machine_checks, model_checks
from microbert_cli.plan.doctor.checks import CHECKS, examine
from microbert_cli.plan.doctor.context import DoctorContext
from microbert_cli.plan.doctor.findings import Finding, Later, Result, attempt, doubtful, failed, passed
from microbert_cli.plan.doctor.first_step import first_step
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.runs.stage_inputs import steps
from microbert_cli.training import checkpoint

RECIPE = """
task    = "sst2"
base    = "base"
student = "bert-1x16"
method = "tinybert"
corpus  = "text.txt"
data    = "glue"
stages  = ["finetune", "general-distill", "augment", "task-distill", "evaluate"]
"""
OWN = """
student = "bert-1x16"
method = "tinybert"
base    = "base"
stages  = ["finetune", "task-distill"]
[data]
train_file = "train.csv"
dev_file   = "dev.csv"
"""
GOOD = [f"a lovely boat by the harbour {i}" for i in range(12)]
BAD = [f"a gloomy kettle by the station {i}" for i in range(12)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a recipe and all it needs."""
    place = tmp_path_factory.mktemp("doctor")
    with tiny_folder(place, RECIPE, layers=2, hidden=16, dropout=0.0):
        tiny_bert("taught", labels=["negative", "positive"], dropout=0.0)
        tiny_bert("three-heads", kind="encoder", layers=1, hidden=12, heads=3)
        tiny_bert("other-words", kind="encoder", layers=1, vocab=WORDS[:20])
        yield place


@pytest.fixture(autouse=True)
def here(home, monkeypatch, tmp_path):
    monkeypatch.chdir(home)
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path / "cache"))


def case(*sets, recipe="small.toml", offline=True, root="runs/small"):
    catalog = Catalog()
    resolved = resolve(catalog=catalog, recipe=recipe, sets=sets)
    return DoctorContext(steps(resolved, Path(root), catalog), Path(root), catalog, offline=offline)


def look(check, *sets, **options):
    """What a check finds, as {about: finding}."""
    return {finding.about: finding for finding in check(case(*sets, **options))}


def write_recipe(place, train, dev):
    """A recipe about own rows, (text, label) each."""
    for name, rows in (("train", train), ("dev", dev)):
        lines = [f"{text},{label}" for text, label in rows]
        (place / f"{name}.csv").write_text("\n".join(["text,label", *lines, ""]), encoding="utf-8")
    own_files = OWN.replace('"train.csv"', f'"{place}/train.csv"').replace('"dev.csv"', f'"{place}/dev.csv"')
    (place / "own.toml").write_text(own_files, encoding="utf-8")
    return place / "own.toml"


def labelled(good=GOOD, bad=BAD):
    return [(text, "high") for text in good] + [(text, "low") for text in bad]


DEV = [("a warm lamp", "high"), ("a bitter letter", "low")]


# --- one check after the other --------------------------------------------------------------------------------------------


def test_versions(monkeypatch):
    assert look(machine_checks.versions)[""].state == "pass"
    names = [need.name for need in machine_checks.requirements()]
    assert "torch" in names and "onnx" not in names and "onnx" in [need.name for need in machine_checks.requirements("onnx")]
    wanted = [Requirement("torch>=99"), Requirement("no-such-package>=1"), Requirement("numpy>=2")]
    monkeypatch.setattr(machine_checks, "requirements", lambda *_: wanted)
    finding = look(machine_checks.versions)[""]
    assert finding.state == "fail" and finding.error.code == "M631"
    assert "torch>=99" in finding.what and "nothing is installed" in finding.what and "numpy" not in finding.what
    monkeypatch.setattr(machine_checks, "requirements", lambda *_: [])
    assert look(machine_checks.versions)[""].state == "warn"


def test_device():
    assert look(machine_checks.device, "device=cpu")["cpu"].state == "pass"
    finding = look(machine_checks.device, "device=cuda:77")["cuda:77"]
    assert finding.state == "fail" and finding.error.code == "M109"


def test_inputs_are_here_or_will_be():
    findings = look(model_checks.inputs)
    assert {about: finding.state for about, finding in findings.items()} == {
        "base": "pass", "text.txt": "pass", "bert-1x16": "pass", "rows of sst2": "pass", "runs/small/finetune": "later",
        "runs/small/general-distill": "later", "runs/small/augment": "later", "runs/small/task-distill": "later",
        "augment.sources": "pass",
    }  # fmt: skip
    assert findings["runs/small/finetune"].what == "later: made by finetune"


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("base", "runs/gone", "M203"),
        ("base", "tiny/nowhere", "M204"),
        ("corpus.source", "gone.txt", "M230"),
        ("corpus.source", "tiny/nowhere", "M637"),
        ("vectors.source", "gone.zip", "M242"),
        ("data.folder", "gone", "M250"),
    ],
)
def test_inputs_that_are_nowhere(key, value, code):
    findings = look(model_checks.inputs, f"{key}={value}")
    assert code in [finding.error.code for finding in findings.values() if finding.state == "fail"]


def test_what_the_hub_would_give_is_later_where_it_may_be_asked():
    findings = look(model_checks.inputs, "base=tiny/nowhere", "corpus.source=tiny/texts", offline=False)
    assert findings["tiny/nowhere"].state == findings["tiny/texts"].state == "later"
    assert "comes from the Hub" in findings["tiny/nowhere"].what
    assert not [finding for finding in findings.values() if finding.state == "fail"]


def test_a_hub_model_is_found_in_the_local_cache(home, monkeypatch, tmp_path):
    copy = tmp_path / "hub" / "models--tiny--teacher"
    (copy / "refs").mkdir(parents=True)
    (copy / "refs" / "main").write_text("c0ffee")
    (copy / "snapshots").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (copy / "snapshots" / "c0ffee").mkdir()
    assert look(model_checks.inputs, "base=tiny/teacher")["tiny/teacher"].state == "fail", "no weights"
    for file in (home / "base").iterdir():
        (copy / "snapshots" / "c0ffee" / file.name).write_bytes(file.read_bytes())
    finding = look(model_checks.inputs, "base=tiny/teacher")["tiny/teacher"]
    assert (finding.state, finding.what) == ("pass", "in the Hub's local cache")
    assert look(first_step, "base=tiny/teacher")["general-distill"].state == "pass"


def test_tokenizers(home):
    findings = look(model_checks.tokenizers)
    assert findings["general-distill"].state == findings["task-distill"].state == "pass"
    different = look(model_checks.tokenizers, "student=other-words", 'stages=["general-distill"]')["general-distill"]
    assert different.state == "fail" and different.error.code == "M312"


def test_tokenizers_of_one_vocabulary_and_other_rules(home):
    cased = tiny_bert("cased", kind="encoder", layers=1)
    config = json.loads((cased / "tokenizer.json").read_text(encoding="utf-8"))
    config["normalizer"]["lowercase"] = False
    (cased / "tokenizer.json").write_text(json.dumps(config), encoding="utf-8")
    settings = json.loads((cased / "tokenizer_config.json").read_text(encoding="utf-8"))
    (cased / "tokenizer_config.json").write_text(json.dumps(settings | {"do_lower_case": False}), encoding="utf-8")
    finding = look(model_checks.tokenizers, "student=cased", 'stages=["general-distill"]')["general-distill"]
    assert finding.state == "fail" and finding.error.code == "M635" and "the baker" in finding.what


def test_labels(tmp_path):
    finding = look(data_checks.labels)[""]
    assert finding.state == "pass" and finding.what == "negative 20, positive 20"
    rare = look(data_checks.labels, recipe=write_recipe(tmp_path, labelled(bad=BAD[:2]), DEV))[""]
    assert rare.state == "warn" and "low 2" in rare.what
    many = [f"{text} {i}" for text in GOOD for i in range(20)]
    assert "20 times" in look(data_checks.labels, recipe=write_recipe(tmp_path, labelled(many, BAD[:9]), DEV))[""].what
    missing = look(data_checks.labels, "data.limit=1")[""]
    assert missing.state == "fail" and missing.error.code == "M358"


def test_scores(tmp_path):
    varied, constant = ([(text, score) for text, score in zip(GOOD, scores, strict=True)] for scores in (range(12), [1.5] * 12))
    varied = [(text, score / 2) for text, score in varied]
    assert look(data_checks.labels, recipe=write_recipe(tmp_path, varied, varied[:2]))[""].what == "12 scores from 0 to 5.5"
    finding = look(data_checks.labels, "data.kind=score", recipe=write_recipe(tmp_path, constant, varied[:2]))[""]
    assert finding.state == "warn"


def test_duplicates(tmp_path):
    assert look(data_checks.duplicates)[""].state == "pass"
    rows = labelled()
    some = look(data_checks.duplicates, recipe=write_recipe(tmp_path, rows, [(rows[0][0].upper(), "high"), *DEV]))[""]
    assert some.state == "warn" and "1 of 3 dev rows" in some.what, "case makes no difference"
    most = look(data_checks.duplicates, recipe=write_recipe(tmp_path, rows, [*rows[:5], *DEV]))[""]
    assert most.state == "fail" and most.error.code == "M634"


def test_truncation():
    assert look(data_checks.truncation)["finetune"].state == "pass"
    short = look(data_checks.truncation, "data.max_length=6")["finetune"]
    assert short.state == "warn" and "40 of 40" in short.what and short.what.endswith("data.max_length=12")
    tiny_bert("short-teacher", labels=["negative", "positive"], positions=8)
    both = look(data_checks.truncation, 'stages=["task-distill"]', "teacher.model=short-teacher", "data.max_length=6")
    assert both["task-distill"].what.endswith("data.max_length=8"), "no longer than any model of the run can read"
    long = look(data_checks.truncation, "data.max_length=500")["finetune"]
    assert long.state == "fail" and long.error.code == "M012"


def test_two_sets_of_rows_are_told_apart(tmp_path):
    two = tmp_path / "two.toml"
    two.write_text(RECIPE + '[variant.short]\nstage = "finetune"\ndata = { max_length = 5 }\n', encoding="utf-8")
    findings = look(data_checks.labels, 'stages=["finetune", "short", "task-distill"]', recipe=two)
    assert list(findings) == ["finetune, task-distill", "short"]
    cut = look(data_checks.truncation, 'stages=["finetune", "short", "task-distill"]', recipe=two)
    assert [finding.state for finding in cut.values()] == ["pass", "warn"], "equal rows and tokenizers are told once"


def test_the_first_step_of_every_stage():
    findings = look(first_step)
    assert list(findings) == ["finetune", "general-distill", "task-distill"]
    assert {finding.state for finding in findings.values()} == {"pass"}
    assert "intermediate" in findings["task-distill"].what and "prediction" in findings["task-distill"].what


def test_the_first_step_of_pretraining_with_a_vocabulary_of_its_own():
    sets = ('stages=["pretrain", "finetune", "task-distill"]', "pretrain.model=bert-2x16", "vocabulary.size=80")
    findings = look(first_step, *sets)
    assert {about: finding.state for about, finding in findings.items()} == {
        "pretrain": "pass", "finetune": "pass", "task-distill": "pass",
    }  # fmt: skip


def test_the_first_step_with_models_that_are_there():
    assert look(first_step, "teacher.model=taught", 'stages=["task-distill"]')["task-distill"].state == "pass"
    finding = look(first_step, "teacher.model=taught", "student=three-heads", 'stages=["task-distill"]')["task-distill"]
    assert finding.state == "fail" and finding.error.code == "M013" and "three-heads" in finding.error.where


def test_a_damaged_model_is_a_cross_and_the_others_are_tried_all_the_same(home):
    damaged = tiny_bert("damaged", kind="encoder", layers=1)
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:100])
    findings = look(first_step, "student=damaged")
    assert {about: finding.state for about, finding in findings.items()} == {
        "finetune": "pass", "general-distill": "fail", "task-distill": "fail",
    }  # fmt: skip
    assert findings["general-distill"].error.code == findings["task-distill"].error.code == "M302"


def test_heads_are_compared_before_the_teacher_is_made():
    """The name in the error is the recipe's, not that of random weights in a temporary folder."""
    sets = ('stages=["finetune", "task-distill"]', "student=three-heads", "init=three-heads")
    findings = look(first_step, *sets)
    assert findings["finetune"].state == "pass" and findings["task-distill"].error.code == "M013"


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_step_that_is_no_number_fails(broken, monkeypatch):
    """BertAdam clips tensor by tensor, so that the loop sees no norm: the weights tell."""
    from microbert_cli.catalog.losses import hard_label

    original = hard_label.hard_label

    @functools.wraps(original)
    def bad(**given):
        loss, zero = original(**given), given["student_BC"] * 0
        return loss * float("nan") if broken == "loss" else loss + zero.abs().sum().sqrt()

    monkeypatch.setattr(hard_label, "hard_label", bad)
    finding = look(first_step, 'stages=["finetune"]', "finetune.optimizer=bertadam")["finetune"]
    assert finding.state == "fail" and finding.error.code == {"loss": "M401", "gradient": "M636"}[broken]


def test_a_checkpoint_comes_back(home, monkeypatch):
    assert look(machine_checks.saving)["runs/small"].state == "pass"
    original = checkpoint.load_state
    monkeypatch.setattr(checkpoint, "load_state", lambda folder: original(folder) | {"step": 8})
    finding = look(machine_checks.saving)["runs/small"]
    assert finding.state == "fail" and finding.error.code == "M632"

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_state", full)
    assert look(machine_checks.saving)["runs/small"].error.code == "M220"
    assert not list(home.glob(".mbert-doctor-*"))


def test_equal_states():
    state = {"a": torch.tensor([float("nan"), -0.0]), "b": [1, 2], "c": torch.tensor(3)}
    assert machine_checks.is_same(state, {"a": torch.tensor([float("nan"), -0.0]), "b": [1, 2], "c": torch.tensor(3)})
    assert not machine_checks.is_same(state, state | {"a": torch.tensor([float("nan"), 0.0])})
    assert not machine_checks.is_same(state, state | {"c": torch.tensor(3.0)})


def test_disk(monkeypatch):
    disks = look(machine_checks.disk)
    assert list(disks) == ["runs/small"] and disks["runs/small"].state == "pass" and "5 stages" in disks["runs/small"].what
    monkeypatch.setattr(machine_checks, "TIGHT", 0.0)
    assert look(machine_checks.disk)["runs/small"].state == "warn"
    monkeypatch.setattr(machine_checks, "free_bytes", lambda _: 1_000)
    monkeypatch.setattr(machine_checks.cache, "free_bytes", lambda: 0)
    assert look(machine_checks.disk)["runs/small"].error.code == "M633"


def test_the_disk_is_counted_as_planning_counts_it(monkeypatch):
    from microbert_cli.plan import calibration, stages
    from microbert_cli.plan.calibration import Calibration

    monkeypatch.setattr(calibration, "rehearse", lambda job, shapes, **_: dict.fromkeys(shapes, 1e-3))
    catalog = Catalog()
    planned = case('stages=["finetune", "general-distill", "task-distill"]').steps
    timed, counted = (
        stages.plan_steps(planned, catalog=catalog, here=Calibration(device="cpu", catalog=catalog, counts_only=only))
        for only in (False, True)
    )
    assert [step.disk for step in timed] == [step.disk for step in counted]
    assert timed[0].seconds > counted[0].seconds


# --- all of them ----------------------------------------------------------------------------------------------------------


def test_what_a_finding_is():
    error = MbertError("M012", "too long", where="here", allowed="Less.", fix="Cut.")

    def raising(reason):
        raise reason

    assert attempt("x", lambda: passed("fine")) == Finding("pass", "fine", "x")
    assert attempt("x", raising, Later("made by finetune")) == Finding("later", "later: made by finetune", "x")
    assert attempt("x", raising, error) == failed(error, "x")
    with pytest.raises(ZeroDivisionError):
        attempt("x", raising, ZeroDivisionError())
    result = Result(3, "y", [passed("a"), doubtful("b"), failed(error)])
    assert result.state == "fail" and Result(3, "y", [passed("a"), doubtful("b")]).state == "warn"
    assert result.as_dict()["findings"][2]["error"]["code"] == "M012" and Result(1, "z").state == "pass"


def test_an_error_is_told_once_and_the_other_checks_go_on():
    catalog = Catalog()
    resolved = resolve(catalog=catalog, recipe="small.toml", sets=["base=runs/gone"])
    root = Path("runs/small")
    checks = {check.name: check for check in examine(steps(resolved, root, catalog), root, catalog=catalog, offline=True)}
    assert list(checks) == list(CHECKS) and [check.number for check in checks.values()] == list(range(1, 11))
    assert [name for name, check in checks.items() if check.state == "fail"] == ["inputs"]
    assert checks["labels"].state == checks["checkpoint"].state == "pass"
    assert {finding.what for finding in checks["first step"].findings} == {"later: check 3 must pass first"}


def test_the_network_is_forbidden_for_a_while(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    assert not is_offline()
    with no_network():
        assert is_offline()
    assert not is_offline()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with no_network():
        assert is_offline()
    assert not is_offline()


# --- the command ----------------------------------------------------------------------------------------------------------


def test_a_healthy_recipe_leaves_no_trace(home, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    before = sorted(home.rglob("*"))
    done = works("doctor", "small.toml")
    lines = [line for line in done.out.splitlines() if not line.startswith(" " * 4)]
    assert {line.split()[1] for line in lines} <= {"✓", "·"} and "\x1b" not in done.out
    assert {int(line.split()[0]) for line in lines} == set(range(1, 11))
    assert sorted(home.rglob("*")) == before and not (tmp_path / "cache").exists()
    assert not list((tmp_path / "temporary").iterdir())


def test_a_cross_is_an_exit_code(home, tmp_path):
    words = ("doctor", "small.toml", "--device", "cuda:77")
    done = mbert(*words)
    assert done.code == 1 and " 2 ✗ device      cuda:77: there is no device" in done.out
    assert "[M109]" in done.out and "[M630]" in done.err and "10 checks failed: device" in done.err
    output = mbert(*words, "--json")
    assert output.code == 1 and output.json["passed"] is False and output.json["error"]["code"] == "M630"
    assert [check["name"] for check in output.json["checks"]] == list(CHECKS)
    assert output.json["checks"][1]["findings"][0]["error"]["code"] == "M109"


def test_marks_are_coloured_where_there_are_colours(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    show = functools.partial(show_marked, " 1 ", "✗", " [a] cross", "red")
    for encoding, colour, expected in (
        ("utf-8", True, "✗\x1b"),
        ("utf-8", False, " 1 ✗ [a] cross"),
        ("ascii", False, " 1 x [a]"),
    ):
        if not colour:
            monkeypatch.delenv("FORCE_COLOR", raising=False)
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr("sys.stdout", stream)
        show()
        assert expected in stream.buffer.getvalue().decode()


def test_json_of_a_healthy_recipe():
    report = works("doctor", "small.toml", "--json").json
    assert report["passed"] is True and report["recipe"] == "small" and "error" not in report
    assert report["checks"][0] | {"findings": []} == {"number": 1, "name": "versions", "state": "pass", "findings": []}


def test_a_recipe_that_is_none_is_refused_as_ever():
    assert mbert("doctor", "small.toml", "--set", "finetune.epoch=1").code == 3
    assert mbert("doctor", "small.toml", "--set", "stages=[]").code == 3


def test_what_is_made_is_taken_as_it_is(home):
    """After a run of a stage its output is an input like any other; a changed recipe makes it anew."""
    works("finetune", "small.toml", "-o", "runs/made/finetune", "--set", "finetune.steps=2", "--device", "cpu")
    sets = ("finetune.steps=2", "device=cpu", "teacher.allow_weak=true", 'stages=["finetune", "task-distill"]')
    assert look(model_checks.inputs, *sets, root="runs/made")["runs/made/finetune"].what == "here"
    assert look(first_step, *sets, root="runs/made")["task-distill"].state == "pass"
    changed = look(model_checks.inputs, *sets, "finetune.steps=3", root="runs/made")["runs/made/finetune"]
    assert changed.what == "later: made by finetune"


def test_a_run_that_is_done_is_healthy(home):
    short = {"finetune": 2, "general": 2, "phases.intermediate": 2, "phases.prediction": 2}
    sets = [f"{phase}.steps={steps}" for phase, steps in short.items()] + ["augment.copies=1", "teacher.allow_weak=true"]
    words = ("small.toml", "-o", "runs/done", *(word for text in sets for word in ("--set", text)))
    works("run", *words)
    before = sorted(home.rglob("*"))
    report = works("doctor", *words, "--json").json
    checks = {check["name"]: check for check in report["checks"]}
    assert {check["state"] for check in checks.values()} == {"pass"} and sorted(home.rglob("*")) == before
    inputs = {finding["about"]: finding["what"] for finding in checks["inputs"]["findings"]}
    assert inputs["runs/done/finetune"] == "here" and inputs["runs/done/augment"].endswith(" rows")
    assert checks["disk"]["findings"][0]["what"] == "everything is made already"
    anew = works("doctor", *words, "--json", "--set", "augment.copies=2").json["checks"][9]["findings"]
    assert [finding["state"] for finding in anew] == ["pass"] and "3 stages" in anew[0]["what"]
