"""The interface of a kind of task: what its labels are, from a table's cells through tensors and metrics to a submission.

A kind is one file of catalog/kinds/ with one class `Kind(TaskKind)`; the file's name is what `label.kind` says in a task's
TOML. Whatever depends on the form of labels is asked of `task.kind`, so that a further kind (labels of tokens) is one more
file. Losses see the labels as `label_array` gives them: int64 [n], float32 [n], or float32 [n, C] of several labels a row; a
loss for labels of another form tells them by dtype and shape.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from microbert_cli.errors import MbertError
from microbert_cli.recipe.labels.errors import Where as Where
from microbert_cli.recipe.labels.errors import too_few_classes as too_few_classes
from microbert_cli.recipe.labels.errors import weights_by_name as weights_by_name
from microbert_cli.recipe.labels.errors import wrong_labels as wrong_labels
from microbert_cli.recipe.registry import Catalog
from microbert_cli.text import WHOLE_NUMBER as WHOLE_NUMBER

if TYPE_CHECKING:
    import numpy as np
if TYPE_CHECKING:
    KindName = str
else:  # the names in the catalogue: pydantic checks a task's `label.kind` and a recipe's `data.kind` against them
    KindName = Literal[tuple(Catalog().names("kinds"))]


Labels = list[int] | list[float] | list[tuple[int, ...]]  # a kind that `writes` has texts in their place
ClassWeights = Literal["balanced"] | Mapping[str, float] | None
SEVERAL_LABELS = "multi_label_classification"  # the problem type of models that give any number of labels
TOKENS = "token_classification"  # no problem type that transformers knows: it tells such heads by their class
MEAN = "mean"  # of a task's other metrics: allowed for every kind


@dataclass(frozen=True)
class Standardisation:
    """The mean and standard deviation of a task's training labels, for labels that are learnt in standardised units."""

    mean: float
    std: float

    def apply(self, values: Any) -> Any:
        """Returns labels or logits, a tensor or an array in the table's units, in standardised ones."""
        return (values - self.mean) / self.std


