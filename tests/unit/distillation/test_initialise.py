"""What a new student begins as: all layers are the teacher bit by bit, slices keep what matters most, embeddings by SVD."""

import json
from pathlib import Path

import pytest
import torch
from encoder_types import build
from tiny_models import tiny_bert, tiny_glue
from transformers import (
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from microbert_cli import api
from microbert_cli.distillation.start.initialise import InitialWeights, bert_parameters, choose_start, layers_of, right_vectors
from microbert_cli.distillation.start.slice import column_importance, head_rows, neuron_importance, top_indices
from microbert_cli.errors import MbertError
from microbert_cli.models import factory
from microbert_cli.models.architectures import ModelShape
from microbert_cli.models.capture import OutputRequest, forward_outputs
from microbert_cli.models.load import LoadedModel, load_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.recipe.task import load_task
from microbert_cli.runs import manifest
from microbert_cli.runs.stage_inputs import step

SST2 = load_task(Catalog().path("tasks", "sst2", where="task"))
BATCH = {"input_ids": torch.arange(5, 19).view(2, 7), "attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3])}
LABELS = ["negative", "positive"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A classifier of 4 x 16, 2 heads of 8, 32 neurons."""
    return load_model(tiny_bert(tmp_path_factory.mktemp("teacher"), layers=4, labels=LABELS), "classifier", where="here")


def student(name, teacher, by, layers="uniform", **more):
    start = None if by == "random" else InitialWeights(by, layers, teacher, teacher.model.config.hidden_size, **more)
    return factory.classifier(
        name, Catalog(), task=SST2, seed=3, tokenizer=teacher.source, where="student", like=teacher.model.config, start=start
    )


def shown(model):
    want = OutputRequest(logits=True, hidden=frozenset(range(model.config.num_hidden_layers + 1)))
    with torch.no_grad():
        return forward_outputs(model.eval(), BATCH, want)


@pytest.mark.parametrize("by", ["teacher-layers", "teacher-slice"])
def test_all_layers_are_the_teacher_bit_by_bit(teacher, by):
    loaded = student("bert-4x16x32", teacher, by)
    teacher_state = teacher.model.state_dict()
    assert all(torch.equal(value, teacher_state[name]) for name, value in loaded.model.state_dict().items())
    assert torch.equal(shown(loaded.model).logits, shown(teacher.model).logits) and loaded.projection is None


@pytest.mark.parametrize(
    ("rule", "taken"), [("uniform", [1, 3]), ("first", [0, 1]), ("last", [2, 3]), ([0, 2], [0, 2]), ([3, 3], [3, 3])]
)
def test_the_layers_that_are_taken(teacher, rule, taken):
    assert layers_of(rule, 4, 2) == taken
    loaded = student("bert-2x16x32", teacher, "teacher-layers", rule)
    teacher_layers = teacher.model.bert.encoder.layer
    for layer, number in zip(loaded.model.bert.encoder.layer, taken, strict=True):
        assert all(torch.equal(value, teacher_layers[number].state_dict()[name]) for name, value in layer.state_dict().items())
    if rule == "first":
        assert torch.equal(shown(loaded.model).hidden[2], shown(teacher.model).hidden[2])


def test_published_lists_count_from_0():
    assert layers_of([0, 2, 4, 7, 9, 11], 12, 6) == [0, 2, 4, 7, 9, 11]
    assert layers_of("uniform", 12, 6) == [1, 3, 5, 7, 9, 11] and layers_of("first", 12, 3) == [0, 1, 2]


def test_the_head_follows_the_tasks_order(teacher):
    loaded = student("bert-4x16x32", teacher, "teacher-layers", labels=[1, 0])
    assert torch.equal(shown(loaded.model).logits, shown(teacher.model).logits[:, [1, 0]])


def test_the_largest_are_kept_in_their_order():
    assert top_indices(torch.tensor([1.0, 5.0, 5.0, 0.0, 7.0]), 3).tolist() == [1, 2, 4]
    assert top_indices(torch.tensor([5.0, 1.0, 5.0, 5.0]), 2).tolist() == [0, 2]


def by_hand():
    """One layer of width 2, 2 heads of 1, 3 neurons, of which all is 0 but what is set."""
    prefix = "encoder.layer.0."
    shapes = {
        "attention.self.query": (2, 2), "attention.self.key": (2, 2), "attention.self.value": (2, 2),
        "attention.output.dense": (2, 2), "intermediate.dense": (3, 2), "output.dense": (2, 3),
    }  # fmt: skip
    state = {f"{prefix}{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    for name in ("embeddings", f"{prefix}attention.output"):
        state |= {f"{name}.LayerNorm.weight": torch.tensor([1.0, 2.0]), f"{name}.LayerNorm.bias": torch.tensor([0.0, 1.0])}
    state[f"{prefix}attention.self.query.weight"] = torch.tensor([[1.0, 2.0], [0.0, 2.0]])
    state[f"{prefix}attention.self.key.weight"] = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    state[f"{prefix}intermediate.dense.weight"] = torch.tensor([[3.0, 4.0], [0.0, 1.0], [2.0, 0.0]])
    state[f"{prefix}output.dense.weight"] = torch.tensor([[1.0, 3.0, 0.0], [0.0, 4.0, 1.0]])
    return state


def test_importance_by_hand():
    """Column 0: (1^2 + 0^2) (1 + 9) + 1 (9 + 4); column 1: (2^2 + 1^2) (4 + 4 + 16 + 1) + 5 (16 + 1)."""
    state = by_hand()
    assert column_importance(state, [0]).tolist() == pytest.approx([10 + 13, 125 + 85])
    assert neuron_importance(state, 0).tolist() == pytest.approx([5 * 1, 1 * 5, 2 * 1])
    scores, values = head_rows(state, 0, ModelShape(2, inner=3, heads=2), ModelShape(1, inner=3, heads=1))
    assert scores.tolist() == [0] and values.tolist() == [0], "sqrt(5) * 5 against 2 * 1"


def test_a_slice_keeps_what_matters_most(teacher):
    loaded = student("bert-2x8x12", teacher, "teacher-slice", [1, 3])
    source, new = bert_parameters(teacher.model), bert_parameters(loaded.model)
    kept = set(column_importance(source, [1, 3]).argsort(descending=True)[:8].tolist())
    assert {int(c) for c in loaded.projection["weight"].argmax(0)} == kept and loaded.projection["weight"].sum() == 8
    cols = sorted(kept)
    assert torch.equal(new["embeddings.word_embeddings.weight"], source["embeddings.word_embeddings.weight"][:, cols])
    assert torch.equal(new["classifier.weight"], source["classifier.weight"][:, cols])
    for layer, taken in ((0, 1), (1, 3)):
        rows = sorted(neuron_importance(source, taken).argsort(descending=True)[:12].tolist())
        expected = source[f"encoder.layer.{taken}.intermediate.dense.weight"][rows][:, cols]
        assert torch.equal(new[f"encoder.layer.{layer}.intermediate.dense.weight"], expected)
        expected = source[f"encoder.layer.{taken}.output.dense.weight"][:, rows][cols]
        assert torch.equal(new[f"encoder.layer.{layer}.output.dense.weight"], expected)
        scores, values = head_rows(source, taken, ModelShape(16, inner=32, heads=2), ModelShape(8, inner=12, heads=2))
        assert [int(row) // 8 for row in scores] == [0] * 4 + [1] * 4, "each head is cut, none is left out"
        query, out = "attention.self.query.bias", "attention.output.dense.weight"
        assert torch.equal(new[f"encoder.layer.{layer}.{query}"], source[f"encoder.layer.{taken}.{query}"][scores])
        assert torch.equal(new[f"encoder.layer.{layer}.{out}"], source[f"encoder.layer.{taken}.{out}"][cols][:, values])
    assert torch.equal(
        student("bert-2x8x12", teacher, "teacher-slice", [1, 3]).model.classifier.weight, new["classifier.weight"]
    )


def test_svd_by_hand():
    """[[3, 0], [0, 2], [4, 0]] has the singular values 5 and 2: rank one leaves a squared error of 4."""
    table = torch.tensor([[3.0, 0.0], [0.0, 2.0], [4.0, 0.0]])
    back = right_vectors(table, 1)
    assert back.flatten().tolist() == pytest.approx([1.0, 0.0])
    assert (table - table.double() @ back @ back.T).square().sum().item() == pytest.approx(4.0)
    assert (right_vectors(-table, 1) >= 0).all()


def test_embeddings_by_svd(teacher):
    loaded, plain = (student("bert-2x8x12", teacher, by) for by in ("svd-embed", "random"))
    table = teacher.model.bert.embeddings.word_embeddings.weight.detach()
    embeddings, back = loaded.model.bert.embeddings.word_embeddings.weight.detach(), loaded.projection["weight"]
    left_out = torch.linalg.svdvals(table.double())[8:].square().sum()
    assert (table - embeddings @ back.T).square().sum().item() == pytest.approx(left_out.item(), rel=1e-4)
    same = bert_parameters(plain.model)
    assert all(
        torch.equal(value, same[name]) for name, value in bert_parameters(loaded.model).items() if name.startswith("encoder")
    )


def test_distilbert_takes_berts_layers(tmp_path):
    """The masked-LM head as well; token types are left out, so the first hidden states differ by one row of theirs."""
    taught = load_model(tiny_bert(tmp_path / "bert", layers=4, kind="masked-lm"), "masked-lm", where="here")
    config = DistilBertConfig(
        vocab_size=taught.model.config.vocab_size, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=128
    )
    model = DistilBertForMaskedLM(config)
    InitialWeights("teacher-layers", [0, 3], taught, 16)(model)
    source, weights = bert_parameters(taught.model), bert_parameters(model)
    assert all(torch.equal(value, source[name.replace("layer.1", "layer.3")]) for name, value in weights.items())
    assert "cls.predictions.transform.dense.weight" in weights and len(weights) == 2 * 16 + 4 + 5
    taught.model.bert.embeddings.token_type_embeddings.weight.data.zero_()
    InitialWeights("teacher-layers", [0, 1], taught, 16)(model)
    with torch.no_grad():
        expected = taught.model.eval().bert(**BATCH, output_hidden_states=True).hidden_states[2]
        actual = model.eval().distilbert(**BATCH).last_hidden_state
    assert torch.allclose(expected[0], actual[0], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "by", "layers", "code"),
    [
        ("bert-2x8x32", "teacher-layers", "uniform", "M045"),
        ("bert-2x16x64", "teacher-layers", "uniform", "M045"),
        ("bert-2x32x32", "teacher-slice", "uniform", "M045"),
        ("bert-2x32x32", "svd-embed", "uniform", "M045"),
        ("bert-2x16x32", "teacher-layers", [0], "M044"),
        ("bert-2x16x32", "teacher-layers", [0, 4], "M044"),
        ("bert-3x16x32", "teacher-layers", "uniform", "M010"),
        ("bert-5x16x32", "teacher-layers", "first", "M015"),
    ],
)
def test_what_cannot_be_taken(teacher, name, by, layers, code):
    with pytest.raises(MbertError) as caught:
        student(name, teacher, by, layers)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("name", "by", "advice"),
    [("bert-2x8x32", "teacher-layers", "teacher-slice"), ("bert-2x16x64", "teacher-layers", "random")],
)
def test_the_start_that_is_advised_can_be_made(teacher, name, by, advice):
    """A slice is advised where nothing of the student is larger than the model's."""
    with pytest.raises(MbertError) as caught:
        student(name, teacher, by, "uniform")
    assert caught.value.fix == f"--set initialise={advice}"
    if advice == "teacher-slice":
        student(name, teacher, advice, "uniform")


ROBERTA = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def test_another_family_is_refused_and_its_own_is_taken(teacher):
    source, model = (RobertaForSequenceClassification(RobertaConfig(**ROBERTA)) for _ in range(2))
    with pytest.raises(MbertError) as caught:
        InitialWeights("teacher-layers", "first", teacher, 16)(model)
    assert caught.value.code == "M046"
    InitialWeights("teacher-layers", "first", LoadedModel(source, teacher.tokenizer, "roberta", []), 16, labels=[1, 0])(model)
    turned = {name: value[[1, 0]] if "out_proj" in name else value for name, value in source.state_dict().items()}
    assert all(torch.equal(value, turned[name]) for name, value in model.state_dict().items())
    electra = ElectraModel(ElectraConfig(**ROBERTA, embedding_size=8))
    with pytest.raises(MbertError) as caught:
        InitialWeights("teacher-layers", "first", LoadedModel(electra, teacher.tokenizer, "electra", []), 16)(electra)
    assert caught.value.code == "M046"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MBERT_CACHE", str(folder / "cache"))
        tiny_bert("base", kind="masked-lm", layers=4)
        tiny_bert("teacher", layers=4, seed=5, labels=LABELS)
        tiny_glue("glue", ["sst2"], rows=24)
        Path("text.txt").write_text("\n\n".join("the boat is old\nthe film was good" for _ in range(30)), encoding="utf-8")
        yield folder


FAST = {"steps": 1, "batch_size": 4, "evaluations": 0, "learning_rate": 1e-9, "weight_decay": 0.0}


def test_both_stages_begin_so(place, monkeypatch):
    monkeypatch.chdir(place)
    keys = {f"general__{key}": value for key, value in FAST.items()}
    stage_one = api.general_distill(
        teacher="base", student="bert-2x16x32", corpus="text.txt", out="run/general-distill", corpus__max_length=16,
        initialise="teacher-layers", initialise__layers=[0, 3], **keys,
    )  # fmt: skip
    new, taken = (load_model(path, "encoder", where="x", new_head=True).model.state_dict() for path in (stage_one.out, "base"))
    pairs = {"encoder.layer.0.output.dense.weight": "encoder.layer.0", "encoder.layer.1.output.dense.weight": "encoder.layer.3"}
    for name, layer in pairs.items():
        assert (new[name] - taken[f"{layer}.output.dense.weight"]).abs().max() < 1e-6
    settings = manifest.read(stage_one.out)["recipe"]["initialise"]
    assert settings == {"by": "teacher-layers", "layers": [0, 3], "model": None, "neurons": "sensitivity", "rows": 1024}

    keys = {f"phases__prediction__{key}": value for key, value in FAST.items()}
    task = {
        "task": "sst2",
        "data__folder": "glue",
        "data__max_length": 16,
        "teacher__allow_weak": True,
        "method": "soft-targets",
    }
    first = {"initialise": "teacher-layers", "initialise__layers": "first", "student": "bert-2x16x32", "init": "new"}
    of_teacher = api.distill(teacher="teacher", out="run/of-teacher", **task, **first, **keys)
    of_base = api.distill(teacher="teacher", out="run/of-base", initialise__model="base", base="base", **task, **first, **keys)
    for result, source in ((of_teacher, "teacher"), (of_base, "base")):
        new = load_model(result.out, "classifier", where="x").model.bert.state_dict()
        taken = load_model(source, "encoder", where="x", new_head=True).model.state_dict()
        name = "encoder.layer.1.attention.self.query.weight"
        assert (new[name] - taken[name]).abs().max() < 1e-6
    assert of_base.metrics["start"] == {"by": "teacher-layers", "of": "base", "layers": "first"}
    assert "initial" in manifest.read(of_base.out)["inputs"] and "initial" not in manifest.read(of_teacher.out)["inputs"]


def planned(tmp_path, **flags):
    resolved = resolve(
        catalog=Catalog(), flags={"task": "sst2", "student": "bert-2x16x32", "teacher.model": "teacher", **flags}
    )
    return step("task-distill", resolved, tmp_path, Catalog()).inputs


def test_what_a_student_begins_as_is_said_by_init(tmp_path):
    (tmp_path / "general-distill").mkdir()
    (tmp_path / "general-distill" / "manifest.json").write_text(json.dumps({}))
    general = str(tmp_path / "general-distill")
    for init, student in (("auto", general), ("new", "bert-2x16x32"), ("random", "bert-2x16x32"), ("teacher", "teacher")):
        assert planned(tmp_path, init=init)["student"] == student
    assert planned(tmp_path, **{"initialise": "teacher-slice", "initialise.model": "base", "base": "x/y"})["initial"] == "x/y"
    assert "initial" not in planned(tmp_path, **{"initialise": "random", "initialise.model": "x/y"}), (
        "random weights are nobody's"
    )
    with pytest.raises(MbertError) as caught:
        planned(tmp_path, **{"init": "teacher", "teacher.models": ["one", "two"], "teacher.model": None})
    assert caught.value.code == "M043"


def test_without_it_nothing_of_an_identity_changes():
    recipe = resolve(catalog=Catalog(), flags={"initialise": "random"}).recipe
    assert recipe.identity("initialise", "seed") == {"seed": recipe.seed}


def test_a_student_relative_to_its_teacher(tmp_path):
    base = load_model(tiny_bert(tmp_path / "base", layers=6, hidden=24, heads=2, intermediate=96), "classifier", where="x")
    config = factory.student_config("compact", Catalog(), base)
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (3, 24, 8)
    assert (config.num_attention_heads, config.model_type) == (2, "bert")


@pytest.mark.parametrize("model_type", ["distilbert", "roberta", "camembert"])
def test_a_relative_student_of_another_type_is_of_that_type_and_begins_as_its_slice(model_type, tmp_path):
    encoder, classifier = build(model_type, tmp_path)
    source = load_model(classifier, "classifier", where="x", new_head=True)
    config = factory.student_config("compact", Catalog(), source)
    assert config.model_type == model_type
    assert choose_start(source.model.config, config).startswith("teacher-")


def test_auto_is_layers_where_shapes_are_equal_and_random_where_none_fits(teacher):
    for name, by in (("bert-2x16x32", "teacher-layers"), ("bert-2x8x16", "teacher-slice"), ("bert-2x32", "random")):
        assert choose_start(teacher.model.config, factory.student_config(name, Catalog(), teacher)) == by


def test_measured_neurons_are_kept(teacher):
    values = {layer: torch.arange(32.0) if layer == 2 else -torch.arange(32.0) for layer in (2, 4)}
    loaded = student("bert-2x16x8", teacher, "teacher-slice", measure=lambda layers: {layer: values[layer] for layer in layers})
    teacher_weights = bert_parameters(teacher.model)
    kept = bert_parameters(loaded.model)
    for number, (layer, rows) in enumerate(((1, slice(24, 32)), (3, slice(0, 8)))):
        of_teacher = teacher_weights[f"encoder.layer.{layer}.intermediate.dense.weight"][rows]
        assert torch.equal(kept[f"encoder.layer.{number}.intermediate.dense.weight"], of_teacher)
