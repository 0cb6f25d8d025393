"""From a mixture of experts to plain BERTs: equal logits for every task, through the stages and the commands around them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mbert_command import refused, works
from tiny_models import tiny_bert, tiny_glue
from tiny_routed import TASKS, apart, routed, rows
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from microbert_cli import api
from microbert_cli.errors import MbertError
from microbert_cli.models import size
from microbert_cli.models.config import read_config
from microbert_cli.models.load import LoadedModel, count_all_parameters, load_model, load_routed
from microbert_cli.models.moe.bert import RoutedBertForSequenceClassification
from microbert_cli.models.moe.convert import MoeSettings, add_experts, expert_layers, expert_widths
from microbert_cli.models.moe.extract import dense_model
from microbert_cli.models.moe.importance import importance
from microbert_cli.models.moe.layers import deal_neurons
from microbert_cli.models.save import save_model
from microbert_cli.runs import manifest

GLUE = {"sst2": {"labels": ["negative", "positive"], "num_labels": 2}, "stsb": {"labels": None, "num_labels": 1}}
ROWS = {"data__folder": "glue", "data__max_length": 24, "teacher__allow_weak": True}
QUICK = {"method": "tinybert"} | {
    f"phases__{phase}__{key}": n for phase in ("intermediate", "prediction") for key, n in (("steps", 4), ("batch_size", 8))
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Data, a fine-tuned teacher, and routed models of two tasks: by task, by task to two experts, by token."""
    folder = tmp_path_factory.mktemp("extract")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MBERT_CACHE", str(folder / "cache"))
        tiny_glue("glue", ["sst2", "stsb"], rows=48)
        base = load_model(tiny_bert("base", layers=4), "classifier", where="base")
        for name, more in {"one": {}, "two": {"top_k": 2}, "token": {"routing": "token"}}.items():
            save_model(apart(routed(base, tasks=GLUE, **more)), base.tokenizer, Path(name))
        api.finetune(model="base", out="teacher", task="sst2", data__folder="glue", data__max_length=24, finetune__steps=60,
                     finetune__batch_size=8, finetune__learning_rate=1e-2)  # fmt: skip
        yield folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


@pytest.fixture(scope="module")
def dense(place: Path) -> LoadedModel:
    return load_model(place / "base", "classifier", where="base")


