"""Numbers that can be checked by hand."""

from math import log

import pytest
import torch

from microbert_cli.catalog.losses import feature_alignment as feature_alignment_module
from microbert_cli.catalog.losses.attention_scores import attention_scores
from microbert_cli.catalog.losses.embedding import embedding
from microbert_cli.catalog.losses.feature_alignment import feature_alignment
from microbert_cli.catalog.losses.hard_label import hard_label
from microbert_cli.catalog.losses.hidden_states import hidden_states
from microbert_cli.catalog.losses.logit_mse import logit_mse
from microbert_cli.catalog.losses.masked_lm import masked_lm
from microbert_cli.catalog.losses.soft_target import soft_target
from microbert_cli.distillation.layer_map import layer_map
from microbert_cli.errors import MbertError
from microbert_cli.training.optimisers import make_optimiser, schedule_factor


def tensor(*values):
    return torch.tensor(values, dtype=torch.float32)


TEACHER = tensor([log(3.0), 0.0])
UNIFORM = tensor([0.0, 0.0])


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"reduction": "elements"}, 0.34657),
        ({}, 0.69315),
        ({"divergence": "kl"}, 0.13081),
        ({"divergence": "kl", "reduction": "elements"}, 0.06541),
        ({"divergence": "symmetric-kl"}, 0.13733),
        ({"normalisation": "reference"}, 0.34657),
    ],
)
def test_reduction_table(keywords, expected):
    assert soft_target(UNIFORM, TEACHER, **keywords).item() == pytest.approx(expected, abs=1e-5)


def test_temperature_squared():
    teacher = 2 * TEACHER
    keywords = dict(temperature=2.0, divergence="kl")
    assert soft_target(UNIFORM, teacher, **keywords).item() == pytest.approx(0.13081, abs=1e-5)
    assert soft_target(UNIFORM, teacher, squared_temperature=True, **keywords).item() == pytest.approx(0.52325, abs=1e-5)


def test_tinybert_by_hand():
    mask = torch.ones(1, 1)
    assert hidden_states(tensor([[1.0, 2.0]]), tensor([[1.0, 0.0]]), mask).item() == pytest.approx(2.0)
    student, teacher = tensor([[[1.0, -10001.0]]]), tensor([[[2.0, -9998.0]]])
    loss = attention_scores(student[None], teacher[None], torch.ones(1, 2), normalisation="reference")
    assert loss.item() == pytest.approx(0.5)


def test_hard_labels_never_reach_augmented_rows():
    logits = torch.randn(4, 3, requires_grad=True)
    labels, augmented = torch.tensor([0, 1, 2, 0]), torch.tensor([False, True, False, True])
    loss = hard_label(logits, labels, augmented)
    assert loss.item() == pytest.approx(hard_label(logits[[0, 2]], labels[[0, 2]]).item(), rel=1e-6)
    loss.backward()
    assert logits.grad[[1, 3]].abs().max() == 0 and logits.grad[[0, 2]].abs().min() > 0
    assert hard_label(logits, labels, torch.ones(4, dtype=torch.bool)).item() == 0


def test_regression_asks_the_teacher_unless_reference():
    student, teacher, gold = tensor([1.0], [2.0]), tensor([2.0], [4.0]), tensor(0.0, 2.0)
    assert soft_target(student, teacher, gold).item() == pytest.approx(2.5)
    assert soft_target(student, teacher, gold, normalisation="reference").item() == pytest.approx(0.5)
    assert hard_label(student, gold).item() == pytest.approx(0.5)


@pytest.mark.parametrize("normalisation", ["masked", "reference"])
def test_equal_nets_have_no_loss(normalisation):
    hidden, scores, mask = torch.randn(2, 5, 4), torch.randn(2, 3, 5, 5), torch.ones(2, 5)
    mask[1, 3:] = 0
    for loss, value in ((hidden_states, hidden), (embedding, hidden), (attention_scores, scores)):
        assert loss(value, value, mask, normalisation=normalisation).item() == 0
    logits = torch.randn(2, 3)
    assert soft_target(logits, logits, divergence="kl").item() == pytest.approx(0, abs=1e-6)


def padded(values, length, fill=37.0):
    """More padding, filled with large noise that must not matter."""
    wide = torch.full((*values.shape[:-2], length, values.shape[-1]), fill)
    wide[..., : values.shape[-2], :] = values
    return wide


