"""MiniLM and MiniLMv2: one pair of layers, attention and relations as distributions, real tokens alone, heads that divide."""

from pathlib import Path

import pytest
import torch
from tiny_models import tiny_bert

from microbert_cli.catalog.losses.attention_distribution import attention_distribution
from microbert_cli.catalog.losses.relations import relation_scores, relations
from microbert_cli.catalog.losses.value_relation import value_relation
from microbert_cli.data.examples import Examples
from microbert_cli.data.tokenized import tokenize_examples
from microbert_cli.distillation.layer_map import layer_map
from microbert_cli.distillation.teacher import Teacher
from microbert_cli.distillation.teacher_cache import cached_ask
from microbert_cli.errors import MbertError
from microbert_cli.models.capture import TOKENS_AT_ONCE, OutputRequest, forward_outputs
from microbert_cli.models.load import load_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import overlay, resolve
from microbert_cli.runs.stage_inputs import step, steps
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.objective import Objective

CATALOG = Catalog()
ALL = {"attention_distribution": {}, "value_relation": {}, "relations": {"heads": 4}}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("minilm")
    tiny_bert(folder / "teacher", layers=4, hidden=16, seed=1)
    tiny_bert(folder / "student", layers=3, hidden=8, seed=2)  # 3 layers: no uniform map onto 4
    return folder


@pytest.fixture
def batch():
    ids = torch.randint(5, 100, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 4:], mask[2, 2:] = 0, 0
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def objective(places, losses, *, student="student", rule="top"):
    taught, pupil = (load_model(places / name, "classifier", where=name) for name in ("teacher", student))
    layers = [loaded.model.config.num_hidden_layers for loaded in (taught, pupil)]
    return Objective(
        make_terms({name: (1.0, parameters) for name, parameters in losses.items()}, CATALOG),
        pupil.model.eval(),
        ask_teacher=Teacher(taught).ask,
        map_layers=layer_map(rule, teacher_layers=layers[0], student_layers=layers[1]),
        student_width=pupil.model.config.hidden_size,
        teacher_width=taught.model.config.hidden_size,
    )


def by_hand(*values):
    """Vectors of one head as queries, keys and values, [1, 1, T, h]."""
    return (torch.tensor(values)[None, None],) * 3


def test_the_value_relation_by_hand():
    """Rows (.66976, .33024) and swapped against (.98201, .01799) and (.5, .5)."""
    teacher, student = by_hand([1.0, 0.0], [0.0, 1.0]), by_hand([2.0], [0.0])
    real = torch.ones(1, 2)
    assert relation_scores(teacher[2], 1).softmax(-1)[0, 0, 0].tolist() == pytest.approx([0.66976, 0.33024], abs=1e-5)
    assert relation_scores(student[2], 1).softmax(-1)[0, 0, 0].tolist() == pytest.approx([0.98201, 0.01799], abs=1e-5)
    assert value_relation(student, teacher, real).item() == pytest.approx(0.38178, abs=1e-5)
    assert relations(student, teacher, real, heads=1).item() == pytest.approx(3 * 0.38178, abs=3e-5)
    assert relations(student, teacher, real, heads=1, queries=0, keys=0, values=0.5).item() == pytest.approx(0.19089, abs=1e-5)


def test_the_attention_distribution_by_hand():
    """KL((3/4, 1/4) || (1/2, 1/2)) = 0.13081 for one of two queries, 0 for the other; a third, padded token is nowhere."""
    three = torch.tensor([[[[3.0, 1.0, 9.0], [1.0, 1.0, 9.0], [9.0, 1.0, 1.0]]]]).log()
    flat = torch.zeros(1, 1, 3, 3)
    real = torch.tensor([[1, 1, 0]])
    assert attention_distribution(flat, three, real).item() == pytest.approx(0.13081 / 2, abs=1e-5)
    assert attention_distribution(flat, three + 5.0, real).item() == pytest.approx(0.13081 / 2, abs=1e-5)