@dataclass(frozen=True)
class LabelForm:
    """What losses must know of a task's labels beside their values.

    independent  each output is a yes or no of its own: sigmoids in the place of one softmax
    of_words     every word of a text has a label
    weights      of the classes, or of the yes of each label; None = all alike
    """

    independent: bool = False
    of_words: bool = False
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class TaskKind(ABC):
    """The labels of one task, or of one checkpoint's head.

    names   the classes in the order of the model's outputs; empty where the labels have no names
    range   the lowest and the highest score

    name             of the kind: its file's
    problem_type     what `config.json` of a classifier says of it, in the words of transformers
    metrics, default_metrics   those that a task may name, and those that it has where it names none
    metric_refusal   the error for the metric of another kind; {} is the metric
    exclusive        whether a row's prediction is one of `names`, so that answers can be counted
    independent      whether each output is a yes or no of its own, so that a row has any number of `names`
    dtype            Arrow's name for the type of a label in a table
    writes           whether a model writes the answers word by word, instead of choosing among the outputs of a head
    of_words         whether every word of a text has a label: logits are [n, words, C] of rows, [B, T, C] of batches
    columns          of texts and label in a table of one's own where nobody names them
    """

    names: tuple[str, ...] = ()
    range: tuple[float, float] | None = None

    name: ClassVar[str]
    problem_type: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    default_metrics: ClassVar[tuple[str, ...]]
    metric_refusal: ClassVar[str]
    exclusive: ClassVar[bool]
    independent: ClassVar[bool] = False
    dtype: ClassVar[str]
    writes: ClassVar[bool] = False
    of_words: ClassVar[bool] = False
    columns: ClassVar[tuple[str, str]] = ("text", "label")

    @classmethod
    @abstractmethod
    def has_head(cls, num_outputs: int, problem_type: str | None) -> bool:
        """Whether a checkpoint with this head answers for labels of this kind; of all kinds exactly one says so."""

    @classmethod
    def default_metrics_of(cls, names: Sequence[str]) -> tuple[str, ...]:
        """Returns the metrics of a task that names none, by the names of its labels; () where these are yet to be read."""
        return cls.default_metrics

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """The number of outputs of the model's head."""

    @property
    @abstractmethod
    def is_complete(self) -> bool:
        """Whether the labels are known without looking at any file."""

    @abstractmethod
    def describe(self) -> str:
        """Returns the labels in a few words."""

    @abstractmethod
    def check(self) -> None:
        """Checks names and range as a task's TOML has them; raises ValueError."""

    def check_metrics(self, metrics: Sequence[str]) -> None:
        """Checks that the metrics are of this kind; raises ValueError."""
        for metric in metrics:
            if metric not in (*self.metrics, MEAN):
                raise ValueError(self.metric_refusal.format(metric))

    def configure(self, config: Any) -> None:
        """Writes the head into a model's configuration: label names or number of outputs, and the problem type."""
        if self.names:
            config.id2label = dict(enumerate(self.names))
            config.label2id = {name: i for i, name in enumerate(self.names)}
        else:
            config.num_labels = self.num_outputs
        config.problem_type = self.problem_type

    @property
    def is_named(self) -> bool:
        """Whether outputs have names of their own, by which those of a teacher are matched."""
        return self.exclusive or self.independent or self.of_words

    def answered_by(self, config: Any, columns: Sequence[int] | None = None) -> "TaskKind":
        """Returns the kind as a model answers it, whose configuration may say how its logits are read (thresholds).

        columns  the model's output for each label of the task; None = as they stand
        """
        return self

    def fitted(self, logits: "np.ndarray", labels: Sequence[Any]) -> "TaskKind":
        """Returns the kind with what is chosen on labelled rows for reading logits; the kind itself where nothing is."""
        return self

    def cells(self, values: Sequence[Any]) -> list[str] | None:
        """Returns the cells of a label column as `read_labels` takes them; None where each is one text or number."""
        return None

    def names_in(self, cells: Sequence[str], where: Where) -> Mapping[str, int]:
        """Returns how many of these cells name each label, of a kind that has `cells`; raises for a cell that is none."""
        raise NotImplementedError

    def strata(self, labels: Sequence[Any] | None) -> Sequence[Any] | None:
        """Returns the part of each row, all of which shall keep a row in train; None where any split will do."""
        return labels if self.exclusive else None

    def class_weights(self, labels: Sequence[Any], wanted: ClassWeights) -> tuple[float, ...] | None:
        """Returns the weights of outputs that `data.class_weights` asks for, by training labels; raises M440 for no classes."""
        if wanted is None:
            return None
        raise MbertError(
            "M440",
            f"class_weights weighs classes, and this task has {self.describe()}",
            where="data.class_weights",
            allowed="A task of classes, of several labels a row, or of labels of words.",
            fix="Leave the key out.",
        )

    @property
    @abstractmethod
    def hidden(self) -> frozenset[str]:
        """The cells that stand for a label that is not given."""

    @abstractmethod
    def read_labels(self, cells: Sequence[str], where: Where) -> Labels:
        """Returns the labels that the cells of a table's label column stand for; raises M351 for a cell that is none."""

    @abstractmethod
    def label_text(self, label: Any) -> str | float:
        """Returns a label as it is written to files."""

    @abstractmethod
    def check_training_labels(self, labels: Sequence[Any], place: str) -> None:
        """Checks that the labels can be trained on; raises M358 where a class is missing."""

    @abstractmethod
    def examine(self, labels: Sequence[Any]) -> tuple[str, str]:
        """Returns a summary of training labels, and what is doubtful about them; "" where nothing is."""

    @abstractmethod
    def label_array(self, labels: Labels) -> "np.ndarray":
        """Returns the labels as batches and losses have them; None, of a row that nobody labelled, is -100 or NaN."""

    def standardisation(self, labels: Sequence[Any]) -> Standardisation | None:
        """Returns the units that training labels are learnt in; None where they are learnt as they are."""
        return None

    def head_bias(self, labels: Sequence[Any], weights: Sequence[float] | None) -> tuple[float, ...] | None:
        """Returns the bias [C] that a new head starts with, by the training labels and `class_weights`; None = 0."""
        return None

    @abstractmethod
    def random_labels(self, generator: Any, count: int) -> "np.ndarray":
        """Returns made-up labels of `num_outputs`, from a numpy generator, for models that are only timed."""

    @abstractmethod
    def predictions(self, logits: "np.ndarray") -> "np.ndarray":
        """Returns the predictions [n] of logits [n, C], in the form of labels."""

    @abstractmethod
    def constant(self, labels: Sequence[Any]) -> Any:
        """Returns the best prediction that looks at no text: what the trivial baseline always answers."""

    def constant_predictions(self, labels: Sequence[Any]) -> Any:
        """Returns the predictions for these rows that look at no text: `constant` for each."""
        import numpy as np

        constant = self.constant(labels)
        return np.full((len(labels), *np.shape(constant)), constant)

    @abstractmethod
    def linear_model(self, seed: int) -> Any:
        """Returns scikit-learn's linear estimator for such labels."""

    @abstractmethod
    def report(self, predictions: "np.ndarray", labels: Sequence[Any]) -> dict[str, Any]:
        """Returns what there is to say of a split beside its metrics."""

    @abstractmethod
    def agreement(self, logits: "np.ndarray", others: "np.ndarray") -> float | None:
        """Returns the share of rows with the same prediction, or None where predictions are never quite equal."""

    @abstractmethod
    def compare_with_teacher(self, logits: "np.ndarray", teacher: "np.ndarray") -> dict[str, float]:
        """Returns how far a student's answers are from a teacher's."""

    @abstractmethod
    def prediction_columns(self, logits: "np.ndarray") -> dict[str, list[Any]]:
        """Returns the columns of predictions.parquet, "prediction" first."""

    @abstractmethod
    def answers(self, logits: "np.ndarray") -> list[dict[str, Any]]:
        """Returns one record a row, as `mbert predict --json` prints it."""

    def text_answers(self, logits: "np.ndarray", texts: Sequence[tuple[str, ...]]) -> list[dict[str, Any]]:
        """Returns one record a row for these texts; of labels of words the words' places in the text are part of it."""
        return self.answers(logits)

    @abstractmethod
    def submission_text(self, prediction: Any, form: str) -> str:
        """Returns a prediction in the form that a test server wants; raises ValueError where it is none."""