def test_masked_losses_do_not_feel_padding():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 16, 8)
    scores_s, scores_t = torch.randn(2, 3, 4, 16, 16)
    mask = torch.ones(3, 16)
    mask[1, 9:], mask[2, 2:] = 0, 0
    wide_mask = torch.cat([mask, torch.zeros(3, 16)], 1)

    def wide_scores(scores, fill):
        return padded(padded(scores, 32, fill).transpose(-1, -2), 32, fill).transpose(-1, -2)

    for loss in (hidden_states, embedding):
        short, long = loss(student, teacher, mask), loss(padded(student, 32), padded(teacher, 32, -5.0), wide_mask)
        assert long.item() == pytest.approx(short.item(), rel=1e-6)
    short = attention_scores(scores_s, scores_t, mask)
    long = attention_scores(wide_scores(scores_s, 37.0), wide_scores(scores_t, -5.0), wide_mask)
    assert long.item() == pytest.approx(short.item(), rel=1e-6)
    reference = [
        hidden_states(s, t, m, normalisation="reference").item()
        for s, t, m in ((student, teacher, mask), (padded(student, 32), padded(teacher, 32, -5.0), wide_mask))
    ]
    assert abs(reference[0] - reference[1]) > 1e-3


def test_masked_lm_is_a_mean_over_positions():
    logits = tensor([0.0, 0.0, 0.0, 0.0], [log(3.0), 0.0, 0.0, 0.0])
    assert masked_lm(logits, torch.tensor([2, 0])).item() == pytest.approx((log(4) + log(2)) / 2, abs=1e-5)
    assert masked_lm(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)).item() == 0


def test_layer_maps():
    assert layer_map("uniform", teacher_layers=12, student_layers=4) == [0, 3, 6, 9, 12]
    assert [g - 1 for g in layer_map("uniform", teacher_layers=12, student_layers=4)[1:]] == [2, 5, 8, 11]
    assert layer_map("uniform", teacher_layers=12, student_layers=6) == [0, 2, 4, 6, 8, 10, 12]
    assert layer_map("first", teacher_layers=12, student_layers=4) == [0, 1, 2, 3, 4]
    assert layer_map("last", teacher_layers=12, student_layers=4) == [0, 9, 10, 11, 12]
    assert layer_map([2, 4, 6], teacher_layers=6, student_layers=3) == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("rule", "teacher", "student"),
    [("uniform", 12, 5), ([2, 4], 6, 3), ([4, 2, 6], 6, 3), ([2, 4, 7], 6, 3), ("middle", 6, 3)],
)
def test_layer_maps_that_do_not_fit(rule, teacher, student):
    with pytest.raises(MbertError) as error:
        layer_map(rule, teacher_layers=teacher, student_layers=student)
    assert error.value.code == "M010" and error.value.exit_code == 3


def test_a_student_deeper_than_its_teacher_has_no_layer_map():
    with pytest.raises(MbertError) as error:
        layer_map("uniform", teacher_layers=4, student_layers=6)
    assert error.value.code == "M015" and "at most 4" in error.value.allowed


@pytest.mark.parametrize(("name", "expected"), [("bertadam", 0.68379), ("adamw", 0.9)])
def test_one_optimiser_step(name, expected):
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(module.weight)
    optimiser = make_optimiser(name, [module], learning_rate=0.1, weight_decay=0.0, max_grad_norm=1.0)
    module.weight.grad = torch.full((1, 1), 0.5)
    optimiser.step()
    assert module.weight.item() == pytest.approx(expected, abs=1e-5)


