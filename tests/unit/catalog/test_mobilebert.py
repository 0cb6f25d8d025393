"""MobileBERT: its losses by hand, its nets, what is trained layer by layer and at what rate, and where the student begins."""

import copy
from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from published_sizes import PARAMETERS
from tiny_models import tiny_bert, tiny_tokenizer
from torch import nn

from microbert_cli.catalog.losses.attention_transfer import attention_transfer
from microbert_cli.catalog.losses.feature_maps import feature_maps
from microbert_cli.catalog.losses.feature_statistics import feature_statistics
from microbert_cli.catalog.losses.masked_lm import masked_lm
from microbert_cli.catalog.losses.token_mixed_target import token_mixed_target
from microbert_cli.distillation.general import _disable_dropout, make_objective, make_student, required_heads
from microbert_cli.distillation.start.initialise import initial_weights
from microbert_cli.distillation.teacher import Teacher
from microbert_cli.errors import MbertError
from microbert_cli.models.capture import OutputRequest, forward_outputs
from microbert_cli.models.config import register_model_type
from microbert_cli.models.factory import build_model
from microbert_cli.models.load import LoadedModel, load_model
from microbert_cli.models.size import count_parameters, forward_flops
from microbert_cli.plan.expected_inputs import ModelInfo
from microbert_cli.plan.phases import distil_jobs
from microbert_cli.plan.rehearsal import rehearse
from microbert_cli.plan.work import answering_load
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.recipe.student_shapes import read_student
from microbert_cli.reporter import SILENT
from microbert_cli.runs.stage_inputs import steps
from microbert_cli.training.loop import train
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.objective import Objective
from microbert_cli.training.optimisers import Lamb, make_optimiser, schedule_factor, set_rates
from microbert_cli.training.plan import TrainingPlan
from microbert_cli.training.progressive import Progressive, check_layers, check_step_count, layer_of

CATALOG = Catalog()
TRANSFER = {"feature_maps": {}, "feature_statistics": {}, "attention_transfer": {"divergence": "kl"}}
TEACHER = {
    "model_type": "mbert-inverted-bottleneck", "num_hidden_layers": 3,
    "hidden_size": 16, "intra_bottleneck_size": 24, "intermediate_size": 32,
    "num_attention_heads": 2, "num_feedforward_networks": 1, "embedding_size": 8, "hidden_act": "gelu",
    "normalization_type": "layer_norm", "key_query_shared_bottleneck": False, "initializer_range": 0.2,
}  # fmt: skip
STUDENT = {
    **TEACHER, "model_type": "mobilebert",
    "intra_bottleneck_size": 8, "intermediate_size": 16, "num_feedforward_networks": 2, "hidden_act": "relu",
    "normalization_type": "no_norm", "key_query_shared_bottleneck": True, "classifier_activation": False,
    "attention_probs_dropout_prob": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def nets(tokenizer):
    """Teacher and student, masked-LMs."""
    models = [
        build_model(fields, kind="masked-lm", tokenizer=tokenizer, seed=seed) for seed, fields in ((1, TEACHER), (2, STUDENT))
    ]
    models[0].eval()
    with torch.no_grad():
        models[0].base_model.embeddings.LayerNorm.weight.fill_(2.0)
    return [LoadedModel(model, tokenizer, name, []) for name, model in zip(("teacher", "student"), models, strict=True)]


@pytest.fixture(scope="module")
def batch():
    ids = torch.randint(5, 100, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 4:], mask[2, 2:] = 0, 0
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(ids),
        "token_positions": torch.tensor([1, 4, 8]),
        "token_labels": torch.tensor([7, 9, 11]),
    }


def objective(teacher, student, losses, *, progressive=None):
    terms = {name: (1.0, parameters) for name, parameters in losses.items()}
    return Objective(
        make_terms(terms, CATALOG), student, ask_teacher=Teacher(teacher).ask, map_layers=[0, 1, 2, 3],
        student_width=16, teacher_width=16, progressive=progressive,
    )  # fmt: skip


def new_student(nets):
    return copy.deepcopy(nets[1].model)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float32)


