"""What tables, benchmarks and verdicts ask of a linear model."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from microbert_cli.data.examples import Examples
from microbert_cli.recipe.task import Task

Texts = Sequence[tuple[str, ...]]


class Linear(ABC):
    """A linear model that was fitted on the training rows of `task`.

    row_name  what tables call it
    """

    row_name: ClassVar[str]
    task: Task

    @abstractmethod
    def predict(self, texts: Texts) -> Any:
        """Returns the predictions for n rows, in the form of labels."""

    @abstractmethod
    def score(self, rows: Examples) -> dict[str, float]:
        """Returns the task's metrics on labelled rows."""

    @abstractmethod
    def choose_thresholds(self, dev: Examples) -> None:
        """Chooses thresholds on dev, as a trained model's are; nothing where the task's kind has none."""

    @property
    @abstractmethod
    def bytes(self) -> int:
        """The size of the fitted model as Python saves it."""
