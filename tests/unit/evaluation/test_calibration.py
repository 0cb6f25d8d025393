"""Calibration: the expected error of bins counted by hand, and the temperature that has a closed form."""

import numpy as np
import pytest

from microbert_cli.evaluation.calibration import expected_calibration_error, fit_temperature


def test_error_by_hand() -> None:
    """Two bins of ten: three rows of 0.75, two of them right, and one of 0.95, wrong: (|2 - 2.25| + 0.95) / 4 = 0.3."""
    probabilities = np.array([[0.75, 0.25], [0.25, 0.75], [0.75, 0.25], [0.95, 0.05]])
    assert expected_calibration_error(probabilities, [0, 1, 1, 1], bins=10) == pytest.approx(0.3)


def test_error_of_sure_and_right_answers_is_zero() -> None:
    assert expected_calibration_error(np.array([[1.0, 0.0], [0.0, 1.0]]), [0, 1]) == 0
    assert expected_calibration_error(np.array([[1.0, 0.0], [0.0, 1.0]]), [1, 0]) == 1


def test_gaps_of_opposite_sign_in_two_bins_do_not_cancel() -> None:
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1]])
    assert expected_calibration_error(probabilities, [0, 1], bins=10) == pytest.approx((0.4 + 0.9) / 2)


@pytest.mark.parametrize(("right", "margin"), [(9, 4.0), (6, 4.0), (9, 1.0)])
def test_temperature_by_hand(right: int, margin: float) -> None:
    """Ten rows with logits (m, 0), `right` of them of class 0: the best T gives p = right / 10, so T = m / log(p / (1 - p))."""
    logits = np.tile([margin, 0.0], (10, 1)).astype(np.float32)
    labels = [0] * right + [1] * (10 - right)
    p = right / 10
    assert fit_temperature(logits, labels) == pytest.approx(margin / np.log(p / (1 - p)), rel=1e-3)


def test_a_temperature_makes_overconfident_answers_believable() -> None:
    random = np.random.default_rng(0)
    true = random.normal(size=(4000, 3))
    shares = np.exp(true) / np.exp(true).sum(-1, keepdims=True)
    labels = [random.choice(3, p=row) for row in shares]
    logits = 3 * true
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(3, rel=0.1)

    def error(values: np.ndarray) -> float:
        exponentials = np.exp(values)
        return expected_calibration_error(exponentials / exponentials.sum(-1, keepdims=True), labels)

    assert error(logits / temperature) < 0.03 < 0.1 < error(logits)


def test_temperatures_stay_in_bounds() -> None:
    separable = np.array([[9.0, 0.0], [0.0, 9.0]])
    assert 0.05 <= fit_temperature(separable, [0, 1]) < 0.06
    assert 19 < fit_temperature(separable, [1, 0]) <= 20
