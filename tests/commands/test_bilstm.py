"""A recurrent student through the commands: it begins with its teacher's word embeddings, learns, is exported; refusals."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mbert_command import refused, works
from safetensors.torch import load_file
from tiny_models import tiny_bert, tiny_glue
from transformers import AutoTokenizer

from microbert_cli import api
from microbert_cli.distillation.start.initialise import right_vectors

METHOD = ("--set", "method=bilstm", "--set", "teacher.allow_weak=true", "--set", "phases.distillation.batch_size=8")
ROWS = {"data__folder": "glue", "data__max_length": 48}
STEPS = ("--set", "phases.distillation.steps=200", "--set", "phases.distillation.learning_rate=1e-2")
BRIEF = ("--set", "phases.distillation.steps=2", "--set", "phases.distillation.learning_rate=1e-12")
TABLE = "bilstm.embeddings.word_embeddings.weight"


def distil(task: str, student: str, *more: str) -> tuple[str, ...]:
    return (
        "task-distill", "--teacher", f"teacher-{task}", "--student", student, "--task", task, "--data", "glue",
        "--set", "data.max_length=48", *METHOD, *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Data, teachers of three tasks, and students of two: one that is given single texts, and one of pairs."""
    folder = tmp_path_factory.mktemp("recurrent")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MBERT_CACHE", str(folder / "cache"))
        tiny_glue("glue", ["sst2", "mrpc", "stsb"], rows=64)
        tiny_bert("base", kind="encoder", dropout=0.0)
        for task in ("mrpc", "stsb", "sst2"):
            api.finetune(model="base", out=f"teacher-{task}", task=task, **ROWS, finetune__steps=60, finetune__batch_size=16,
                         finetune__learning_rate=1e-2)  # fmt: skip
        works(*distil("sst2", "bilstm-12", *STEPS), "-o", "sst2")
        works(*distil("stsb", "bilstm-12", *STEPS), "-o", "stsb")
        yield folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def weights(directory: str) -> dict[str, torch.Tensor]:
    return load_file(Path(directory, "model.safetensors"))


def words(directory: str) -> torch.Tensor:
    return weights(directory)["bert.embeddings.word_embeddings.weight"]


def test_it_learns_from_its_teacher_and_says_what_it_began_with() -> None:
    metrics = json.loads(Path("sst2/metrics.json").read_text())
    assert metrics["start"] == {"by": "teacher-ends", "of": "teacher-sst2"}
    teacher = json.loads(Path("teacher-sst2/metrics.json").read_text())["dev"]["accuracy"]
    assert metrics["dev"]["accuracy"] >= teacher - 0.1 > 0.6
    config = json.loads(Path("sst2/config.json").read_text())
    assert config["model_type"] == "mbert-bilstm" and config["hidden_size"] == 12 and config["siamese"] is False
    pairs = json.loads(Path("stsb/config.json").read_text())
    assert pairs["siamese"] is True and pairs["separator_token_id"] == 3
    assert json.loads(Path("stsb/metrics.json").read_text())["dev"]["pearson"] > 0.7


@pytest.mark.parametrize("channels", ["trainable", "static", "both"])
def test_word_embeddings_begin_as_the_teachers(channels: str) -> None:
    Path("own.toml").write_text(
        f'model_type = "mbert-bilstm"\nhidden_size = 4\nembedding_size = "teacher"\nchannels = "{channels}"\n', encoding="utf-8"
    )
    works(*distil("sst2", "own.toml", *BRIEF), "-o", f"start-{channels}")
    tables = [tensor for name, tensor in weights(f"start-{channels}").items() if ".embeddings." in name]
    assert len(tables) == (2 if channels == "both" else 1)
    assert all(torch.allclose(table, words("teacher-sst2"), atol=1e-6) for table in tables)


def test_narrower_word_embeddings_are_the_teachers_by_svd() -> None:
    works(*distil("sst2", "bilstm-4x6", *BRIEF), "-o", "narrow")
    assert json.loads(Path("narrow/metrics.json").read_text())["start"]["by"] == "svd-embed"
    expected = words("teacher-sst2").double()
    expected = (expected @ right_vectors(expected, 6)).float()
    assert torch.allclose(weights("narrow")[TABLE], expected, atol=1e-6)


