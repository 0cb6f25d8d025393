"""How the command line behaves: looking without touching, results on stdout, examples that run, signals, pipes."""

import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from mbert_command import mbert, refused, works
from tiny_folder import tiny_folder

from microbert_cli.cli.main import COMMANDS, command_line
from microbert_cli.cli.summaries import SUMMARIES

ROOT = Path(__file__).resolve().parents[2]
MBERT = [sys.executable, "-m", "microbert_cli"]
RECIPE = """
task = "sst2"
base = "base"
student = "bert-1x16"
method = "tinybert"
corpus = "text.txt"
stages = ["finetune", "general-distill", "task-distill", "labels-alone", "evaluate"]
finetune = { learning_rate = 1e-2, epochs = 12, batch_size = 8 }
general = { steps = 2, batch_size = 8 }
phases.intermediate.steps = 3
phases.prediction.steps = 3

[variant.labels-alone]
stage = "finetune"
finetune = { model = "bert-1x16", steps = 2 }
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a recipe, a GLUE task, text and a model; a short run of the recipe is in runs/short."""
    place = tmp_path_factory.mktemp("home")
    with tiny_folder(place, RECIPE, name="short.toml", dropout=0.0) as patch:
        patch.setenv("MBERT_CACHE", str(place / ".cache"))
        patch.setenv("MBERT_DATA", "glue")
        yield place


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("MBERT_CACHE", str(home / ".cache"))
    monkeypatch.setenv("MBERT_DATA", "glue")


def files(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


# --- looking --------------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_happen_and_touches_nothing(home: Path) -> None:
    before = files(home)
    done = works("run", "short.toml", "--dry-run")
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines] == ["finetune", "general-distill", "task-distill", "labels-alone", "evaluate"]
    assert all(" new " in line for line in lines)
    assert "None" not in done.out
    assert "teacher=runs/short/finetune" in lines[2] and "student=runs/short/general-distill" in lines[2]
    stages = works("run", "short.toml", "--dry-run", "--json").json["stages"]
    assert stages[3] == {
        "stage": "labels-alone", "kind": "finetune", "out": "runs/short/labels-alone", "state": "new",
        "model": "bert-1x16", "tokenizer": "base",
    }  # fmt: skip
    stages = works("run", "short.toml", "--dry-run", "--json", "--set", 'reuse=["runs/a", "runs/b"]').json["stages"]
    assert [stage.get("reuse") for stage in stages] == [*["runs/a runs/b"] * 4, None]
    assert files(home) == before


def test_explain_config_says_where_every_value_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MBERT_SET_FINETUNE__WARMUP", "0.2")
    words = ("finetune", "short.toml", "--model", "base", "--seed", "7", "--set", "finetune.batch_size=4", "--explain-config")
    values = works(*words, "--json").json
    assert values["finetune.warmup"] == {"value": 0.2, "from": "MBERT_SET_FINETUNE__WARMUP"}
    assert values["finetune.batch_size"] == {"value": 4, "from": "--set finetune.batch_size"}
    assert values["finetune.epochs"] == {"value": 12.0, "from": "short.toml"}
    assert values["finetune.model"] == {"value": "base", "from": "--model"}
    assert values["seed"] == {"value": 7, "from": "--seed"}
    assert values["phases.intermediate.losses.embedding.weight"] == {"value": 1.0, "from": "method tinybert"}
    assert values["finetune.optimizer"] == {"value": "adamw", "from": "built-in default"}
    table = works(*words).out
    assert re.search(r"^finetune\.batch_size +4 +--set finetune\.batch_size$", table, re.MULTILINE)


def test_names_are_listed_shown_and_copied(tmp_path: Path) -> None:
    everything = works("list", "--json").json
    assert {"losses", "methods", "students", "tasks", "augmenters", "recipes", "machines", "trackers"} == set(everything)
    assert "tinybert" in everything["methods"] and "soft_target" in everything["losses"] and "sst2" in everything["tasks"]
    assert works("list", "tasks", "--names").out.split() == everything["tasks"]
    for kind, names in everything.items():
        for name in names:
            assert works("show", kind, name).out.strip()
    copied = tmp_path / "mine.toml"
    assert works("copy", "methods", "tinybert", "-o", copied).out.strip() == str(copied)
    assert copied.read_text(encoding="utf-8").rstrip() == works("show", "methods", "tinybert").out.rstrip()
    assert works("show", "method", "tinybert").out == works("show", "methods", "tinybert").out
    works("copy", "tasks", "sst2", "-o", tmp_path)
    assert (tmp_path / "sst2.toml").is_file()