def test_normalised_maps_by_hand():
    """(1, 3) becomes (-1, 1), (3, 1) becomes (1, -1): 4, over as many layers as there are; a padded token is nowhere."""
    teacher, student, mask = tensor([[1, 3], [5, 0]]), tensor([[3, 1], [0, 9]]), torch.tensor([[1, 0]])
    assert feature_maps(student, teacher, mask, mapped_layers=1).item() == pytest.approx(4.0, abs=1e-5)
    assert feature_maps(student * 7 + 2, teacher, mask, mapped_layers=24).item() == pytest.approx(4.0 / 24, abs=1e-5)
    both = feature_maps(student, teacher, mask, mapped_layers=1, normalisation="reference")
    assert both.item() == pytest.approx(4.0, abs=1e-5)  # the second token's maps are opposite, too
    flat = feature_maps(student, tensor([[1, 3], [0, 9]]), mask, mapped_layers=1, normalisation="reference")
    assert flat.item() == pytest.approx(2.0, abs=1e-5)


def test_statistics_by_hand():
    """(2, 6) has mean 4 and variance 4, (1, 3) mean 2 and variance 1: 5000 x 4 + 5 x 3; one layer, not all."""
    student, teacher, mask = tensor([[2, 6], [9, 9]]), tensor([[1, 3], [0, 0]]), torch.tensor([[1, 0]])
    value = feature_statistics(student, teacher, mask, mapped_layers=1)
    assert value.item() == pytest.approx(5000 * 4 + 5 * 3, rel=1e-6)
    parts = [feature_statistics(student, teacher, mask, mapped_layers=2, means=m, variances=v) for m, v in ((1, 0), (0, 1))]
    assert [part.item() for part in parts] == pytest.approx([2.0, 1.5])
    padded = feature_statistics(student, teacher, mask, mapped_layers=1, means=1, variances=0, normalisation="reference")
    assert padded.item() == pytest.approx((4 + 81) / 2)


def test_attention_by_hand():
    """Teacher (3/4, 1/4), student (1/2, 1/2): ln 2, of which 0.56234 is the teacher's entropy; a third token is padded."""
    teacher = tensor([[[[3, 1, 9], [3, 1, 9], [9, 1, 1]]]])[0].log()
    flat, mask = torch.zeros(1, 1, 3, 3), torch.tensor([[1, 1, 0]])
    assert attention_transfer(flat, teacher, mask, mapped_layers=1).item() == pytest.approx(log(2), abs=1e-5)
    same = attention_transfer(teacher, teacher, mask, mapped_layers=1)
    assert same.item() == pytest.approx(0.56234, abs=1e-5)
    kl = attention_transfer(flat, teacher, mask, mapped_layers=2, divergence="kl")
    assert kl.item() == pytest.approx(0.13081 / 2, abs=1e-5)
    assert attention_transfer(teacher, teacher, mask, mapped_layers=1, divergence="kl").item() == pytest.approx(0, abs=1e-6)


def test_both_divergences_have_one_gradient():
    generator = torch.Generator().manual_seed(0)
    teacher, start = (torch.randn(2, 2, 5, 5, generator=generator) for _ in range(2))
    mask, gradients = torch.ones(2, 5), []
    for divergence in ("kl", "cross-entropy"):
        student = start.clone().requires_grad_()
        attention_transfer(student, teacher, mask, mapped_layers=3, divergence=divergence).backward()
        gradients.append(student.grad)
    torch.testing.assert_close(*gradients)


def test_mixed_targets_by_hand():
    """Word 0, teacher (.6, .4): target (.8, .2); student (.8, .2): 0.50040. alpha = 1 is masked_lm, 0 the teacher alone."""
    logits = {"teacher": tensor([0.6, 0.4]).log(), "student": tensor([0.8, 0.2]).log()}

    def value(alpha):
        return token_mixed_target(
            tensor([[0, 0], [1, 1], [2, 2]]), tensor([[0], [1], [2]]), lambda x: logits["student"].expand(len(x), 2),
            lambda x: logits["teacher"].expand(len(x), 2), torch.tensor([0]), torch.tensor([1]), alpha=alpha,
        ).item()  # fmt: skip

    assert value(0.5) == pytest.approx(0.50040, abs=1e-5)
    assert value(1.0) == pytest.approx(masked_lm(logits["student"], torch.tensor([0])).item(), abs=1e-6)
    assert value(0.0) == pytest.approx(-0.6 * log(0.8) - 0.4 * log(0.2), abs=1e-5)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_shapes(name):
    config = config_of(name)
    kinds = ("AutoModelForMaskedLM", "AutoModel", "AutoModelForSequenceClassification")
    with torch.device("meta"):
        models = [getattr(transformers, kind).from_config(config) for kind in kinds]
    assert tuple(count_parameters(model).total for model in models) == PARAMETERS[name]


