"""MoEBERT: experts with a LayerNorm each, chosen by a table of tokens or by gates; the teacher itself in the beginning."""

import math
from pathlib import Path

import pytest
import torch
from mbert_command import refused
from tiny_models import tiny_bert, tiny_glue
from tiny_routed import TASKS, apart, routed, rows
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig

from microbert_cli import api
from microbert_cli.catalog.losses.soft_target import soft_target
from microbert_cli.distillation.teacher import Teacher
from microbert_cli.errors import MbertError
from microbert_cli.models.capture import OutputRequest, forward_outputs, show_scores
from microbert_cli.models.config import read_config
from microbert_cli.models.load import count_all_parameters, load_model
from microbert_cli.models.moe.bert import RoutedBertConfig, RoutedBertForSequenceClassification
from microbert_cli.models.moe.importance import importance
from microbert_cli.models.moe.layers import (
    Experts,
    HashRouter,
    NormedExpert,
    RoutingContext,
    SentenceRouter,
    TokenRouter,
    deal_neurons,
)
from microbert_cli.models.size import forward_flops
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.runs import manifest
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.objective import Objective

FILM = {"film": TASKS["film"]}


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return load_model(tiny_bert(tmp_path_factory.mktemp("dense"), layers=4), "classifier", where="here")


def terms(weights=None):
    """The method's losses, or these of them."""
    losses = resolve(catalog=Catalog(), flags={"method": "moebert"}).recipe.phases["distillation"].losses
    chosen = {name: (term.weight, term.parameters) for name, term in losses.items() if weights is None or name in weights}
    return make_terms(chosen, Catalog())


def test_symmetric_kl_by_hand():
    p, q = (torch.tensor([[share, 1 - share]]).log() for share in (0.75, 0.5))
    assert soft_target(q, p, divergence="symmetric-kl").item() == pytest.approx(0.13733, abs=1e-5)
    assert soft_target(p, q, divergence="symmetric-kl").item() == pytest.approx(0.13733, abs=1e-5)


def test_lambda_is_five_and_labels_count_once():
    assert {term.name: term.weight for term in terms()} == {
        "embedding": 5.0, "hidden_states": 5.0, "soft_target": 5.0, "hard_label": 1.0,
    }  # fmt: skip


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(dense):
    """One expert that has every neuron, in any order, with its own LayerNorm is the layer as it was."""
    neurons = {layer: deal_neurons(torch.rand(32), experts=1, width=32, shared=0) for layer in range(1, 5)}
    student = routed(
        dense, tasks=FILM, moe_layers=(1, 2, 3, 4), experts=1, neurons=neurons, routing="hash", norm="expert",
        heads={"film": dense.model.classifier},
    ).eval()  # fmt: skip
    teacher = Teacher(dense)
    objective = Objective(
        terms({"embedding", "hidden_states", "soft_target"}), student, ask_teacher=teacher.ask,
        map_layers=range(5), student_width=16, teacher_width=16,
    )  # fmt: skip
    batch = {**rows(), "task": torch.zeros(3, dtype=torch.long)}
    batch = {**batch, "labels": torch.zeros(3, dtype=torch.long)}
    _, total, parts = next(objective.losses({name: value for name, value in batch.items() if name != "token_type_ids"}))
    assert total.item() == pytest.approx(0, abs=1e-9) and set(parts) == {"embedding", "hidden_states", "soft_target"}
    student.bert.expert_layers[2].experts[0].down.bias.data[0] += 1
    objective(batch).backward()
    assert objective(batch).item() > 0.01 and all(parameter.grad is None for parameter in teacher.model.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_an_expert_of_its_own_norm_by_hand():
    """f(x) = W2 relu(W1 x) = (2, 0); x + f = (3, 2): mean 2.5, deviation 0.5, so (1, -1)."""
    expert = NormedExpert(2, 1, nn.functional.relu, epsilon=0.0, dropout=0.5).eval()
    expert.up.weight.data, expert.up.bias.data = torch.tensor([[1.0, 0.0]]), torch.zeros(1)
    expert.down.weight.data, expert.down.bias.data = torch.tensor([[2.0], [0.0]]), torch.zeros(2)
    assert expert(torch.tensor([1.0, 2.0])).tolist() == pytest.approx([1.0, -1.0])


def test_the_table_says_where_a_token_goes():
    torch.manual_seed(0)
    router = HashRouter(5, 3, seed=1, layer=2)
    router.table.copy_(torch.tensor([0, 2, 1, 2, 0]))
    layer = Experts([NormedExpert(4, 3, nn.functional.gelu, epsilon=1e-12, dropout=0.0) for _ in range(3)], router)
    x_BTd, layer.context = torch.randn(2, 3, 4), RoutingContext(ids_BT=torch.tensor([[1, 3, 4], [2, 2, 1]]))
    out_BTd = layer(x_BTd)
    for row, places in enumerate([[2, 2, 0], [1, 1, 2]]):
        for place, expert in enumerate(places):
            assert torch.allclose(out_BTd[row, place], layer.experts[expert](x_BTd[row, place]))
    out_BTd[0, 2, 0].backward()
    assert [expert.up.weight.grad is not None and bool(expert.up.weight.grad.any()) for expert in layer.experts] == [
        True, False, False,
    ]  # fmt: skip
    assert layer.context.routing is None, "a table has nothing to balance"
    with pytest.raises(ValueError, match="input_ids"):
        router(x_BTd, RoutingContext())


def test_tables_follow_from_seed_and_layer():
    table, same, layer, seed = (HashRouter(400, 4, seed=s, layer=n).table for s, n in ((1, 2), (1, 2), (1, 3), (2, 2)))
    assert torch.equal(table, same) and not torch.equal(table, layer) and not torch.equal(table, seed)
    assert table.bincount().tolist() == pytest.approx([100] * 4, abs=35)


@pytest.mark.parametrize("gate", ["share", "probability"])
def test_a_sentence_goes_one_way(gate):
    """Means of real tokens (1, 0) and (0, 2): p of the chosen expert is e / (e + 1), e^2 / (e^2 + 1)."""
    router = SentenceRouter(2, 2, 1, gate)
    router.gate.weight.data = torch.eye(2)
    hidden_BTd = torch.tensor([[[2.0, 0.0], [0.0, 0.0], [0.0, 9.0]], [[0.0, 1.0], [0.0, 3.0], [0.0, 2.0]]])
    context = RoutingContext(mask_BT=torch.tensor([[1, 1, 0], [1, 1, 1]]))
    chosen_BT1, gates_BT1 = router(hidden_BTd, context)
    high = [math.e / (math.e + 1), math.e**2 / (math.e**2 + 1)]
    assert chosen_BT1[..., 0].tolist() == [[0] * 3, [1] * 3]
    expected = high if gate == "probability" else [1.0, 1.0]
    assert gates_BT1[..., 0].flatten().tolist() == pytest.approx([value for value in expected for _ in range(3)])
    shares, means = context.routing
    assert shares[0].tolist() == [0.5, 0.5] and means[0, 0].item() == pytest.approx((high[0] + 1 - high[1]) / 2)


def test_a_gate_of_p_weighs_a_tokens_expert():
    router = TokenRouter(2, 2, 1, "probability")
    router.gate.weight.data = torch.eye(2)
    _, gates = router(torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]), RoutingContext())
    assert gates.flatten().tolist() == pytest.approx([math.e / (math.e + 1), math.e**2 / (math.e**2 + 1)])