@pytest.mark.parametrize(
    ("more", "width"),
    [({}, 32), ({"top_k": 2}, 64), ({"moe_layers": [1, 2, 3, 4], "top_k": 3}, 96), ({"moe_layers": []}, 32)],
)
@pytest.mark.parametrize("task", TASKS)
def test_the_plain_model_says_what_the_routed_one_says(
    dense: LoadedModel, more: dict[str, object], width: int, task: str
) -> None:
    model = apart(routed(dense, **more))
    batch = rows(list(TASKS).index(task))
    plain = dense_model(model, task)
    logits = plain(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert (logits - model(**batch).logits).abs().max() < 1e-6
    assert type(plain) is BertForSequenceClassification and plain.config.intermediate_size == width
    assert plain.config.num_labels == TASKS[task]["num_labels"]


def test_the_published_size_is_left() -> None:
    """MicroBERT's 4 x 312: 14,350,248 parameters and the head, of 4 experts in two layers each."""
    config = BertConfig(num_hidden_layers=4, hidden_size=312, intermediate_size=1200, num_attention_heads=12, vocab_size=30522)
    model = RoutedBertForSequenceClassification.from_dense(
        BertForSequenceClassification(config), tasks=TASKS, moe_layers=[2, 4], experts=4
    )
    plain = dense_model(model.eval(), "film")
    assert count_all_parameters(plain) == 14_350_248 + 312 * 2 + 2
    one_ffn = 2 * 312 * 1200 + 1200 + 312
    routers = 2 * 64 * 4 + 2 * 64
    assert count_all_parameters(model) == 14_350_248 + 2 * 3 * one_ffn + routers + 312 * 3 + 3
    ids_BT = torch.randint(5, 30_000, (2, 9), generator=torch.Generator().manual_seed(0))
    assert (plain(ids_BT).logits - model(ids_BT, task=0).logits).abs().max() < 1e-6


def test_every_task_comes_out_as_transformers_alone_reads_it() -> None:
    out = works("extract", "one", "--data", "glue", "-o", "all")
    assert out.out.strip() == "all" and sorted(path.name for path in Path("all").iterdir()) == ["sst2", "stsb"]
    whole = load_routed(Path("one"), read_config("one", where=""), where="").eval()
    for task, settings in GLUE.items():
        plain = AutoModelForSequenceClassification.from_pretrained(Path("all") / task)
        metrics = json.loads((Path("all") / task / "metrics.json").read_text())
        assert type(plain) is BertForSequenceClassification and (Path("all") / task / "tokenizer.json").is_file()
        assert settings["labels"] is None or list(plain.config.id2label.values()) == settings["labels"]
        batch = rows(whole.tasks.index(task))
        logits = plain(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        assert (logits - whole(**batch).logits).abs().max() < 1e-6
        assert metrics["parity"]["max_difference"] < 1e-6 and metrics["parameters"]["after"] < metrics["parameters"]["before"]
        assert metrics["experts"] == {str(layer): chosen for layer, chosen in whole.chosen_experts()[task].items()}
        alone = api.evaluate(out=f"alone-{task}", model=f"all/{task}", task=task, data__folder="glue")
        inside = api.evaluate(out=f"inside-{task}", model="one", task=task, data__folder="glue")
        for result in (alone, inside):
            assert result.metrics["dev"] == pytest.approx(metrics["dev"], abs=1e-4)
        assert manifest.read_verified(Path("all") / task)["stage"] == "extract"
    assert "up to date" in works("extract", "one", "--data", "glue", "-o", "all").err


def test_the_data_is_where_training_found_it(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = works("evaluate", "teacher", "-o", "where", "--explain-config", "--json").json["data.folder"]
    assert folder == {"value": "glue", "from": "teacher/manifest.json"}
    assert works("evaluate", "teacher", "--task", "sst2", "-o", "found", "--json").json["dev"]
    assert works("evaluate", "teacher", "--data", "else", "--explain-config", "--json").json["data.folder"]["value"] == "else"
    Path("says.toml").write_text('data.folder = "said"')
    assert works("evaluate", "teacher", "-r", "says.toml", "--explain-config", "--json").json["data.folder"]["value"] == "said"
    monkeypatch.setenv("MBERT_DATA", "named")
    assert works("evaluate", "teacher", "--explain-config", "--json").json["data.folder"]["value"] is None


def test_two_experts_are_joined_into_one_network() -> None:
    done = api.extract(out="joined", model="two", task="stsb", data__folder="glue")
    assert done.out == Path("joined") and done.metrics["ffn_width"] == 64 and done.metrics["parity"]["max_difference"] < 1e-6
    assert len(done.metrics["experts"]["2"]) == 2


def test_what_cannot_be_extracted_or_is_not_said() -> None:
    assert "mbert extract" not in refused(2, "M127", "extract", "token", "--data", "glue", "-o", "x")["fix"]
    refused(2, "M127", "export", "token", "--task", "sst2", "--data", "glue", "-o", "x")
    refused(2, "M128", "extract", "base", "--data", "glue", "-o", "x")
    refused(4, "M266", "extract", "one", "--task", "mnli", "--data", "glue", "-o", "x")
    assert "mbert extract" in refused(4, "M265", "predict", "one", "a fine film")["fix"]
    assert not Path("x").exists()


@pytest.mark.slow
def test_a_routed_model_answers_where_the_task_is_known() -> None:
    assert works("predict", "one", "--task", "sst2", "a fine film").out.strip() in ("negative", "positive")
    assert works("evaluate", "token", "--task", "sst2", "--data", "glue", "-o", "token-sst2").code == 0
    raced = works("bench", "one", "--task", "stsb", "--data", "glue", "--rows", 8, "--rounds", 1, "--passes", 1, "--json").json
    assert raced["models"]["one"]["flops"] and raced["models"]["one"]["parameters"] < 20_000
    exported = api.export(out="shipped", model="one", task="sst2", data__folder="glue", export__onnx=False)
    assert exported.metrics["files"]["safetensors"]["max_difference"] < 1e-6
    assert AutoModelForSequenceClassification.from_pretrained("shipped").config.model_type == "bert"


# --- what experts begin as --------------------------------------------------------------------------------------------------


def test_neurons_are_dealt_in_turn() -> None:
    """Ranks by importance: 3, 0, 4, 1, 5, 2; two shared, the rest in turn, the last one dropped."""
    important_F = torch.tensor([0.9, 0.5, 0.1, 1.0, 0.8, 0.3])
    assert deal_neurons(important_F, experts=2, width=3, shared=2) == [[3, 0, 4], [3, 0, 1]]
    assert deal_neurons(important_F, experts=2, width=4, shared=2) == [[3, 0, 4, 5], [3, 0, 1, 2]]
    assert deal_neurons(important_F, experts=3, width=2, shared=0) == [[3, 1], [0, 5], [4, 2]]


def test_importance_is_the_sum_over_examples_of_the_absolute_value(dense: LoadedModel) -> None:
    """Against the definition: each example's own gradient of the weights themselves."""
    model, batch = dense.model.eval(), {**rows(), "labels": torch.tensor([0, 1, 1])}
    actual = importance(
        model, [{name: value[:2] for name, value in batch.items()}, {k: v[2:] for k, v in batch.items()}], [2, 4]
    )
    layers = {number: model.bert.encoder.layer[number - 1] for number in (2, 4)}
    expected = {number: torch.zeros(32) for number in layers}
    for i in range(3):
        logits = model(batch["input_ids"][i : i + 1], attention_mask=batch["attention_mask"][i : i + 1]).logits
        weights = [part.dense.weight for layer in layers.values() for part in (layer.intermediate, layer.output)]
        gradients = iter(torch.autograd.grad(cross_entropy(logits, batch["labels"][i : i + 1]), weights))
        for number, layer in layers.items():
            into, out = layer.intermediate.dense.weight, layer.output.dense.weight
            expected[number] += ((into * next(gradients)).sum(1) + (out * next(gradients)).sum(0)).detach().abs()
    for number in layers:
        assert torch.allclose(actual[number].float(), expected[number], rtol=1e-4, atol=1e-7)


def test_experts_of_all_neurons_are_the_network(dense: LoadedModel) -> None:
    """One expert that gets everything, in the order of importance, is the layer as it was."""
    neurons = {layer: deal_neurons(torch.rand(32), experts=1, width=32, shared=0) for layer in (2, 4)}
    tasks = {"film": TASKS["film"]}
    model = routed(dense, tasks=tasks, experts=1, neurons=neurons, heads={"film": dense.model.classifier}).eval()
    batch = rows()
    plain = dense.model.eval()(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.allclose(model(**batch).logits, plain, atol=1e-6)


def test_widths_that_fit() -> None:
    assert expert_widths(MoeSettings(experts=4), 3072) == (3072, 0)
    assert expert_widths(MoeSettings(experts=4, init="importance"), 3072) == (768, 512), "as MoEBERT"
    assert expert_widths(MoeSettings(experts=2, width=20, shared=8, init="importance"), 32) == (20, 8)
    for wrong, code in (
        (MoeSettings(experts=4, width=30, shared=8, init="importance"), "M072"),
        (MoeSettings(experts=4, width=8, shared=9, init="importance"), "M072"),
        (MoeSettings(experts=40, init="importance"), "M072"),
        (MoeSettings(width=16), "M076"),
        (MoeSettings(shared=4), "M076"),
    ):
        with pytest.raises(MbertError) as caught:
            expert_widths(wrong, 32)
        assert caught.value.code == code
    assert (
        expert_layers("every-second", 5) == [2, 4]
        and expert_layers("all", 3) == [1, 2, 3]
        and expert_layers([3, 1], 3) == [1, 3]
    )
    for asked, depth in (("every-second", 1), ([0], 4), ([5], 4), ([2, 2], 4), ([], 4)):
        with pytest.raises(MbertError) as caught:
            expert_layers(asked, depth)
        assert caught.value.code == "M071"


def test_more_experts_than_memory_holds_are_refused_before_they_are_made(
    dense: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 wide, 32 within, 2 layers: 2 x 1,072 weights an expert, of 8 bytes."""
    loaded = LoadedModel(routed(dense, moe_layers=[]), dense.tokenizer, "shared", [])
    base = count_all_parameters(loaded.model)
    monkeypatch.setattr(size, "machine_bytes", lambda: 8 * (base + 2 * 4 * 1072))
    add_experts(loaded, MoeSettings(experts=4), seed=0)
    with pytest.raises(MbertError) as caught:
        add_experts(loaded, MoeSettings(experts=5), seed=0)
    assert caught.value.code == "M223" and "5 experts of 32 neurons in 2 layers" in caught.value.where
    with pytest.raises(MbertError) as caught:
        distil("nothing", moe__side="student", moe__experts=10**9)
    assert caught.value.code == "M223" and not Path("nothing").exists() and not Path("nothing.partial").exists()


# --- the recipe's table moe -------------------------------------------------------------------------------------------------


def distil(out: str, **keys: object) -> dict[str, object]:
    arguments = {"teacher": "teacher", "student": "bert-4x16", "task": "sst2", **ROWS, **QUICK, **keys}
    return api.distill(out=out, **arguments).metrics


@pytest.mark.parametrize("routing", ["task", "token"])
def test_a_student_with_experts(routing: str) -> None:
    metrics = distil(f"student-{routing}", moe__side="student", moe__routing=routing)
    assert metrics["phases"]["prediction"]["losses"]["load_balance"] >= 1 - 1e-3
    config = read_config(f"student-{routing}", where="")
    assert (config.moe_layers, config.experts, config.routing) == ([2, 4], 4, routing)
    assert bool(metrics.get("experts")) == (routing == "task")
    if routing == "task":
        extracted = api.extract(out="student-alone", model="student-task", **{"data__folder": "glue", "task": "sst2"})
        assert extracted.metrics["dev"] == metrics["dev"]
        again = distil("student-again", moe__side="student")
        first, second = (manifest.read(Path(name))["result"] for name in ("student-task", "student-again"))
        assert first == second and again["dev"] == metrics["dev"]


def test_without_experts_the_table_moe_says_nothing() -> None:
    """So that runs made before there were experts stay what they are."""
    distil("plain")
    assert "moe" not in manifest.read(Path("plain"))["identity"]["recipe"]
    assert read_config("plain", where="").model_type == "bert"


@pytest.mark.slow
def test_a_teacher_with_experts_and_both() -> None:
    short = ("moe.repair.steps=4", "moe.repair.batch_size=8", "data.max_length=24", "moe.teacher_experts=4")
    sets = [word for text in short for word in ("--set", text)]
    done = works("expert-teacher", "--teacher", "teacher", "--task", "sst2", "--data", "glue", "-o", "experts", *sets)
    config = read_config("experts", where="")
    assert done.out.strip() == "experts"
    assert (config.moe_layers, config.experts, config.expert_width) == ([1, 2, 3, 4], 4, 8)
    parts = json.loads(Path("experts/metrics.json").read_text())["phases"]
    assert list(parts) == ["repair"] and set(parts["repair"]["losses"]) == {
        "loss", "embedding", "hidden_states", "soft_target", "hard_label",
    }  # fmt: skip
    taught = distil("of-experts", teacher="experts", moe__side="teacher")
    assert read_config("of-experts", where="").model_type == "bert" and "load_balance" not in str(taught["phases"])
    distil("both", teacher="experts", moe__side="both", moe__experts=2)
    assert read_config("both", where="").experts == 2
    for wrong, code in (
        ({"teacher": "teacher", "moe__side": "teacher"}, "M077"),
        ({"teacher": "experts", "moe__side": "both", "moe__experts": 4, "moe__teacher_experts": 9}, "M074"),
        ({"teacher": "experts", "moe__side": "both", "moe__experts": 8}, "M074"),
        ({"moe__side": "student", "moe__top_k": 5}, "M073"),
        ({"moe__side": "student", "moe__routing": "paragraph"}, "M003"),
        ({"moe__side": "student", "moe__layers": [2, 9]}, "M071"),
        ({"moe__side": "student", "moe__init": "importance"}, "M078"),
        ({"moe__side": "student", "student": "routed_bert"}, "M070"),
        ({"moe__side": "student", "student": "experts"}, "M079"),
    ):
        with pytest.raises(MbertError) as caught:
            distil("nothing", **wrong)
        assert caught.value.code == code, wrong


def test_an_expert_teacher_is_made_of_one_task_as_a_stage_of_a_run() -> None:
    Path("run.toml").write_text(
        'stages = ["expert-teacher", "task-distill"]\ntask = "sst2"\nteacher = "teacher"\nstudent = "bert-4x16"\n'
        '[moe]\nside = "teacher"\n[data]\nfolder = "glue"\n'
    )
    planned = works("run", "run.toml", "-o", "run", "--dry-run", "--json").json["stages"]
    assert [(stage["stage"], stage["kind"], stage["teacher"]) for stage in planned] == [
        ("expert-teacher", "task-distill", "teacher"), ("task-distill", "task-distill", "run/expert-teacher"),
    ]  # fmt: skip
    Path("several.toml").write_text('tasks = ["sst2", "stsb"]\n')
    refused(2, "M129", "expert-teacher", "several.toml", "--teacher", "teacher", "--data", "glue", "-o", "x")
