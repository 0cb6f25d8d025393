"""Experts and routers by hand; the BERT for several tasks: one task a batch, one table, bit-equal after a reload."""

import json
import math

import pytest
import torch
from tiny_models import tiny_bert
from tiny_routed import TASKS, apart, routed, rows
from torch import nn
from transformers import AutoModelForSequenceClassification

from microbert_cli.catalog.losses.load_balance import load_balance
from microbert_cli.errors import MbertError
from microbert_cli.models.capture import OutputRequest, forward_outputs, show_scores
from microbert_cli.models.config import read_config
from microbert_cli.models.load import load_model
from microbert_cli.models.moe.bert import RoutedBertConfig, RoutedBertForSequenceClassification
from microbert_cli.models.moe.extract import is_routed
from microbert_cli.models.moe.layers import WINDOW, Expert, Experts, RoutingContext, TaskRouter, TokenRouter, gates_of
from microbert_cli.recipe.registry import Catalog
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.objective import Objective


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return load_model(tiny_bert(tmp_path_factory.mktemp("dense"), layers=4), "classifier", where="here")


def test_the_gate_of_one_expert_is_exactly_one_and_has_a_gradient():
    logits_E = torch.tensor([0.3, -1.2, 0.7], requires_grad=True)
    gate = gates_of(logits_E.softmax(-1)[[2]])
    assert gate.item() == 1.0
    gate.sum().backward()
    p = logits_E.detach().softmax(-1)
    assert torch.allclose(logits_E.grad, torch.stack([-p[0], -p[1], 1 - p[2]]))  # d log p_2


def test_the_gates_of_several_experts_are_their_shares():
    assert torch.allclose(gates_of(torch.tensor([0.5, 0.3])), torch.tensor([0.625, 0.375]))
    assert gates_of(torch.tensor([[0.5, 0.3], [0.2, 0.2]])).sum(-1).tolist() == pytest.approx([1, 1])


def test_the_balance_by_hand():
    """E sum f P: 1 where either is uniform, E where one expert has everything."""
    uniform, one_hot = torch.full((1, 4), 0.25), torch.tensor([[1.0, 0, 0, 0]])
    some = torch.tensor([[0.7, 0.1, 0.1, 0.1]])
    assert load_balance(uniform, some).item() == pytest.approx(1)
    assert load_balance(some, uniform).item() == pytest.approx(1)
    assert load_balance(one_hot, one_hot).item() == pytest.approx(4)
    assert load_balance(some, some).item() == pytest.approx(4 * 0.52)
    assert load_balance(some, some, scale="mean").item() == pytest.approx(0.52 / 4)
    assert load_balance(torch.cat([one_hot, some]), torch.cat([one_hot, uniform])).item() == pytest.approx(2.5)


def test_the_router_of_tokens_leaves_padding_out():
    router = TokenRouter(2, 2, 1)
    router.gate.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    hidden_BTd = torch.tensor([[[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 9.0]]])
    context = RoutingContext(mask_BT=torch.tensor([[1, 1, 1, 0]]))
    chosen, gates = router(hidden_BTd, context)
    shares, means = context.routing
    high = math.exp(2) / (math.exp(2) + 1)
    assert chosen.flatten().tolist() == [0, 1, 0, 1] and gates.flatten().tolist() == [1, 1, 1, 1]
    assert shares[0].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert means[0].tolist() == pytest.approx([(1 + high) / 3, (2 - high) / 3])


@pytest.mark.parametrize("top_k", [1, 2])
def test_experts_for_tokens_by_hand(top_k):
    """The sparse computation is the dense sum over experts with gates of 0 for those not chosen."""
    torch.manual_seed(0)
    layer = Experts([Expert(3, 5, nn.functional.gelu) for _ in range(4)], TokenRouter(3, 4, top_k))
    x_BTd = torch.randn(2, 6, 3)
    p_BTE = layer.router.gate(x_BTd).softmax(-1)
    largest = p_BTE.topk(top_k)
    weights = torch.zeros_like(p_BTE).scatter(-1, largest.indices, largest.values / largest.values.sum(-1, keepdim=True))
    expected = sum(weights[..., [e]] * expert(x_BTd) for e, expert in enumerate(layer.experts))
    assert torch.allclose(layer(x_BTd), expected, atol=1e-6)


def test_the_router_counts_real_tokens_of_the_last_hundred_passes():
    router = TaskRouter(1, 3, 1, seed=0, layer=1).train()
    router.table.fill_(1)
    context = RoutingContext(vector=torch.zeros(64), mask_BT=torch.tensor([[1, 1, 0], [1, 0, 0]]))
    for number in range(WINDOW + 5):
        if number == WINDOW:
            router.table.fill_(2)
        router(torch.zeros(2, 3, 4), context)
    assert router.recent.sum(0).tolist() == [0, 3 * (WINDOW - 5), 3 * 5]
    assert context.shares[-1].tolist() == pytest.approx([0, 0.95, 0.05])
    router.eval()(torch.zeros(2, 3, 4), context)
    assert int(router.draws) == WINDOW + 5, "an evaluation counts nothing"


