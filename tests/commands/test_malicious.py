"""Attacks by what comes from elsewhere: models, recipes, task files, archives, begun work, texts.

Each test tries the attack. Code that must not run would leave `ran` in the folder; what is written must lie below the output.
"""

import contextlib
import gzip
import hashlib
import json
import os
import pickle
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from mbert_command import mbert, refused, works
from tiny_models import tiny_bert, tiny_glue

from microbert_cli.augmentation.word_vectors import load_word_table
from microbert_cli.cli import console
from microbert_cli.data import limits
from microbert_cli.data.limits import MAX_LINE_BYTES, MAX_TEXT_LENGTH, MIN_UNPACKED_BYTES
from microbert_cli.errors import MbertError
from microbert_cli.evaluation.report_table import as_markdown
from microbert_cli.exporting.model_card import Card, Score, model_card
from microbert_cli.models.load import load_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.runs import atomic
from microbert_cli.runs.output_dir import stage_output
from microbert_cli.runs.stage_inputs import default_root
from microbert_cli.text import safe_text

TOKEN = "hf_" + "Ab1" * 12
QUICK = ("--set", "finetune.steps=1", "--set", "finetune.evaluations=0")
FINETUNE = ("finetune", "--task", "sst2", "-o", "out", *QUICK)
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GLUE task, a corpus, and honest models."""
    root = tmp_path_factory.mktemp("workshop")
    tiny_glue(root / "glue", ["sst2"], rows=24)
    tiny_bert(root / "base", kind="masked-lm", dropout=0.0)
    tiny_bert(root / "teacher", labels=["negative", "positive"])
    (root / "text.txt").write_text("\n\n".join(f"The baker sold boat {i}." for i in range(30)), encoding="utf-8")
    return root


@pytest.fixture(autouse=True)
def here(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test works in a folder of its own; outside of `here/out` and `here/runs` nothing may appear or change."""
    here = tmp_path / "home" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MBERT_DATA", str(workshop / "glue"))
    (tmp_path / "home" / "precious").write_text("mine", encoding="utf-8")
    yield here
    assert not list(tmp_path.rglob("ran*")), "code of others ran"
    assert (tmp_path / "home" / "precious").read_text(encoding="utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["home"]
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["here", "precious"]


class Evil:
    """Leaves `ran` where it is unpickled."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("ran",))


CODE = 'import pathlib\npathlib.Path("ran").mkdir(exist_ok=True)\n'


def text_of(error: dict[str, Any]) -> str:
    return " ".join(str(error[part]) for part in ("what", "where", "allowed", "fix"))


def copy(source: Path, target: Path, **config: Any) -> Path:
    """A model's directory with other keys in its config.json."""
    shutil.copytree(source, target)
    whole = json.loads((target / "config.json").read_text(encoding="utf-8")) | config
    (target / "config.json").write_text(json.dumps(whole), encoding="utf-8")
    return target


# --- code in models -----------------------------------------------------------------------------------------------------


def pickled(source: Path, target: Path, *, zipped: bool = True) -> Path:
    """The model with weights that run code when they are unpickled."""
    copy(source, target)
    (target / "model.safetensors").unlink()
    weights = {"bert.embeddings.word_embeddings.weight": Evil()}
    if zipped:
        torch.save(weights, target / "pytorch_model.bin")
    else:
        (target / "pytorch_model.bin").write_bytes(pickle.dumps(weights))
    return target


WEAK = ("--set", "teacher.allow_weak=true")
STAGE_ONE = ("general-distill", "--corpus", "{root}/text.txt", "-o", "out", "--set", "general.steps=1")
STAGE_TWO = ("task-distill", "--task", "sst2", "-o", "out", *WEAK)
LOADS = {
    "finetune": ("finetune", "--model", "evil", *FINETUNE[1:]),
    "pretrain": ("pretrain", "--model", "evil", "--corpus", "{root}/text.txt", "-o", "out"),
    "the vocabulary of pretrain": (
        "pretrain", "--model", "bert-1x16", "--set", "base=evil", "--corpus", "{root}/text.txt", "-o", "out",
        "--set", "pretrain.steps=1",
    ),
    "the teacher of stage one": (*STAGE_ONE, "--teacher", "evil", "--student", "bert-1x16"),
    "the student of stage one": (*STAGE_ONE, "--teacher", "{root}/base", "--student", "./evil"),
    "augment": ("augment", "--masked-lm", "evil", "--task", "sst2", "-o", "out"),
    "the vectors of augment": ("augment", "--masked-lm", "{root}/base", "--vectors", "evil", "--task", "sst2", "-o", "out"),
    "the teacher of stage two": (*STAGE_TWO, "--teacher", "evil", "--student", "bert-1x16"),
    "the student of stage two": (*STAGE_TWO, "--teacher", "{root}/teacher", "--student", "./evil"),
    "evaluate": ("evaluate", "evil", "--task", "sst2", "-o", "out"),
    "the teacher of evaluate": ("evaluate", "{root}/teacher", "--teacher", "evil", "--task", "sst2", "-o", "out"),
    "export": ("export", "evil", "--task", "sst2", "-o", "out"),
    "predict": ("predict", "evil", "a text"),
    "bench": ("bench", "evil", "--task", "sst2"),
    "run": ("run", "--set", 'stages=["finetune"]', "--set", "finetune.model=./evil", "--task", "sst2", "-o", "out"),
}  # fmt: skip
WITHOUT_WEIGHTS = {"the vocabulary of pretrain"}


@pytest.mark.parametrize("case", LOADS)
def test_no_command_runs_code_of_a_model(case: str, workshop: Path) -> None:
    """A pickle as weights, and a model that is code: neither runs, whatever is answered on stdin."""
    words = [str(word).replace("{root}", str(workshop)) for word in LOADS[case]]
    source = workshop / ("teacher" if "predict" in case or "evaluate" in case else "base")
    pickled(source, Path("evil"))
    done = mbert(*words, stdin="y\n" * 20)
    assert "Traceback" not in done.err
    if case not in WITHOUT_WEIGHTS:
        assert done.code == 5 and "[M302]" in done.err and "never executed" in done.err, done.err
    for path in ("evil", "out"):
        shutil.rmtree(path, ignore_errors=True)
    remote(source)
    done = mbert(*words, stdin="y\n" * 20)
    assert done.code == 5 and "[M374]" in done.err and "Traceback" not in done.err, done.err


def remote(source: Path, model_type: str = "evil") -> Path:
    """The model as one whose configuration, classes and tokenizer are code of its own."""
    names = ("AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification")
    calls = {name: f"evil_code.{name}" for name in names}
    path = copy(source, Path("evil"), model_type=model_type, auto_map=calls)
    (path / "evil_code.py").write_text(CODE, encoding="utf-8")
    settings = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["auto_map"] = {"AutoTokenizer": ["evil_code.Slow", "evil_code.Fast"]}
    (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_pickle_is_refused_too(workshop: Path) -> None:
    pickled(workshop / "teacher", Path("evil"), zipped=False)
    assert "never executed" in refused(5, "M302", "predict", "evil", "a text")["what"]


def test_code_beside_a_known_architecture_is_passed_over_and_not_handed_on(workshop: Path) -> None:
    """Else whoever loads the student, and trusts it, runs the code of the teacher's author."""
    remote(workshop / "base", model_type="bert")
    settings = json.loads(Path("evil/tokenizer_config.json").read_text(encoding="utf-8"))
    settings["chat_template"] = [{"name": name, "template": "x"} for name in ("default", "../../../ran", "/tmp/x/ran")]
    Path("evil/tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    works(*FINETUNE, "--model", "evil", stdin="y\n" * 20)
    for file in Path("out").rglob("*"):
        assert not file.is_file() or b"evil_code" not in file.read_bytes(), file
        assert file.suffix not in (".py", ".jinja"), file


def test_no_attention_of_a_stranger_is_fetched(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`attn_implementation` in a config.json can name code on the Hub, and transformers asks nobody before it loads it."""
    asked: list[Any] = []
    monkeypatch.setattr(transformers_modeling(), "lazy_import_flash_attention", lambda *args, **_: asked.append(args))
    copy(workshop / "teacher", Path("evil"), attn_implementation="kernels-community/evil")
    works("predict", "evil", "a text")
    Path("evil.toml").write_text(
        'model_type = "bert"\nnum_hidden_layers = 1\nhidden_size = 16\nnum_attention_heads = 2\nintermediate_size = 32\n'
        'attn_implementation = "kernels-community/evil"\n[auto_map]\nAutoModelForSequenceClassification = "evil_code.Evil"\n',
        encoding="utf-8",
    )
    works(*FINETUNE, "--model", "evil.toml", "--set", f"base={workshop / 'base'}")
    assert asked == [] and "auto_map" not in Path("out/config.json").read_text(encoding="utf-8")


def transformers_modeling() -> Any:
    from transformers import modeling_utils

    return modeling_utils


def test_a_broken_configuration_is_no_bug_of_ours(workshop: Path) -> None:
    mistakes: list[dict[str, Any]] = [
        {"hidden_size": "wide"},
        {"id2label": 3},
        {"quantization_config": {"quant_method": "awq"}},
    ]
    for number, wrong in enumerate(mistakes):
        copy(workshop / "teacher", Path(f"evil-{number}"), **wrong)
        assert mbert("predict", f"evil-{number}", "a text").code == 5, wrong
    copy(workshop / "teacher", Path("short"))
    Path("short/resume").mkdir()
    Path("short/resume/projection.safetensors").write_bytes(b"half")
    refused(5, "M302", "predict", "short", "a text")
    for number, text in enumerate(("[" * 100_000, "3", '{"num_hidden_layers": "x"}')):
        copy(workshop / "teacher", Path(f"deep-{number}"))
        Path(f"deep-{number}/config.json").write_text(text, encoding="utf-8")
        refused(5, "M302", "predict", f"deep-{number}", "a text")
    for text in ("hidden_size = 16", 'model_type = "evil"\nnum_attention_heads = 2', 'model_type = "bert"'):
        Path("evil.toml").write_text(text + "\n", encoding="utf-8")
        refused(3, "M042", *FINETUNE, "--model", "evil.toml", "--set", f"base={workshop / 'base'}")
        shutil.rmtree("out", ignore_errors=True)


MANIFESTS = (
    "[" * 100_000,
    "[]",
    '{"identity": 1, "identity_hash": "x", "result": "y"}',
    '{"identity": {"data": []}, "identity_hash": "x", "result": "y"}',
    '{"identity": {}, "identity_hash": "x", "result": "y", "recipe": {"data": 3}}',
    '{"identity": {}, "identity_hash": "x", "result": "y", "argv": 5}',
)


def test_a_foreign_manifest_is_data(workshop: Path) -> None:
    copy(workshop / "teacher", Path("evil"))
    for text in MANIFESTS:
        Path("evil/manifest.json").write_text(text, encoding="utf-8")
        refused(5, "M301", "predict", "evil", "a text")
        refused(5, "M301", "evaluate", "evil", "-o", "out")
    record: dict[str, Any] = {"schema": 1, "identity": {}, "identity_hash": "x", "result": "y", "outputs": {}, "argv": [5]}
    record["recipe"] = {"phases": {"a": 1, "b": {"losses": [2]}}}
    Path("evil/manifest.json").write_text(json.dumps(record), encoding="utf-8")
    works("export", "evil", "--task", "sst2", "-o", "out", "--set", "export.onnx=false")
    refused(2, "M120", "export", "evil", "--task", "sst2", "-o", "/")


def test_scripts_of_data_sets_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # for us; the libraries have read it
    monkeypatch.delenv("MBERT_DATA")
    Path("evilset").mkdir()
    Path("evilset/evilset.py").write_text(CODE, encoding="utf-8")
    Path("evil.toml").write_text(
        'text = ["text"]\nlabel = { names = ["a", "b"] }\n[hub]\nid = "./evilset"\nsplits = { train = "train", dev = "dev" }\n',
        encoding="utf-8",
    )
    refused(4, "M254", "finetune", "--model", "x", "--task", "evil.toml", "-o", "out")


# --- code in recipes ----------------------------------------------------------------------------------------------------

PATHS = {
    "a loss of a phase": "[phases.prediction.losses]\n'./evil.py' = 1.0",
    "a loss by its whole path": "[phases.prediction.losses]\n'{here}/evil.py' = 1.0",
    "a loss of finetune": "[finetune.losses]\n'evil.py' = 1.0",
    "a loss of general": "[general.losses]\n'evil.py' = {{ weight = 1.0 }}",
    "an augmenter": "[augment]\nsources = ['evil.py']",
}


@pytest.mark.parametrize("case", PATHS)
@pytest.mark.parametrize("stage", ["finetune", "augment", "task-distill"])
def test_a_recipe_names_no_code_by_its_path(case: str, stage: str, workshop: Path, here: Path) -> None:
    Path("evil.py").write_text(CODE + "needs = set()\nover = 'batch'\ndef evil(): ...\n", encoding="utf-8")
    top, _, rest = PATHS[case].format(here=here).partition("[")
    body = f'{top}\ntask = "sst2"\nbase = "{workshop}/base"\n' + (f"[{rest}\n" if rest else "")
    Path("evil.toml").write_text(body, encoding="utf-8")
    error = refused(3, "M040", stage, "--recipe", "evil.toml", "-o", "out")
    assert "--include" in error["fix"] and "evil.py" in error["what"] and error["where"].startswith("evil.toml")


def test_a_recipe_includes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine/losses").mkdir(parents=True)
    Path("mine/losses/hard_label.py").write_text(CODE, encoding="utf-8")
    for text in ('include = ["mine"]', '[variant.finetune]\ninclude = ["mine"]'):
        Path("evil.toml").write_text(f'task = "sst2"\nstages = ["finetune"]\nbase = "x"\n{text}\n', encoding="utf-8")
        refused(3, "M002", "run", "evil.toml", "-o", "out")
    monkeypatch.setenv("MBERT_SET_INCLUDE", '["mine"]')
    refused(3, "M002", *FINETUNE)


def test_a_task_file_has_no_losses(workshop: Path) -> None:
    rows = 'text = ["sentence"]\nlabel = { names = ["a", "b"] }\nfiles = { train = "a.csv" }\n'
    Path("evil.toml").write_text(rows + '[losses]\n"./evil.py" = 1.0\n', encoding="utf-8")
    assert "losses" in refused(3, "M030", *FINETUNE[:1], "--task", "evil.toml", "--model", workshop / "base")["what"]


def test_what_is_included_stands_in_the_manifest(workshop: Path) -> None:
    Path("mine/losses").mkdir(parents=True)
    loss_file = Path("mine/losses/hard_label.py")
    loss_file.write_bytes(Catalog().path("losses", "hard_label", where="x").read_bytes())
    works(*FINETUNE, "--model", workshop / "base", "--include", "mine")
    identity = json.loads(Path("out/manifest.json").read_text(encoding="utf-8"))["identity"]
    assert identity["own_files"] == {str(loss_file): hashlib.sha256(loss_file.read_bytes()).hexdigest()}
    loss_file.write_bytes(loss_file.read_bytes() + b"\n")
    assert "own_files" in refused(2, "M110", *FINETUNE, "--model", workshop / "base", "--include", "mine")["what"]


# --- what is written, and where -------------------------------------------------------------------------------------------

LEAVING = {
    "a stage": 'stages = ["../../ran"]\n[variant."../../ran"]\nstage = "finetune"',
    "a stage of a whole path": 'stages = ["{home}/ran"]\n[variant."{home}/ran"]\nstage = "finetune"',
    "a stage above": 'stages = [".."]\n[variant.".."]\nstage = "finetune"',
    "a stage with a line feed": 'stages = ["a\\nb"]\n[variant."a\\nb"]\nstage = "finetune"',
    "a phase": 'stages = ["task-distill"]\n[phases."../../../../ran"]\nsteps = 1',
    "a phase of a variant": 'stages = ["v"]\n[variant.v]\nstage = "task-distill"\nphases."../../../../ran".steps = 1',
    "a phase of a whole path": 'stages = ["task-distill"]\n[phases."{home}/ran"]\nsteps = 1',
}


@pytest.mark.parametrize("case", LEAVING)
def test_no_name_of_a_recipe_leaves_the_output(case: str, workshop: Path, tmp_path: Path) -> None:
    words = f'task = "sst2"\nbase = "{workshop}/base"\nstudent = "bert-1x16"\n'
    words += f'teacher = "{workshop}/teacher"\nfinetune.steps = 1\n'
    Path("evil.toml").write_text(words + LEAVING[case].format(home=tmp_path / "home") + "\n", encoding="utf-8")
    refused(3, "M041", "run", "evil.toml", "-o", "out", *WEAK)
    assert not Path("out").exists()


@pytest.mark.parametrize("name", ["../../ran.tsv", "/tmp/ran.tsv", "..", "a/b.tsv", ".ran", "a\nb.tsv"])
def test_no_file_of_a_submission_leaves_the_output(name: str, workshop: Path) -> None:
    text = Catalog().path("tasks", "sst2", where="x").read_text(encoding="utf-8")
    Path("evil.toml").write_text(text.replace('"SST-2.tsv"', json.dumps(name)), encoding="utf-8")
    assert json.dumps(name) in Path("evil.toml").read_text(encoding="utf-8")
    words = ("evaluate", workshop / "teacher", "--task", "evil.toml", "--submission", "-o", "out")
    assert "submission" in refused(3, "M030", *words)["where"]


def test_no_name_of_a_task_leaves_the_output(workshop: Path) -> None:
    Path("a.csv").write_text("text,label\n" + "one,a\ntwo,b\nsix,a\nten,b\n" * 5, encoding="utf-8")
    for name in ("../ran", "..", "/ran", "a\n"):
        words = ("--train-file", "a.csv", "--set", f"task={json.dumps(name)}")
        assert "name" in refused(3, "M030", "finetune", "--model", workshop / "base", "-o", "out", *words, *QUICK)["where"]


@pytest.mark.parametrize("name", ["...toml", "..toml", ".toml"])
def test_no_name_of_a_recipe_file_leaves_runs(name: str) -> None:
    Path(name).write_text('task = "sst2"\n', encoding="utf-8")
    root = default_root(resolve(catalog=Catalog(), recipe=name), explicit=True)
    assert root.resolve().parent == Path("runs").resolve()


def begin(out: Path) -> None:
    """A stage that goes on with what it finds, as logs and models are written."""
    with stage_output(out, stage="test", identity={"a": 1}) as work:
        (work.path / "seed-1").mkdir(exist_ok=True)
        for name in ("log.jsonl", "seed-1/model.safetensors"):
            with (work.path / name).open("a", encoding="utf-8") as file:
                file.write("overwritten")
        if not (work.path / "again").exists():
            (work.path / "again").touch()
            raise KeyboardInterrupt


@pytest.mark.parametrize("link", ["log.jsonl", "seed-1", "seed-1/model.safetensors", "."])
def test_begun_work_with_links_is_refused(link: str, tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        begin(Path("out"))
    home, path = tmp_path / "home", Path("out.partial") / link
    if path.is_dir():
        path = path.resolve()
        shutil.copytree(path, "elsewhere")
        shutil.rmtree(path)
        path.symlink_to(Path("elsewhere").resolve())
    else:
        path.unlink()
        path.symlink_to(home / "precious")
    before = {file: file.read_bytes() for file in Path("elsewhere").rglob("*") if file.is_file()}
    with pytest.raises(MbertError) as caught:
        begin(Path("out"))
    assert caught.value.code == "M370"
    assert before == {file: file.read_bytes() for file in Path("elsewhere").rglob("*") if file.is_file()}
    with stage_output(Path("out"), stage="test", identity={"a": 1}, force=True) as work:
        (work.path / "log.jsonl").write_text("new", encoding="utf-8")
    assert Path("out/log.jsonl").read_text(encoding="utf-8") == "new"


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path, workshop: Path) -> None:
    Path(".out.lock").symlink_to(tmp_path / "home" / "precious")
    assert "link" in refused(4, "M221", *FINETUNE, "--model", workshop / "base")["what"]


def test_an_output_that_is_a_link_is_refused_before_the_work(tmp_path: Path, workshop: Path) -> None:
    for target in (tmp_path / "home" / "ran", Path("empty").absolute()):
        Path("empty").mkdir(exist_ok=True)
        Path("out").unlink(missing_ok=True)
        Path("out").symlink_to(target)
        refused(5, "M370", *FINETUNE, "--model", workshop / "base")


def test_a_state_that_is_a_pickle_is_refused(workshop: Path) -> None:
    words = (*FINETUNE, "--model", workshop / "base")
    works(*words)
    identity = json.loads(Path("out/manifest.json").read_text(encoding="utf-8"))["identity"]
    begun = Path("out").rename("out.partial")
    (begun / "begun.json").write_text(atomic.dump_with_checksum({"identity": identity, "argv": []}), encoding="utf-8")
    (begun / "seed.json").unlink()
    (begun / "resume/phases/finetune").mkdir(parents=True)
    torch.save({"step": Evil()}, state := begun / "resume/phases/finetune/state.pt")
    state.rename(state.with_name(f"step-00000001-{atomic.file_digest(state)[:32]}.pt"))
    refused(5, "M304", *words)


# --- archives and sizes -----------------------------------------------------------------------------------------------------

GLOVE = b"good 1 0\nbad 0 1\n"


def archive(path: str, members: dict[str, bytes], link: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in members.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = ((stat.S_IFLNK if name == link else stat.S_IFREG) | 0o644) << 16
            bundle.writestr(entry, content)
    return Path(path)


NAMES = ("../../ran.txt", "/ran.txt", "a/../../ran.txt", "..\\ran.txt", "C:\\ran.txt", "\x1b[2J/../ran")


@pytest.mark.parametrize("name", NAMES)
def test_a_zip_whose_names_lead_out_is_refused(name: str, workshop: Path) -> None:
    archive("v.zip", {"good.txt": GLOVE, name: GLOVE})
    words = ("augment", "--masked-lm", workshop / "base", "--task", "sst2", "--vectors", "v.zip", "-o", "out")
    error = refused(5, "M372", *words)
    assert "ran" in error["what"] and "\x1b" not in text_of(error)
    with pytest.raises(MbertError):
        load_word_table("v.zip/good.txt")


def test_links_and_crowds_in_a_zip_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    archive("link.zip", {"good.txt": GLOVE, "vectors.txt": b"/etc/passwd"}, link="vectors.txt")
    archive("many.zip", {f"{i}.txt": GLOVE for i in range(40)})
    monkeypatch.setattr(limits, "MAX_MEMBERS", 39)
    for name in ("link.zip", "many.zip"):
        with pytest.raises(MbertError) as caught:
            load_word_table(name)
        assert caught.value.code == "M372", name


def test_bombs_are_refused() -> None:
    archive("bomb.zip", {"vectors.txt": b"\0" * (MIN_UNPACKED_BYTES + 1)})
    archive("bombs.zip", {f"{i}.txt": b"\0" * (MIN_UNPACKED_BYTES // 8 + 1) for i in range(8)})
    for name in ("bomb.zip", "bombs.zip", "bombs.zip/1.txt"):
        with pytest.raises(MbertError) as caught:
            load_word_table(name)
        assert caught.value.code == "M371", name


def test_a_zip_that_lies_about_a_size_gives_no_more_than_it_says() -> None:
    path = archive("liar.zip", {"vectors.txt": GLOVE + b"\n" * 1_000_000})
    size = struct.pack("<L", len(GLOVE) + 1_000_000)
    assert path.read_bytes().count(size) >= 1
    path.write_bytes(path.read_bytes().replace(size, struct.pack("<L", len(GLOVE))))
    with pytest.raises(MbertError) as caught:
        load_word_table(path)
    assert caught.value.code == "M343"


def test_a_zip_with_a_password_is_damaged() -> None:
    path = archive("locked.zip", {"vectors.txt": GLOVE})
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + place] |= 1
    path.write_bytes(bytes(data))
    with pytest.raises(MbertError) as caught:
        load_word_table(path)
    assert caught.value.code == "M343"


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "text.gz", "v.gz"])
def test_gzip_bombs_are_refused_wherever_gzip_is_read(name: str, workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MIN_UNPACKED_BYTES", 2**16)
    with gzip.open(name, "wb") as file:
        file.write(b"\n" * 2_000_000)
    base = str(workshop / "base")
    words = {
        "a": ("finetune", "--model", base, "--train-file", name, "-o", "out"),
        "t": ("general-distill", "--teacher", base, "--student", "bert-1x16", "--corpus", name, "-o", "out"),
        "v": ("augment", "--masked-lm", base, "--task", "sst2", "--vectors", name, "-o", "out"),
    }[name[0]]
    assert name in refused(5, "M371", *words)["where"]


def test_an_honest_archive_is_read() -> None:
    archive("v.zip", {"folder/": b"", "folder/vectors.txt": GLOVE, "..notes..txt": b"x"})
    assert load_word_table("v.zip").words == ["good", "bad"]
    with gzip.open("v.gz", "wb") as file:
        file.write(GLOVE)
    assert load_word_table("v.gz").words == ["good", "bad"]


def test_endless_lines_and_texts_are_refused_by_their_line(workshop: Path) -> None:
    base = str(workshop / "base")
    with open("text.txt", "wb") as file:
        file.write(b"A boat.\n\n" + b"x" * (MAX_LINE_BYTES + 1))
    words = ("general-distill", "--teacher", base, "--student", "bert-1x16", "--corpus", "text.txt", "-o", "out")
    assert refused(5, "M373", *words)["where"] == "text.txt, line 3"
    long = "x" * (MAX_TEXT_LENGTH + 1)
    Path("v.txt").write_bytes(GLOVE + b"y" * (MAX_LINE_BYTES + 1))
    with pytest.raises(MbertError) as caught:
        load_word_table("v.txt")
    assert (caught.value.code, caught.value.where) == ("M373", "v.txt, line 3")
    Path("a.csv").write_text("text,label\n" + "one,a\ntwo,b\n" * 3 + f"{long},a\n", encoding="utf-8")
    assert "line 8" in refused(5, "M373", "finetune", "--model", base, "--train-file", "a.csv", "-o", "out")["where"]
    Path("a.txt").write_text(f"one\n{long}\n", encoding="utf-8")
    for words in (("--file", "a.txt"), ("--file", "a.csv", "--text", "text")):
        done = mbert("predict", workshop / "teacher", *words)
        assert done.code == 5 and "[M373]" in done.err and len(done.err) < 2000


def test_brackets_and_digits_without_end() -> None:
    for code, name, text in (
        ("M355", "a.jsonl", '{"text": ' + "[" * 100_000),
        ("M355", "b.jsonl", '{"text": "a", "label": ' + "1" * 5000 + "}"),
    ):
        Path(name).write_text(text, encoding="utf-8")
        refused(5, code, "finetune", "--model", "x", "--train-file", name, "-o", "out")
    for code, text in (("M050", "x = " + "[" * 100_000), ("M001", "x = " + "1" * 5000)):
        Path("evil.toml").write_text(text, encoding="utf-8")
        refused(3, code, "run", "evil.toml")


# --- what is shown and recorded -------------------------------------------------------------------------------------------

HOSTILE = (
    SCRIPT, "a | b | c", "`code`", "```\n# heading\n```", "line\n---\nlicense: evil\n---", "[x](http://evil)",
    "![x](http://evil/x.png)", "</code></pre>" + SCRIPT, "\x1b[2J\x9b31m", "\u202egnp.exe", "\u2028\x85\ud800", "&lt;script>",
    "\\", '"); import os; ("', "<http://evil>",
)  # fmt: skip


def rendered(text: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


@pytest.mark.parametrize("evil", HOSTILE)
def test_a_model_card_says_only_what_it_says(evil: str) -> None:
    def card(word: str) -> str:
        score = Score("accuracy", 0.5, word, word, dataset=word, config=word, teacher=0.6)
        return model_card(
            Card(
                word,
                word,
                [word, "b"],
                [score],
                f"mbert export '{word}'",
                base_models=[word],
                datasets=[word],
                license=word,
                lineage=[word],
                sizes={word: (word, word)},
                limits=[word],
            )  # fmt: skip
        )

    text, honest = card(evil), card("honest")
    text.encode()
    _, front, body = text.split("---\n", 2)
    fields = yaml.safe_load(front)
    assert fields["license"] == evil and fields.keys() == yaml.safe_load(honest.split("---\n", 2)[1]).keys()
    page, plain = rendered(body), rendered(honest.split("---\n", 2)[2])
    tags = [part.split(">")[0] for part in page.split("<")[1:]]
    assert tags == [part.split(">")[0] for part in plain.split("<")[1:]], page
    assert not set("\x1b\x9b\u202e") & set(page)


def test_a_report_is_a_table_whatever_its_models_are_called() -> None:
    honest = rendered(as_markdown([{"model": "honest", "score": 0.5}]))
    for evil in HOSTILE:
        page = rendered(as_markdown([{"model": evil, "score": 0.5}]))
        assert [part.split(">")[0] for part in page.split("<")] == [part.split(">")[0] for part in honest.split("<")], page


def test_the_card_of_a_foreign_model_and_task(workshop: Path) -> None:
    """From the command line: title and labels of a task file, the argv of a manifest that came with the model."""
    Path("rows.csv").write_text("text,label\n" + f"one,{SCRIPT}\ntwo,b|b\n" * 6, encoding="utf-8")
    Path("evil.toml").write_text(
        f'title = """{SCRIPT}\n---\nlicense: evil"""\ntext = ["text"]\nfiles = {{ train = "rows.csv", dev = "rows.csv" }}\n'
        f'label = {{ names = ["{SCRIPT}", "b|b"] }}\n',
        encoding="utf-8",
    )
    works("finetune", "--model", workshop / "base", "--task", "evil.toml", "-o", "out", *QUICK)
    record = json.loads(Path("out/manifest.json").read_text(encoding="utf-8"))
    record["argv"] = ["mbert", f"```\n{SCRIPT}\n```", TOKEN]
    del record["checksum"]
    Path("out/manifest.json").write_text(atomic.dump_with_checksum(record), encoding="utf-8")
    works("export", "out", "--task", "evil.toml", "-o", "runs/export", "--set", "export.onnx=false")
    text = Path("runs/export/README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    assert "<script" not in rendered(body) and "&lt;script" in rendered(body)
    assert "evil" not in yaml.safe_load(front).get("license", "") and TOKEN not in text


def everything(folder: Path) -> str:
    return "".join(str(file) + file.read_bytes().decode("latin-1") for file in sorted(folder.rglob("*")) if file.is_file())


def test_secrets_are_nowhere(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-token-of-no-known-form")
    secrets = (TOKEN, "a-token-of-no-known-form", "pa55word")
    leaky = ("--set", f"title={TOKEN} a-token-of-no-known-form https://me:pa55word@host/x?token=pa55word")
    words = (*FINETUNE, "--model", workshop / "base", *leaky)
    done = works(*words)
    output = done.out + done.err + everything(Path("out"))
    assert not [secret for secret in secrets if secret in output]
    assert "title=***" in Path("out/manifest.json").read_text(encoding="utf-8")
    data = ("--data", f"https://me:pa55word@host/{TOKEN}")
    for wrong in (data, ("--set", f"finetune.epochs={TOKEN}"), ("-v", "--seed", TOKEN)):
        for form in ((), ("--json",)):
            done = mbert(*FINETUNE, "--model", workshop / "base", *leaky, *wrong, *form)
            assert done.code in (2, 3, 4) and not [secret for secret in secrets if secret in done.out + done.err], wrong
            assert "***" in done.err


def test_secrets_are_not_in_begun_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mbert", "finetune", "--set", f"title={TOKEN}", "https://me:pa55word@host"])
    with contextlib.suppress(KeyboardInterrupt):
        begin(Path("out"))
    begun = json.loads(Path("out.partial/begun.json").read_text(encoding="utf-8"))
    assert begun["argv"] == ["mbert", "finetune", "--set", "title=***", "https://***@host"]
    with pytest.raises(MbertError) as caught:
        load_model("out", "classifier", where="m")
    assert "title=***" in str(caught.value)


def test_secrets_are_not_in_tracebacks(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"Illegal header value b'Bearer {'x' * 20}' at https://me:pa55word@host with {TOKEN} \x1b[2J")

    monkeypatch.setattr("microbert_cli.stages.predict.answer", fail)
    done = mbert("predict", workshop / "teacher", "a text")
    assert done.code == 70 and "Illegal header value" in done.err
    assert not [secret for secret in (TOKEN, "pa55word", "x" * 20, "\x1b") if secret in done.err]


def test_secrets_are_not_in_the_environment_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://me:pa55word@mirror")
    for form in ((), ("--json",)):
        output = works("env", *form).out
        assert "pa55word" not in output and "mirror" in output


def test_what_is_no_secret_stays() -> None:
    for text in ("--set finetune.batch_tokens=4096", "https://huggingface.co/x", "hf_cache", "unk_tokens=[UNK]", "a@b.c"):
        assert safe_text(text) == text


def test_escape_sequences_do_not_reach_the_terminal(workshop: Path) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egood\r"
    Path("rows.csv").write_text("text,label\n" + f'one,"{evil}"\ntwo,b\n' * 6, encoding="utf-8", newline="")
    words = ("finetune", "--model", str(workshop / "base"), "--train-file", "rows.csv", "-o", "out", *QUICK)
    for done in (mbert(*words, "--set", 'data.labels=["a", "b"]'), mbert(*words), mbert(*words, "--text", evil, "--json")):
        assert "good" in done.err and not set("\x1b\x07\x9b\u202e\r") & set(done.err + done.out), repr(done.err)
    names = [evil, evil + "2"]
    model = copy(workshop / "teacher", Path("evil"), id2label={"0": names[0], "1": names[1]})
    assert works("predict", model, "a text").out.strip() in [name.encode("unicode_escape").decode() for name in names]
    assert works("predict", model, "a text", "--json").json["label"] in names, "whole as JSON"


def test_a_terminal_gets_no_control_characters(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console.sys.stdout, "isatty", lambda: True)
    console.show("a\x1b[2J\x9bb\tc")
    monkeypatch.setattr(console.sys.stdout, "isatty", lambda: False)
    console.show("a\x1b[2J \ud800")
    assert capsys.readouterr().out == "a\\x1b[2J\\x9bb\tc\na\x1b[2J \\ud800\n"


LOOK = """
from microbert_cli.cli.console import show_marked, show_table
show_table("a [title]", ["head"], [["cell\\x1b[2J"]])
show_marked("before\\x1b[2J ", "+", " after", "red")
"""


def test_on_a_terminal_our_own_colours_are_colours_and_foreign_ones_are_text() -> None:
    leader, follower = os.openpty()
    environment = {**os.environ, "TERM": "xterm-256color"}
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        environment.pop(name, None)
    with os.fdopen(leader, "rb", buffering=0) as terminal:
        subprocess.run([sys.executable, "-c", LOOK], stdout=follower, env=environment, check=True, timeout=60)
        os.close(follower)
        parts: list[bytes] = []
        with contextlib.suppress(OSError):  # the end of a terminal
            while part := terminal.read(4096):
                parts.append(part)
    seen = b"".join(parts).decode()
    assert "\x1b[1mhead" in seen and "\x1b[31m+" in seen and "a [title]" in seen
    assert "cell\\x1b[2J" in seen and "before\\x1b[2J" in seen and "\x1b[2J" not in seen.replace("\\x1b[2J", "")
