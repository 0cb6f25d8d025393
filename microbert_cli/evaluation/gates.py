"""What scores must reach: minimum scores and an earlier evaluation. Names are checked before any work, values after it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from microbert_cli.errors import MbertError, nearest
from microbert_cli.recipe.task import Task

Scores = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Gates:
    """Minimum scores by `metric` or `split.metric`, and the scores of a baseline by split and metric."""

    minimum: Mapping[str, float] = field(default_factory=dict)
    baseline: Scores | None = None
    tolerance: float = 0.0

    def check_names(self, task: Task, splits: Sequence[str]) -> None:
        """Raises M104 where a minimum is of no score of these splits, or of one that several have; M262 for the baseline."""
        for name in self.minimum:
            _split_and_metric(name, {split: dict.fromkeys(task.metrics, 0.0) for split in splits})
        if self.baseline is not None and not self.baseline.keys() & {*splits}:
            baseline_splits = ", ".join(sorted(self.baseline)) or "no split"
            raise MbertError(
                "M262",
                f"this baseline has scores of {baseline_splits}, and {', '.join(splits)} is scored",
                where="--baseline",
                allowed="A metrics.json that `mbert evaluate` wrote of the same split.",
                fix=f"Score its split, for instance: --set 'evaluate.splits=[\"{next(iter(self.baseline), 'dev')}\"]'",
            )

    def check(self, result: Mapping[str, Any]) -> None:
        """Raises M620 where a score is below its minimum, M621 where it fell below the baseline's by more than `tolerance`."""
        scores = {split: values["metrics"] for split, values in result["splits"].items()}
        for name, least in self.minimum.items():
            split, metric = _split_and_metric(name, scores)
            if not scores[split][metric] >= least:  # a score that is NaN is below every minimum
                raise _score_too_low(
                    "M620", f"{split} {metric} is {scores[split][metric]:.4f}, wanted at least {least}", "--min-score"
                )
        for split, before in (self.baseline or {}).items():
            for metric in scores.get(split, {}).keys() & before.keys():
                score = scores[split][metric]
                if not score >= before[metric] - self.tolerance:
                    what = f"{split} {metric} fell from {before[metric]:.4f} to {score:.4f}, more than {self.tolerance}"
                    raise _score_too_low("M621", what, "--baseline")


def baseline_scores(metrics: Mapping[str, Any]) -> Scores:
    """The scores in a metrics.json by split and metric; of a stage that is no evaluation those of dev."""
    splits = {split: values["metrics"] for split, values in metrics.get("splits", {}).items()} or {"dev": metrics["dev"]}
    return {split: {name: float(value) for name, value in scores.items()} for split, scores in splits.items()}


def _split_and_metric(name: str, scores: Scores) -> tuple[str, str]:
    """The split and the metric that a minimum names; a metric alone is enough where one split is scored."""
    split, _, metric = name.rpartition(".")
    if not split and len(scores) == 1:
        split = next(iter(scores))
    if metric in scores.get(split, {}):
        return split, metric
    full_names = [f"{scored}.{measure}" for scored, values in scores.items() for measure in values]
    names = [*next(iter(scores.values()), {}), *full_names] if len(scores) == 1 else full_names
    several = not split and any(metric in values for values in scores.values())
    what = f'several splits are scored, and "{name}" names none of them' if several else f'no score is called "{name}"'
    raise MbertError(
        "M104",
        what if scores else f'no split is scored, so there is no "{name}"',
        where="--min-score",
        allowed=f"The scores of this run: {nearest(name, names)}",
        fix=f"For instance: --min-score {full_names[0] if full_names else 'dev.accuracy'}=0.9",
    )


def _score_too_low(code: str, what: str, where: str) -> MbertError:
    return MbertError(
        code,
        what,
        where=where,
        allowed="A model at least as good as that.",
        fix="Look at metrics.json and the predictions.",
    )
