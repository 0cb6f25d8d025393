"""Labels of words through the commands: trained, distilled, exported, predicted as by transformers; refusals."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mbert_command import mbert, works
from stopping import stopped_everywhere
from tiny_models import tiny_bert
from tiny_words import PEOPLE, TAGS, VOCABULARY, tiny_sentences, write_conll, write_jsonl

from microbert_cli import api
from microbert_cli.data.examples import Examples
from microbert_cli.data.tokenized import tokenize_examples
from microbert_cli.distillation.teacher import Teacher
from microbert_cli.distillation.teacher_cache import CacheSettings, cached_ask
from microbert_cli.evaluation.scoring import logits_of
from microbert_cli.models.capture import OutputRequest
from microbert_cli.models.load import load_model
from microbert_cli.recipe.task_kinds import kind_of_model
from microbert_cli.reporter import Reporter
from microbert_cli.runs.stage_result import StageResult

pytest_plugins = ["hub_stand_in"]  # for the fixture `hub`

DATA = ("--train-file", "train.jsonl", "--dev-file", "dev.conll", "--set", "data.kind=token_classification")
FAST = ("--set", "finetune.learning_rate=5e-3", "--set", "finetune.epochs=6")
TEXT = "anna smith in new rome and kyoto"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with rows, a base model, one of another vocabulary, and a teacher trained with the command."""
    folder = tmp_path_factory.mktemp("words")
    write_jsonl(folder / "train.jsonl", tiny_sentences(160, 1))
    write_conll(folder / "dev.conll", tiny_sentences(40, 2))
    tiny_bert(folder / "bert", kind="masked-lm", vocab=VOCABULARY, hidden=16)
    tiny_bert(folder / "other", kind="masked-lm", vocab=(*PEOPLE, "of"), hidden=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MBERT_CACHE", str(folder / "cache"))
        works("finetune", *DATA, *FAST, "--model", "bert", "-o", "teacher")
        yield folder


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("MBERT_CACHE", str(place / "cache"))


def test_the_pipeline_of_transformers_gives_the_same_entities(place):
    from transformers import pipeline

    tag = pipeline("token-classification", model=str(place / "teacher"), aggregation_strategy="first")
    expected = [(e["entity_group"], e["start"], e["end"], float(e["score"])) for e in tag(TEXT)]
    (record,) = [json.loads(line) for line in works("predict", "teacher", TEXT, "--json").out.splitlines()]
    actual = [(e["type"], e["start"], e["end"], e["score"]) for e in record["entities"]]
    assert [entity[:3] for entity in actual] == [entity[:3] for entity in expected] != []
    assert [entity[3] for entity in actual] == pytest.approx([entity[3] for entity in expected], abs=1e-5)
    assert works("predict", "teacher", TEXT).out.split() == record["tags"]


def test_texts_without_words_and_words_behind_the_cut(place):
    lines = works("predict", "teacher", "", "anna", "--json").out.splitlines()
    assert [json.loads(line)["tags"] for line in lines][0] == []
    done = works("predict", "teacher", "anna smith in rome", "--max-length", "4", "--json")
    record = json.loads(done.out)
    assert record["unread_words"] == 2 and record["tags"][2:] == ["O", "O"] and "2 words are not read" in done.err


def test_scores_are_those_of_training_and_by_type(place):
    works("evaluate", "teacher", *DATA, "-o", "scores")
    metrics = json.loads((place / "scores" / "metrics.json").read_text())
    trained = json.loads((place / "teacher" / "metrics.json").read_text())
    assert metrics["dev"] == trained["dev"] and metrics["dev"]["entity_f1"] > 0.2
    by_type = metrics["splits"]["dev"]["entities"]
    assert set(by_type) == {"LOC", "PER", "all"}
    assert by_type["all"]["f1"] == metrics["dev"]["entity_f1"]


def test_bench_has_a_linear_model_of_words(place):
    result = json.loads(works("bench", "teacher", *DATA, "--rows", "8", "--rounds", "1", "--passes", "1", "--json").out)
    rows = {row["kind"]: row for row in result["rows"]}
    assert rows["majority"]["model"] == "commonest tag" and rows["majority"]["score"] == 0
    linear = rows["linear"]
    assert linear["model"] == "linear, word features" and linear["latency_ms"] > 0 and linear["megabytes"] > 0
    assert linear["score"] > 0.95, "first names and places are named in train"
    assert f"a linear model of word features has {linear['score']:.4f} on dev" in result["verdict"]["sentence"]
    assert "note" not in linear


def test_padding_and_batches_do_not_change_a_word(place):
    loaded = load_model("teacher", "classifier", where="test")
    kind = kind_of_model(loaded.model.config)
    texts = [(" ".join(words),) for words, _ in tiny_sentences(12, 5)]
    encoded = tokenize_examples(Examples(texts), loaded.tokenizer, 32, kind)
    together = logits_of(loaded.model, encoded, pad_id=0)
    for row in range(len(texts)):
        alone = logits_of(loaded.model, encoded.take(np.array([row])), pad_id=0)[0]
        assert np.abs(together[row, : len(alone)] - alone).max() < 1e-5
        assert np.isnan(together[row, len(alone) :]).all()


def test_the_cache_keeps_logits_of_every_token(place):
    loaded = load_model("teacher", "classifier", where="test")
    kind = kind_of_model(loaded.model.config)
    rows = tokenize_examples(Examples([("anna in rome",), ("oslo",), ("anna in rome",)]), loaded.tokenizer, 32, kind)
    teacher, request = Teacher(loaded), OutputRequest(logits=True, hidden=frozenset({1}))
    ask = cached_ask(teacher, rows, request, identity={"test": 1}, pad_id=0, settings=CacheSettings(precision="fp32"))
    assert ask != teacher.ask
    batch = rows.batch([2, 1])
    read, asked = ask(batch, request), teacher.ask(batch, request)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(read.logits[real], asked.logits[real], atol=1e-5, rtol=0)
    torch.testing.assert_close(read.hidden[1][real], asked.hidden[1][real], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_students_learn_from_soft_targets_layers_and_teachers_of_other_words(place):
    short = ("--set", "phases.distillation.epochs=6", "--set", "phases.distillation.learning_rate=5e-3")
    works("task-distill", *DATA, "--teacher", "teacher", "--student", "bert-1x16", "--set", "method=kd", *short, "-o", "kd")
    works("task-distill", *DATA, "--teacher", "teacher", "--student", "other", "--set", "method=kd", *short, "-o", "words")
    layers = ("--set", "method=tinybert", "--set", "layer_map=last", "--set", "phases.prediction.learning_rate=5e-3")
    steps = ("--set", "phases.intermediate.epochs=2", "--set", "phases.prediction.epochs=6")
    works("task-distill", *DATA, "--teacher", "teacher", "--student", "bert-1x16", *layers, *steps, "-o", "tiny")
    for name in ("kd", "words", "tiny"):
        metrics = json.loads((place / name / "metrics.json").read_text())
        assert metrics["dev"]["entity_f1"] > 0.1, name


@pytest.mark.parametrize("method", ["pkd", "microbert"])
def test_pkd_and_microbert_teach_words(place, method):
    """Their vectors are those of the whole text; MicroBERT's discriminator sees the answers word by word."""
    phases = {"pkd": ("distillation",), "microbert": ("alignment", "all")}[method]
    keys = [f"phases.{name}.{key}" for name in phases for key in ("steps=8", "learning_rate=5e-3")]
    keys += [f"method={method}", "initialise=random"]
    keys += ["phases.all.losses.discriminator.input=logits"] if method == "microbert" else []
    settings = [word for key in keys for word in ("--set", key)]
    works("task-distill", *DATA, "--teacher", "teacher", "--student", "bert-2x16", *settings, "-o", method)
    works("evaluate", method, *DATA, "--teacher", "teacher", "-o", f"{method}-scores")
    metrics = json.loads((place / f"{method}-scores" / "metrics.json").read_text())
    assert metrics["dev"] == json.loads((place / method / "metrics.json").read_text())["dev"]
    assert metrics["splits"]["dev"]["teacher"]["kl"] > 0
    assert len(works("predict", method, TEXT).out.split()) == len(TEXT.split())


@pytest.mark.slow
def test_an_export_gives_the_same_answers_without_torch(place):
    pytest.importorskip("onnxruntime")
    works("export", "teacher", *DATA, "-o", "export", "--set", "export.optimize=false")
    files = json.loads((place / "export" / "metrics.json").read_text())["files"]
    assert files["fp32"]["max_difference"] < 1e-4 and files["fp32"]["scores"] == files["safetensors"]["scores"]
    assert {"fp32", "int8"} <= files.keys()
    card = (place / "export" / "README.md").read_text()
    assert "| linear, word features |" in card
    assert "pipeline_tag: token-classification" in card and 'aggregation_strategy="first"' in card
    script = (
        "import sys; from microbert_cli.cli.main import main; sys.argv = ['mbert', 'predict', 'export', "
        f"{TEXT!r}, '--json']\ntry: main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    exported, trained = (json.loads(out) for out in (done.stdout, works("predict", "teacher", TEXT, "--json").out))
    assert exported["tags"] == trained["tags"]
    assert exported["scores"] == pytest.approx(trained["scores"], abs=1e-4)


def test_a_trimmed_model_still_tags_words(place):
    works("trim", "teacher", *DATA, "-o", "trimmed")
    assert works("predict", "trimmed", TEXT).out == works("predict", "teacher", TEXT).out


def test_copies_keep_the_tag_of_every_word(place):
    import pyarrow.parquet as pq

    works(
        "augment",
        *DATA,
        "--masked-lm",
        "bert",
        "--set",
        'augment.sources=["masked_lm"]',
        "--set",
        "augment.copies=3",
        "-o",
        "more",
    )
    rows = pq.read_table(place / "more" / "augmented.parquet").to_pylist()
    copies = [row for row in rows if row["augmented"]]
    assert copies
    for copy in copies:
        original = next(row for row in rows if not row["augmented"] and row["source"] == copy["source"])
        assert copy["ner_tags"] == original["ner_tags"] and copy["tokens"] != original["tokens"]
        words = zip(original["tokens"].split(), copy["tokens"].split(), copy["ner_tags"].split(), strict=True)
        assert all(before == after for before, after, tag in words if tag != "O"), "words of entities stay"
    steps = (
        "--set",
        "method=tinybert",
        "--set",
        "layer_map=last",
        "--set",
        "phases.intermediate.steps=2",
        "--set",
        "phases.prediction.steps=2",
    )
    works(
        "task-distill",
        *DATA,
        "--teacher",
        "teacher",
        "--student",
        "bert-1x16",
        *steps,
        "--augmented",
        "more",
        "-o",
        "of-copies",
    )


ROWS = {"data__train_file": "train.jsonl", "data__dev_file": "dev.conll", "data__kind": "token_classification"}


@pytest.mark.slow
def test_stopped_anywhere_and_gone_on_is_the_same(place, tmp_path, monkeypatch):
    def trained(out: Path, reporter: Reporter) -> StageResult:
        steps = {"finetune__steps": 4, "finetune__batch_size": 8, "finetune__evaluations": 2}
        return api.finetune(out=out, reporter=reporter, model="bert", **ROWS, **steps)

    def taught(out: Path, reporter: Reporter) -> StageResult:
        short = {f"phases__{name}__{key}": 4 for name in ("intermediate", "prediction") for key in ("steps", "batch_size")}
        return api.distill(
            out=out, reporter=reporter, method="tinybert", teacher="teacher", student="bert-1x16", layer_map="last",
            teacher__allow_weak=True, **ROWS, **short,
        )  # fmt: skip

    assert stopped_everywhere(trained, tmp_path / "trained", fresh_cache=monkeypatch) >= 3
    assert stopped_everywhere(taught, tmp_path / "taught", fresh_cache=monkeypatch) >= 5


HUB_TASK = """
text = ["tokens"]
[label]
column = "ner_tags"
kind = "token_classification"
names = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
[hub]
id = "tiny/ner"
splits = { train = "train", dev = "validation" }
"""


@pytest.mark.slow
def test_lists_of_class_labels_come_from_the_hub(place, tmp_path, hub):
    files = {}
    for split, rows in (("train", tiny_sentences(40, 1)), ("validation", tiny_sentences(12, 2))):
        names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]  # another order than the task's
        features = {
            "tokens": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
            "ner_tags": {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "List"},
        }
        numbers = [[names.index(tag) for tag in tags] for _, tags in rows]
        table = pa.table({"tokens": [words for words, _ in rows], "ner_tags": pa.array(numbers, pa.list_(pa.int64()))})
        pq.write_table(
            table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}),
            tmp_path / "part.parquet",
        )
        files[f"data/{split}-00000-of-00001.parquet"] = (tmp_path / "part.parquet").read_bytes()
    hub.add_dataset("tiny/ner", files)
    (tmp_path / "ner.toml").write_text(HUB_TASK)
    script = (
        "from microbert_cli.recipe.task import load_task; from microbert_cli.data.load import load_split; "
        "rows = load_split(load_task('ner.toml'), 'dev'); import json; print(json.dumps([rows.texts, rows.labels]))"
    )
    env = hub.env(MBERT_CACHE=str(tmp_path / "cache"), PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    texts, labels = json.loads(done.stdout.splitlines()[-1])
    expected = tiny_sentences(12, 2)
    assert [text for (text,) in texts] == [" ".join(words) for words, _ in expected]
    assert labels == [[TAGS.index(tag) for tag in tags] for _, tags in expected]


DISTIL = ("task-distill", *DATA, "--teacher", "teacher")


def test_weights_of_tags_and_another_metric(place):
    """Weights of tags and a focal loss change what is learnt; `data.primary` what is chosen by."""
    weights = ("--set", "data.class_weights=balanced", "--set", "data.primary=macro_f1")
    focal = ("--set", "finetune.losses.hard_label.gamma=2")
    steps = (*FAST[:2], "--set", "finetune.steps=8", "--set", "finetune.evaluations=1")
    for name, words in (("plain", ()), ("weighed", weights), ("focal", focal)):
        works("finetune", *DATA, "--model", "bert", *steps, *words, "-o", f"tags-{name}")
    weighed = json.loads((place / "tags-weighed/metrics.json").read_text())
    assert weighed["primary"] == "macro_f1" and 0 <= weighed["dev"]["macro_f1"] <= 1
    weights_of = {(place / f"tags-{name}/model.safetensors").read_bytes() for name in ("plain", "weighed", "focal")}
    assert len(weights_of) == 3


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("M436", (*DISTIL, "--student", "bilstm-16", "--set", "method=kd")),
        ("M438", (*DISTIL, "--student", "bert-1x16", "--set", "method=microbert")),
        ("M438", (*DISTIL, "--student", "bert-1x16", "--set", "moe.side=student")),
        ("M438", ("augment", *DATA, "--set", 'augment.sources=["recombine"]')),
        ("M438", ("cascade", "teacher", "teacher", *DATA)),
        ("M439", ("predict", "teacher", "--pairs", "anna\tsmith")),
        ("M441", ("finetune", *DATA, "--model", "bert", "--set", 'data.class_weights={"B-ORG" = 2}')),
        ("M444", ("finetune", *DATA, "--model", "bert", "--set", "data.primary=matthews")),
        ("M482", ("finetune", *DATA, "--model", "bert", "--set", "data.windows=mean")),
        ("M142", ("evaluate", "teacher", *DATA, "--submission")),
        ("M142", ("evaluate", "teacher", "--dev-file", "dev.conll", "--submission", "--dry-run")),
        ("M142", ("evaluate", "teacher", "--task", "python-roles", "--submission")),
        ("M437", ("evaluate", "teacher", "--train-file", "texts.csv", "--dev-file", "texts.csv")),
    ],
)
def test_what_is_not_there_is_refused_before_any_work(place, code, words):
    (place / "texts.csv").write_text("text,label\n" + "".join(f"a film {i},{'yn'[i % 2]}\n" for i in range(20)))
    done = mbert(*words, "-o", "no")
    assert done.code not in (0, 70), done.err
    what, allowed, fix = done.err[done.err.index(f"[{code}]") :].strip().splitlines()[:3]
    assert what and allowed.strip() and fix.strip()
    assert not (place / "no").exists()
    for leftover in place.glob("no.partial*"):
        assert not list(leftover.glob("**/*.safetensors")), "nothing was trained"
        shutil.rmtree(leftover)