def test_what_a_layer_of_mobilebert_weighs():
    """Two bottlenecks in, attention, four FFNs, a bottleneck out; 24 of them and the embeddings are the encoder."""
    bottleneck = 512 * 128 + 128 + 2 * 128
    attention = 2 * (128 * 128 + 128) + (512 * 128 + 128) + (128 * 128 + 128 + 2 * 128)
    ffn = 128 * 512 + 512 + 512 * 128 + 128 + 2 * 128
    out = 128 * 512 + 512 + 2 * 512
    embeddings = 30522 * 128 + (384 * 512 + 512) + (512 + 2) * 512 + 2 * 512
    assert 24 * (2 * bottleneck + attention + 4 * ffn + out) + embeddings == PARAMETERS["mobilebert"][1]
    tiny = bottleneck + 3 * (128 * 128 + 128) + (128 * 128 + 128 + 2 * 128) + 2 * ffn + out
    assert 24 * tiny + embeddings == PARAMETERS["mobilebert-tiny"][1]


def config_of(name):
    fields = read_student(name, CATALOG)
    register_model_type(fields)
    return transformers.AutoConfig.for_model(**{key: value for key, value in fields.items() if key != "title"})


def test_what_is_printed_of_size_and_operations():
    """Matrices alone are the printed 15.1 M, and 25.3 M with one more reader of 512 features a block; so are 3.1 and 5.7 G."""
    outside, more = 30522 * 128 + 384 * 512, (512 - 128) * 128
    tiny = 512 * 128 + 4 * 128 * 128 + 2 * 2 * 128 * 512 + 128 * 512
    block = 2 * 512 * 128 + 3 * 128 * 128 + 512 * 128 + 4 * 2 * 128 * 512 + 128 * 512
    assert (outside + 24 * tiny, outside + 24 * (block + more)) == (15_113_472, 25_337_088)
    attention, top = 24 * 4 * 128 * 128 * 128, 2 * 512 * 2
    for name, weights in (("mobilebert-tiny", tiny), ("mobilebert", block)):
        expected = 2 * 128 * (24 * weights + 384 * 512) + attention + top
        assert forward_flops(config_of(name), 128) == expected
    assert [round(forward_flops(config_of(name), 128) / 1e9, 2) for name in ("mobilebert-tiny", "mobilebert")] == [3.07, 5.39]
    assert (forward_flops(config_of("mobilebert"), 128) + 2 * 128 * 24 * more) / 1e9 == pytest.approx(5.69, abs=0.005)


def test_a_mobilebert_shows_what_is_asked_and_computes_no_layer_above(nets, batch):
    teacher = nets[0].model
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    whole = teacher(**inputs, output_hidden_states=True)
    ran = []
    hooks = [
        layer.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, layer in enumerate(teacher.base_model.encoder.layer)
    ]
    seen = forward_outputs(teacher, batch, OutputRequest(hidden=frozenset({2}), scores=frozenset({2})))
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(seen.hidden[2], whole.hidden_states[2])
    assert seen.scores[2].shape == (3, 2, 7, 7) and ran == [0, 1]
    seen = forward_outputs(teacher, batch, OutputRequest(token_logits=True))
    torch.testing.assert_close(seen.token_logits, whole.logits.flatten(0, 1)[batch["token_positions"]])


@pytest.mark.parametrize("name", TRANSFER)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(name, nets, batch):
    same = objective(nets[0], copy.deepcopy(nets[0].model).eval().requires_grad_(), {name: TRANSFER[name]})
    loss = same(batch)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    scale = 1e-3 if name == "feature_statistics" else 1e-5  # a rounding error times 5,000
    assert max(float(p.grad.abs().max()) for p in same.student.parameters() if p.grad is not None) < scale