def test_relation_heads_cut_the_width_anew():
    """Two attention heads of two features as four relation heads of one: x_q x_k of every feature, over sqrt(1)."""
    vectors = torch.arange(8.0).reshape(1, 2, 2, 2)  # [B, A, T, h]: token 0 is (0, 1 | 4, 5), token 1 (2, 3 | 6, 7)
    scores = relation_scores(vectors, 4)
    assert scores[0, :, 0, 1].tolist() == [0.0, 3.0, 24.0, 35.0]
    assert relation_scores(vectors, 2)[0, 1, 0, 1].item() == pytest.approx((24 + 35) / 2**0.5)


@pytest.mark.parametrize("name", ALL)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(name, places, batch):
    criterion = objective(places, {name: ALL[name]}, student="teacher")
    loss = criterion(batch)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    largest = max(float(p.grad.abs().max()) for p in criterion.student.parameters() if p.grad is not None)
    assert largest < 1e-5


@pytest.mark.parametrize("name", ALL)
def test_padding_counts_nowhere(name, places, batch):
    criterion = objective(places, {name: ALL[name]})
    wider = {key: torch.nn.functional.pad(value, (0, 5)) for key, value in batch.items()}
    assert criterion(wider).item() == pytest.approx(criterion(batch).item(), rel=1e-5)
    alone = [{key: value[i : i + 1, : int(batch["attention_mask"][i].sum())] for key, value in batch.items()} for i in range(3)]
    tokens = [int(row["attention_mask"].sum()) for row in alone]
    mean = sum(criterion(row).item() * count for row, count in zip(alone, tokens, strict=True)) / sum(tokens)
    assert criterion(batch).item() == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "reached"),
    [("attention_distribution", {"query", "key"}), ("value_relation", {"value"}), ("relations", {"query", "key", "value"})],
)
def test_gradients_reach_what_is_compared_and_nothing_above_it(name, reached, places, batch):
    criterion = objective(places, {name: ALL[name]})
    criterion(batch).backward()
    top = {
        key.split(".")[-2] for key, value in criterion.student.bert.encoder.layer[-1].named_parameters()
        if value.grad is not None and key.endswith("weight") and value.grad.abs().sum() > 0
    }  # fmt: skip
    assert top == reached
    assert criterion.student.bert.embeddings.word_embeddings.weight.grad.abs().sum() > 0
    assert criterion.projection is None and criterion.student.classifier.weight.grad is None


@pytest.mark.parametrize("name", ALL)
def test_it_can_be_learned(name, places, batch):
    criterion = objective(places, {name: ALL[name]})
    optimiser = torch.optim.Adam(criterion.student.parameters(), lr=1e-2)
    values = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = criterion(batch)
        loss.backward()
        optimiser.step()
        values.append(loss.item())
    assert values[-1] < 0.6 * values[0]


def test_only_the_top_pair_is_asked(places):
    criterion = objective(places, ALL, rule=2)
    assert (criterion.student_request, criterion.teacher_request) == (
        OutputRequest(scores=frozenset({3}), qkv=frozenset({3})),
        OutputRequest(scores=frozenset({2}), qkv=frozenset({2})),
    )


def test_maps_of_one_pair():
    assert layer_map("top", teacher_layers=4, student_layers=3) == [0, 0, 0, 4]
    assert layer_map(21, teacher_layers=24, student_layers=2) == [0, 0, 21]
    assert layer_map("top", teacher_layers=2, student_layers=3) == [0, 0, 0, 2]  # deeper than its teacher
    for layer in (0, 5, -1):
        with pytest.raises(MbertError) as caught:
            layer_map(layer, teacher_layers=4, student_layers=3)
        assert caught.value.code == "M010" and "the teacher has 4" in caught.value.what


def test_the_cache_does_not_keep_them(places, tmp_path, monkeypatch):
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path))
    loaded = load_model(places / "teacher", "classifier", where="teacher")
    rows = tokenize_examples(Examples([("a good film",), ("bad",)]), loaded.tokenizer, 16)
    asked = Teacher(loaded)
    for want, kept in ((OutputRequest(qkv=frozenset({4})), False), (OutputRequest(scores=frozenset({4})), True)):
        ask = cached_ask(asked, rows, want, identity={}, pad_id=0)
        assert (ask != asked.ask) == kept