def test_a_model_that_read_windows_reads_none_as_a_model_of_words(place):
    config = json.loads((place / "bert/config.json").read_text())
    shutil.copytree(place / "bert", place / "of-windows", dirs_exist_ok=True)
    marked = {**config, "mbert_windows": {"pool": "mean", "max_length": 8, "stride": 2}}
    (place / "of-windows/config.json").write_text(json.dumps(marked))
    works("finetune", *DATA, "--model", "of-windows", "--set", "finetune.steps=2", "-o", "no-windows")
    assert "mbert_windows" not in json.loads((place / "no-windows/config.json").read_text())
    works("evaluate", "no-windows", "--dev-file", "dev.conll", "-o", "no-windows-scores")  # the model says its kind and tags


def test_the_task_of_words_is_embedded():
    from microbert_cli.data.load import load_split
    from microbert_cli.recipe.registry import Catalog
    from microbert_cli.recipe.task import load_task

    task = load_task(Catalog().path("tasks", "python-roles", where="task"))
    rows = load_split(task, "dev", limit=200)
    assert all(len(text.split()) == len(label) for (text,), label in zip(rows.texts, rows.labels, strict=True))
    assert {i for label in rows.labels for i in label} > {0}
    assert TAGS[0] == task.kind.names[0] == "O"