def test_version_and_environment() -> None:
    from microbert_cli.version import __version__

    assert works("--version").out == f"mbert {__version__}\n"
    output = works("env", "--json").json
    assert output["mbert"] == __version__ and output["torch"] and output["MBERT_DATA"] == "glue"
    assert output["precision"] == "auto is fp32" and output["ONEDNN_MAX_CPU_ISA"] == "AVX512_CORE"
    assert "torch" in works("env").out
    alone = mbert()
    assert alone.code == 2 and "Commands:" in alone.err


# --- running --------------------------------------------------------------------------------------------------------------


def test_a_recipe_runs_once_and_again_only_what_changed(home: Path) -> None:
    first = works("run", "short.toml")
    assert first.out == "runs/short\n" and "it/s]" not in first.err
    manifests = {path.parent.name: path.read_bytes() for path in home.glob("runs/short/*/manifest.json")}
    assert sorted(manifests) == ["evaluate", "finetune", "general-distill", "labels-alone", "task-distill"]
    again = works("run", "short.toml")
    assert again.out == first.out and "everything up to date (5 stages)" in again.err
    results = works("run", "short.toml", "--json").json
    assert results["evaluate"]["primary"] == "accuracy"
    assert results.pop("summary")["out"] == "runs/short"
    assert {stage: values["out"] for stage, values in results.items()} == {stage: f"runs/short/{stage}" for stage in manifests}

    changed = works("run", "short.toml", "--set", "phases.prediction.steps=4")
    assert "task-distill: made anew, because recipe.phases.prediction.steps: 3 -> 4" in changed.err
    after = {path.parent.name: path.read_bytes() for path in home.glob("runs/short/*/manifest.json")}
    assert {name for name in manifests if manifests[name] != after[name]} <= {"task-distill", "evaluate"}
    assert manifests["task-distill"] != after["task-distill"]
    assert (home / "runs/short/task-distill.old-1/manifest.json").read_bytes() == manifests["task-distill"]


def test_the_same_command_twice_makes_the_same_files(home: Path) -> None:
    words = ("finetune", "short.toml", "--seeds", "1,2", "--set", "finetune.epochs=1")
    outs = [works(*words, "-o", f"same/{name}", "--json").json for name in ("one", "two")]
    assert [out.pop("out") for out in outs] == ["same/one", "same/two"]
    assert outs[0] == outs[1] and set(outs[0]["seeds"]) == {"1", "2"} and "accuracy" in outs[0]["spread"]
    first, second = files(home / "same/one"), files(home / "same/two")
    skip = ("log.jsonl", "manifest.json")
    assert {n: c for n, c in first.items() if not n.endswith(skip)} == {n: c for n, c in second.items() if not n.endswith(skip)}
    best = f"seed-{outs[0]['seed']}/model.safetensors"
    assert first["model.safetensors"] == first[best]
    manifests = [json.loads(contents["manifest.json"]) for contents in (first, second)]
    assert manifests[0]["outputs"]["model.safetensors"] == manifests[1]["outputs"]["model.safetensors"]
    assert manifests[0]["result"] == manifests[1]["result"]


