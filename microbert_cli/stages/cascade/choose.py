"""Chooses the threshold of a cascade with some rows of dev, and checks it with the others."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from microbert_cli.data.examples import Examples
from microbert_cli.data.task_data import TaskData
from microbert_cli.errors import MbertError
from microbert_cli.evaluation import scoring
from microbert_cli.evaluation.calibration import expected_calibration_error, fit_temperature
from microbert_cli.evaluation.guarantee import (
    NEVER,
    Answered,
    choose_threshold,
    clopper_pearson,
    rounded_down,
    rows_needed,
    split_rows,
)
from microbert_cli.models.cascade.answers import BIG, PARTS, SMALL, sureness
from microbert_cli.models.predictor import probabilities
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.values import Cascade
from microbert_cli.reporter import Reporter

FEWEST_ROWS = 10  # that choose, and that check: fewer say nothing
Logits = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Choice:
    """When the small model answers, the share of checking rows that it sends on, and all that was measured of them."""

    threshold: float
    temperature: dict[str, float]
    sent: float
    metrics: dict[str, Any]


def check_rows(recipe: Recipe, data: TaskData) -> None:
    """Checks that dev has labels, and rows enough to choose and to check: raises M260, M282."""
    rows, share = data.rows["dev"], recipe.cascade.choosing
    if rows.labels is None:
        raise scoring.hidden_labels(data.task, "dev")
    if min(map(len, split_rows(len(rows), share, recipe.seed))) < FEWEST_ROWS:
        raise _too_few_rows(len(rows), share)


def choose(recipe: Recipe, data: TaskData, logits: Logits, reporter: Reporter) -> Choice:
    """Returns the threshold for the wish of a recipe, or the recipe's own, checked; logits [n, C] of both models on dev.

    Where an agreement cannot be shown, the big model answers every row, with which it agrees; raises M614 for an accuracy.
    """
    keys, rows = recipe.cascade, data.rows["dev"]
    choosing, checking = split_rows(len(rows), keys.choosing, recipe.seed)
    labels = np.asarray(rows.labels)
    temperature = {part: fit_temperature(logits[part][choosing], labels[choosing]) for part in PARTS}
    calibrated = {part: logits[part] / temperature[part] for part in PARTS}
    answered = _answered(calibrated, labels, by_score=keys.score is not None)
    seen, checked = answered.take(choosing), answered.take(checking)
    reporter.note(f"of {len(rows):,} rows of dev {len(seen):,} choose the threshold, {len(checked):,} others check it")
    threshold = keys.threshold if keys.threshold is not None else _granted(keys, seen, checked, reporter)
    combined = np.where((answered.sureness > threshold)[:, None], calibrated[SMALL], calibrated[BIG])
    metrics = {
        "threshold": threshold,
        "temperature": temperature,
        "rows": {"choosing": len(seen), "checking": len(checked)},
        "checked": _figures(keys, checked, threshold),
        "scores": {
            name: scoring.score(data.task, values[checking], rows.take(checking.tolist()))
            for name, values in {**logits, "cascade": combined}.items()
        },
        "calibration_error": _calibration(logits, calibrated, combined, rows, checking),
    }
    _tell(metrics, reporter)
    return Choice(threshold, temperature, checked.sent(threshold), metrics)


def _answered(calibrated: Logits, labels: np.ndarray, *, by_score: bool) -> Answered:
    small, big = (calibrated[part].argmax(-1) for part in (SMALL, BIG))
    expected = labels if by_score else big
    return Answered(sureness(calibrated[SMALL]), small != expected, big != expected)


def _granted(keys: Cascade, seen: Answered, checked: Answered, reporter: Reporter) -> float:
    """Returns the threshold that grants the wish, as the checking rows show with the confidence that was asked for."""
    wish = keys.agreement if keys.score is None else keys.score
    threshold = choose_threshold(seen, wish=wish, confidence=keys.confidence, rows=len(checked))
    bound = checked.bound(threshold, keys.confidence)
    if keys.score is not None:
        if bound < wish:
            raise _cannot_be_shown(keys, checked, threshold, bound)
        return threshold
    if bound < wish or threshold >= NEVER:
        reporter.warn(f"the big model answers every row: {_why_never(keys, len(checked), threshold, bound)}")
        return NEVER
    return threshold


def _why_never(keys: Cascade, rows: int, threshold: float, bound: float) -> str:
    if threshold < NEVER:
        return (
            f"the rows that check do not confirm the threshold {threshold:.4f}, with which the agreement is "
            f"{rounded_down(bound)} at least; wish for less, or name more rows of dev"
        )
    needed = rows_needed(keys.agreement, keys.confidence)
    if needed is None:
        return "nothing less can be sure to agree always; wish for less, such as --agreement 0.98"
    if rows < needed:
        most = clopper_pearson(rows, rows, keys.confidence)
        return (
            f"{rows:,} rows that all agree show {rounded_down(most)}; {needed:,} would be needed for "
            f"{keys.agreement}: more rows of dev, a smaller cascade.choosing, or a smaller --agreement"
        )
    return "the two models disagree too often even where the small one is surest; wish for less with --agreement"


def _figures(keys: Cascade, checked: Answered, threshold: float) -> dict[str, Any]:
    """Returns what was wished for, and what the checking rows say of it."""
    return {
        "what": "agreement" if keys.score is None else "accuracy",
        "wish": None if keys.threshold is not None else keys.agreement if keys.score is None else keys.score,
        "confidence": keys.confidence,
        "value": checked.right(threshold) / len(checked),
        "bound": checked.bound(threshold, keys.confidence),
        "sent": checked.sent(threshold),
    }


def _calibration(
    logits: Logits, calibrated: Logits, combined: np.ndarray, rows: Examples, checking: np.ndarray
) -> dict[str, Any]:
    """Returns the expected calibration errors on the checking rows, before and after the temperature."""
    labels = rows.take(checking.tolist()).labels or []

    def error(values: np.ndarray) -> float:
        return expected_calibration_error(probabilities(values[checking]), labels)

    parts = {part: {"before": error(logits[part]), "after": error(calibrated[part])} for part in PARTS}
    return {**parts, "cascade": {"after": error(combined)}}


def _tell(metrics: dict[str, Any], reporter: Reporter) -> None:
    checked = metrics["checked"]
    reporter.note(
        f"threshold {metrics['threshold']:.4f}: {checked['sent']:.1%} of the checking rows go to the big model; "
        f"{checked['what']} {checked['value']:.4f}, at least {rounded_down(checked['bound'])} "
        f"with a confidence of {checked['confidence']:.0%}"
    )


def _too_few_rows(count: int, share: float) -> MbertError:
    return MbertError(
        "M282",
        f"dev has {count} rows, too few to choose a threshold with {share:.0%} of them and to check it with the others",
        where="cascade.choosing",
        allowed=f"{FEWEST_ROWS} rows that choose and {FEWEST_ROWS} that check at least; a bound takes hundreds.",
        fix="Name more rows with labels, of a table of your own: --dev-file FILE",
    )


def _cannot_be_shown(keys: Cascade, checked: Answered, threshold: float, bound: float) -> MbertError:
    alone = checked.bound(NEVER, keys.confidence)
    most = max(0.001, math.floor(1000 * min(bound, alone)) / 1000)
    return MbertError(
        "M614",
        f"an accuracy of {keys.score} cannot be shown: the rows that check say {bound:.4f} at least"
        f"{'' if threshold >= NEVER else f', and of the big model alone {alone:.4f}'}",
        where=f"cascade.score {keys.score}",
        allowed=f"With {len(checked):,} rows that check and a confidence of {keys.confidence}: up to {most:.3f} here.",
        fix=f"Wish for less, --score {most:.3f}, or for an agreement: leave --score out",
    )