def test_a_large_batch_is_asked_piece_by_piece(places, batch, monkeypatch):
    monkeypatch.setitem(TOKENS_AT_ONCE, "cpu", 7)
    loaded = load_model(places / "teacher", "classifier", where="teacher")
    want = OutputRequest(qkv=frozenset({2}))
    whole, pieces = forward_outputs(loaded.model, batch, want), Teacher(loaded).ask(batch, want)
    for expected, actual in zip(whole.qkv[2], pieces.qkv[2], strict=True):
        torch.testing.assert_close(expected, actual)


def refused(**keys):
    flags = {"stages": ["general-distill"], **{key.replace("__", "."): value for key, value in keys.items()}}
    with pytest.raises(MbertError) as caught:
        resolve(catalog=CATALOG, environment={}, flags=flags)
    return caught.value


def test_a_stage_alone_is_checked_as_one_of_many():
    """What another stage would need does not matter to it."""
    flags = {"method": "minilmv2", "student": "tinybert-4l-312", "base": "b", "corpus": "c", "teacher": "t", "task": "sst2"}
    alone = resolve(catalog=CATALOG, environment={}, flags=flags)
    with pytest.raises(MbertError) as caught:
        step("general-distill", alone, Path("runs/x"), CATALOG)
    assert caught.value.code == "M095"
    assert step("task-distill", alone, Path("runs/x"), CATALOG).inputs["student"] == "tinybert-4l-312"


def test_relation_heads_that_do_not_divide_are_refused_and_others_named():
    error = refused(method="minilmv2", student="tinybert-4l-312")
    assert (error.code, error.where) == ("M095", "method minilmv2, general.losses.relations")
    assert "48" in error.what and "312" in error.what
    assert error.allowed.startswith("24, 12, ") and error.fix == "--set general.losses.relations.heads=24"
    for heads in (24, 12):
        resolve(catalog=CATALOG, environment={}, flags={
            "method": "minilmv2", "student": "tinybert-4l-312", "general.losses.relations.heads": heads,
            "stages": ["general-distill"],
        })  # fmt: skip
    flags = dict(method="minilmv2", student="demo-2l-64", stages=["pretrain", "general-distill"], pretrain__model="demo-4l-128")
    assert refused(**flags).fix == "--set general.losses.relations.heads=32"
    for heads, code in {0: "M095", -2: "M095", 1.5: "M017", True: "M017", "many": "M017"}.items():
        assert refused(method="minilmv2", student="bert-6x384", general__losses__relations__heads=heads).code == code


def test_what_a_recipe_tells_is_checked_as_it_is_read():
    heads = refused(
        method="minilm", student="demo-2l-64", stages=["pretrain", "general-distill"], pretrain__model="bert-small-4l-512"
    )
    assert heads.code == "M013" and "same heads" in heads.what and "general.losses.attention_distribution" in heads.what
    all_layers = refused(method="minilm", general__losses__hidden_states=1.0)
    assert all_layers.code == "M096" and "layer_map=uniform" in all_layers.fix
    assert refused(method="minilm", layer_map=0).code == "M003"
    unlabelled = refused(method="minilm", general__losses__hard_label=1.0)
    assert unlabelled.code == "M008" and "labels" in unlabelled.what


def test_an_assistant_stands_between():
    """The teacher teaches the assistant, the assistant the student; the student is what goes on to the task."""
    resolved = resolve(catalog=CATALOG, environment={}, recipe="minilm-quickstart")
    root = Path("runs/x")
    of = {step.name: step.inputs for step in steps(resolved, root, CATALOG)}
    assert of["assistant"]["teacher"] == str(root / "pretrain") and of["assistant"]["student"] == "demo-4l-64"
    assert of["general-distill"]["teacher"] == str(root / "assistant") and of["general-distill"]["student"] == "demo-2l-64"
    assert of["task-distill"]["student"] == str(root / "general-distill")
    direct = {"stages": ["pretrain", "finetune", "direct", "task-distill"], "init": "direct"}
    of = {step.name: step.inputs for step in steps(overlay(resolved, direct, "test", CATALOG), root, CATALOG)}
    assert of["direct"]["teacher"] == str(root / "pretrain") and of["task-distill"]["student"] == str(root / "direct")
