"""One of several classes a row: an output for each, cross-entropy, the output with the largest logit."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from microbert_cli.errors import nearest
from microbert_cli.recipe.task_kinds import (
    SEVERAL_LABELS,
    TOKENS,
    WHOLE_NUMBER,
    ClassWeights,
    Labels,
    NamedKind,
    Where,
    too_few_classes,
    weights_by_name,
    wrong_labels,
)

if TYPE_CHECKING:
    import numpy as np


NO_LABEL = -100  # what torch's cross-entropy ignores
FEWEST_ROWS = 8  # of a class: nothing is learnt from fewer
MOST_UNEQUAL = 20.0  # the commonest class over the rarest


class Kind(NamedKind):
    """One of `names`; a label is its number."""

    name = "classes"
    problem_type = "single_label_classification"
    metrics = ("accuracy", "f1", "macro_f1", "matthews")
    default_metrics = ("accuracy", "macro_f1", "matthews")
    metric_refusal = '"{}" needs a score, and the label is one of several classes'
    exclusive = True

    @classmethod
    def has_head(cls, num_outputs: int, problem_type: str | None) -> bool:
        """Of more than one output of a text; what the configuration calls the problem is often missing."""
        return num_outputs != 1 and problem_type not in (SEVERAL_LABELS, TOKENS)

    def check(self) -> None:
        super().check()
        if self.names and not all(name.strip() and len(name.splitlines()) == 1 for name in self.names):
            raise ValueError("each name must be one line of text")

    def check_metrics(self, metrics: Sequence[str]) -> None:
        super().check_metrics(metrics)
        if "f1" in metrics and len(self.names) != 2:
            raise ValueError('"f1" is that of the second of two classes; for more classes take macro_f1')

    @property
    def hidden(self) -> frozenset[str]:
        # -1 stands for hidden labels on the Hub, unless a class is called so.
        return frozenset({""} if "-1" in self.names else {"", "-1"})

    def read_labels(self, cells: Sequence[str], where: Where) -> Labels:
        ids = self._ids()
        unknown = {row: f'the label "{cell}" is none of the task\'s' for row, cell in enumerate(cells) if cell not in ids}
        if unknown:
            raise wrong_labels(unknown, nearest(cells[min(unknown)], self.names), where)
        return [ids[cell] for cell in cells]

    def _ids(self) -> dict[str, int]:
        """Returns the number of every text that stands for a class.

        A number is accepted only where no name is itself a whole number, so that nothing is ambiguous.
        """
        by_name = {name: i for i, name in enumerate(self.names)}
        if any(WHOLE_NUMBER.fullmatch(name) for name in self.names):
            return by_name
        return {str(i): i for i in range(len(self.names))} | by_name

    def label_text(self, label: Any) -> str:
        return self.names[int(label)]

    def check_training_labels(self, labels: Sequence[Any], place: str) -> None:
        present = {self.label_text(label) for label in labels}
        if missing := [name for name in self.names if name not in present]:
            raise too_few_classes(place, present, f"no row to train on has the label {' or '.join(missing)}")

    def examine(self, labels: Sequence[Any]) -> tuple[str, str]:
        counts = {name: Counter(labels)[i] for i, name in enumerate(self.names)}
        summary = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        rarest, commonest = min(counts.values()), max(counts.values())
        if rarest < FEWEST_ROWS:
            return summary, f"fewer than {FEWEST_ROWS} rows of a class: {summary}"
        if commonest > MOST_UNEQUAL * rarest:
            return summary, f"one class is more than {MOST_UNEQUAL:g} times as common as another: {summary}"
        return summary, ""

    def label_array(self, labels: Labels) -> "np.ndarray":
        import numpy as np

        return np.asarray([NO_LABEL if label is None else label for label in labels], dtype=np.int64)

    def class_weights(self, labels: Sequence[Any], wanted: ClassWeights) -> tuple[float, ...] | None:
        """Returns the weight of each class; "balanced" is n / (C n_c), as scikit-learn has it.

        n rows with a label, C classes, n_c rows of class c.
        """
        if wanted is None or not isinstance(wanted, str):
            return None if wanted is None else weights_by_name(self.names, wanted)
        counts = Counter(label for label in labels if label is not None)
        return tuple(counts.total() / (len(self.names) * counts[i]) if counts[i] else 1.0 for i in range(len(self.names)))

    def random_labels(self, generator: Any, count: int) -> Any:
        return generator.integers(self.num_outputs, size=count)

    def predictions(self, logits: "np.ndarray") -> "np.ndarray":
        ids: np.ndarray = logits.argmax(-1)
        return ids

    def constant(self, labels: Sequence[Any]) -> Any:
        import numpy as np

        return np.bincount(labels).argmax()

    def linear_model(self, seed: int) -> Any:
        from sklearn.linear_model import LogisticRegression

        # Rows of TF-IDF weights have length 1, for which C = 1 regularises too much (SST-2 dev 0.8050, with C = 10 0.8280).
        return LogisticRegression(C=10.0, max_iter=300, random_state=seed)

    def report(self, predictions: "np.ndarray", labels: Sequence[Any]) -> dict[str, Any]:
        """Returns the confusion matrix (rows: labels), and precision, recall, F1 and support of every class."""
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

        ids = range(len(self.names))
        columns = precision_recall_fscore_support(labels, predictions, labels=ids, zero_division=0)
        return {
            "labels": list(self.names),
            "confusion": confusion_matrix(labels, predictions, labels=ids).tolist(),
            "classes": {
                name: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "support": int(support)}
                for name, precision, recall, f1, support in zip(self.names, *columns, strict=True)
            },
        }

    def agreement(self, logits: "np.ndarray", others: "np.ndarray") -> float | None:
        return float((logits.argmax(-1) == others.argmax(-1)).mean())

    def compare_with_teacher(self, logits: "np.ndarray", teacher: "np.ndarray") -> dict[str, float]:
        import numpy as np

        p, q = _probabilities(teacher), _probabilities(logits)
        kl = (p * (np.log(p + 1e-12) - np.log(q + 1e-12))).sum(-1).mean()
        return {"agreement": float((p.argmax(-1) == q.argmax(-1)).mean()), "kl": float(kl)}

    def prediction_columns(self, logits: "np.ndarray") -> dict[str, list[Any]]:
        shares = _probabilities(logits)
        columns: dict[str, list[Any]] = {"prediction": [self.names[i] for i in logits.argmax(-1)]}
        return columns | {f"p_{name}": shares[:, i].tolist() for i, name in enumerate(self.names)}

    def answers(self, logits: "np.ndarray") -> list[dict[str, Any]]:
        shares = _probabilities(logits)
        return [
            {"label": self.names[best], "score": row[best], "probabilities": dict(zip(self.names, row, strict=True))}
            for best, row in zip(shares.argmax(-1).tolist(), shares.tolist(), strict=True)
        ]

    def submission_text(self, prediction: Any, form: str) -> str:
        """The class's name, or its number where `form` is "ids"."""
        if not 0 <= (number := int(prediction)) < len(self.names):
            raise ValueError(f"{number} is no class of the task")
        return self.names[number] if form == "names" else str(number)


def _probabilities(logits: "np.ndarray") -> "np.ndarray":
    from microbert_cli.models.predictor import probabilities  # loads numpy, which a task's TOML is read without

    return probabilities(logits)