def test_noise_falls_and_then_the_table_stands():
    torch.manual_seed(0)
    router, vectors_K64 = TaskRouter(2, 4, 1, seed=5, layer=2).train(), torch.randn(2, 64)
    for share, noise in ((0.0, 1.0), (0.25, 0.55), (0.499, 0.1018)):
        router.progress(share, vectors_K64)
        assert router.noise.item() == pytest.approx(noise, abs=1e-4) and not router.is_frozen
    plain = [router.gate(vector).argmax().item() for vector in vectors_K64]
    router.progress(0.5, vectors_K64)
    assert router.is_frozen and router.table[:, 0].tolist() == plain
    router.gate.weight.data.neg_()
    router.progress(0.9, vectors_K64)
    context = RoutingContext(task=1, vector=vectors_K64[1])
    assert router(torch.zeros(1, 1, 4), context)[0] == [plain[1]], "the table, whatever the gate says now"


def test_noise_explores_and_follows_from_what_is_saved():
    def draws(router):
        context = RoutingContext(vector=torch.zeros(64))
        return [router(torch.zeros(1, 2, 4), context)[0][0] for _ in range(40)]

    task_router = TaskRouter(1, 4, 1, seed=5, layer=2).train()
    first = draws(task_router)
    assert set(first) == {0, 1, 2, 3}
    saved = {name: value.clone() for name, value in task_router.state_dict().items()}
    torch.manual_seed(99)
    again = TaskRouter(1, 4, 1, seed=5, layer=2).train()
    again.load_state_dict(saved)
    assert draws(task_router) == draws(again)
    other = TaskRouter(1, 4, 1, seed=6, layer=2).train()
    other.load_state_dict({**saved, "draws": torch.tensor(0)})
    assert draws(other) != first
    assert len(set(draws(task_router.eval()))) == 1, "no noise where nothing is trained"


def test_every_expert_begins_as_the_layers_own_network(dense):
    moe, source = routed(dense), dense.model.bert.encoder.layer[1]
    layer = moe.bert.expert_layers[2]
    kept = [expert.up.weight for expert in layer.experts]
    assert all(0 < (weight - source.intermediate.dense.weight).std() < 1.2e-3 for weight in kept)
    assert not torch.equal(kept[0], kept[1])
    assert torch.equal(layer.experts[0].down.bias, source.output.dense.bias)
    assert torch.equal(
        moe.bert.encoder.layer[0].intermediate.dense.weight, dense.model.bert.encoder.layer[0].intermediate.dense.weight
    )
    batch = {name: value for name, value in rows().items() if name not in ("task", "labels")}
    expected, actual = (
        model.eval().bert(**batch).last_hidden_state for model in (dense.model, routed(dense, tasks={"film": TASKS["film"]}))
    )
    assert (expected - actual).abs().max() < 0.05


def test_without_experts_it_is_the_shared_encoder(dense):
    model = routed(dense, moe_layers=()).eval()
    batch = rows()
    seen = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "task")}, output_hidden_states=True)
    plain = dense.model.eval()(batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
    assert all(torch.equal(actual, expected) for actual, expected in zip(seen.hidden_states, plain.hidden_states, strict=True))
    assert seen.routing is None and set(model.state_dict()) - set(dense.model.state_dict()) == {
        "heads.film.weight", "heads.film.bias", "heads.score.weight", "heads.score.bias",
    }  # fmt: skip


def test_a_batch_is_of_one_task(dense):
    model = routed(dense)
    batch = rows()
    with pytest.raises(ValueError, match=r"of one task; this one is of \[0, 1\]"):
        model(**{**batch, "task": torch.tensor([0, 1, 0])})
    with pytest.raises(ValueError, match="which of the 2 tasks"):
        model(batch["input_ids"])
    with pytest.raises(ValueError, match="there is no task 2"):
        model(batch["input_ids"], task=torch.tensor([2, 2, 2]))
    with model.answering("score"):
        assert model(batch["input_ids"]).logits.shape == (3, 1)
    assert routed(dense, tasks={"film": TASKS["film"]})(batch["input_ids"]).logits.shape == (3, 2)


def test_a_gradient_reaches_the_chosen_expert_alone(dense):
    model = routed(dense).train()
    model.progress(0.5)
    chosen = model.chosen_experts()
    model(**rows(task=1)).logits.sum().backward()
    for number, layer in model.bert.expert_layers.items():
        reached = [e for e, expert in enumerate(layer.experts) if expert.up.weight.grad is not None]
        assert reached == chosen["score"][number]
        assert layer.router.gate.weight.grad.abs().sum() > 0
    assert model.heads["film"].weight.grad is None and model.heads["score"].weight.grad is not None


@pytest.mark.parametrize(("routing", "top_k"), [("task", 1), ("task", 2), ("token", 2)])
def test_a_saved_model_comes_back_bit_by_bit(dense, tmp_path, routing, top_k):
    model = apart(routed(dense, routing=routing, top_k=top_k))
    model.train()
    model.progress(0.2)
    for _ in range(3):
        model(**rows(task=1))
    model.progress(0.7)
    model.eval().save_pretrained(tmp_path)
    back = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(back) is RoutedBertForSequenceClassification and isinstance(back.config, RoutedBertConfig)
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in model.state_dict().items())
    if routing == "task":
        assert {"table", "recent", "draws", "noise"} <= {name.rpartition(".")[2] for name in back.state_dict()}
        assert all(layer.router.is_frozen for layer in back.bert.expert_layers.values())
    show_scores(back)
    for task in (0, 1):
        assert torch.equal(model(**rows(task)).logits, back(**rows(task)).logits)


