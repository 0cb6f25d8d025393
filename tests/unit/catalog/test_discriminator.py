"""The discriminator: numbers by hand, who gets which gradient, when it begins and rests, and that a resume keeps it."""

import json
import os
import signal
from math import log

import pytest
import torch
from tiny_models import tiny_bert

from microbert_cli.catalog.losses import discriminator as module
from microbert_cli.distillation.layer_map import layer_map
from microbert_cli.distillation.teacher import Teacher
from microbert_cli.errors import MbertError
from microbert_cli.models.load import load_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.signals import Interrupted
from microbert_cli.training.loop import train
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.objective import Objective
from microbert_cli.training.plan import TrainingPlan

CATALOG = Catalog()
INPUTS = ["logits", "cls", "both"]


def logit(probability):
    return torch.tensor([log(probability / (1 - probability))])


def test_both_losses_by_hand():
    teacher, student = logit(0.8), logit(0.3)
    assert module.discriminator_loss(teacher, student, smoothing=1.0).item() == pytest.approx(0.57982, abs=1e-5)
    assert module.generator_loss(student).item() == pytest.approx(1.20397, abs=1e-5)
    smoothed = -0.9 * log(0.8) - 0.1 * log(0.2) - log(0.7)
    assert module.discriminator_loss(teacher, student, smoothing=0.9).item() == pytest.approx(smoothed, abs=1e-5)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny_bert(folder / "teacher", layers=2, hidden=16, num_labels=3, seed=1)
    tiny_bert(folder / "student", layers=1, hidden=8, num_labels=3, seed=2)
    return folder


def make(places, *, others=None, student="student", **parameters):
    taught, pupil = (load_model(places / name, "classifier", where=name) for name in ("teacher", student))
    terms = {**(others or {}), "discriminator": (1.0, parameters)}
    torch.manual_seed(5)
    return Objective(
        make_terms(terms, CATALOG),
        pupil.model,
        ask_teacher=Teacher(taught).ask,
        map_layers=layer_map("uniform", teacher_layers=2, student_layers=pupil.model.config.num_hidden_layers),
        student_width=pupil.model.config.hidden_size,
        teacher_width=16,
        classes=3,
    )


def batch(number=0, rows=6, length=10):
    ids = torch.randint(5, 100, (rows, length), generator=torch.Generator().manual_seed(number))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 1] % 3}


def reached(parameters):
    return any(p.grad is not None and bool(p.grad.any()) for p in parameters)


@pytest.mark.parametrize("input", INPUTS)
def test_each_term_reaches_its_own_side_alone(places, input):
    objective = make(places, input=input)
    objective.progress(5, 10)
    judge = objective.own["discriminator"]
    yielded = objective.losses(batch())
    group, total, parts = next(yielded)
    total.backward()
    assert group == "student" and parts.keys() == {"discriminator"}
    assert reached(objective.student.parameters()) and not reached(judge.parameters())
    objective.zero_grad()
    objective.student.zero_grad()
    group, loss, reported = next(yielded)
    loss.backward()
    assert group == "discriminator" and reported.keys() == {"discriminator_loss", "discriminator_accuracy"}
    assert reached(judge.parameters()) and not reached(objective.student.parameters())
    assert objective.projection is None or objective.projection.weight.grad is None
    assert not reached(objective._ask_teacher.__self__.model.parameters())


def test_what_it_looks_at(places):
    widths = {name: make(places, input=name).own["discriminator"].judge[0].in_features for name in INPUTS}
    assert widths == {"logits": 3, "cls": 16, "both": 19}
    assert not make(places, input="logits").teacher_request.hidden
    assert make(places, input="both").teacher_request.hidden == {2}


def test_a_student_that_is_the_teacher_is_right_half_of_the_time(places):
    objective = make(places, student="teacher", input="both")
    objective.student.eval()
    logged = [parts for group, _, parts in objective.losses(batch()) if group == "discriminator"][0]
    assert logged["discriminator_accuracy"].item() == 0.5