def test_wider_or_random_word_embeddings_are_new() -> None:
    works(*distil("sst2", "bilstm-4x500", *BRIEF), "-o", "wide")
    works(*distil("sst2", "bilstm-4", *BRIEF, "--set", "initialise.by=random"), "-o", "random")
    for name in ("wide", "random"):
        assert "start" not in json.loads(Path(name, "metrics.json").read_text())
    assert not torch.allclose(weights("random")[TABLE], words("teacher-sst2"), atol=1e-2)
    error = refused(3, "M045", *distil("sst2", "bilstm-4x6", *BRIEF, "--set", "initialise.by=teacher-ends"), "-o", "no")
    assert "svd-embed" in error["fix"]
    refused(3, "M045", *distil("sst2", "bilstm-4x500", *BRIEF, "--set", "initialise.by=svd-embed"), "-o", "no")
    refused(3, "M046", *distil("sst2", "bilstm-4", *BRIEF, "--set", "initialise.by=teacher-slice"), "-o", "no")


def test_static_word_embeddings_stay_and_have_no_gradient() -> None:
    Path("static.toml").write_text(
        'model_type = "mbert-bilstm"\nhidden_size = 4\nembedding_size = "teacher"\nchannels = "both"\n', encoding="utf-8"
    )
    works(*distil("sst2", "static.toml", *STEPS, "--set", "phases.distillation.weight_decay=1"), "-o", "channels")
    trained, teacher = weights("channels"), words("teacher-sst2")
    assert torch.equal(trained["bilstm.embeddings.static_embeddings.weight"], teacher)
    assert not torch.allclose(trained[TABLE], teacher, atol=1e-2)


@pytest.mark.parametrize("task", ["sst2", "stsb"])
@pytest.mark.slow
def test_it_is_scored_exported_and_answers_like_any_model(task: str) -> None:
    evaluated = api.evaluate(model=task, task=task, out=f"scored-{task}", **ROWS)
    assert evaluated.metrics["dev"] == json.loads(Path(task, "metrics.json").read_text())["dev"]
    exported = api.export(out=f"shipped-{task}", model=task, task=task, **ROWS)
    assert set(exported.metrics["files"]) == {"safetensors", "fp32", "int8", "fp32-optimized", "int8-optimized"}
    for name in ("fp32", "fp32-optimized"):
        assert exported.metrics["files"][name]["max_difference"] < 1e-5
    assert exported.metrics["files"]["int8"]["graph"]["written"]["fused"]["DynamicQuantizeLSTM"] == 1
    raced = works("bench", task, "--task", task, "--data", "glue", "--rows", 8, "--rounds", 1, "--passes", 1, "--json").json
    assert raced["models"][task]["flops"] > 0


def test_it_is_trimmed_like_any_model() -> None:
    trimmed = api.trim(model="stsb", out="trimmed", task="stsb", **ROWS)
    assert trimmed.metrics["rows"]["after"] < trimmed.metrics["rows"]["before"]
    Path("both.toml").write_text(
        'model_type = "mbert-bilstm"\nhidden_size = 4\nembedding_size = "teacher"\nchannels = "both"\n', encoding="utf-8"
    )
    works(*distil("sst2", "both.toml", *BRIEF), "-o", "two-tables")
    api.trim(model="two-tables", out="trimmed-tables", task="sst2", **ROWS)
    rows = {name: len(tensor) for name, tensor in weights("trimmed-tables").items() if ".embeddings." in name}
    assert len(rows) == 2 and len(set(rows.values())) == 1


def test_plan_doctor_and_lists_know_it() -> None:
    assert {"bilstm-H", "bilstm-HxE"} <= set(works("list", "students").out.split())
    for task in ("sst2", "mrpc"):
        Path(f"{task}.toml").write_text(
            f'task = "{task}"\nstudent = "bilstm-8"\nmethod = "bilstm"\ndata = "glue"\nstages = ["task-distill", "evaluate"]\n'
            f'[teacher]\nmodel = "teacher-{task}"\nallow_weak = true\n[phases.distillation]\nsteps = 2\n',
            encoding="utf-8",
        )
        planned = works("plan", f"{task}.toml", "--json").json["stages"][0]
        assert planned["steps"] == 2 and planned["flops"] > 0
        assert works("doctor", f"{task}.toml").code == 0


VECTORS = ("--set", "initialise.by=word-vectors", "--set", "vectors.source=vectors.txt")


