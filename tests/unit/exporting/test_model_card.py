"""The card: front matter that the Hub's own parser reads, and a body that says what was measured."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from microbert_cli.exporting.card_facts import _embeddings, base_models
from microbert_cli.exporting.model_card import Card, File, Score, model_card
from microbert_cli.runs.output_dir import stage_output


def card(**changes: Any) -> Card:
    return Card(
        **{
            "name": "tiny: sst2 #1",
            "task_title": "movie reviews",
            "labels": ["negative", "positive"],
            "scores": [
                Score("accuracy", 0.9, "sst2", "validation", "nyu-mll/glue", "sst2", teacher=0.92, rows=872),
                Score("f1", 0.87654321, "sst2", "validation", "nyu-mll/glue", "sst2"),
            ],
            "command": "mbert run recipes/sst2.toml -o runs/sst2",
            "base_models": ["google-bert/bert-base-uncased"],
            "datasets": ["nyu-mll/glue"],
            "language": "en",
            "license": "apache-2.0",
            "lineage": ["general-distill: runs/teacher -> runs/general", "task-distill: prediction | intermediate"],
            "layer_map": {0: 0, 4: 12, 1: 3},
            "sizes": {"parameters": ("14,350,248", "109,482,240"), "FLOPs at 128 tokens": ("1.2 G", None)},
            "files": [
                File("model.safetensors", 57_400_000, "PyTorch", score=0.9, latency_ms=5.01, throughput=240.4),
                File("onnx/model_quantized.onnx", 14_700_000, "ONNX, int8", max_difference=0.05, score=0.897, latency_ms=1.5),
            ],
            "conditions": "2 threads, load 0.3.",
            "limits": ["English only.", "128 tokens at most."],
            "max_length": 128,
            "version": "0.1.0",
            **changes,
        }
    )  # fmt: skip


def matter(text: str) -> dict[str, Any]:
    _, front, _ = text.split("---\n", 2)
    fields: dict[str, Any] = yaml.safe_load(front)
    return fields


def test_front_matter() -> None:
    fields = matter(model_card(card()))
    assert fields["base_model"] == ["google-bert/bert-base-uncased"]
    assert fields["datasets"] == ["nyu-mll/glue"]
    assert fields["metrics"] == ["accuracy", "f1"]
    index = fields["model-index"]
    assert index[0]["name"] == "tiny: sst2 #1"
    assert [result["metrics"] for result in index[0]["results"]] == [
        [{"type": "accuracy", "value": 0.9}, {"type": "f1", "value": 0.8765}],
    ]
    assert index[0]["results"][0]["dataset"] == {
        "name": "sst2", "type": "nyu-mll/glue", "split": "validation", "config": "sst2",
    }  # fmt: skip


def test_the_hub_reads_the_results() -> None:
    data = ModelCard(model_card(card())).data
    assert data.model_name == "tiny: sst2 #1"
    assert [(each.metric_type, each.metric_value, each.dataset_config) for each in data.eval_results] == [
        ("accuracy", 0.9, "sst2"),
        ("f1", 0.8765, "sst2"),
    ]


@pytest.mark.parametrize("name", ["no", "3e-5", 'quo"te', "a: b # c", "ünïcode 模型", "- dash", "back\\slash", "two\nlines"])
def test_any_name_survives_yaml(name: str) -> None:
    assert matter(model_card(card(name=name)))["model-index"][0]["name"] == name


def test_body() -> None:
    text = model_card(card())
    for wanted in (
        "# tiny: sst2 #1\n",
        "Answers: negative, positive. Reads up to 128 tokens.",
        "| sst2, validation (872 rows) | accuracy | 0.9000 | 0.9200 | 97.8 % |",
        "| sst2, validation | f1 | 0.8765 |  |  |",
        "| `model.safetensors` | PyTorch | 57.4 MB |  | 0.9000 | 5.01 | 240 |",
        "| `onnx/model_quantized.onnx` | ONNX, int8 | 14.7 MB | 5.0e-02 | 0.8970 | 1.50 |  |",
        "2 threads, load 0.3.",
        "| parameters | 14,350,248 | 109,482,240 |",
        "1. general-distill: runs/teacher -> runs/general\n2. task-distill",
        "0 <- 0, 1 <- 3, 4 <- 12",
        "```\nmbert run recipes/sst2.toml -o runs/sst2\n```",
        "- English only.\n- 128 tokens at most.",
    ):
        assert wanted in text, wanted


def test_the_text_uses_words_and_says_how_to_open_it() -> None:
    text = model_card(card(scores=[Score("micro_f1", 0.5, "own", "dev")]))
    assert "| own, dev | micro f1 | 0.5000 |" in text and matter(text)["metrics"] == ["micro_f1"]
    assert 'pipeline("text-classification", model=".")' in text and "transformers.js" not in text
    assert '{ dtype: "q8" }' in model_card(card(javascript=True))
    assert 'classify({"text": "a text", "text_pair": "another"}, truncation=True)' in model_card(card(pairs=True))


def test_a_title_that_asks_keeps_its_mark() -> None:
    assert "classifier. Is it good? Answers:" in model_card(card(task_title="Is it good?"))
    assert "classifier. Movie reviews. Answers:" in model_card(card(task_title="Movie reviews"))


def output(path: Path, stage: str, **sources: str) -> str:
    with stage_output(path, stage=stage, identity={"stage": stage, **sources}) as work:
        (work.path / "config.json").write_text("{}", encoding="utf-8")
        work.facts["sources"] = sources
    return str(path)


def test_base_models_are_those_of_the_hub_that_manifests_lead_to(tmp_path: Path) -> None:
    output(tmp_path / "teacher", "finetune", model="google-bert/bert-base-uncased@main")
    output(tmp_path / "general", "general-distill", teacher="google-bert/bert-base-uncased", student="bert-4x312")
    output(tmp_path / "student", "task-distill", teacher="../teacher", student="../general", base="tiny/words")
    model = tmp_path / "student"
    assert base_models(model, None) == ["google-bert/bert-base-uncased"]
    assert base_models(model, "other/teacher") == ["other/teacher", "google-bert/bert-base-uncased"]
    output(tmp_path / "two", "task-distill", **{"teacher 1": "a/one", "teacher 2": "b/two", "student": "bert-1x8"})
    assert base_models(tmp_path / "two", None) == ["a/one", "b/two"]
    assert base_models(tmp_path, None) == [] and base_models(tmp_path / "nothing", None) == []


def test_what_is_not_known_is_not_said() -> None:
    bare = Card("x", "prices", None, scores=[], command="mbert export m")
    text = model_card(bare)
    fields = matter(text)
    assert not {"base_model", "datasets", "metrics", "model-index", "language", "license"} & fields.keys()
    assert "Answers with a number." in text and "mbert export m" in text
    assert "None" not in text and "teacher" not in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Use", "## Made by"]


def test_without_a_teacher_there_is_no_teacher_column() -> None:
    text = model_card(card(scores=[Score("accuracy", 0.5, "own", "dev")], sizes={}))
    assert "| data | metric | this model |\n" in text


def test_a_score_of_a_useless_teacher_has_no_retention() -> None:
    text = model_card(card(scores=[Score("matthews", 0.1, "cola", "dev", teacher=0.0)]))
    assert "%" not in text


def test_the_card_is_the_same_every_time() -> None:
    assert model_card(card()) == model_card(card())


def tables(form: str, error: float) -> dict[str, Any]:
    return {"model.words": {"format": form, "rows": 30522, "width": 384, "relative_error": error}}


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (
            {"int8": {"embeddings": tables("int8", 0.00728)}},
            "int8, a scale per row; relative error of the largest table, 30,522",
        ),
        ({"int8": {"embeddings": tables("int4", 0.0813)}}, "8.13 %. They use the operator com.microsoft.GatherBlockQuantized"),
        ({"int8-optimized": {"embeddings": {}}}, "Embeddings of the int8 files: float32."),
    ],
)
def test_the_embeddings_of_small_files(files: dict[str, Any], wanted: str) -> None:
    sentence = _embeddings(files)
    assert sentence is not None and wanted in sentence and sentence in model_card(card(embeddings=sentence))


def test_no_small_file_no_sentence() -> None:
    assert _embeddings({"safetensors": {"embeddings": None}}) is None
