"""PKD, knowledge distillation, PD and DistilBERT: numbers that can be checked by hand, and what is asked of whom."""

from math import log

import pytest
import torch
from tiny_models import tiny_bert

from microbert_cli import models
from microbert_cli.capture import Want
from microbert_cli.catalog import Catalog
from microbert_cli.errors import MbertError
from microbert_cli.layer_map import layer_map
from microbert_cli.losses.patience import patience
from microbert_cli.objective import Objective
from microbert_cli.resolve import resolve
from microbert_cli.teacher import Teacher
from microbert_cli.terms import check_depth, make_terms

CATALOG = Catalog()


def tensor(*values):
    return torch.tensor(values, dtype=torch.float32)


def same(vectors):
    return vectors


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    tiny_bert(folder / "teacher", layers=6, hidden=16, kind="masked-lm", seed=1)
    tiny_bert(folder / "student", layers=3, hidden=8, kind="masked-lm", seed=2)
    tiny_bert(folder / "wide", layers=3, hidden=16, kind="masked-lm", seed=3)
    return folder


@pytest.fixture(scope="module")
def batch():
    ids = torch.randint(5, 100, (4, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 7:], mask[2, 3:] = 0, 0
    positions = torch.tensor([1, 5, 13, 25, 40])
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(ids),
        "labels": torch.tensor([0, 1, 1, 0]),
        "token_positions": positions,
        "token_labels": torch.tensor([7, 9, 11, 13, 15]),
    }


class Asked:
    """A teacher that remembers what it was asked."""

    def __init__(self, loaded):
        self.teacher, self.wants = Teacher(loaded), []

    def __call__(self, batch, want):
        self.wants.append(want)
        return self.teacher.ask(batch, want)


def make(places, terms, *, student="student", rule="uniform", kind="classifier"):
    taught, pupil = (
        models.load(places / name, kind, where=name, new_head=True, num_labels=2 if kind == "classifier" else None)
        for name in ("teacher", student)
    )
    theirs, ours = taught.model.config, pupil.model.config
    asked = Asked(taught)
    torch.manual_seed(3)
    objective = Objective(
        make_terms(terms, CATALOG),
        pupil.model.eval(),
        ask_teacher=asked,
        map_layers=layer_map(rule, teacher_layers=theirs.num_hidden_layers, student_layers=ours.num_hidden_layers),
        student_width=ours.hidden_size,
        teacher_width=theirs.hidden_size,
    )
    return objective, asked


def reached(model):
    return {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.abs().max() > 0}


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"reduction": "sum"}, 0.40),
        ({"reduction": "mean"}, 0.20 / 5),
        ({"reduction": "mean", "normalise": False}, (9 + 1) / 2 / 5),
        ({"reduction": "sum", "normalise": False}, 10.0),
    ],
)
def test_patience_by_hand(keywords, expected):
    """(3, 4) against (0, 5): only the first token's vectors count, over as many inner layers as there are."""
    student, teacher = tensor([[3.0, 4.0], [70.0, 8.0]]), tensor([[0.0, 5.0], [-3.0, 1.0]])
    assert patience(student, teacher, project=same, mapped_layers=5, **keywords).item() == pytest.approx(expected, abs=1e-6)
    both = patience(torch.cat([student] * 3), torch.cat([teacher] * 3), project=same, mapped_layers=5, **keywords)
    assert both.item() == pytest.approx(expected, abs=1e-6)  # a mean over rows


def test_the_published_maps_are_rules_that_there_are():
    """Skip is `uniform`, last is `last`, both without the student's top layer; also of a large teacher."""
    published = {
        ("uniform", 12, 6): [2, 4, 6, 8, 10],
        ("uniform", 12, 3): [4, 8],
        ("last", 12, 6): [7, 8, 9, 10, 11],
        ("last", 12, 3): [10, 11],
        ("uniform", 24, 6): [4, 8, 12, 16, 20],
    }
    for (rule, N, M), inner in published.items():
        assert layer_map(rule, teacher_layers=N, student_layers=M)[1:-1] == inner


