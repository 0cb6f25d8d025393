"""Several values tried in one place, of which the best on dev is kept: learning rates of a phase, a grid of a comparison."""

from collections.abc import Sequence


def trial_name(phase: str, learning_rate: float) -> str:
    """Returns the name under which a phase is logged that is run with several learning rates."""
    return f"{phase}-lr{learning_rate:g}"


def best_trial(scores: Sequence[float | None]) -> int | None:
    """Returns the place of the best dev score, of equal ones the first; a trial without a score diverged. None if all did."""
    scored = [place for place, score in enumerate(scores) if score is not None]
    return max(scored, key=lambda place: scores[place] or 0.0, default=None)
