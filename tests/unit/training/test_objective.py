"""Weights x losses x layer map: what is asked of whom, what is shared, and that padding changes nothing."""

import pytest
import torch
from tiny_models import tiny_bert

from microbert_cli.distillation.layer_map import layer_map
from microbert_cli.distillation.teacher import Teacher
from microbert_cli.errors import MbertError
from microbert_cli.models.capture import TOKENS_AT_ONCE, OutputRequest, forward_outputs
from microbert_cli.models.load import load_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.objective import Objective

CATALOG = Catalog()
INTERMEDIATE = {"embedding": 1.0, "hidden_states": 1.0, "attention_scores": 1.0}
EVERYTHING = {**INTERMEDIATE, "feature_alignment": 1.0, "soft_target": 1.0, "hard_label": 1.0}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny_bert(folder / "teacher", layers=4, hidden=16, num_labels=3, seed=1)
    tiny_bert(folder / "student", layers=2, hidden=8, num_labels=3, seed=2)
    return folder


def load(places, name):
    return load_model(places / name, "classifier", where=name)


class Asked:
    """A teacher that remembers what it was asked."""

    def __init__(self, loaded):
        self.teacher, self.wants = Teacher(loaded), []

    def __call__(self, batch, want):
        self.wants.append(want)
        return self.teacher.ask(batch, want)


def make(places, weights, *, student="student", rule="uniform", normalisation="masked", **more):
    taught, pupil = load(places, "teacher"), load(places, student)
    of_teacher, of_student = taught.model.config, pupil.model.config
    asked = Asked(taught)
    terms = {name: (w, {}) if isinstance(w, float) else w for name, w in weights.items()}
    torch.manual_seed(3)
    objective = Objective(
        make_terms(terms, CATALOG),
        pupil.model,
        ask_teacher=asked,
        map_layers=layer_map(rule, teacher_layers=of_teacher.num_hidden_layers, student_layers=of_student.num_hidden_layers),
        student_width=of_student.hidden_size,
        teacher_width=of_teacher.hidden_size,
        normalisation=normalisation,
        **more,
    )
    pupil.model.eval()
    return objective, asked, pupil.model


@pytest.fixture(scope="module")
def batch():
    ids = torch.randint(5, 100, (4, 16), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 9:], mask[2, 3:] = 0, 0
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(ids),
        "labels": torch.tensor([0, 2, 1, 1]),
        "augmented": torch.tensor([False, True, False, False]),
    }


def longer(batch, length=32):
    return {name: torch.nn.functional.pad(v, (0, length - v.shape[1])) if v.dim() == 2 else v for name, v in batch.items()}


def losses_of(objective, batch):
    group, total, parts = next(objective.losses(batch))
    assert group == "student"
    return total.item(), {name: value.item() for name, value in parts.items()}


def test_the_total_is_the_weighted_sum(places, batch):
    weights = dict(zip(EVERYTHING, [0.5, 2.0, 3.0, 1.5, 0.25, 4.0], strict=True))
    objective, _, _ = make(places, weights)
    total, parts = losses_of(objective, batch)
    assert parts.keys() == weights.keys() and all(value > 0 for value in parts.values())
    assert total == pytest.approx(sum(weights[name] * value for name, value in parts.items()), rel=1e-6)
    plain, same_parts = losses_of(make(places, EVERYTHING)[0], batch)
    assert same_parts == parts and plain == pytest.approx(sum(parts.values()), rel=1e-6)


