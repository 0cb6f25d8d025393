"""A score a row, such as the similarity of two sentences: one output, squared error, correlations."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from microbert_cli.recipe.task_kinds import SEVERAL_LABELS, TOKENS, Labels, Standardisation, TaskKind, Where, wrong_labels

if TYPE_CHECKING:
    import numpy as np

MAX_SCORE = 1e18  # the square of a difference, which is learnt from, must stay a number of 32 bits


class Kind(TaskKind):
    """A number within `range`; names are those of a checkpoint's one output and mean nothing."""

    name = "score"
    problem_type = "regression"
    metrics = ("pearson", "spearman")
    default_metrics = metrics
    metric_refusal = '"{}" needs classes; a score has pearson and spearman'
    exclusive = False
    dtype = "float64"

    @classmethod
    def has_head(cls, num_outputs: int, problem_type: str | None) -> bool:
        """Of one output, whatever the configuration calls it: most checkpoints on the Hub name no problem type."""
        return num_outputs == 1 and problem_type not in (SEVERAL_LABELS, TOKENS)

    @property
    def num_outputs(self) -> int:
        return 1

    @property
    def is_complete(self) -> bool:
        return True

    def describe(self) -> str:
        return "one score"

    def check(self) -> None:
        if self.names:
            raise ValueError("a score has no names")
        if self.range and self.range[0] >= self.range[1]:
            raise ValueError("a range is that of a score, lower end first")

    @property
    def hidden(self) -> frozenset[str]:
        # -1 stands for hidden labels on the Hub, but without a range it may be a score.
        return frozenset({""} if self.range is None else {"", "-1"})

    def read_labels(self, cells: Sequence[str], where: Where) -> Labels:
        reasons = {row: reason for row, cell in enumerate(cells) if (reason := self._why_wrong(cell))}
        if reasons:
            allowed = reasons[min(reasons)][1]
            raise wrong_labels({row: what for row, (what, _) in reasons.items()}, allowed, where)
        return [float(cell) for cell in cells]

    def _why_wrong(self, cell: str) -> tuple[str, str] | None:
        """Returns what is wrong with a cell and what is allowed, or None where it is a score."""
        low, high = self._limits()
        try:
            score = float(cell)
        except ValueError:
            return f'the label "{cell}" is no number', "A number."
        if not (math.isfinite(score) and low <= score <= high):
            return f'the score "{cell}" is outside the range', f"{low:g} to {high:g}."
        return None

    def _limits(self) -> tuple[float, float]:
        return self.range or (-MAX_SCORE, MAX_SCORE)

    def label_text(self, label: Any) -> float:
        return float(label)

    def check_training_labels(self, labels: Sequence[Any], place: str) -> None:
        """Any scores can be trained on."""

    def examine(self, labels: Sequence[Any]) -> tuple[str, str]:
        low, high = min(labels, default=0), max(labels, default=0)
        summary = f"{len(labels):,} scores from {low:g} to {high:g}"
        return summary, "" if low < high else f"{summary}: there is nothing to learn"

    def label_array(self, labels: Labels) -> "np.ndarray":
        import numpy as np

        return np.asarray(labels, dtype=np.float32)

    def standardisation(self, labels: Sequence[Any]) -> Standardisation | None:
        """Returns mean and spread of the scores; a spread of 0 is left alone, there is nothing to learn."""
        import numpy as np

        if not len(labels):
            return None
        scores = np.asarray(labels, dtype=np.float64)
        return Standardisation(float(scores.mean()), float(scores.std()) or 1.0)

    def random_labels(self, generator: Any, count: int) -> Any:
        return generator.random(count, dtype="float32")

    def predictions(self, logits: "np.ndarray") -> "np.ndarray":
        scores: np.ndarray = logits[:, 0]
        return scores

    def constant(self, labels: Sequence[Any]) -> Any:
        import numpy as np

        return np.mean(labels)

    def linear_model(self, seed: int) -> Any:
        from sklearn.linear_model import Ridge

        return Ridge(random_state=seed)

    def report(self, predictions: "np.ndarray", labels: Sequence[Any]) -> dict[str, Any]:
        return {}

    def agreement(self, logits: "np.ndarray", others: "np.ndarray") -> float | None:
        return None

    def compare_with_teacher(self, logits: "np.ndarray", teacher: "np.ndarray") -> dict[str, float]:
        return {"mean_difference": float(abs(logits - teacher).mean())}

    def prediction_columns(self, logits: "np.ndarray") -> dict[str, list[Any]]:
        return {"prediction": logits[:, 0].tolist()}

    def answers(self, logits: "np.ndarray") -> list[dict[str, Any]]:
        return [{"score": float(row[0])} for row in logits]

    def submission_text(self, prediction: Any, form: str) -> str:
        """Within the range and with three decimals, as GLUE's server wants STS-B."""
        score = float(prediction)
        if not math.isfinite(score):
            raise ValueError(f"{score} is no score")
        low, high = self._limits()
        return f"{min(max(score, low), high):.3f}"
