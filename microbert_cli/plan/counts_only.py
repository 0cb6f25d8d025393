"""A plan without prices: everything is counted as planning counts it, nothing is timed, and nothing is kept in the cache."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microbert_cli.data.corpus.documents import identify_corpus
from microbert_cli.plan.calibration import Calibration, Facts
from microbert_cli.plan.expected_inputs import ExpectedInputs
from microbert_cli.plan.load import Workload
from microbert_cli.plan.work import Job
from microbert_cli.recipe.schema import Recipe
from microbert_cli.runs import atomic

COUNTED = ("rows", "blocks")  # what is measured for its counts; all else for its seconds alone
NOTHING: Facts = {"seconds": 0.0, "seconds_per_byte": 0.0}


class Uncalibrated(Calibration):
    """Stands where prices are asked for: everything takes no time."""

    counts_only = True

    def seconds(self, job: Job, load: Workload) -> float:
        """None at all."""
        return 0.0

    def once(self, name: str, key: Any, measure: Callable[[], Facts]) -> Facts:
        """Counts, kept in memory."""
        if name not in COUNTED:
            return NOTHING
        digest = atomic.digest({"name": name, "key": key})
        if digest not in self._known:
            self._known[digest] = measure()
        return self._known[digest]


@dataclass
class Unkept(ExpectedInputs):
    """What stages will find, without a trace in the cache."""

    _trained: dict[str, Any] = field(default_factory=dict)

    def vocabulary(self, recipe: Recipe, source: str) -> tuple[Any, float]:
        """The tokenizer that `pretrain` would train, and no seconds."""
        from transformers import AutoTokenizer

        key = atomic.digest([identify_corpus(source), recipe.vocabulary.model_dump(), recipe.corpus.documents])
        if key not in self._trained:
            with tempfile.TemporaryDirectory() as folder:
                self._train_vocabulary(recipe, source, Path(folder))
                self._trained[key] = AutoTokenizer.from_pretrained(folder)
        return self._trained[key], 0.0
