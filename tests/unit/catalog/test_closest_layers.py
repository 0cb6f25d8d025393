"""Layers matched by how close they are: who learns from whom, and the value, by hand."""

import torch

from microbert_cli.catalog.losses.closest_layers import closest_layers, matched_by_student, matched_by_teacher

MASK = torch.tensor([[1, 1, 0]])


def layers(*values: float) -> list[torch.Tensor]:
    """Hidden states [1, 3, 2] of one value each; the padded token has another."""
    states = [torch.full((1, 3, 2), value) for value in values]
    for state in states:
        state[:, 2] = 100.0
    return states


def test_every_student_layer_learns_from_the_closest_above_the_last_match() -> None:
    # From 2 and 4.25, teacher layers 1 2 4 5: 2 takes its equal, 4.2 then takes 4.
    value = closest_layers(layers(2.0, 4.25), layers(1.0, 2.0, 4.0, 5.0), MASK, project=lambda x: x)
    assert value.item() == (0.25**2)
    # 4.75 alone would be closest to 5, which leaves none above it for the second layer: it takes 4, and that takes 5.
    value = closest_layers(layers(4.75, 4.25), layers(1.0, 2.0, 4.0, 5.0), MASK, project=lambda x: x)
    assert value.item() == (0.75**2 + 0.75**2)


def test_every_chosen_teacher_layer_is_learnt_by_the_closest_student_layer() -> None:
    # Two of four are chosen, 2 and 4: 5.0 is closest to the second layer (4.25), 2.0 to the first (1.0).
    value = closest_layers(layers(1.0, 4.25), layers(1.0, 2.0, 4.0, 5.0), MASK, project=lambda x: x, each="teacher", chosen=2)
    assert value.item() == (0.75**2 + 1.0**2)
    # The highest one is closest to the first layer, so that no other may learn it from above.
    value = closest_layers(layers(5.5, 1.75), layers(1.0, 2.0, 4.0, 5.0), MASK, project=lambda x: x, each="teacher", chosen=2)
    assert value.item() == (0.5**2 + 3.5**2)


def test_the_map_between_widths_and_gradients_of_the_matched_alone() -> None:
    student = [value.requires_grad_() for value in layers(1.0, 2.0, 3.0)]
    value = closest_layers(student, layers(2.0, 4.0), MASK, project=lambda x: 2 * x, each="teacher", chosen=1)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == 0.0 and [state.grad is not None for state in student] == [False, True, False]


def test_matches_rise_and_ties_take_the_lowest() -> None:
    assert matched_by_student([[1.0, 1.0, 1.0], [1.0, 0.5, 0.5]]) == [(0, 0), (1, 1)]
    assert matched_by_student([[9.0, 9.0, 0.0], [9.0, 0.0, 9.0], [0.0, 9.0, 9.0]]) == [(0, 0), (1, 1), (2, 2)]
    distances = [[0.0] * 12, [1.0] * 12]
    assert matched_by_teacher(distances, 4) == [(0, 11), (0, 8), (0, 5), (0, 2)]  # CoFi's layers 3, 6, 9, 12
    assert matched_by_teacher([[1.0, 1.0]], 9) == [(0, 1), (0, 0)]