def test_schedules():
    assert [schedule_factor("linear", step, 10, 0.2) for step in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert schedule_factor("constant", 0, 10, 0.5) == 1
    assert schedule_factor("linear", 0, 10, 0.0) == 1
    noam = [schedule_factor("noam", step, 1000, 0.1) for step in (0, 50, 100, 400, 900)]
    assert noam == pytest.approx([0.0, 0.5, 1.0, 0.5, 1 / 3])


STUDENT_TOKENS = tensor([[1.0, 2.0], [3.0, 0.0], [9.0, 9.0]])
TEACHER_TOKENS = tensor([[1.0, 2.0], [3.0, 2.0], [-7.0, 5.0]])
LAST_IS_PADDING = torch.tensor([[1, 1, 0]])


def align(student, teacher, mask=LAST_IS_PADDING, *, project=lambda vectors: vectors, mapped_layers=1, **keywords):
    return feature_alignment(student, teacher, mask, project=project, mapped_layers=mapped_layers, **keywords)


def test_feature_alignment_by_hand():
    """cls are equal, means (2, 1) and (2, 2) differ by 0.5, maxima (3, 2) are equal."""
    assert align(STUDENT_TOKENS, TEACHER_TOKENS).item() == pytest.approx(0.5 / 3, abs=1e-6)
    assert align(STUDENT_TOKENS, TEACHER_TOKENS, mapped_layers=4).item() == pytest.approx(0.5 / 12, abs=1e-6)
    assert align(STUDENT_TOKENS, TEACHER_TOKENS, mean=0.0).item() == 0
    cosine = 1 - 6 / (5**0.5 * 8**0.5)
    assert align(STUDENT_TOKENS, TEACHER_TOKENS, distance="cosine").item() == pytest.approx(cosine / 3, abs=1e-6)
    assert align(STUDENT_TOKENS, TEACHER_TOKENS, distance="normalised-mse").item() == pytest.approx(2 * cosine / 3, abs=1e-6)
    assert align(STUDENT_TOKENS, TEACHER_TOKENS, distance="smooth-l1").item() == pytest.approx(0.25 / 3, abs=1e-6)
    both = align(STUDENT_TOKENS, TEACHER_TOKENS, distance="mse+cosine").item()
    assert both == pytest.approx((0.5 + cosine) / 3, abs=1e-6)


def test_feature_alignment_pools_before_it_maps():
    """Turned by a map that swaps signs, the maximum of mapped tokens would be another vector."""
    turned = align(STUDENT_TOKENS, TEACHER_TOKENS, project=lambda vectors: -vectors, cls=0.0, mean=0.0, max=1.0)
    assert turned.item() == pytest.approx(((-3 - 3) ** 2 + (-2 - 2) ** 2) / 2)


def test_feature_alignment_reaches_the_student_and_no_padding():
    student = STUDENT_TOKENS.clone().requires_grad_()
    align(student, TEACHER_TOKENS + 1).backward()
    assert (student.grad[0, :2] != 0).any() and (student.grad[0, 2] == 0).all()


def test_a_gate_starts_even_keeps_its_floor_and_learns():
    gate = feature_alignment_module.trains(tasks=2, gate="task", floor=0.1)
    assert [weight.item() for weight in gate(1).values()] == pytest.approx([1 / 3] * 3)
    even = align(STUDENT_TOKENS, TEACHER_TOKENS, own=gate, gate="task")
    assert even.item() == pytest.approx(0.5 / 3, abs=1e-6)
    even.backward()
    assert gate.preference.grad[0].abs().sum() > 0 and not gate.preference.grad[1].any()
    with torch.no_grad():
        gate.preference[0] = torch.tensor([0.0, 0.0, -50.0])
    assert gate(0)["mean"].item() == pytest.approx(0.1) and sum(w.item() for w in gate(0).values()) == pytest.approx(1.0)
    assert align(STUDENT_TOKENS, TEACHER_TOKENS, own=gate).item() == pytest.approx(0.05, abs=1e-6)
    second = align(STUDENT_TOKENS, TEACHER_TOKENS, own=gate, task_B=torch.tensor([1]))
    assert second.item() == pytest.approx(0.5 / 3, abs=1e-6)
    assert gate.told().keys() == {f"pi_{vector}_{task}" for vector in ("cls", "max", "mean") for task in (0, 1)}


def test_a_gate_shares_out_what_is_in_use():
    assert feature_alignment_module.trains(tasks=1) is None
    gate = feature_alignment_module.trains(tasks=1, gate="task", cls=0.0)
    assert gate.told().keys() == {"pi_max", "pi_mean"}
    with pytest.raises(MbertError) as caught:
        feature_alignment_module.trains(tasks=1, gate="task", floor=0.4)
    assert caught.value.code == "M056"


def test_squared_error_of_logits_by_hand():
    student, teacher = tensor([1.0, 0.0], [0.0, 0.0]), tensor([3.0, 0.0], [5.0, 5.0])
    # Row 1: centred (0.5, -0.5) and (1.5, -1.5), 1 each; row 2: a constant, 0.
    assert logit_mse(student, teacher).item() == pytest.approx(0.5)
    assert logit_mse(student, teacher, centred=False).item() == pytest.approx((4 + 0 + 25 + 25) / 4)
    assert logit_mse(tensor([1.0], [2.0]), tensor([3.0], [2.0])).item() == pytest.approx(2.0)


def test_squared_error_of_logits_is_twice_the_limit_of_soft_targets():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 8, 5, dtype=torch.float64).unbind()
    soft = soft_target(student, teacher, temperature=1000.0, divergence="kl", squared_temperature=True)
    assert 2 * soft.item() == pytest.approx(logit_mse(student, teacher).item(), rel=1e-2)


@pytest.mark.parametrize(("of_words", "temperature"), [(False, 4.0), (True, 1.0)])
def test_the_temperature_that_suits_texts_or_words(of_words, temperature):
    student, teacher = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1)).unbind()
    chosen = soft_target(student, teacher, of_words=of_words, temperature="auto", divergence="kl", squared_temperature=True)
    expected = soft_target(student, teacher, temperature=temperature, divergence="kl", squared_temperature=True)
    assert torch.equal(chosen, expected)