@pytest.mark.parametrize("routing", ["task", "token"])
def test_it_shows_what_a_plain_bert_shows(dense, routing):
    """Hidden states and attention scores of the asked layers, logits, and the routing, each alone and together."""
    model = apart(routed(dense, routing=routing))
    batch = rows(task=1)
    whole = forward_outputs(
        model, batch, OutputRequest(True, hidden=frozenset({0, 2, 4}), scores=frozenset({1, 4}), routing=True)
    )
    assert whole.logits.shape == (3, 1) and whole.scores[4].shape == (3, 2, 7, 7) and whole.routing[0].shape == (2, 4)
    assert torch.allclose(whole.logits, forward_outputs(model, batch, OutputRequest(logits=True)).logits, atol=1e-6)
    low = forward_outputs(model, batch, OutputRequest(hidden=frozenset({2})))
    assert torch.allclose(low.hidden[2], whole.hidden[2], atol=1e-6) and low.routing is None
    routing_LE = forward_outputs(model, batch, OutputRequest(hidden=frozenset({2}), routing=True)).routing[1]
    assert torch.allclose(routing_LE, whole.routing[1], atol=1e-6), "every layer routes, though nobody reads the upper ones"


def test_padding_counts_nowhere(dense):
    model = apart(routed(dense, routing="token", top_k=2)).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batch = rows()
    other = {**batch, "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 59)}
    first, second = (forward_outputs(model, each, OutputRequest(logits=True, routing=True)) for each in (batch, other))
    assert torch.allclose(first.logits, second.logits, atol=1e-6)
    assert all(torch.allclose(left, right, atol=1e-6) for left, right in zip(first.routing, second.routing, strict=True))


def test_the_objective_balances_the_student_and_tells_it_how_far_it_is(dense):
    model = routed(dense, experts=2).train()
    terms = make_terms({"hard_label": (1.0, {}), "load_balance": (0.01, {})}, Catalog())
    objective = Objective(terms, model)
    assert objective.student_request.routing and not objective.teacher_request.routing
    objective.progress(1, 4)
    assert model.bert.expert_layers[2].router.noise.item() == pytest.approx(0.55)
    _, total, parts = next(objective.losses(rows()))
    assert total.item() == pytest.approx(parts["hard_label"].item() + 0.01 * parts["load_balance"].item())
    parts["load_balance"].backward()
    gate = model.bert.expert_layers[4].router.gate.weight.grad
    assert gate is not None and gate.abs().sum() > 0
    objective.progress(2, 4)
    assert model.bert.expert_layers[4].router.is_frozen


@pytest.mark.parametrize(
    "wrong",
    [{"moe_layers": [5]}, {"moe_layers": [2, 2]}, {"top_k": 5}, {"routing": "both"}, {"tasks": {}}, {"tasks": {"film": 3}}],
)
def test_a_configuration_that_routes_to_nothing_is_refused(dense, tmp_path, wrong):
    model = routed(dense)
    model.save_pretrained(tmp_path)
    dense.tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | wrong))
    with pytest.raises(MbertError) as caught:
        load_model(tmp_path, "classifier", where="MODEL", task="film")
    assert caught.value.code in ("M390", "M302")


def test_an_encoder_is_wanted_and_this_is_none(dense, tmp_path):
    routed(dense).save_pretrained(tmp_path)
    dense.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(MbertError) as caught:
        load_model(tmp_path, "encoder", where="base")
    assert caught.value.code == "M267" and "mbert extract" in caught.value.fix
    loaded = load_model(tmp_path, "classifier", where="MODEL", task="film")
    assert type(loaded.model).__name__ == "BertForSequenceClassification" and loaded.label_names == ["bad", "good"]
    assert is_routed(read_config(tmp_path, where="MODEL"))


def test_tasks_are_numbered_by_name_since_a_saved_configuration_sorts_them(dense, tmp_path):
    model = apart(routed(dense, tasks={"score": TASKS["score"], "film": TASKS["film"]}))
    assert model.tasks == ["film", "score"]
    model.save_pretrained(tmp_path)
    back = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    show_scores(back)
    assert back.tasks == model.tasks and torch.equal(model(**rows(1)).logits, back(**rows(1)).logits)