def test_a_loss_a_method_a_student_and_a_task_of_ones_own(home: Path, tmp_path: Path) -> None:
    works("finetune", "short.toml", "-o", "teacher")
    for kind, name, content in [
        ("losses", "squared.py", (
            "from torch import Tensor\n\nneeds = {'logits'}\nover = 'batch'\n\n\n"
            "def squared(student_BC: Tensor, teacher_BC: Tensor, *, scale: float = 1.0) -> Tensor:\n"
            "    return scale * (student_BC - teacher_BC).square().mean()\n"
        )),
        ("methods", "mine.toml", "[phases.only]\nlosses = { squared = { weight = 2.0, scale = 0.5 } }\nsteps = 3\n"),
        ("students", "slim.toml", (
            'model_type = "bert"\nnum_hidden_layers = 1\nhidden_size = 8\nintermediate_size = 16\nnum_attention_heads = 2\n'
        )),
        ("tasks", "films.toml", (ROOT / "microbert_cli/catalog/tasks/sst2.toml").read_text(encoding="utf-8")),
    ]:  # fmt: skip
        (tmp_path / kind).mkdir()
        (tmp_path / kind / name).write_text(content, encoding="utf-8")
    words = ("task-distill", "--include", tmp_path, "--teacher", "teacher", "--student", "slim", "--task", "films")
    done = works(*words, "--set", "method=mine", "-o", "mine/task-distill", "--json").json
    assert done["phases"]["only"]["steps"] == 3 and "squared" in done["phases"]["only"]["losses"]
    assert "squared" in works("list", "losses", "--include", tmp_path).out
    wrong = mbert(*words, "--set", "method=mine", "--set", "phases.only.losses.squared.scael=2", "-o", "mine/x")
    assert wrong.code == 3 and '"scale"' in wrong.err
    (tmp_path / "losses" / "squared.py").write_text("over = 'batch'\n", encoding="utf-8")
    broken = mbert(*words, "--set", "method=mine", "-o", "mine/x", "--json")
    assert broken.code == 3 and broken.json["error"]["code"] in ("M006", "M009")


def test_quiet_says_results_alone() -> None:
    words = ("finetune", "short.toml", "-o", "quiet", "--set", "finetune.steps=1")
    loud = works(*words)
    assert loud.err
    quiet = works(*words, "--force", "-q")
    assert quiet.out == loud.out == "quiet\n" and quiet.err == ""
    assert works(*words, "--json").json["primary"] == "accuracy"


# --- the examples of the help ------------------------------------------------------------------------------------------------


