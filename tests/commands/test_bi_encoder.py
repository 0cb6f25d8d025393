"""A student that reads the two texts of a pair apart, through the commands: distilled, exported, its encoder taken out."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mbert_command import refused, works
from tiny_models import tiny_bert, tiny_glue
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from microbert_cli import api

METHOD = ("--set", "method=kd", "--set", "teacher.allow_weak=true", "--set", "phases.distillation.batch_size=8")
ROWS = {"data__folder": "glue", "data__max_length": 48}
STEPS = ("--set", "phases.distillation.steps=200", "--set", "phases.distillation.learning_rate=5e-3")
BRIEF = ("--set", "phases.distillation.steps=2")


def distil(task: str, student: str, *more: str) -> tuple[str, ...]:
    return (
        "task-distill", "--teacher", f"teacher-{task}", "--student", student, "--task", task, "--data", "glue",
        "--set", "data.max_length=48", *METHOD, *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Data, teachers of three tasks, and a student of pairs for two of them."""
    folder = tmp_path_factory.mktemp("apart")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MBERT_CACHE", str(folder / "cache"))
        tiny_glue("glue", ["sst2", "mrpc", "stsb"], rows=64)
        tiny_bert("base", kind="encoder", dropout=0.0)
        tiny_bert("sentences", kind="encoder", seed=1)
        for task in ("mrpc", "stsb", "sst2"):
            api.finetune(model="base", out=f"teacher-{task}", task=task, **ROWS, finetune__steps=60, finetune__batch_size=16,
                         finetune__learning_rate=1e-2)  # fmt: skip
        works(*distil("mrpc", "bi-2x16x16", *STEPS), "-o", "mrpc")
        works(*distil("stsb", "bi-compact", *STEPS), "-o", "stsb")
        yield folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def test_the_student_begins_as_a_slice_of_its_teacher_and_learns() -> None:
    metrics = json.loads(Path("mrpc/metrics.json").read_text())
    assert metrics["start"]["by"] == "teacher-slice"
    scores = json.loads(Path("stsb/metrics.json").read_text())["dev"]
    # Its second texts have the degree that is the score.
    assert scores["pearson"] > 0.8 and scores["spearman"] > 0.8
    config = json.loads(Path("stsb/config.json").read_text())
    assert config["model_type"] == "mbert-bi-encoder" and config["num_hidden_layers"] == 1
    assert config["intermediate_size"] == 3 and config["separator_token_id"] == 3


def test_a_checkpoint_of_the_same_shape_is_the_encoder() -> None:
    works(*distil("stsb", "bi-2x16x32", "--set", "initialise.by=teacher-layers", "--set", "initialise.model=sentences",
                  "--set", "phases.distillation.learning_rate=1e-12", *BRIEF), "-o", "wrapped")  # fmt: skip
    works("extract", "wrapped", "-o", "wrapped-encoder")
    encoders = (
        AutoModel.from_pretrained(name, add_pooling_layer=False).state_dict() for name in ("sentences", "wrapped-encoder")
    )
    base, wrapped = encoders
    assert base.keys() == wrapped.keys()
    assert all(torch.allclose(base[name], wrapped[name], atol=1e-6) for name in base)


@pytest.mark.parametrize("task", ["mrpc", "stsb"])
@pytest.mark.slow
def test_it_is_scored_exported_and_answers_like_any_model(task: str) -> None:
    evaluated = api.evaluate(model=task, task=task, out=f"scored-{task}", **ROWS)
    assert evaluated.metrics["dev"] == json.loads(Path(task, "metrics.json").read_text())["dev"]
    exported = api.export(out=f"shipped-{task}", model=task, task=task, **ROWS)
    assert set(exported.metrics["files"]) == {"safetensors", "fp32", "int8", "fp32-optimized", "int8-optimized"}
    for name in ("fp32", "fp32-optimized"):
        assert exported.metrics["files"][name]["max_difference"] < 1e-5
    pair = "The baker mended the boat.\tThe boat is mended by the baker"
    Path("pairs.txt").write_text(f"{pair}\n", encoding="utf-8")
    answers = [works("predict", model, "--pairs", "--file", "pairs.txt").out for model in (task, f"shipped-{task}")]
    assert answers[0] == answers[1]
    raced = works("bench", task, "--task", task, "--data", "glue", "--rows", 8, "--rounds", 1, "--passes", 1, "--json").json
    assert raced["models"][task]["flops"] > 0


