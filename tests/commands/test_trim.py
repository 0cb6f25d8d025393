"""The stage trim: alone on any model, in a run before and behind the distillation, and what it refuses."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_types import TYPES, build
from mbert_command import refused, works
from tiny_folder import tiny_folder
from tiny_models import tiny_bert
from tiny_routed import apart, routed
from tokenizers import Tokenizer
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from microbert_cli import api
from microbert_cli.models.load import load_model
from microbert_cli.models.save import save_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.runs import manifest
from microbert_cli.runs.stage_inputs import steps

pytestmark = pytest.mark.usefixtures("own_cache")
RECIPE = """
task    = "sst2"
base    = "base"
student = "bert-1x8"
method  = "tinybert"
stages  = ["finetune", "augment", "trim", "task-distill", "evaluate"]
data    = { folder = "glue", max_length = 24 }
teacher = { allow_weak = true }
augment = { copies = 2, sources = ["masked_lm"] }

[finetune]
steps = 30
batch_size = 8
learning_rate = 1e-2

[phases.intermediate]
steps = 4

[phases.prediction]
steps = 4
losses = { soft_target = 1.0 }
"""
TASK = {"task": "sst2", "data__folder": "glue", "data__max_length": 24}


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("trim")
    with tiny_folder(folder, RECIPE):
        works("run", "small.toml", "-o", "out")
        yield folder


def read(directory: str) -> Any:
    return json.loads((Path(directory) / "metrics.json").read_text())


def test_a_run_trims_the_teacher_and_both_share_one_vocabulary() -> None:
    metrics = read("out/trim")
    assert metrics["rows"]["after"] < metrics["rows"]["before"] == 162
    assert metrics["rows"]["after"] == sum(metrics["rows"]["kept_for"].values())
    assert metrics["texts"]["split_alike"] == metrics["texts"]["count"] > 40, "augmented rows count among the texts"
    assert metrics["dev"] == metrics["dev_before"] == read("out/finetune")["dev"]
    assert metrics["parity"]["rows"] == 40 and metrics["parity"]["max_difference"] < 1e-6
    trimmed, student = (AutoTokenizer.from_pretrained(f"out/{stage}") for stage in ("trim", "task-distill"))
    assert trimmed.get_vocab() == student.get_vocab() and len(student) == metrics["rows"]["after"]
    inputs = {step.name: step.inputs for step in planned(["finetune", "trim", "task-distill", "evaluate"])}
    assert inputs["task-distill"]["teacher"] == "out/trim" and inputs["evaluate"]["teacher"] == "out/finetune"
    assert manifest.read_verified(Path("out/trim"))["stage"] == "trim"
    assert "nothing wrong" in works("verify", "out/trim").out
    assert "everything up to date" in works("run", "small.toml", "-o", "out").err


def planned(stages: list[str], **keys: Any) -> Any:
    flags = {"stages": stages, **{key.replace("__", "."): value for key, value in keys.items()}}
    return steps(resolve(catalog=Catalog(), recipe="small.toml", flags=flags), Path("out"), Catalog())


@pytest.mark.parametrize(
    ("stages", "keys", "expected"),
    [
        (["trim", "task-distill"], {"teacher__model": "T"}, {"trim": "T", "task-distill": "out/trim"}),
        (["finetune", "trim", "task-distill"], {"teacher__model": "finetune"},
         {"trim": "out/finetune", "task-distill": "out/finetune"}),
        (["trim", "finetune", "task-distill"], {"trim__model": "base", "finetune__model": "trim"},
         {"trim": "base", "finetune": "out/trim", "task-distill": "out/finetune"}),
        (["finetune", "task-distill", "trim", "export"], {},
         {"task-distill": "out/finetune", "trim": "out/task-distill", "export": "out/trim"}),
        (["finetune", "trim", "task-distill", "export"], {}, {"trim": "out/finetune", "export": "out/task-distill"}),
    ],
)  # fmt: skip
def test_what_is_trimmed_and_who_takes_it(stages: list[str], keys: dict[str, Any], expected: dict[str, str]) -> None:
    inputs = {step.name: step.inputs for step in planned(stages, **keys)}
    places = {name: inputs[name].get("teacher" if name == "task-distill" else "model") for name in expected}
    assert places == expected


def test_a_finished_student_alone_remembers_its_task() -> None:
    done = works("trim", "out/task-distill", "-o", "alone", "--json").json
    assert done["task"] == "sst2" and done["model"] == "../out/task-distill" and done["kind"] == "classifier"
    again = works("trim", "out/task-distill", "-o", "alone")
    assert "up to date" in again.err and again.out.strip() == "alone"
    answer = works("predict", "alone", "the lovely boat", "--json").out
    assert answer == works("predict", "out/task-distill", "the lovely boat", "--json").out
    works("trim", "out/task-distill", "-o", "alone", "--set", "vocabulary.keep=all", "--force")
    assert read("alone")["rows"]["kept_for"] == {"all": read("out/trim")["rows"]["after"]}


def test_own_texts_and_a_corpus_decide() -> None:
    Path("own.csv").write_text(
        "sentence,label\n" + "".join(f"the {w} boat {i},{i % 2}\n" for i, w in enumerate(["warm", "awful"] * 12))
    )
    data = ("--train-file", "own.csv", "--label", "label")
    without = works("trim", "out/finetune", *data, "-o", "own", "--json").json
    words = set(AutoTokenizer.from_pretrained("own").get_vocab())
    assert {"warm", "awful", "boat"} <= words and "lovely" not in words and without["rows"]["kept_for"]["texts"] == 4
    corpus = ("--corpus", "text.txt", "--set", "vocabulary.keep_common=6")
    more = works("trim", "out/finetune", *data, *corpus, "-o", "more", "--json").json
    assert "lovely" in AutoTokenizer.from_pretrained("more").get_vocab() and 0 < more["rows"]["kept_for"]["corpus"] <= 6
    Path("texts.txt").write_text("a gloomy kettle\n")
    works("trim", "out/finetune", *data, "--transfer-file", "texts.txt", "-o", "transfer")
    assert "gloomy" in AutoTokenizer.from_pretrained("transfer").get_vocab()


def test_a_bare_encoder_needs_no_task() -> None:
    tiny_bert("encoder", kind="encoder")
    works("trim", "encoder", "--corpus", "text.txt", "-o", "encoder-small")
    metrics = read("encoder-small")
    assert metrics["kind"] == "encoder" and "dev" not in metrics and metrics["parity"]["max_difference"] < 1e-6
    before, after = AutoModel.from_pretrained("encoder").eval(), AutoModel.from_pretrained("encoder-small").eval()
    text = "the baker sold boat"
    vectors = [
        model(**AutoTokenizer.from_pretrained(name)(text, return_tensors="pt")).last_hidden_state
        for name, model in {"encoder": before, "encoder-small": after}.items()
    ]
    assert torch.equal(*vectors)


@pytest.mark.parametrize(
    "model_type", ["distilbert", "roberta", "xlm-roberta", "albert", "deberta-v2", "mobilebert", "xlnet", "modernbert", "luke"]
)
@pytest.mark.slow
def test_every_kind_of_encoder(model_type: str) -> None:
    """Classifier and masked-LM, through the stage, as transformers alone reads them back."""
    assert model_type in TYPES
    for path in build(model_type, Path("types") / model_type):
        out = f"types-out/{model_type}-{path.name}"
        metrics = api.trim(out=out, model=path, **TASK).metrics
        assert metrics["rows"]["after"] < metrics["rows"]["before"] and metrics["parity"]["max_difference"] < 1e-6
        assert (metrics["kind"] == "classifier") == (path.name == "classifier")
        if metrics["kind"] == "classifier":
            assert metrics["dev"] == metrics["dev_before"]
            before, after = (AutoModelForSequenceClassification.from_pretrained(name).eval() for name in (path, out))
            old, new = (AutoTokenizer.from_pretrained(name) for name in (path, out))
            text = "the lovely boat of the baker near the harbour . "
            assert (
                old.tokenize(text)
                == new.tokenize(text)
                == Tokenizer.from_file(f"{out}/tokenizer.json").encode(text, add_special_tokens=False).tokens
            )
            logits = [m(**t(text, return_tensors="pt")).logits for m, t in ((before, old), (after, new))]
            assert (logits[0] - logits[1]).abs().max() < 1e-6


def test_a_trimmed_masked_lm_teaches_words() -> None:
    """Stage one, and a loss over words: the new student has the trimmed vocabulary."""
    tiny_bert("words", kind="masked-lm")
    assert works("trim", "words", "--task", "sst2", "--data", "glue", "-o", "fewer", "--json").json["kind"] == "masked-lm"
    command = ("general-distill", "--teacher", "fewer", "--student", "bert-1x8", "--corpus", "text.txt", "-o", "general")
    works(
        *command, "--set", "general.steps=2", "--set", "general.masked=0.15", "--set", "general.losses={token_soft_target=1.0}"
    )
    assert AutoTokenizer.from_pretrained("general").get_vocab() == AutoTokenizer.from_pretrained("fewer").get_vocab()


def test_plan_and_doctor_know_it() -> None:
    rows = works("plan", "small.toml", "-o", "fresh", "--json", "--set", "corpus.source=text.txt").json["stages"]
    trim = next(row for row in rows if row["name"] == "trim")
    assert trim["seconds"] > 0 and "tokens stay" in " ".join(trim["notes"]) and trim["disk"] > 0
    assert works("doctor", "small.toml", "-o", "fresh").code == 0
    listed = works("run", "small.toml", "-o", "fresh", "--dry-run").out
    assert "trim " in listed and "teacher=fresh/trim" in listed


def test_keys_of_trim_leave_other_stages_as_they_are() -> None:
    recipes = [resolve(catalog=Catalog(), flags=flags).recipe for flags in ({}, {"vocabulary.rows": 9, "trim.model": "x"})]
    assert (
        recipes[0].identity("vocabulary")
        == recipes[1].identity("vocabulary")
        == {"vocabulary": {"size": None, "lowercase": True}}
    )
    assert recipes[0].identity("vocabulary", "trim") != recipes[1].identity("vocabulary", "trim")


def test_what_is_refused() -> None:
    with_rows = ("--set", "vocabulary.rows=120")
    error = refused(3, "M093", "trim", "out/finetune", "-o", "no", *with_rows)
    assert "--set vocabulary.keep=common" in error["fix"]
    refused(3, "M098", "trim", "out/finetune", "-o", "no", "--set", "vocabulary.keep=common")
    refused(3, "M022", "trim", "encoder", "-o", "no")
    several = ("--set", 'tasks=["sst2", "mrpc"]', "--set", 'stages=["trim"]', "--set", "trim.model=base")
    refused(2, "M134", "run", *several, "-o", "no")
    base = load_model(tiny_bert("four", layers=4), "classifier", where="test")
    save_model(apart(routed(base, tasks={"sst2": {"labels": ["a", "b"], "num_labels": 2}})), base.tokenizer, Path("experts"))
    refused(2, "M135", "trim", "experts", "--task", "sst2", "--data", "glue", "-o", "no")
    shutil.rmtree("experts")


@pytest.mark.slow
def test_the_card_of_a_trimmed_student_tells_where_it_comes_from() -> None:
    works("trim", "out/task-distill", "-o", "carded", "--set", "vocabulary.keep=all")
    works("export", "carded", "--teacher", "out/finetune", "--set", "export.onnx=false", "-o", "carded-export")
    card = Path("carded-export/README.md").read_text()
    rows = read("carded")["rows"]
    assert "distilled for the task" in card and "phase prediction, learnt from: soft target" in card
    assert f"vocabulary trimmed from {rows['before']} to {rows['after']} tokens" in card
