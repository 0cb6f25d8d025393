"""The released TinyBERT code's numbers, reproduced: losses to 1e-5, gradients and later optimiser steps to 1e-4.

The reference was made with one padding (12), no dropout, random weights; `normalisation="reference"` is its arithmetic.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, BertModel

from microbert_cli.catalog.losses.cosine import cosine
from microbert_cli.catalog.losses.hard_label import hard_label
from microbert_cli.catalog.losses.hidden_states import hidden_states
from microbert_cli.catalog.losses.patience import patience
from microbert_cli.catalog.losses.soft_target import soft_target
from microbert_cli.distillation.layer_map import layer_map
from microbert_cli.models.capture import OutputRequest, forward_outputs, show_scores
from microbert_cli.recipe.registry import Catalog
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.objective import Objective
from microbert_cli.training.optimisers import make_optimiser, schedule_factor

INTERMEDIATE = {"embedding": (1.0, {}), "hidden_states": (1.0, {}), "attention_scores": (1.0, {})}
CLOSE = dict(rel=1e-5)


@pytest.fixture(scope="module")
def reference(shared):
    folder = shared / "reference" / "tinybert"
    tensors = load_file(folder / "batch_and_outputs.safetensors")
    return folder, json.loads((folder / "losses.json").read_text()), tensors


def released_model(folder, name, kind=BertForSequenceClassification):
    """The released classifier reads relu(pooled); transformers' reads pooled."""
    config = BertConfig(**json.loads((folder / f"{name.split('_')[0]}_config.json").read_text()), num_labels=3)
    model = kind(config)
    weights = load_file(folder / f"{name}.safetensors")
    if kind is BertModel:
        weights = {key.removeprefix("bert."): value for key, value in weights.items()}
    missing = model.load_state_dict(weights, strict=False).missing_keys
    assert not [key for key in missing if "classifier" not in key and "pooler" not in key]
    if kind is BertForSequenceClassification:
        model.classifier.register_forward_pre_hook(lambda module, inputs: (inputs[0].relu(),))
    show_scores(model)
    return model.eval(), weights


def make_objective(reference, terms, *, general=False, normalisation="reference"):
    folder, _, _ = reference
    teacher, _ = released_model(folder, "teacher_seqcls")
    student, weights = released_model(
        folder,
        "student_pretraining" if general else "student_seqcls",
        BertModel if general else BertForSequenceClassification,
    )
    objective = Objective(
        make_terms(terms, Catalog()),
        student,
        ask_teacher=lambda batch, want: forward_outputs(teacher.requires_grad_(False), batch, want),
        map_layers=layer_map("uniform", teacher_layers=6, student_layers=2),
        student_width=24,
        teacher_width=48,
        normalisation=normalisation,
    )
    if objective.projection is not None:
        objective.projection.load_state_dict({"weight": weights["fit_dense.weight"], "bias": weights["fit_dense.bias"]})
    return objective


def batch_of(reference):
    _, _, tensors = reference
    return {name: tensors[name] for name in ("input_ids", "token_type_ids", "attention_mask", "labels")}


def parts_of(objective, batch):
    _, total, parts = next(objective.losses(batch))
    return total, {name: value.item() for name, value in parts.items()}


@pytest.mark.parametrize(("stage", "general"), [("task_stage1", False), ("general", True)])
def test_intermediate_losses(reference, stage, general):
    expected = reference[1][stage]
    total, parts = parts_of(make_objective(reference, INTERMEDIATE, general=general), batch_of(reference))
    assert parts["attention_scores"] == pytest.approx(expected["att_loss"], **CLOSE)
    assert parts["hidden_states"] + parts["embedding"] == pytest.approx(expected["rep_loss"], **CLOSE)
    assert parts["embedding"] == pytest.approx(expected["rep_per_layer"][0], **CLOSE)
    assert total.item() == pytest.approx(expected["loss"], **CLOSE)


