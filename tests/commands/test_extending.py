"""docs/extending.md is carried out: the files it shows lie in a folder of their own and are used through `--include`."""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from mbert_command import refused, works
from tiny_folder import tiny_folder
from tiny_models import tiny_bert

from microbert_cli.recipe.registry import Catalog
from microbert_cli.training.loss_terms import LAYER_SLICES
from microbert_cli.training.objective import Objective

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
RECIPE = """
task = "sst2"
base = "base"
student = "bert-2x8"
stages = ["finetune", "task-distill"]
finetune = { learning_rate = 1e-2, steps = 5, batch_size = 8 }
teacher.allow_weak = true
phases.distillation.steps = 3
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    place = tmp_path_factory.mktemp("extending")
    for name, text in re.findall(r"The file\s+`(mine/[^`]+)`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text, encoding="utf-8")
    with tiny_folder(place, RECIPE, dropout=0.0) as patch:
        patch.chdir(place)
        patch.setenv("MBERT_CACHE", str(place / ".cache"))
        patch.setenv("MBERT_DATA", "glue")
        yield place


def test_every_file_of_the_page_is_found(home):
    assert sorted(str(path.relative_to(home)) for path in (home / "mine").rglob("*.*")) == [
        "mine/losses/similarity.py", "mine/methods/similar.toml", "mine/methods/soft-cosine.toml",
    ]  # fmt: skip
    assert {"similar", "soft-cosine"} <= set(works("list", "methods", "--include", "mine").out.split())
    assert "Tung and Mori" in works("show", "losses", "similarity", "--include", "mine").out
    assert "similar" not in works("list", "methods").out.split()


def test_the_number_by_hand(home):
    similarity = Catalog(["mine"]).module("losses", "similarity").similarity
    student, teacher = torch.tensor([[[1.0, 0]], [[0, 1.0]]]), torch.tensor([[[1.0, 0, 0]], [[1.0, 0, 0]]])
    (expected,) = set(re.findall(r"and L = .* = ([\d.]+)\.$", PAGE, re.MULTILINE))
    assert similarity(student, teacher).item() == pytest.approx(float(expected), abs=1e-5)
    assert similarity(student, student).item() == 0


@pytest.mark.parametrize(("method", "losses"), [
    ("soft-cosine", {"soft_target", "cosine"}),
    ("similar", {"hard_label", "soft_target", "similarity"}),
])  # fmt: skip
def test_a_method_is_one_page(home, method, losses):
    words = ("run", "small.toml", "--include", "mine", "--set", f"method={method}")
    works(*words, "-o", "runs/one")  # the second of them takes the first one's teacher
    (log,) = Path("runs/one/task-distill").glob("**/log.jsonl")
    assert losses <= json.loads(log.read_text(encoding="utf-8").splitlines()[0]).keys()


def test_a_key_of_the_loss_is_a_key_of_the_recipe(home):
    wrong = "phases.distillation.losses.similarity.centered=true"
    words = ("run", "small.toml", "--include", "mine", "--set", "method=similar", "-o", "runs/none")
    assert "centred" in str(refused(3, "M006", *words, "--set", wrong))
    assert not Path("runs/none").exists()


def test_an_ablation_of_the_page(home):
    tiny_bert("teacher", labels=["negative", "positive"])
    rows = ("compare", "soft-cosine", "--ablate", "cosine", "--teacher", "teacher", "--student", "bert-2x8", "--task", "sst2")
    plan = works(*rows, "--include", "mine", "--dry-run").out
    assert "cosine" in plan


def test_what_the_page_says_a_loss_may_be_over_and_take():
    (line,) = re.findall(r"^\| `over` \| (.*) \|$", PAGE, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", line)) == {*LAYER_SLICES, "batch"}
    (named,) = re.findall(r"Parameters by name: (.*?)\. Keywords", PAGE, re.DOTALL)
    (handed,) = re.findall(r"Keywords that are handed in: (.*?)\.\n", PAGE, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", named)) - {"needs"} == _keys(Objective._call)
    assert set(re.findall(r"`(\w+)`", handed)) == _keys(Objective._keywords)


def _keys(function):
    return set(re.findall(r'"(\w+)":', inspect.getsource(function)))
