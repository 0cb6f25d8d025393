"""Frozen parts stay bit by bit what they were, cost no optimiser state, and are trained again afterwards."""

import pytest
import torch
from tiny_models import tiny_bert

from microbert_cli.errors import MbertError
from microbert_cli.models.load import load_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.training.checkpoint import load_state
from microbert_cli.training.freeze import frozen, frozen_by_stage, part_of, parts_of
from microbert_cli.training.loop import train
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.objective import Objective
from microbert_cli.training.plan import TrainingPlan

IDS = torch.randint(5, 100, (8, 10), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("student") / "student", layers=1, hidden=8)


def objective_of(student):
    model = load_model(student, "classifier", where="student").model
    return Objective(make_terms({"hard_label": (1.0, {})}, Catalog()), model)


def batches(skip):
    while True:
        yield {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS[:, 1] % 2}


def plan(*parts, steps=3):
    return TrainingPlan("prediction", steps, 1e-3, table="phases.prediction", freeze=parts)


def changed_parts(before, after):
    return {part_of(name) for name, value in after.items() if not torch.equal(value, before[name])}


def weights(model):
    return {name: value.clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize(
    ("parts", "trained"),
    [
        ((), {"embeddings", "layer.1", "head"}),
        (("embeddings",), {"layer.1", "head"}),
        (("embeddings", "head"), {"layer.1"}),
        (("layer.1",), {"embeddings", "head"}),
    ],
)
def test_only_the_rest_is_trained(student, tmp_path, parts, trained):
    objective = objective_of(student)
    before = weights(objective.student)
    train(objective, batches, plan(*parts), directory=tmp_path, seed=1)
    assert changed_parts(before, weights(objective.student)) == trained
    assert all(parameter.requires_grad for parameter in objective.student.parameters())


def test_a_frozen_part_has_no_moments(student, tmp_path):
    sizes = []
    for name, parts in (("all", ()), ("frozen", ("embeddings",))):
        objective = objective_of(student)
        (tmp_path / name).mkdir()
        train(objective, batches, plan(*parts), directory=tmp_path / name, seed=1)
        state = load_state(tmp_path / name / "resume" / "phases" / "prediction")["optimiser"]["state"]
        sizes.append(sum(value["exp_avg"].numel() for value in state.values()))
        tables = sum(p.numel() for n, p in objective.student.named_parameters() if part_of(n) == "embeddings")
    assert sizes[0] - sizes[1] == tables


def test_what_cannot_be_frozen_is_named_with_the_parts_there_are(student, tmp_path):
    for parts, word in ((("layer.2",), "layer.2"), (("embeddings", "layer.1", "head"), "nothing is trained")):
        with pytest.raises(MbertError) as error:
            train(objective_of(student), batches, plan(*parts), directory=tmp_path, seed=1)
        assert error.value.code == "M068" and word in error.value.what
        assert "embeddings, head, layer.1" in error.value.allowed
        assert error.value.where == "phases.prediction.freeze"


def test_parts_by_the_names_of_several_architectures():
    names = {
        "bert.embeddings.word_embeddings.weight": "embeddings",
        "electra.embeddings_project.weight": "embeddings",
        "distilbert.transformer.layer.0.attention.q_lin.weight": "layer.1",
        "roberta.encoder.layer.11.output.dense.bias": "layer.12",
        "bert.pooler.dense.weight": "head",
        "classifier.bias": "head",
    }
    assert {name: part_of(name) for name in names} == names


TOP_DOWN = ["head", "layer.2", "layer.1", "embeddings"]


def test_top_down_sets_one_part_free_a_stage():
    frozen = frozen_by_stage("top-down", [], TOP_DOWN)
    assert frozen == [["layer.2", "layer.1", "embeddings"], ["layer.1", "embeddings"], ["embeddings"], []]
    assert frozen_by_stage("top-down", ["embeddings"], TOP_DOWN)[-1] == ["embeddings"]
    assert frozen_by_stage([], ["layer.1"], TOP_DOWN) == [["layer.1"]]


def test_an_order_of_ones_own_has_groups_and_leaves_the_rest_frozen():
    assert frozen_by_stage(["layer.1", ["head", "embeddings"]], [], TOP_DOWN) == [
        ["head", "layer.2", "embeddings"],
        ["layer.2"],
    ]


@pytest.mark.parametrize(
    ("code", "unfreeze", "freeze"),
    [
        ("M068", ["layer.7"], []),
        ("M460", ["head", "embeddings"], ["embeddings"]),
        ("M068", "top-down", TOP_DOWN),
    ],
)
def test_an_order_that_cannot_be_is_refused(code, unfreeze, freeze):
    with pytest.raises(MbertError) as error:
        frozen_by_stage(unfreeze, freeze, TOP_DOWN, where="phases.labels.unfreeze")
    assert error.value.code == code and error.value.where.startswith("phases.labels.")


def test_parts_from_the_top_down_of_a_transformer_and_of_an_lstm(student):
    assert parts_of(objective_of(student).student) == ["head", "layer.1", "embeddings"]
    lstm = torch.nn.ModuleDict({"embeddings": torch.nn.Embedding(5, 4), "lstm": torch.nn.LSTM(4, 3, 2, bidirectional=True)})
    assert parts_of(lstm) == ["layer.2", "layer.1", "embeddings"]


@pytest.mark.parametrize("stage", range(3))
def test_gradients_reach_what_is_set_free_and_nothing_below_is_computed(student, stage):
    """The backward pass ends above the lowest part that is trained: what comes out of a frozen one has no graph."""
    objective = objective_of(student)
    model, parts = objective.student, ["head", "layer.1", "embeddings"]
    has_graph = {}
    for part, module in (("embeddings", model.bert.embeddings), ("layer.1", model.bert.encoder.layer[0].output)):
        module.register_forward_hook(lambda _, __, out, part=part: has_graph.update({part: out.requires_grad}))
    with frozen(model, frozen_by_stage("top-down", [], parts)[stage]):
        objective(next(batches(0))).backward()
    trained = parts[: stage + 1]
    assert {part_of(name) for name, value in model.named_parameters() if value.grad is not None} == set(trained)
    assert all(value.grad is not None for name, value in model.named_parameters() if part_of(name) in trained)
    assert {part for part, graph in has_graph.items() if graph} == (
        {"layer.1"} if stage == 1 else set(parts[1:] * (stage == 2))
    )