@pytest.mark.parametrize("stage", ["task_stage1", "general"])
@pytest.mark.parametrize("loss", ["att", "rep"])
def test_each_layer(reference, stage, loss):
    """One mapped layer at a time: the sum could hide two errors."""
    objective = make_objective(reference, INTERMEDIATE, general=stage == "general")
    batch = batch_of(reference)
    teacher, student = (
        objective._ask_teacher(batch, objective.teacher_request),
        forward_outputs(objective.student, batch, objective.student_request),
    )
    name = {"att": "attention_scores", "rep": "hidden_states"}[loss]
    term = next(term for term in objective.terms if term.name == name)
    values = [objective._call(term.function, term, student, teacher, batch, m).item() for m in (1, 2)]
    expected = reference[1][stage][f"{loss}_per_layer"]
    assert values == pytest.approx(expected[-2:], **CLOSE)


@pytest.mark.parametrize(("stage", "temperature"), [("task_stage2_T1", 1.0), ("task_stage2_T2", 2.0)])
def test_soft_target(reference, stage, temperature):
    expected = reference[1][stage]
    terms = {"soft_target": (1.0, {"temperature": temperature})}
    total, _ = parts_of(make_objective(reference, terms), batch_of(reference))
    assert total.item() == pytest.approx(expected["cls_loss"], **CLOSE)
    masked, _ = parts_of(make_objective(reference, terms, normalisation="masked"), batch_of(reference))
    assert masked.item() == pytest.approx(expected["batchmean_ce_sum_over_classes"], **CLOSE)
    kl = {"soft_target": (1.0, {"temperature": temperature, "divergence": "kl"})}
    total, _ = parts_of(make_objective(reference, kl, normalisation="masked"), batch_of(reference))
    assert total.item() == pytest.approx(expected["kl_batchmean"], **CLOSE)


def test_hard_label(reference):
    tensors = reference[2]
    loss = hard_label(tensors["student_logits"], tensors["labels"])
    assert loss.item() == pytest.approx(reference[1]["hard_ce_student"], **CLOSE)


def test_stored_logits_agree_with_the_models(reference):
    tensors, batch = reference[2], batch_of(reference)
    for name in ("teacher", "student"):
        model, _ = released_model(reference[0], f"{name}_seqcls")
        seen = forward_outputs(model, batch, OutputRequest(logits=True))
        assert torch.allclose(seen.logits, tensors[f"{name}_logits"], atol=1e-5)
    assert soft_target(tensors["student_logits"], tensors["teacher_logits"]).item() == pytest.approx(
        reference[1]["task_stage2_T1"]["batchmean_ce_sum_over_classes"], **CLOSE
    )


def test_masked_variant(reference):
    expected = reference[1]["task_stage1_masked_variant"]
    _, parts = parts_of(make_objective(reference, INTERMEDIATE, normalisation="masked"), batch_of(reference))
    assert parts["embedding"] == pytest.approx(expected["rep_per_layer"][0], **CLOSE)
    assert parts["hidden_states"] == pytest.approx(sum(expected["rep_per_layer"][1:]), **CLOSE)
    assert parts["attention_scores"] == pytest.approx(sum(expected["att_per_layer"]), **CLOSE)


@pytest.mark.parametrize(
    ("file", "terms"),
    [("student_grads_stage1", INTERMEDIATE), ("student_grads_stage2_T1", {"soft_target": (1.0, {})})],
)
def test_gradients(reference, file, terms):
    objective = make_objective(reference, terms)
    objective(batch_of(reference)).backward()
    expected = load_file(reference[0] / f"{file}.safetensors")
    gradients = {name: p.grad for name, p in objective.student.named_parameters() if p.grad is not None}
    if objective.projection is not None:
        gradients |= {f"fit_dense.{name}": p.grad for name, p in objective.projection.named_parameters()}
    largest = max(value.norm().item() for value in expected.values())
    for name, gradient in expected.items():
        norm = gradient.norm().item()
        if norm < 1e-6 * largest:  # softmax does not feel a key's bias: rounding alone
            assert name not in gradients or gradients[name].norm().item() < 1e-6 * largest, name
        else:
            assert (gradients[name] - gradient).norm().item() / norm < 1e-4, name