def test_attention_to_itself_is_the_entropy(nets, batch):
    same = objective(nets[0], copy.deepcopy(nets[0].model).eval(), {"attention_transfer": {}})
    scores = forward_outputs(nets[0].model, batch, OutputRequest(scores=frozenset({1, 2, 3}))).scores
    entropy = 0.0
    for layer in scores.values():
        for row in range(3):
            n = int(batch["attention_mask"][row].sum())
            p = layer[row, :, :n, :n].softmax(-1)
            entropy += float(-(p * p.log()).sum()) / 2 / 3
    assert same(batch).item() == pytest.approx(entropy / int(batch["attention_mask"].sum()), rel=1e-5)


def touched(model):
    return {
        layer_of(name) if layer_of(name) else name.split(".")[1] for name, p in model.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 0
    }  # fmt: skip


def test_gradients_reach_what_they_should(nets, batch):
    reached = {}
    for name in (*TRANSFER, "token_mixed_target"):
        criterion = objective(nets[0], new_student(nets).eval(), {name: TRANSFER.get(name, {})})
        criterion(batch).backward()
        reached[name] = touched(criterion.student)
        assert all(p.grad is None for p in nets[0].model.parameters())
    assert reached["feature_maps"] == reached["feature_statistics"] == reached["attention_transfer"] == {"embeddings", 1, 2, 3}
    assert reached["token_mixed_target"] == {"embeddings", 1, 2, 3, "predictions"}


@pytest.mark.parametrize("name", [*TRANSFER, "token_mixed_target"])
def test_padding_counts_nowhere(name, nets, batch):
    criterion = objective(nets[0], new_student(nets).eval(), {name: TRANSFER.get(name, {})})
    wider = {key: nn.functional.pad(value, (0, 5)) if value.dim() == 2 else value for key, value in batch.items()}
    rows, columns = batch["token_positions"] // 7, batch["token_positions"] % 7
    wider["token_positions"] = rows * 12 + columns
    assert criterion(wider).item() == pytest.approx(criterion(batch).item(), rel=1e-5)


def test_turns():
    """10 steps for 4 layers; the first part has ceil(10 / 4) of them."""
    turns = Progressive(4)
    assert [turns.layer(step, 10) for step in range(10)] == [1, 1, 1, 2, 2, 3, 3, 3, 4, 4]
    assert [turns.step_in_layer(step, 10) for step in (0, 2, 3, 4, 7, 9)] == [(0, 3), (2, 3), (0, 2), (1, 2), (2, 3), (1, 2)]
    assert [turns.rate_factor(layer, 5, 10) for layer in (0, 1, 2, 3, 4, None)] == [0.0, 0.3, 0.3, 3.0, 0.0, 3.0]
    names = (
        "mobilebert.encoder.layer.0.ffn.2.output.dense.weight",
        "transformer.layer.4.q_lin.bias",
        "layers.11.mlp.Wi.weight",
    )
    assert [layer_of(name) for name in names] == [1, 5, 12]
    assert [layer_of(name) for name in ("embeddings.LayerNorm.bias", "cls.predictions.bias", "classifier.weight")] == [0, 0, 0]


def test_the_rate_of_a_layers_part():
    """Up within a tenth of the steps, then 0.9 + 0.1 sqrt(1 - x)."""
    factors = [schedule_factor("sqrt", step, 100, 0.1) for step in (0, 5, 10, 19, 75, 100)]
    assert factors == pytest.approx([0.0, 0.5, 0.9 + 0.1 * 0.9**0.5, 0.99, 0.95, 0.9])
    assert schedule_factor("sqrt", 0, 100, 0.0) == 1.0