def test_vectors_of_texts_can_be_kept() -> None:
    assert works("extract", "stsb", "-o", "encoder").code == 0
    assert api.extract(model="stsb", out="encoder").up_to_date
    texts = ["A baker mended a boat.", "A baker hardly mended a boat near the market."]
    student = AutoModelForSequenceClassification.from_pretrained("stsb").eval()
    tokenizer, encoder = AutoTokenizer.from_pretrained("encoder"), AutoModel.from_pretrained("encoder").eval()
    assert encoder.config.model_type == "bert"
    rows = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        kept = student.encode(**rows)
        mask = rows["attention_mask"][..., None]
        assert torch.allclose((encoder(**rows).last_hidden_state * mask).sum(1) / mask.sum(1), kept, atol=1e-6)
        pair = student(**tokenizer(*texts, return_tensors="pt")).logits
        assert torch.allclose(student.head(kept[:1], kept[1:]), pair, atol=1e-5)


def test_what_the_page_shows() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "bi-encoder.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace('"student"', '"stsb"'), names)
    rows = names["tokenizer"](names["texts"][:1] * 2, names["texts"][1:], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.allclose(names["scores"], names["student"](**rows).logits, atol=1e-5)


def test_it_is_trimmed_like_any_model() -> None:
    trimmed = api.trim(model="mrpc", out="trimmed", task="mrpc", **ROWS)
    assert trimmed.metrics["rows"]["after"] < trimmed.metrics["rows"]["before"]
    # Without segments texts end at the separator, whose id is another now.
    student, tokenizer = (kind.from_pretrained("trimmed") for kind in (AutoModelForSequenceClassification, AutoTokenizer))
    assert student.config.separator_token_id == tokenizer.sep_token_id
    rows = tokenizer("The baker mended the boat.", "The boat is mended by the baker .", return_tensors="pt")
    with torch.no_grad():
        expected = student.eval()(**rows).logits
        assert torch.equal(student(rows["input_ids"], rows["attention_mask"]).logits, expected)


def test_plan_doctor_and_lists_know_it() -> None:
    assert "bi-compact" in works("list", "students").out
    Path("pairs.toml").write_text(
        'task = "mrpc"\nstudent = "bi-1x16x16"\nmethod = "kd"\ndata = "glue"\nstages = ["task-distill", "evaluate"]\n'
        '[teacher]\nmodel = "teacher-mrpc"\nallow_weak = true\n[phases.distillation]\nsteps = 2\n',
        encoding="utf-8",
    )
    assert works("plan", "pairs.toml", "--json").json["stages"][0]["steps"] == 2
    assert works("doctor", "pairs.toml").code == 0


def test_a_task_of_single_texts_is_refused() -> None:
    error = refused(5, "M324", *distil("sst2", "bi-1x16x16", *BRIEF), "-o", "no")
    assert "pair" in error["what"] and not Path("no").exists()
    refused(5, "M324", "finetune", "--model", "mrpc", "--task", "sst2", "--data", "glue", "-o", "no")
    # Labels of the task's own, so that they are not what is refused.
    words = ("evaluate", "mrpc", "--dev-file", "dev.csv", "--text", "text", "--label", "label", "-o", "no")
    Path("dev.csv").write_text("text,label\n" + "a boat,equivalent\na kettle,not_equivalent\n" * 5, encoding="utf-8")
    refused(5, "M324", *words)
    assert "--pairs" in refused(5, "M324", "predict", "mrpc", "one text")["fix"]


@pytest.mark.parametrize("loss", ["hidden_states", "attention_scores", "cosine", "closest_layers"])
def test_losses_of_layers_are_refused(loss: str) -> None:
    words = distil("mrpc", "bi-2x16x32", "--set", f"phases.distillation.losses.{loss}=1", *BRIEF)
    error = refused(5, "M326", *words, "-o", "no")
    assert f"--set phases.distillation.losses.{loss}=0" in error["fix"]
    refused(5, "M326", *distil("mrpc", "bi-2x16x32"), "--set", "method=tinybert", "-o", "no")


def test_a_student_of_pairs_teaches_by_its_answers() -> None:
    words = ("task-distill", "--teacher", "mrpc", "--student", "bert-1x16", "--task", "mrpc", "--data", "glue", *METHOD, *BRIEF)
    works(*words, "-o", "taught-apart")
    refused(5, "M326", *words, "--set", "phases.distillation.losses.hidden_states=1", "-o", "no")