@pytest.mark.parametrize(("name", "schedule"), [("bertadam_none", "constant"), ("bertadam_warmup_linear", "linear")])
def test_bertadam_trajectory(reference, name, schedule):
    expected = reference[1][name]
    objective = make_objective(reference, INTERMEDIATE)
    optimiser = make_optimiser(
        "bertadam",
        [objective.student, objective],
        learning_rate=expected["lr"],
        weight_decay=0.01,
        max_grad_norm=1.0,
    )
    losses = []
    for step in range(5):
        for group in optimiser.param_groups:
            group["lr"] = expected["lr"] * schedule_factor(schedule, step, expected["t_total"], expected["warmup"])
        loss = objective(batch_of(reference))
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[0] == pytest.approx(expected["stage1_loss_at_each_of_5_steps"][0], rel=1e-5)
    assert losses == pytest.approx(expected["stage1_loss_at_each_of_5_steps"], rel=1e-4)


@pytest.fixture(scope="module")
def textbrewer(shared):
    """Another library's losses on the same tensors: (its numbers, the tensors)."""
    folder = shared / "reference" / "tinybert"
    return json.loads((folder / "textbrewer_losses.json").read_text()), load_file(folder / "batch_and_outputs.safetensors")


def pairs_of(textbrewer):
    """(its name, student, teacher) of the embedding output and two layers; the student's are already in the teacher's width."""
    _, tensors = textbrewer
    return [(f"rep{i}", tensors[f"student_hidden_fit.{i}"], tensors[f"teacher_hidden.{3 * i}"]) for i in range(3)]


def test_textbrewer_pkd_is_patience_summed_over_features(textbrewer):
    """Its mask has no part in it; ours as a mean is that over the width."""
    for name, student, teacher in pairs_of(textbrewer):
        expected = textbrewer[0][f"pkd_loss_{name}_mask"]
        loss = patience(student, teacher, project=lambda vectors: vectors, mapped_layers=1, reduction="sum")
        assert loss.item() == pytest.approx(expected, **CLOSE) == textbrewer[0][f"pkd_loss_{name}_nomask"]
        mean = patience(student, teacher, project=lambda vectors: vectors, mapped_layers=1)
        assert mean.item() == pytest.approx(expected / 48, **CLOSE)


def test_textbrewer_cos_is_cosine(textbrewer):
    mask = textbrewer[1]["attention_mask"]
    for name, student, teacher in pairs_of(textbrewer):
        assert cosine(student, teacher, mask).item() == pytest.approx(textbrewer[0][f"cos_loss_{name}_mask"], **CLOSE)
        everywhere = cosine(student, teacher, mask, normalisation="reference")
        assert everywhere.item() == pytest.approx(textbrewer[0][f"cos_loss_{name}_nomask"], **CLOSE)


def test_textbrewer_hid_mse_is_hidden_states(textbrewer):
    mask = textbrewer[1]["attention_mask"]
    for name, student, teacher in pairs_of(textbrewer):
        for how, suffix in (("masked", "mask"), ("reference", "nomask")):
            loss = hidden_states(student, teacher, mask, normalisation=how)
            assert loss.item() == pytest.approx(textbrewer[0][f"hid_mse_loss_{name}_{suffix}"], **CLOSE)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_textbrewer_kd_ce_is_soft_target(textbrewer, temperature):
    """A cross-entropy without T^2, summed over classes. Its kd_mse, an error of logits, has no like here."""
    loss = soft_target(textbrewer[1]["student_logits"], textbrewer[1]["teacher_logits"], temperature=temperature)
    assert loss.item() == pytest.approx(textbrewer[0][f"kd_ce_loss_T{temperature:g}"], **CLOSE)
