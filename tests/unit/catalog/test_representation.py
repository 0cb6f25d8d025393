"""The representation loss by hand, XtremeDistil's loss of logits, and what is asked of the teacher for them."""

import pytest
import torch
from torch import nn

from microbert_cli.catalog.losses.logit_mse import logit_mse
from microbert_cli.catalog.losses.representation import Projections, pooled, representation, trains
from microbert_cli.models.capture import OutputRequest
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.training.loss_terms import make_terms, output_request

ONES = torch.ones(1, 2)
TEACHER = torch.tensor([[[1.0, 0.0], [9.0, 9.0]]])  # whose second token must not matter


def vectors(*values: float) -> torch.Tensor:
    return torch.tensor([[list(values), [-7.0, -7.0]]])


def test_the_loss_of_logits_by_hand() -> None:
    """1/2 |z_S - z_T|^2 of (1, 2) and (1, 0) is 2, and so is the mean over two classes."""
    z_S, z_T = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    for method in ("xtremedistil", "xtremedistil-2019"):
        term = resolve(catalog=Catalog(), flags={"method": method}).recipe.run_phases["logits"].losses["logit_mse"]
        assert term.weight * logit_mse(z_S, z_T, **term.parameters).item() == 2.0
    assert 0.5 * (z_S - z_T).square().sum().item() == 2.0


def test_mse_by_hand() -> None:
    assert representation(vectors(1.0, 2.0), TEACHER, ONES).item() == 2.0  # (0 + 4) / 2


def test_kl_by_hand() -> None:
    student, teacher = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[3.0, 1.0]]]).log()
    expected = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()  # of (3/4, 1/4) from (1/2, 1/2): 0.13081
    assert representation(student, teacher, ONES[:, :1], distance="kl").item() == pytest.approx(expected.item(), abs=1e-6)
    assert expected.item() == pytest.approx(0.13081, abs=1e-5)


def test_pooling_by_hand_and_whatever_the_padding() -> None:
    hidden = torch.tensor([[[1.0, -4.0], [3.0, -2.0]]])
    expected = {"cls": [1.0, -4.0], "max": [3.0, -2.0], "mean": [2.0, -3.0]}
    padded = torch.cat([hidden, torch.full((1, 3, 2), 50.0)], dim=1)
    for pooling, vector in expected.items():
        assert pooled(hidden, ONES, pooling).tolist() == [vector]
        assert pooled(padded, torch.tensor([[1, 1, 0, 0, 0]]), pooling).tolist() == [vector]


def test_a_map_for_each_layer() -> None:
    maps = trains(student_width=2, teacher_width=3, layers="all", depth=2, dropout=0.0)
    assert isinstance(maps, Projections) and len(maps) == 2
    with torch.no_grad():
        for number, linear in enumerate(module for module in maps.modules() if isinstance(module, nn.Linear)):
            linear.weight.zero_()
            linear.bias.fill_(number)
    teacher = torch.zeros(1, 1, 3)
    values = [representation(vectors(1.0, 2.0), teacher, ONES, own=maps, layer=layer, layers="all").item() for layer in (1, 2)]
    assert values == [0.0, 1.0]
    top = trains(student_width=2, teacher_width=3, depth=2)
    assert top is not None and len(top) == 1
    assert representation(vectors(1.0, 2.0), teacher, ONES, own=top, layer=2).item() >= 0  # the one map, of the last layer


def test_equal_widths_are_compared_as_they_are_unless_there_is_an_activation() -> None:
    assert trains(student_width=4, teacher_width=4) is None
    maps = trains(student_width=4, teacher_width=4, activation="gelu", dropout=0.0)
    assert maps is not None
    assert torch.allclose(maps[0](torch.ones(1, 4)), torch.nn.functional.gelu(maps[0][1](torch.ones(1, 4))))


@pytest.mark.parametrize(("layers", "read"), [("top", {4}), ("all", {2, 4})])
def test_the_teacher_shows_its_first_token_alone(layers: str, read: set[int]) -> None:
    terms = make_terms({"representation": (1.0, {"layers": layers})}, Catalog())
    assert output_request(terms, (0, 2, 4), of_teacher=True) == OutputRequest(vectors=frozenset(read))
    assert output_request(terms, (0, 2, 4)) == OutputRequest(hidden=frozenset(read))  # the student's tokens may be pooled
    both = make_terms({"representation": (1.0, {}), "hidden_states": (1.0, {})}, Catalog())
    assert output_request(both, (0, 2, 4), of_teacher=True) == OutputRequest(hidden=frozenset({2, 4}))