def test_rates_of_the_groups(nets):
    plan = TrainingPlan("x", steps=30, learning_rate=1e-2, schedule="constant")
    turns = Progressive(3)
    student, beside = new_student(nets), nn.Linear(2, 2)
    opt = make_optimiser("adamw", [student, beside], learning_rate=1.0, weight_decay=0.1, max_grad_norm=1.0, progressive=turns)
    set_rates(opt, plan, 15, turns)
    rates = {group["layer"]: group["lr"] for group in opt.param_groups}
    assert rates == pytest.approx({0: 0.0, 1: 3e-3, 2: 3e-2, 3: 0.0, None: 3e-2})
    counted = sum(p.numel() for group in opt.param_groups for p in group["params"])
    assert counted == count_parameters(student).total + 6
    assert {group["weight_decay"] for group in opt.param_groups[::2]} == {0.1}
    assert {group["weight_decay"] for group in opt.param_groups[1::2]} == {0.0}


def test_layer_by_layer_only_the_layer_whose_turn_it_is_learns(nets, batch, tmp_path):
    """Of 6 steps for 3 layers the third is layer 2's: layer 1 moves a little, layer 2 ten times as much, nothing else does."""
    student = new_student(nets)
    losses = objective(nets[0], student, TRANSFER, progressive=Progressive(3))
    wanted, states = [], []

    def batches(skip):
        while True:
            student.train()
            wanted.append((losses.student_request.hidden, losses.student_request.scores, losses.teacher_request.hidden))
            states.append({name: value.clone() for name, value in student.state_dict().items()})
            yield batch

    plan = TrainingPlan("x", steps=6, learning_rate=1e-3, optimizer="adamw", schedule="constant", weight_decay=0.0)
    train(losses, batches, plan, directory=tmp_path, seed=0)
    states.append(student.state_dict())
    for step, (before, after) in enumerate(zip(states, states[1:], strict=False)):
        moved = {}
        for name, value in after.items():
            layer = layer_of(name) if layer_of(name) else 0
            moved[layer] = max(moved.get(layer, 0.0), float((value - before[name]).abs().max()))
        turn = 1 + step // 2
        assert {layer for layer, much in moved.items() if much} == set(range(1, turn + 1)), step
    assert wanted[5] == tuple(frozenset({3}) for _ in range(3)) and wanted[3][0] == frozenset({2})
    student.eval()
    assert losses.student_request.hidden == frozenset({1, 2, 3})  # judged by all


