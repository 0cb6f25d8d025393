"""The linear model of a task, by what its labels are of."""

from microbert_cli.data.examples import Examples
from microbert_cli.evaluation.linear.interface import Linear
from microbert_cli.evaluation.linear.texts import LinearModel
from microbert_cli.evaluation.linear.words import LinearWordModel
from microbert_cli.recipe.task import Task


def linear_class(task: Task) -> type[LinearModel] | type[LinearWordModel]:
    """Returns the class of linear models for such labels."""
    return LinearWordModel if task.kind.of_words else LinearModel


def fit_linear(task: Task, train: Examples, *, seed: int = 0) -> Linear:
    """Returns the linear model of a task, fitted on `train`."""
    return linear_class(task)(task, train, seed=seed)


def linear_baseline(task: Task, train: Examples, dev: Examples, *, seed: int = 0) -> dict[str, float]:
    """Returns the task's metrics on `dev` of a linear model that is fitted on `train`."""
    model = fit_linear(task, train, seed=seed)
    model.choose_thresholds(dev)
    return model.score(dev)