def examples() -> list[str]:
    """Every line with `mbert` in an epilog, with the arguments of `app.command`."""
    commands = []
    for path in sorted((ROOT / "microbert_cli/cli").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("Example"):
                lines = [line.strip() for line in node.value.splitlines()]
                commands += [line.partition("Example: ")[2] or line for line in lines if "mbert " in line]
    return commands


def test_examples_are_found() -> None:
    commands = {shlex.split(line.rpartition("| ")[2])[1] for line in examples()}
    help_text = works("--help").out
    listed = set(re.findall(r"^  ([a-z-]+)  ", help_text.partition("Commands:")[2], re.MULTILINE))
    assert commands == listed


@pytest.mark.parametrize("line", examples())
def test_every_example_of_the_help_runs(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.chdir(tmp_path)
    text = shlex.split(line.partition(" | ")[0])[1] if " | " in line else ""
    words = shlex.split(line.rpartition("| ")[2])
    if words[1] == "log":
        pytest.importorskip("tensorboard")
    if words[1] in ("predict", "verify", "report", "log", "push"):
        if not (home / "teacher").exists():
            monkeypatch.chdir(home)
            works("finetune", "short.toml", "-o", "teacher")
            monkeypatch.chdir(tmp_path)
        places = [Path(word) for word in words[2:] if "/" in word and not word.endswith(".html")]
        for place in [place / "finetune" for place in places] if words[1] == "report" else [Path(words[2])]:
            shutil.copytree(home / "teacher", place)
    if words[1] == "predict":
        Path("reviews.jsonl").write_text('{"review": "a fine film"}\n', encoding="utf-8")
    if "recipes/quickstart.toml" in words:
        shutil.copytree(ROOT / "recipes", "recipes")
    for name in ("reviews.csv", "text.txt.gz", "glove.6B.300d.txt", "texts.txt"):
        if name in words:
            Path(name).touch()
    before = files(tmp_path)
    done = works(*words[1:], stdin=f"{text}\n")
    assert done.out
    if "--dry-run" in words:
        assert files(tmp_path) == before


# --- real processes -----------------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['mbert', '--help']\n"
        "from microbert_cli.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as leaving:\n    assert leaving.code == 0\n"
        "assert not {'torch', 'transformers', 'datasets', 'sklearn', 'pyarrow', 'numpy', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "task-distill" in done.stdout and "Exit codes" in done.stdout


def test_a_reader_that_leaves_ends_the_command_as_it_ends_others() -> None:
    script = f'"{sys.executable}" -m microbert_cli run short.toml --explain-config | true; echo "${{PIPESTATUS[0]}}"'
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    codes = set()
    for _ in range(3):
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env, timeout=60)
        assert "Traceback" not in done.stderr
        codes.add(done.stdout.strip())
    assert codes == {"141"}


@pytest.mark.slow
def test_a_terminated_run_goes_on_where_it_was(home: Path) -> None:
    steps = ("--set", "finetune.steps=400", "--set", "finetune.evaluations=2")
    words = ("finetune", "short.toml", *steps, "-o")
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen([*MBERT, *words, "stopped"], env=env, stderr=subprocess.PIPE, text=True)
    log = home / "stopped.partial/log.jsonl"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not (log.is_file() and len(log.read_bytes()) > 2000):
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 143
    assert "goes on from here" in str(running.stderr and running.stderr.read())
    assert not (home / "stopped").exists()
    assert works("finetune", "short.toml", *steps, "--dry-run", "-o", "stopped").out.split()[1] == "begun"
    assert "going on after step" in works(*words, "stopped").err
    works(*words, "straight")
    weights = [(home / out / "model.safetensors").read_bytes() for out in ("stopped", "straight")]
    assert weights[0] == weights[1]


ALONE = """
import json, sys
sys.modules["microbert_cli"] = None  # any import of it fails
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
batch = AutoTokenizer.from_pretrained(sys.argv[1])(sys.argv[2:], return_tensors="pt", padding=True)
print(json.dumps({"labels": model.config.id2label, "logits": model(**batch).logits.tolist()}))
"""


@pytest.mark.slow
def test_a_student_loads_with_transformers_alone(home: Path) -> None:
    import torch

    from microbert_cli.models.load import load_model

    if not (home / "teacher").exists():
        works("finetune", "short.toml", "-o", "teacher")
    words = ("task-distill", "short.toml", "--teacher", "teacher", "--student", "bert-1x16", "-o", "student")
    works(*words)
    texts = ["the lovely boat", "the awful kettle of the baker near the harbour"]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(home / "student"), *texts], capture_output=True, text=True, timeout=120, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    assert output["labels"] == {"0": "negative", "1": "positive"}
    loaded = load_model(home / "student", "classifier", where="student")
    with torch.no_grad():
        logits = loaded.model.eval()(**loaded.tokenizer(texts, return_tensors="pt", padding=True)).logits
    assert torch.tensor(output["logits"]) == pytest.approx(logits, abs=1e-6)
    answers = [json.loads(line) for line in works("predict", "student", *texts, "--json").out.splitlines()]
    shares = torch.tensor(output["logits"]).softmax(-1)[:, 1].tolist()
    assert [answer["probabilities"]["positive"] for answer in answers] == pytest.approx(shares, abs=1e-6)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("finetune", "--epochs", "3"), "finetune.epochs=3"),
        (("finetune", "--learning-rate", "1e-4"), "finetune.learning_rate=1e-4"),
        (("task-distill", "--epochs", "2"), "phases.distillation.epochs=2"),
        (("task-distill", "--set", "method=kd", "--batch-size", "8"), "phases.distillation.batch_size=8"),
        (("general-distill", "--batch-size=8",), "general.batch_size=VALUE"),
        (("augment", "--copies", "5"), "augment.copies=5"),
        (("finetune", "--max-length", "64"), "data.max_length=64"),
        (("run", "--teacher", "DIR"), "teacher=DIR"),
    ],
)  # fmt: skip
def test_an_option_that_is_a_key_of_the_recipe_is_explained(words: tuple[str, ...], key: str) -> None:
    error = refused(2, "M100", *words)
    assert f"--set {key}" in error["fix"]


def test_summaries_of_the_help_are_those_of_the_commands() -> None:
    commands = typer.main.get_command(command_line(COMMANDS)).commands  # type: ignore[attr-defined]
    assert list(SUMMARIES.items()) == [(name, command.short_help) for name, command in commands.items()]


def test_the_list_of_commands_loads_none() -> None:
    code = (
        "import sys; sys.argv = ['mbert', '--help']\n"
        "from microbert_cli.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as leaving:\n    assert leaving.code == 0\n"
        "ours = {name for name in sys.modules if name.startswith('microbert_cli.')}\n"
        "assert not [name for name in ours if name.split('.')[1] not in ('cli', 'runs') and name.count('.') > 1], ours\n"
        "assert 'pydantic' not in sys.modules and 'microbert_cli.cli.run' not in ours"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_summaries_of_the_help_are_whole() -> None:
    assert "..." not in works("--help").out.partition("Commands:")[2]