def test_padding_changes_nothing(places):
    objective = make(places, input="both")
    objective.student.eval()
    objective.progress(1, 2)
    longer = {name: torch.nn.functional.pad(v, (0, 6)) if v.dim() == 2 else v for name, v in batch().items()}
    short, long = ([loss.item() for _, loss, _ in objective.losses(rows)] for rows in (batch(), longer))
    assert short == pytest.approx(long, abs=1e-6)


def test_it_begins_late(places):
    objective = make(places, input="logits", begin=0.1)
    for step, counts in ((0, False), (9, False), (10, True), (99, True)):
        objective.progress(step, 100)
        assert (next(objective.losses(batch()))[1].item() > 0) is counts


def test_it_rests_while_it_wins(places):
    objective = make(places, rest_above=0.9)
    judge = objective.own["discriminator"]
    for _ in range(99):
        objective.note({"discriminator": 1.0, "discriminator_accuracy": 1.0})
    assert not judge.paused, "before it has taken 100 steps there is no mean of 100"
    objective.note({"discriminator": 1.0, "discriminator_accuracy": 1.0})
    assert judge.paused
    losses = {group: loss for group, loss, _ in objective.losses(batch())}
    assert losses["student"].requires_grad is False or losses["student"].item() == 0
    assert not losses["discriminator"].requires_grad
    for _ in range(20):
        objective.note({"discriminator": 1.0, "discriminator_accuracy": 0.4})
    assert not judge.paused


@pytest.mark.parametrize("input", ["logits", "both"])
def test_a_score_has_no_classes_to_look_at(input):
    with pytest.raises(MbertError) as caught:
        module.trains(classes=1, teacher_width=16, input=input)
    assert caught.value.code == "M055"
    assert module.trains(classes=1, teacher_width=16, input="cls").judge[0].in_features == 16


def run(places, directory, *, stop=None, gradient_norms=0):
    directory.mkdir(exist_ok=True)
    objective = make(places, others={"soft_target": (1.0, {})}, learning_rate=1e-2, begin=0.3)

    def batches(skip):
        for number in range(skip, 99):
            if number == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch(number)

    plan = TrainingPlan(name="phase", steps=8, learning_rate=1e-3, gradient_norms=gradient_norms)
    train(objective, batches, plan, directory=directory, seed=11)
    log_lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return {**objective.student.state_dict(), **objective.state_dict()}, log_lines


@pytest.mark.parametrize("stop", [0, 3, 7])
def test_it_lives_in_the_resume_state(places, tmp_path, stop):
    whole, log_lines = run(places, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(places, tmp_path / "parts", stop=stop)
    parts, _ = run(places, tmp_path / "parts")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    assert "own.discriminator.judge.0.weight" in whole and whole["own.discriminator.steps"] == 8
    start = make(places).own["discriminator"].state_dict()
    assert not torch.equal(start["judge.0.weight"], whole["own.discriminator.judge.0.weight"])
    assert all({"discriminator", "discriminator_loss", "discriminator_accuracy"} <= line.keys() for line in log_lines)
    assert [line["discriminator"] > 0 for line in log_lines] == [False] * 3 + [True] * 5


def test_gradient_norms_are_logged_and_change_nothing(places, tmp_path):
    plain, _ = run(places, tmp_path / "plain")
    weights, log_lines = run(places, tmp_path / "norms", gradient_norms=4)
    assert all(torch.equal(plain[name], weights[name]) for name in plain)
    logged = [line for line in log_lines if "soft_target_gradient" in line]
    assert [line["step"] for line in logged] == [4, 8] and all(line["discriminator_gradient"] > 0 for line in logged)


def test_the_norm_of_a_single_term_is_the_norm_of_all(places, tmp_path):
    objective = make(places, others={"soft_target": (2.0, {})}, begin=1.0)
    plan = TrainingPlan(name="phase", steps=1, learning_rate=1e-3, gradient_norms=1, max_grad_norm=1e9)
    train(objective, lambda skip: iter([batch()]), plan, directory=tmp_path, seed=1)
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert line["soft_target_gradient"] == pytest.approx(line["norm"], rel=1e-5) and line["discriminator_gradient"] == 0
