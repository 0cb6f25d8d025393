"""The loss of a model with exits, by hand."""

from math import log

import pytest
import torch

from microbert_cli.catalog.losses.self_distillation import self_distillation
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve

LAST, UNIFORM = [log(3.0), 0.0], [0.0, 0.0]  # p = (.75, .25) and (.5, .5)


def exits(*logits: list[float], rows: int = 1) -> torch.Tensor:
    return torch.tensor(logits)[:, None].repeat(1, rows, 1).requires_grad_()


def test_by_hand() -> None:
    assert self_distillation(exits(UNIFORM, LAST)).item() == pytest.approx(0.13081, abs=1e-5)
    # A sum over exits, a mean over rows.
    assert self_distillation(exits(UNIFORM, UNIFORM, LAST, LAST, rows=3)).item() == pytest.approx(2 * 0.13081, abs=1e-5)
    # KL(uniform || p) = .5 ln(.5 / .75) + .5 ln(.5 / .25)
    assert self_distillation(exits(UNIFORM, LAST), divergence="reverse-kl").item() == pytest.approx(0.14384, abs=1e-5)
    assert self_distillation(exits([1.0], [3.0], [2.5], rows=2)).item() == pytest.approx(1.5**2 + 0.5**2)


def test_the_last_layer_is_not_taught() -> None:
    logits = exits(UNIFORM, LAST)
    self_distillation(logits).backward()
    assert logits.grad is not None and logits.grad[0].abs().sum() > 0 and logits.grad[1].abs().sum() == 0


def test_the_method_asks_no_teacher_and_no_label() -> None:
    catalog = Catalog()
    assert not catalog.loss_needs_labels("self_distillation") and not catalog.loss_asks_teacher("self_distillation")
    recipe = resolve(catalog=catalog, environment={}, flags={"method": "fastbert", "task": "sst2"}).recipe
    assert recipe.init == "teacher" and recipe.early_exit.branch == "attention"
    assert recipe.phases["branches"].freeze == ["backbone"] and list(recipe.phases["branches"].losses) == ["self_distillation"]
    assert recipe.identity("early_exit")["early_exit"]["width"] == 128
    assert "early_exit" not in resolve(catalog=catalog, environment={}).recipe.identity("early_exit", "task")