def test_word_embeddings_of_a_file_of_word_vectors() -> None:
    """Tokens that are words get its vectors, as long as the random ones; other tokens stay as they were."""
    Path("vectors.txt").write_text("boat 3 0 0 4\nkettle 0 1 0 0\nno-such-token 1 1 1 1\n", encoding="utf-8")
    done = works(*distil("sst2", "bilstm-4x4", *BRIEF, *VECTORS), "-o", "of-vectors")
    assert "2 of" in done.err and "tokens have one" in done.err
    start = json.loads(Path("of-vectors/metrics.json").read_text())["start"]
    assert start == {"by": "word-vectors", "of": "vectors.txt", "tokens": 2}
    tokens = AutoTokenizer.from_pretrained("of-vectors")
    table, length = weights("of-vectors")[TABLE], 4**0.5 * 0.1
    for word, unit in (("boat", (0.6, 0.0, 0.0, 0.8)), ("kettle", (0.0, 1.0, 0.0, 0.0))):
        torch.testing.assert_close(table[tokens.vocab[word]], length * torch.tensor(unit), atol=1e-5, rtol=0)
    works(*distil("sst2", "bilstm-4x4", *BRIEF, "--set", "initialise.by=random"), "-o", "no-vectors")
    others = [i for i in range(len(table)) if i not in (tokens.vocab["boat"], tokens.vocab["kettle"])]
    assert torch.allclose(table[others], weights("no-vectors")[TABLE][others], atol=1e-6)
    assert "up to date" in works(*distil("sst2", "bilstm-4x4", *BRIEF, *VECTORS), "-o", "of-vectors").err
    Path("vectors.txt").write_text("boat 0 0 1 0\n", encoding="utf-8")
    refused(2, "M110", *distil("sst2", "bilstm-4x4", *BRIEF, *VECTORS), "-o", "of-vectors")


def test_word_vectors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    Path("vectors.txt").write_text("boat 3 0 0 4\n", encoding="utf-8")
    command = (*distil("sst2", "bilstm-4x6", *BRIEF, *VECTORS), "-o", "no")
    error = refused(3, "M049", *command)
    assert "bilstm-4x4" in error["fix"] and "4 numbers" in error["what"]
    refused(3, "M047", *distil("sst2", "bert-1x16", *BRIEF, *VECTORS), "-o", "no")
    refused(3, "M022", *distil("sst2", "bilstm-4x4", *BRIEF, "--set", "initialise.by=word-vectors"), "-o", "no")
    missing = ("--set", "initialise.by=word-vectors", "--set", "vectors.source=gone.txt")
    refused(4, "M242", *distil("sst2", "bilstm-4x4", *BRIEF, *missing), "-o", "no")
    assert not Path("no").exists()


@pytest.mark.parametrize("loss", ["hidden_states", "attention_scores", "cosine", "closest_layers"])
def test_losses_of_layers_are_refused(loss: str) -> None:
    error = refused(5, "M329", *distil("sst2", "bilstm-4", "--set", f"phases.distillation.losses.{loss}=1", *BRIEF), "-o", "no")
    assert f"--set phases.distillation.losses.{loss}=0" in error["fix"] and not Path("no").exists()


def test_it_has_no_stage_of_plain_text() -> None:
    Path("text.txt").write_text("\n\n".join(["A boat.\nA kettle near the harbour."] * 30), encoding="utf-8")
    error = refused(5, "M329", "general-distill", "--teacher", "base", "--student", "bilstm-4", "--corpus", "text.txt",
                    "--set", "method=tinybert", "--set", "general.steps=2", "-o", "no")  # fmt: skip
    assert "Transformer" in error["what"]
    refused(5, "M327", "pretrain", "--model", "bilstm-4", "--corpus", "text.txt", "--set", "base=base",
            "--set", "pretrain.steps=2", "-o", "no")  # fmt: skip


def test_a_student_of_pairs_is_refused_single_texts() -> None:
    refused(5, "M324", "finetune", "--model", "stsb", "--task", "sst2", "--data", "glue", "-o", "no")
    assert "--pairs" in refused(5, "M324", "predict", "stsb", "one text")["fix"]


def test_it_teaches_by_its_answers() -> None:
    words = ("task-distill", "--teacher", "sst2", "--student", "bert-1x16", "--task", "sst2", "--data", "glue",
             "--set", "method=kd", "--set", "teacher.allow_weak=true", *BRIEF)  # fmt: skip
    works(*words, "-o", "taught-by-it")
    works("task-distill", "--teacher", "sst2", "--student", "bilstm-4", "--task", "sst2", "--data", "glue", *METHOD, *BRIEF,
          "-o", "smaller")  # fmt: skip
    assert json.loads(Path("smaller/metrics.json").read_text())["start"]["by"] == "teacher-ends"