@pytest.mark.parametrize(("rule", "taught_by"), [("uniform", [2, 4]), ("first", [1, 2]), ("last", [3, 4]), ([1, 4], [1, 4])])
def test_each_student_layer_learns_from_the_mapped_one(places, batch, rule, taught_by):
    objective, asked, student = make(places, {"attention_scores": 1.0}, rule=rule)
    total, _ = losses_of(objective, batch)
    t = asked.teacher.ask(batch, OutputRequest(scores=frozenset(range(1, 5)))).scores
    s = forward_outputs(student, batch, OutputRequest(scores=frozenset({1, 2}))).scores
    mask = batch["attention_mask"].float()
    pairs = mask[:, None, :, None] * mask[:, None, None, :]
    by_hand = sum(((s[m] - t[g]).square() * pairs).sum() / (2 * pairs.sum()) for m, g in zip((1, 2), taught_by, strict=True))
    assert total == pytest.approx(by_hand.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("weights", "teacher", "student"),
    [
        ({"soft_target": 1.0}, OutputRequest(logits=True), OutputRequest(logits=True)),
        ({"hard_label": 1.0}, None, OutputRequest(logits=True)),
        ({"embedding": 1.0}, OutputRequest(hidden=frozenset({0})), OutputRequest(hidden=frozenset({0}))),
        ({"hidden_states": 1.0}, OutputRequest(hidden=frozenset({2, 4})), OutputRequest(hidden=frozenset({1, 2}))),
        ({"feature_alignment": 1.0}, OutputRequest(hidden=frozenset({2, 4})), OutputRequest(hidden=frozenset({1, 2}))),
        ({"attention_scores": 1.0}, OutputRequest(scores=frozenset({2, 4})), OutputRequest(scores=frozenset({1, 2}))),
        (
            INTERMEDIATE,
            OutputRequest(hidden=frozenset({0, 2, 4}), scores=frozenset({2, 4})),
            OutputRequest(hidden=frozenset({0, 1, 2}), scores=frozenset({1, 2})),
        ),
        ({"soft_target": 1.0, "hidden_states": 0.0}, OutputRequest(logits=True), OutputRequest(logits=True)),
    ],
)
def test_only_what_is_needed_is_asked(places, batch, weights, teacher, student):
    objective, asked, _ = make(places, weights)
    losses_of(objective, batch)
    assert asked.wants == ([teacher] if teacher else []) and objective.student_request == student


def test_a_weight_of_zero_is_no_term(places):
    objective, _, _ = make(places, {"soft_target": 1.0, "hidden_states": 0.0})
    assert [term.name for term in objective.terms] == ["soft_target"]
    assert objective.projection is None


def test_nothing_to_learn_is_refused(places):
    with pytest.raises(MbertError) as caught:
        make(places, {"soft_target": 0.0})
    assert caught.value.code == "M007"


def test_one_projection_serves_all_layers(places, batch):
    objective, _, student = make(places, INTERMEDIATE)
    assert [name for name, _ in objective.named_parameters()] == ["projection.weight", "projection.bias"]
    assert objective.projection.weight.shape == (16, 8)
    assert not any("projection" in name for name, _ in student.named_parameters())

    def gradient(weights):
        alone, _, _ = make(places, weights)
        alone(batch).backward()
        return alone.projection.weight.grad

    together = gradient({"embedding": 1.0, "hidden_states": 1.0})
    apart = gradient({"embedding": 1.0}) + gradient({"hidden_states": 1.0})
    assert torch.allclose(together, apart, rtol=1e-4, atol=1e-7)


def test_equal_widths_need_no_projection_unless_asked(places):
    assert make(places, INTERMEDIATE, student="teacher")[0].projection is None
    assert make(places, INTERMEDIATE, student="teacher", always_project=True)[0].projection is not None


@pytest.mark.parametrize("normalisation", ["masked", "reference"])
def test_a_student_that_is_the_teacher_has_nothing_to_learn(places, batch, normalisation):
    objective, _, _ = make(places, INTERMEDIATE, student="teacher", normalisation=normalisation)
    _, parts = losses_of(objective, batch)
    assert parts == dict.fromkeys(INTERMEDIATE, 0.0)
    aligned = {"feature_alignment": (1.0, {"distance": "mse+cosine"})}
    assert losses_of(make(places, aligned, student="teacher")[0], batch)[0] == pytest.approx(0.0, abs=1e-6)
    kl = {"soft_target": (1.0, {"divergence": "kl"})}
    assert losses_of(make(places, kl, student="teacher")[0], batch)[0] == pytest.approx(0.0, abs=1e-7)