def test_patience_is_about_inner_layers_alone(places, batch):
    objective, asked = make(places, {"patience": (1.0, {})}, student="wide")
    objective(batch).backward()
    assert asked.wants == [Want(hidden=frozenset({2, 4}))] and objective.student_want == Want(hidden=frozenset({1, 2}))
    touched = reached(objective.student)
    assert any("layer.1." in name for name in touched)
    assert not any("layer.2." in name or "classifier" in name or "pooler" in name for name in touched)
    assert objective.projection is None


def test_patience_maps_another_width_and_trains_the_map(places, batch):
    objective, _ = make(places, {"patience": (1.0, {})})
    objective(batch).backward()
    assert objective.projection.weight.grad.abs().max() > 0


def test_an_equal_student_has_learned_its_patience(places, batch):
    for reduction in ("sum", "mean"):
        objective, _ = make(places, {"patience": (500.0, {"reduction": reduction})}, student="teacher")
        assert objective(batch).item() == 0


def test_a_student_of_one_layer_has_no_inner_ones():
    (term,) = make_terms({"patience": (1.0, {})}, CATALOG)
    check_depth({"phases.x.losses.patience": term}, 2)
    with pytest.raises(MbertError) as caught:
        check_depth({"phases.x.losses.patience": term}, 1)
    assert (caught.value.code, caught.value.where) == ("M090", "phases.x.losses.patience")


def weights_of(method, phase, **flags):
    losses = resolve(catalog=CATALOG, flags={"method": method, **flags}).recipe.phases[phase].losses
    return {name: (term.weight, term.parameters) for name, term in losses.items()}


def test_pkd_is_worth_what_its_page_says():
    """One row, two classes, T = 10: (1 - 0.7) CE + 0.7 x 100 KL / 2, the mean over classes being the released code's."""
    losses = weights_of("pkd", "distillation")
    assert losses["patience"] == (500.0, {"normalise": True, "reduction": "mean"})
    terms = {term.name: term for term in make_terms({k: v for k, v in losses.items() if k != "patience"}, CATALOG)}
    student, teacher = tensor([0.0, 0.0]), tensor([10 * log(3.0), 0.0])
    soft, hard = terms["soft_target"], terms["hard_label"]
    assert soft.weight * soft.function(student, teacher, **soft.parameters).item() == pytest.approx(
        0.7 * 100 * 0.06541, abs=1e-3
    )
    assert hard.weight * hard.function(student, torch.tensor([1])).item() == pytest.approx(0.3 * log(2), abs=1e-5)
    alone = weights_of("pkd", "distillation", ablate=["patience"])
    assert alone["patience"][0] == 0 and alone["soft_target"] == losses["soft_target"]
    assert weights_of("pkd", "distillation", task="sst2")["patience"][0] == 100.0


def test_kd_is_half_soft_and_half_hard():
    losses = weights_of("kd", "distillation")
    terms = {term.name: term for term in make_terms(losses, CATALOG)}
    value = terms["soft_target"].function(tensor([0.0, 0.0]), tensor([2 * log(3.0), 0.0]), **losses["soft_target"][1])
    assert (losses["soft_target"][0], losses["hard_label"][0]) == (0.5, 0.5)
    assert value.item() == pytest.approx(0.52325, abs=1e-5)


def test_pd_asks_for_answers_and_ends_with_labels_only_if_told(places, batch):
    phases = resolve(catalog=CATALOG, flags={"method": "pd"}).recipe
    assert list(phases.phases) == ["transfer", "labels"] and list(phases.run_phases) == ["transfer"]
    objective, asked = make(places, weights_of("pd", "transfer"))
    unlabelled = {name: value for name, value in batch.items() if name != "labels"}
    objective(unlabelled).backward()
    assert asked.wants == [Want(logits=True)] and "classifier.weight" in reached(objective.student)