@pytest.mark.parametrize("routing", ["hash", "token", "sentence"])
def test_a_saved_model_comes_back_bit_by_bit(dense, tmp_path, routing):
    model = apart(routed(dense, tasks=FILM, routing=routing, norm="expert", gate="probability"))
    model.save_pretrained(tmp_path)
    back = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    show_scores(back)
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in model.state_dict().items())
    tables = [name for name, _ in back.named_buffers() if name.endswith("router.table")]
    assert len(tables) == (2 if routing == "hash" else 0)
    batch = rows()
    assert torch.equal(model(**batch).logits, back(**batch).logits)
    whole = forward_outputs(back, batch, OutputRequest(logits=True, hidden=frozenset({2})))
    assert torch.allclose(
        forward_outputs(back, batch, OutputRequest(hidden=frozenset({2}))).hidden[2], whole.hidden[2], atol=1e-6
    )


def test_parameters_of_the_papers_model():
    """Of BERT-base and two labels: all are kept, and a token meets the paper's 66 million."""
    config = RoutedBertConfig(
        tasks=FILM, moe_layers=list(range(1, 13)), experts=4, expert_width=768, routing="hash", expert_norm="expert"
    )
    with torch.device("meta"):
        model = RoutedBertForSequenceClassification(config)
    expert = sum(parameter.numel() for parameter in model.bert.expert_layers[1].experts[0].parameters())
    assert count_all_parameters(model) == 109_566_722 and expert == 2 * 768 * 768 + 2 * 768 + 2 * 768
    assert count_all_parameters(model) - 3 * 12 * expert == 66_988_802


@pytest.mark.parametrize(("routing", "gate"), [("hash", 0), ("token", 2 * 128 * 768 * 4 * 12), ("sentence", 2 * 768 * 4 * 12)])
def test_a_pass_costs_what_a_token_meets(routing, gate):
    """BERT-base with an inner width of 768, and the gate's product where one reads tokens or rows."""
    shape = {"tasks": FILM, "moe_layers": list(range(1, 13)), "experts": 4, "expert_width": 768}
    narrow = forward_flops(BertConfig(intermediate_size=768), 128)
    assert forward_flops(RoutedBertConfig(**shape, routing=routing), 128) == narrow + gate