def test_padding_from_16_to_32_changes_nothing(places, batch):
    short, long = (losses_of(make(places, EVERYTHING)[0], rows) for rows in (batch, longer(batch)))
    assert long[0] == pytest.approx(short[0], rel=1e-6)
    for name in EVERYTHING:
        assert long[1][name] == pytest.approx(short[1][name], rel=1e-6), name


def test_padding_changes_the_released_arithmetic(places, batch):
    """As it does in the released code; this is why `masked` is the default."""
    short, long = (losses_of(make(places, INTERMEDIATE, normalisation="reference")[0], rows) for rows in (batch, longer(batch)))
    assert abs(long[0] - short[0]) > 1e-3 * short[0]


def test_the_teacher_is_frozen_and_calm(places, batch):
    objective, asked, student = make(places, EVERYTHING)
    teacher = asked.teacher.model
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student.train()
    objective(batch).backward()
    assert not teacher.training and all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    first, second = (asked.teacher.logits(batch) for _ in range(2))
    assert (first == second).all()


def test_a_loss_of_ones_own_gets_what_its_parameters_name(places, batch, tmp_path):
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "mine.py").write_text(
        'needs = {"logits", "labels"}\nover = "batch"\n\n\n'
        "def mine(student_BC, labels_B, *, scale=1.0):\n"
        "    return scale * (student_BC.shape[-1] + labels_B.sum()).float()\n"
    )
    terms = make_terms({"mine": (2.0, {"scale": 3.0})}, Catalog([tmp_path]))
    assert losses_of(Objective(terms, load(places, "student").model), batch)[0] == 2 * 3 * (3 + 4)


def test_permuted_columns_of_the_teacher_are_put_in_order(places, batch):
    loaded = load(places, "teacher")
    plain, permuted = Teacher(loaded).logits(batch), Teacher(loaded, [2, 0, 1]).logits(batch)
    assert (permuted == plain[:, [2, 0, 1]]).all()


def test_a_large_batch_goes_through_the_teacher_in_pieces(places, batch, monkeypatch):
    asked = Teacher(load(places, "teacher"))
    want = OutputRequest(logits=True, hidden=frozenset({0, 2}), scores=frozenset({4}))
    whole = asked.ask(batch, want)
    rows, width = batch["input_ids"].shape
    monkeypatch.setitem(TOKENS_AT_ONCE, "cpu", 2 * width)
    seen = []
    asked.model.register_forward_pre_hook(lambda _, __, inputs: seen.append(len(inputs["input_ids"])), with_kwargs=True)
    pieces = asked.ask({**batch, "token_positions": batch["input_ids"].new_zeros(rows + 1)}, want)
    assert seen == [2] * (rows // 2) + [1] * (rows % 2)
    torch.testing.assert_close([pieces.logits, pieces.hidden, pieces.scores], [whole.logits, whole.hidden, whole.scores])


def test_feature_alignment_maps_sentence_vectors_and_averages_layers(places, batch):
    """mean and [CLS] commute with the map, so with either alone it is the mean over layers of a pooled hidden-state loss."""
    objective, asked, student = make(places, {"feature_alignment": (1.0, {"max": 0.0, "mean": 0.0, "cls": 1.0})})
    value = objective(batch)
    value.backward()
    assert objective.projection.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in asked.teacher.model.parameters())
    seen = forward_outputs(student, batch, OutputRequest(hidden=frozenset({1, 2})))
    answer = asked.teacher.ask(batch, OutputRequest(hidden=frozenset({2, 4})))
    by_hand = [(objective.projection(seen.hidden[m][:, 0]) - answer.hidden[2 * m][:, 0]).square().mean() for m in (1, 2)]
    assert value.item() == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "parameter", "value"), [("feature_alignment", "distance", "mes"), ("soft_target", "divergence", "k1")]
)
def test_words_that_a_loss_does_not_know(name, parameter, value):
    with pytest.raises(MbertError) as caught:
        make_terms({name: (1.0, {parameter: value})}, CATALOG)
    assert caught.value.code == "M018" and f"losses.{name}.{parameter}" == caught.value.where
