"""The best weights by each of several metrics, beside those that are best by the primary one.

In a run of several tasks the model that is kept is the best by the mean; what was best for one task alone was another step.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn


class BestWeights:
    """What is kept, by metric: the step, all scores there, and the model's weights as they were.

    metrics  names among the scores of an evaluation; without any, nothing is kept
    """

    def __init__(self, metrics: Sequence[str] = ()):
        self.metrics = list(metrics)
        self.kept: dict[str, dict[str, Any]] = {}

    def anew(self) -> "BestWeights":
        """The same metrics, nothing kept yet."""
        return BestWeights(self.metrics)

    def take(self, step: int, scores: Mapping[str, float], model: nn.Module) -> None:
        """Keeps the model for every metric by which it is better than what is kept; weights kept twice are one copy."""
        better = [name for name in self.metrics if name not in self.kept or scores[name] > self.kept[name]["scores"][name]]
        if not better:
            return
        weights: dict[str, Tensor] = {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}
        self.kept |= {name: {"step": step, "scores": dict(scores), "weights": weights} for name in better}