def test_layer_by_layer_refuses(nets):
    student = new_student(nets)
    fine = [("general.losses.feature_maps", "layers")]
    check_layers(student, fine, layers=3)
    check_step_count(3, 3)
    shared = build_model(
        {"model_type": "albert", "num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 2, "embedding_size": 8},
        kind="encoder", tokenizer=nets[1].tokenizer, seed=0,
    )  # fmt: skip
    for code, refused in (
        ("M057", lambda: check_layers(student, [*fine, ("general.losses.token_mixed_target", "top")], layers=3)),
        ("M058", lambda: check_layers(shared, fine, layers=3)),
        ("M059", lambda: check_step_count(2, 3)),
    ):
        with pytest.raises(MbertError) as caught:
            refused()
        assert caught.value.code == code


def test_lamb_by_hand():
    """p = (3, 4), g = (1, -1): m = .1 g, v = .001, u = m / (sqrt v + 1e-6) + .1 p, made as long as p: 5."""
    weight, bias = (nn.Parameter(tensor(3.0, 4.0)) for _ in range(2))
    optimiser = Lamb([{"params": [weight]}, {"params": [bias], "adapt": False, "weight_decay": 0.0}], lr=0.01, weight_decay=0.1)
    weight.grad, bias.grad = tensor(1.0, -1.0), tensor(1.0, -1.0)
    optimiser.step()
    step = 0.1 / (0.001**0.5 + 1e-6)
    update = (step + 0.3, -step + 0.4)
    ratio = 5 / (update[0] ** 2 + update[1] ** 2) ** 0.5
    assert weight.tolist() == pytest.approx([3 - 0.01 * ratio * update[0], 4 - 0.01 * ratio * update[1]], rel=1e-6)
    assert bias.tolist() == pytest.approx([3 - 0.01 * step, 4 + 0.01 * step], rel=1e-6)
    nought = nn.Parameter(torch.zeros(2))
    optimiser = Lamb([nought], lr=0.01)
    nought.grad = tensor(1.0, -1.0)
    optimiser.step()  # no length to take over
    assert nought.tolist() == pytest.approx([-0.01 * step, 0.01 * step], rel=1e-6)


def begun(nets, student=STUDENT, kind="masked-lm", **keys):
    model = build_model(student, kind=kind, tokenizer=nets[0].tokenizer, seed=5, **keys)
    start = initial_weights("teacher-ends", "uniform", nets[0], None, student=lambda: model.config, reporter=SILENT)
    return model, start


def test_the_student_begins_as_the_teachers_ends(nets):
    model, start = begun(nets)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert start(model) is None
    teacher_state = nets[0].model.state_dict()
    same = {name for name, value in model.state_dict().items() if name in teacher_state and value.equal(teacher_state[name])}
    rest = {name for name in before if "layer." not in name} - same
    assert rest == {"mobilebert.embeddings.LayerNorm.weight"}  # a NoNorm's stays 1
    assert {"mobilebert.embeddings.embedding_transformation.weight", "cls.predictions.dense.weight"} <= same
    assert all(value.equal(before[name]) for name, value in model.state_dict().items() if "encoder.layer." in name)
    assert start.record == {"by": "teacher-ends", "of": "teacher"}


def test_ends_that_do_not_fit(nets, tmp_path):
    model, start = begun(nets, {**STUDENT, "hidden_size": 32})
    with pytest.raises(MbertError) as caught:
        start(model)
    assert caught.value.code == "M045" and "embeddings" in caught.value.what
    model, start = begun(nets, {"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2})
    with pytest.raises(MbertError) as caught:
        start(model)
    assert caught.value.code == "M099"


def test_a_bert_takes_a_berts_ends(tmp_path):
    taught = load_model(tiny_bert(tmp_path / "base", kind="masked-lm"), "masked-lm", where="base")
    model = build_model(
        {"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 8},
        kind="masked-lm", tokenizer=taught.tokenizer, seed=5, like=taught.model.config,
    )  # fmt: skip
    initial_weights("teacher-ends", "uniform", taught, None, student=lambda: model.config, reporter=SILENT)(model)
    for part in (lambda m: m.bert.embeddings, lambda m: m.cls):
        for actual, expected in zip(part(model).parameters(), part(taught.model).parameters(), strict=True):
            assert actual.equal(expected)


def test_the_page_of_transfer_makes_what_it_says(nets, tmp_path):
    """Masked-LMs on both sides, no dropout while training, its own in what is saved; layer by layer."""
    folder = tmp_path / "student.toml"
    lines = [f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for key, value in STUDENT.items()]
    folder.write_text("\n".join(['title = "small"', *lines]).replace("'", '"'))
    recipe = resolve(catalog=CATALOG, environment={}, flags={"method": "mobilebert-transfer", "student": str(folder)}).recipe
    assert required_heads(recipe, CATALOG) == ("masked-lm", "masked-lm")
    pupil = make_student(recipe, CATALOG, nets[0], str(folder))
    assert {m.p for m in pupil.model.modules() if isinstance(m, nn.Dropout)} == {0.0}
    assert pupil.model.config.attention_probs_dropout_prob == 0.5
    criterion = make_objective(recipe, CATALOG, Teacher(nets[0]), nets[0], pupil)
    assert criterion.progressive == Progressive(3, 3.0, 0.3)
    joint = resolve(
        catalog=CATALOG, environment={},
        flags={"method": "mobilebert-transfer", "student": str(folder), "ablate": ["layer_by_layer"]},
    ).recipe  # fmt: skip
    assert make_objective(joint, CATALOG, Teacher(nets[0]), nets[0], pupil).progressive is None


def test_layer_rates_are_checked():
    for value in ([3.0], [3.0, 0.3, 1.0], [0.0, 0.3], [3.0, -1.0], True, "yes"):
        with pytest.raises(MbertError) as caught:
            resolve(catalog=CATALOG, environment={}, flags={"general.layer_by_layer": value})
        assert caught.value.code == "M003", value


def test_dropout_is_taken_out_wherever_it_is(tokenizer):
    fields = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 8}
    for kind in ("modernbert", "distilbert"):
        model = build_model(
            {"model_type": kind, **fields, "attention_dropout": 0.5, "mlp_dropout": 0.5},
            kind="encoder",
            tokenizer=tokenizer,
            seed=0,
        )
        _disable_dropout(model)
        ids = torch.arange(5, 25)[None]
        first, second = (model.train()(input_ids=ids).last_hidden_state for _ in range(2))
        assert first.equal(second), kind


def wired(**flags):
    resolved = resolve(catalog=CATALOG, environment={}, recipe="mobilebert-quickstart", flags=flags)
    return {step.name: step for step in steps(resolved, Path("runs/x"), CATALOG)}


def weighted(general):
    return {name for name, term in general.losses.items() if term.weight}


def test_one_step_goes_on_from_the_other():
    of = wired()
    assert of["transfer"].inputs["student"] == "demo-mobilebert" and of["transfer"].inputs["teacher"] == "runs/x/pretrain"
    assert of["general-distill"].inputs == {**of["transfer"].inputs, "student": "runs/x/transfer"}
    assert of["task-distill"].inputs["student"] == "runs/x/general-distill"
    transfer, words = (of[name].resolved.recipe.general for name in ("transfer", "general-distill"))
    assert (weighted(transfer), transfer.layer_by_layer, transfer.masked) == (set(TRANSFER), (3.0, 0.3), 0.0)
    assert (weighted(words), words.layer_by_layer, words.masked) == ({"token_mixed_target"}, False, 0.15)


def test_the_other_schedules_are_the_same_recipe():
    joint = wired(**{"variant.transfer.ablate": ["layer_by_layer"]})
    assert joint["transfer"].resolved.recipe.general.layer_by_layer is False
    assert joint["general-distill"].inputs["student"] == "runs/x/transfer"
    auxiliary = wired(stages=["pretrain", "finetune", "auxiliary", "task-distill"], init="auxiliary")
    assert weighted(auxiliary["auxiliary"].resolved.recipe.general) == {*TRANSFER, "token_mixed_target"}
    published = resolve(catalog=CATALOG, environment={}, flags={"method": "mobilebert-auxiliary"}).recipe.general
    assert weighted(published) == {*TRANSFER, "token_mixed_target", "next_sentence"}
    assert auxiliary["task-distill"].inputs["student"] == "runs/x/auxiliary"


def test_a_student_that_no_stage_makes_is_unknown():
    with pytest.raises(MbertError) as caught:
        wired(stages=["pretrain", "finetune", "general-distill", "task-distill"])
    assert caught.value.code == "M005" and '"transfer"' in caught.value.what


def test_a_plan_rehearses_it(nets):
    """A step of all losses with random weights; each net's head runs at hidden words alone."""
    recipe = resolve(catalog=CATALOG, environment={}, flags={"method": "mobilebert-auxiliary"}).recipe
    teacher, student = (ModelInfo(loaded.model.config, loaded.tokenizer) for loaded in nets)
    job, ask = distil_jobs(recipe, recipe.general, CATALOG, teacher, student, "encoder")
    assert ask.want == OutputRequest(hidden=frozenset({1, 2, 3}), scores=frozenset({1, 2, 3}), token_head=True)
    job = replace(job, head="masked-lm", logits=True, predicted=0.15)
    (seconds,) = rehearse(job, [(4, 16)], catalog=CATALOG, device="cpu", budget=0.01).values()
    assert seconds > 0 and job.flops(answering_load(np.array([16] * 4), batch_size=4)) > 0


def test_a_tiny_one_reads_nothing_but_its_bottleneck(nets, batch):
    fields = {**STUDENT, "use_bottleneck_attention": True, "key_query_shared_bottleneck": False}
    model = build_model(fields, kind="encoder", tokenizer=nets[0].tokenizer, seed=0).eval()
    layer = model.encoder.layer[0]
    attention = layer.attention.self
    assert [part.in_features for part in (attention.query, attention.key, attention.value)] == [8, 8, 8]
    assert not [name for name, _ in layer.named_parameters() if name.startswith("bottleneck.attention")]  # nothing unused
    assert forward_outputs(model, batch, OutputRequest(scores=frozenset({3}))).scores[3].shape == (3, 2, 7, 7)
