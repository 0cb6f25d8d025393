"""What a recipe says of long texts, and the windows that it comes to for a model."""

from dataclasses import dataclass
from typing import Any

from microbert_cli.models.windows.settings import OVERLAP, POOLS, WindowSettings, no_windows, windows_of_model
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.task import Task

NONE = "none"


@dataclass(frozen=True)
class WindowChoice:
    """The keys `data.windows`, `data.stride` and `data.transfer_windows`; None = not said.

    pool      none, mean or max; not said = as the model's configuration has it
    stride    tokens; not said = the model's, or a quarter of a window
    transfer  whether windows of unlabelled texts are rows of their own; not said = where there are windows
    """

    pool: str | None = None
    stride: int | None = None
    transfer: bool | None = None

    @classmethod
    def of(cls, recipe: Recipe, task: Task) -> "WindowChoice":
        """Returns what a recipe says; raises M482 where the task's texts have no windows."""
        data = recipe.data
        if (task.kind.writes or task.kind.of_words) and (data.windows in POOLS or data.transfer_windows):
            raise no_windows(
                "a model that writes texts" if task.kind.writes else "a model that tags words",
                "A task of labels or scores of texts.",
                "--set data.windows=none --set data.transfer_windows=false",
            )
        if task.kind.of_words:  # whatever the model did before: words are answered for by token
            return cls(NONE)
        return cls(data.windows, data.stride, data.transfer_windows)

    def settings(self, config: Any, length: int, *, where: str) -> WindowSettings | None:
        """Returns the windows of a model that reads `length` tokens at once; None where it reads the beginning of a text."""
        by_model = windows_of_model(config, where=where)
        if self.pool == NONE or (self.pool is None and by_model is None):
            return None
        if by_model is None or self.pool not in (None, by_model.pool):
            return self.of_length(length)
        windows = by_model.of_length(length)
        return windows if self.stride is None else WindowSettings(windows.pool, length, self.stride)

    def of_length(self, length: int) -> WindowSettings:
        """Returns windows of `length` tokens, whatever the model says."""
        pool = self.pool if self.pool in POOLS else POOLS[0]
        return WindowSettings(pool, length, length // OVERLAP if self.stride is None else self.stride)