class NamedKind(TaskKind):
    """A kind with an output for each of `names`.

    names_refusal  the error for names that are fewer than two, or not all different
    """

    dtype = "string"
    names_refusal: ClassVar[str] = "names must be two or more, and all different"

    @property
    def num_outputs(self) -> int:
        # A task whose names its training file is yet to show counts as one output.
        return len(self.names) or 1

    @property
    def is_complete(self) -> bool:
        return bool(self.names)

    def describe(self) -> str:
        return ", ".join(self.names)

    def check(self) -> None:
        if self.range:
            raise ValueError("a range is that of a score, lower end first")
        if self.names and (len(self.names) < 2 or len(set(self.names)) < len(self.names)):
            raise ValueError(self.names_refusal)


@cache
def kind_class(name: str) -> type[TaskKind]:
    """Returns the class in catalog/kinds/NAME.py."""
    kind: type[TaskKind] = Catalog().module("kinds", name).Kind
    return kind


@cache
def kinds() -> Mapping[str, type[TaskKind]]:
    """Returns all kinds by name."""
    return {name: kind_class(name) for name in Catalog().names("kinds")}


def all_metrics() -> tuple[str, ...]:
    """Returns the names of the metrics of all kinds."""
    return (*dict.fromkeys(metric for kind in kinds().values() for metric in kind.metrics), MEAN)


def check_primary(kind: TaskKind, metric: str, metrics: Sequence[str]) -> None:
    """Raises M444 where a task of this kind has no such metric to choose checkpoints by; `metrics`: those that it computes."""
    try:
        kind.check_metrics([metric])
        if metric == MEAN and MEAN not in metrics:
            raise ValueError('"mean" is that of the metrics in a task\'s TOML, which names none')
    except ValueError as error:
        raise MbertError(
            "M444",
            str(error),
            where="data.primary",
            allowed=f"{', '.join(kind.metrics)}.",
            fix=f"--set data.primary={kind.default_metrics_of(kind.names)[0]}",
        ) from None


def kind_of_head(num_outputs: int, problem_type: str | None = None, names: Sequence[str] = ()) -> TaskKind:
    """Returns the kind of task that a checkpoint's head was made for; `names` are those of its outputs."""
    return next(kind(tuple(names)) for kind in kinds().values() if kind.has_head(num_outputs, problem_type))


def answers_words(config: Any) -> bool:
    """Whether a model answers for every token, by the class that its configuration names."""
    return any(str(name).endswith("ForTokenClassification") for name in getattr(config, "architectures", None) or ())


def kind_of_model(config: Any) -> TaskKind:
    """Returns the kind of task that a classifier answers, by its configuration."""
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    problem = TOKENS if answers_words(config) else getattr(config, "problem_type", None)
    return kind_of_head(config.num_labels, problem, names).answered_by(config)