def test_importance_of_frozen_weights_and_of_other_columns(dense):
    """A frozen teacher's is that of the free model; with permuted outputs it is that of permuted labels."""
    batch = {**rows(), "labels": torch.tensor([0, 1, 1])}
    dense.model.requires_grad_(True)
    free = importance(dense.model, [batch], [1, 3])
    dense.model.requires_grad_(False)
    frozen = importance(dense.model, [batch], [1, 3])
    assert all(torch.equal(value, frozen[layer]) for layer, value in free.items())
    assert not any(parameter.requires_grad for parameter in dense.model.parameters())
    dense.model.requires_grad_(True)
    turned = importance(dense.model, [{**batch, "labels": 1 - batch["labels"]}], [1, 3], columns=[1, 0])
    assert all(torch.allclose(value, turned[layer]) for layer, value in free.items()) and (free[1] > 0).any()


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("norm", {"routing": "task", "norm": "expert"}),
        ("gate", {"routing": "task", "gate": "probability"}),
        ("top_k", {"routing": "hash", "top_k": 2}),
        ("top_k", {"routing": "token", "norm": "expert", "top_k": 2}),
    ],
)
def test_keys_that_exclude_each_other(key, wrong):
    with pytest.raises(MbertError) as caught:
        resolve(catalog=Catalog(), flags={f"moe.{name}": value for name, value in wrong.items()})
    assert caught.value.code == "M048" and caught.value.where.endswith(f"moe.{key}")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moebert")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MBERT_CACHE", str(folder / "cache"))
        tiny_bert("teacher", layers=4, labels=["positive", "negative"], seed=4)
        tiny_glue("glue", ["sst2"], rows=24)
        yield folder


def distil(out, **keys):
    rates = {"steps": 1, "batch_size": 4, "evaluations": 0, "learning_rate": 1e-9}
    steps = {f"phases__distillation__{key}": value for key, value in rates.items()}
    task = {"task": "sst2", "data__folder": "glue", "data__max_length": 16, "teacher__allow_weak": True}
    return api.distill(out=out, method="moebert", teacher="teacher", **task, **steps, **keys)


def test_the_student_begins_as_its_teacher(place, monkeypatch):
    """Outputs in the task's order, though the teacher's are not; experts of a quarter, two thirds of that shared."""
    monkeypatch.chdir(place)
    result = distil("run")
    config = read_config(result.out, where="")
    assert (config.moe_layers, config.experts, config.expert_width, config.routing) == ([1, 2, 3, 4], 4, 8, "hash")
    assert (config.expert_norm, config.top_k, config.tasks["sst2"]["labels"]) == ("expert", 1, ["negative", "positive"])
    student = load_model(result.out, "classifier", where="", task="sst2").model
    teacher = load_model("teacher", "classifier", where="").model
    assert torch.allclose(student.heads["sst2"].weight, teacher.classifier.weight[[1, 0]], atol=1e-6)
    ups = [expert.up.weight for expert in student.bert.expert_layers[1].experts]
    assert all(torch.allclose(up[:5], ups[0][:5], atol=1e-6) for up in ups) and not torch.allclose(
        ups[0][5:], ups[1][5:], atol=1e-3
    )
    assert "load_balance" not in str(result.metrics["phases"])
    assert manifest.read(result.out)["recipe"]["moe"]["routing"] == "hash"
    evaluated = api.evaluate(model=result.out, task="sst2", data__folder="glue", out="evaluated", data__max_length=16)
    assert evaluated.metrics["dev"] == result.metrics["dev"]
    for command in (["export", "run", "--task", "sst2", "--data", "glue"], ["extract", "run", "--data", "glue"]):
        refused(2, "M127", *command, "-o", "nothing")


def test_a_shallower_student_takes_layers_and_their_neurons(place, monkeypatch):
    monkeypatch.chdir(place)
    new = {"init": "new", "student": "bert-2x16x32", "initialise": "teacher-layers", "initialise__layers": [0, 2]}
    result = distil("shallow", **new)
    student = load_model(result.out, "classifier", where="", task="sst2").model
    teacher = load_model("teacher", "classifier", where="").model
    for layer, source in ((1, 0), (2, 2)):
        network = teacher.bert.encoder.layer[source].intermediate.dense.weight
        for row in student.bert.expert_layers[layer].experts[3].up.weight:
            assert (network - row).abs().amax(1).min() < 1e-6, "every neuron of an expert is one of that layer"
    with pytest.raises(MbertError) as caught:
        distil("nothing", init="new", student="bert-2x16x32", initialise="random")
    assert caught.value.code == "M078"
    assert not Path("nothing").exists()
