"""Any number of labels a row, none among them: an output for each, a sigmoid, and a threshold of its own.

    a row has label c  where  sigmoid(z_c) > t_c

z logits [n, C]. The thresholds t are 0.5, or what is chosen on dev after training: the t_c with the highest F1 of label c, of
equally good ones the nearest to 0.5, between two neighbouring probabilities; 0.5 where dev has no row with the label.
"""

import json
import math
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from microbert_cli.errors import MbertError, nearest
from microbert_cli.recipe.task_kinds import (
    SEVERAL_LABELS,
    WHOLE_NUMBER,
    ClassWeights,
    Labels,
    NamedKind,
    Where,
    too_few_classes,
    weights_by_name,
    wrong_labels,
)
from microbert_cli.text import first_of_rows, label_cell, labels_of_cell

if TYPE_CHECKING:
    import numpy as np

THRESHOLD = 0.5
LOWEST = 1e-6  # of thresholds
CONFIG_KEY = "label_thresholds"  # of config.json: the threshold of every output by its name
FEWEST_ROWS = 8  # with a label: nothing is learnt from fewer
SHORT = 80  # characters of a cell in an error


@dataclass(frozen=True)
class Kind(NamedKind):
    """Each of `names` or not; a row's label is a tuple of 0 and 1, one for each name.

    thresholds  of the probabilities, by label; () = 0.5 for all
    Predictions are margins [n, C], z_c - log(t_c / (1 - t_c)): above 0 where the row has the label. Within a label they order
    the rows as its probabilities do.
    """

    thresholds: tuple[float, ...] = ()

    name = "labels"
    problem_type = SEVERAL_LABELS
    metrics = ("micro_f1", "macro_f1", "mean_average_precision", "subset_accuracy")
    default_metrics = metrics
    metric_refusal = (
        '"{}" needs one label a row; of several there are micro_f1, macro_f1, mean_average_precision, subset_accuracy'
    )
    exclusive = False
    independent = True
    names_refusal = "names must be two or more, and all different; yes or no alone are two classes"

    @classmethod
    def has_head(cls, num_outputs: int, problem_type: str | None) -> bool:
        """Where the configuration says so: by its shape such a head cannot be told from one of classes."""
        return problem_type == cls.problem_type

    def describe(self) -> str:
        return f"any of {', '.join(self.names)}"

    def check(self) -> None:
        super().check()
        if not all(name.strip() and len(name.splitlines()) == 1 for name in self.names):
            raise ValueError("each name must be one line of text")

    def configure(self, config: Any) -> None:
        super().configure(config)
        if self.thresholds:
            setattr(config, CONFIG_KEY, dict(zip(self.names, self.thresholds, strict=True)))

    def answered_by(self, config: Any, columns: Sequence[int] | None = None) -> "Kind":
        """Returns the kind with the thresholds of a model's config.json; 0.5 where it has none."""
        by_name = getattr(config, CONFIG_KEY, None)
        if not isinstance(by_name, dict):
            return replace(self, thresholds=())
        outputs = columns if columns is not None else range(len(self.names))
        names = [str(config.id2label[output]) for output in outputs]
        return replace(self, thresholds=tuple(_checked(by_name.get(name, THRESHOLD), name) for name in names))

    def fitted(self, logits: "np.ndarray", labels: Sequence[Any]) -> "Kind":
        """Returns the kind with the thresholds that are best on labelled rows; see the module's text."""
        import numpy as np

        shares, labels_NC = _sigmoid(logits), np.asarray(labels)
        return replace(self, thresholds=tuple(best_threshold(shares[:, i], labels_NC[:, i]) for i in range(len(self.names))))

    @property
    def hidden(self) -> frozenset[str]:
        """A column of empty cells alone; an empty list, `[]`, says that a row has no label."""
        return frozenset({""} if "-1" in self.names else {"", "-1"})

    def cells(self, values: Sequence[Any]) -> list[str] | None:
        return [label_cell(value) for value in values]

    def read_labels(self, cells: Sequence[str], where: Where) -> Labels:
        """Returns 0 and 1 of every label; M351 for an unknown label, M442 for a cell that is no list of different labels."""
        ids = self._ids()
        by_cell = _parsed(cells, ids, where)
        numbers = {cell: [ids.get(name, -1) for name in names] for cell, names in by_cell.items()}
        repeated = {cell for cell, given in numbers.items() if any(given.count(i) > 1 for i in given if i >= 0)}
        if twice := {row: _twice(cell) for row, cell in enumerate(cells) if cell in repeated}:
            raise _no_labels(twice, where)
        strange = {cell: next(name for name in by_cell[cell] if name not in ids) for cell in by_cell if -1 in numbers[cell]}
        if wrong := {
            row: f'the label "{strange[cell]}" is none of the task\'s' for row, cell in enumerate(cells) if cell in strange
        }:
            raise wrong_labels(wrong, nearest(strange[cells[min(wrong)]], self.names), where)
        rows = {cell: tuple(int(i in present) for i in range(len(self.names))) for cell, present in numbers.items()}
        return [rows[cell] for cell in cells]

    def names_in(self, cells: Sequence[str], where: Where) -> Counter[str]:
        by_cell = _parsed(cells, (), where)
        return Counter(name for cell in cells for name in by_cell[cell])

    def _ids(self) -> dict[str, int]:
        """Returns the number of every text that stands for a label; numbers only where no name is itself a whole number."""
        by_name = {name: i for i, name in enumerate(self.names)}
        if any(WHOLE_NUMBER.fullmatch(name) for name in self.names):
            return by_name
        return {str(i): i for i in range(len(self.names))} | by_name

    def label_text(self, label: Any) -> str:
        """Returns the names of a row's labels as a JSON list, which `read_labels` reads whatever a name holds."""
        return json.dumps([name for name, has in zip(self.names, label, strict=True) if has > 0], ensure_ascii=False)

    def check_training_labels(self, labels: Sequence[Any], place: str) -> None:
        present = {name for name, count in self._counts(labels).items() if count}
        if missing := [name for name in self.names if name not in present]:
            raise too_few_classes(place, present, f"no row to train on has the label {' or '.join(missing)}")

    def _counts(self, labels: Sequence[Any]) -> dict[str, int]:
        totals = [sum(column) for column in zip(*(label for label in labels if label is not None), strict=True)]
        return dict(zip(self.names, totals or [0] * len(self.names), strict=True))

    def strata(self, labels: Sequence[Any] | None) -> Sequence[Any] | None:
        """Returns the rarest label of every row, the first of equally rare ones; None for a row without any."""
        if labels is None:
            return None
        counts = list(self._counts(labels).values())
        return [min((i for i, has in enumerate(label) if has), key=counts.__getitem__, default=None) for label in labels]

    def examine(self, labels: Sequence[Any]) -> tuple[str, str]:
        counts, rows = self._counts(labels), max(1, len(labels))
        none = sum(not any(label) for label in labels)
        mean = sum(counts.values()) / rows
        summary = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        summary += f"; {mean:.2f} labels a row, {none:,} rows without any"
        if min(counts.values()) < FEWEST_ROWS:
            return summary, f"fewer than {FEWEST_ROWS} rows have a label: {summary}"
        if all(map(sum, labels)) and max(map(sum, labels)) == 1:
            return summary, f"every row has exactly one label, which is what data.kind=classes learns: {summary}"
        return summary, ""

    def label_array(self, labels: Labels) -> "np.ndarray":
        import numpy as np

        unlabelled = (float("nan"),) * len(self.names)
        return np.asarray([unlabelled if label is None else label for label in labels], dtype=np.float32).reshape(
            len(labels), len(self.names)
        )

    def class_weights(self, labels: Sequence[Any], wanted: ClassWeights) -> tuple[float, ...] | None:
        """Returns the weight of the yes of each label; "balanced" is its rows without by its rows with it."""
        if wanted is None or not isinstance(wanted, str):
            return None if wanted is None else weights_by_name(self.names, wanted)
        rows = sum(label is not None for label in labels)
        return tuple((rows - count) / count if 0 < count < rows else 1.0 for count in self._counts(labels).values())

    def head_bias(self, labels: Sequence[Any], weights: Sequence[float] | None) -> tuple[float, ...] | None:
        """Returns the log odds of each label, log w_c (n_c + 1/2) / (n - n_c + 1/2), n_c of n rows with it.

        From 0 on the first hundreds of steps only learn how rare labels are. Source: Lin et al. 2017 (arXiv 1708.02002, 4.1),
        with one share for all labels.
        """
        counts, rows = self._counts(labels).values(), sum(label is not None for label in labels)
        odds = [(count + 0.5) / (rows - count + 0.5) for count in counts]
        return tuple(math.log(weight * ratio) for weight, ratio in zip(weights or [1.0] * len(odds), odds, strict=True))

    def random_labels(self, generator: Any, count: int) -> Any:
        return generator.integers(2, size=(count, self.num_outputs)).astype("float32")

    def predictions(self, logits: "np.ndarray") -> "np.ndarray":
        import numpy as np

        limits = np.asarray(self.thresholds or [THRESHOLD] * logits.shape[-1], dtype=np.float64)
        margins: np.ndarray = logits.astype(np.float64) - np.log(limits / (1 - limits))
        return margins

    def constant(self, labels: Sequence[Any]) -> Any:
        """Returns the k commonest labels, k by the best micro F1: 2 TP / (k n + positives)."""
        import numpy as np

        counts = np.asarray(labels).sum(0)
        order = np.argsort(-counts, kind="stable")
        sizes = np.arange(1, len(counts) + 1)
        f1 = 2 * counts[order].cumsum() / (sizes * len(labels) + max(1, counts.sum()))
        best = np.zeros(len(counts), dtype=np.int64)
        best[order[: int(f1.argmax()) + 1]] = 1
        return best

    def linear_model(self, seed: int) -> Any:
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier

        return OneVsRestClassifier(LogisticRegression(C=10.0, max_iter=300, random_state=seed))

    def report(self, predictions: "np.ndarray", labels: Sequence[Any]) -> dict[str, Any]:
        """Returns precision, recall, F1, support and threshold of every label, and its rows by label and answer."""
        import numpy as np
        from sklearn.metrics import multilabel_confusion_matrix, precision_recall_fscore_support

        expected, given = np.asarray(labels), (predictions > 0).astype(int)
        columns = precision_recall_fscore_support(expected, given, average=None, zero_division=0)
        matrices = multilabel_confusion_matrix(expected, given)
        limits = self.thresholds or (THRESHOLD,) * len(self.names)
        return {
            "labels": list(self.names),
            "several_labels": True,
            "classes": {
                name: {
                    "precision": float(precision), "recall": float(recall), "f1": float(f1), "support": int(support),
                    "threshold": limit, "rows": {"both": int(matrix[1, 1]), "answered_alone": int(matrix[0, 1]),
                                                 "labelled_alone": int(matrix[1, 0]), "neither": int(matrix[0, 0])},
                }
                for name, limit, matrix, precision, recall, f1, support in zip(
                    self.names, limits, matrices, *columns, strict=True
                )
            },
        }  # fmt: skip

    def agreement(self, logits: "np.ndarray", others: "np.ndarray") -> float | None:
        """Returns the share of rows with the same labels."""
        return float(((self.predictions(logits) > 0) == (self.predictions(others) > 0)).all(-1).mean())

    def compare_with_teacher(self, logits: "np.ndarray", teacher: "np.ndarray") -> dict[str, float]:
        """Returns the shares of rows and of labels that both answer alike at 0.5, and the mean KL of a label, in nats."""
        import numpy as np

        p, q = _sigmoid(teacher), _sigmoid(logits)
        same = (p > THRESHOLD) == (q > THRESHOLD)
        tiny = 1e-12
        kl = p * (np.log(p + tiny) - np.log(q + tiny)) + (1 - p) * (np.log(1 - p + tiny) - np.log(1 - q + tiny))
        return {"agreement": float(same.all(-1).mean()), "label_agreement": float(same.mean()), "kl": float(kl.mean())}

    def prediction_columns(self, logits: "np.ndarray") -> dict[str, list[Any]]:
        shares = _sigmoid(logits)
        columns: dict[str, list[Any]] = {"prediction": [self.label_text(row) for row in self.predictions(logits)]}
        return columns | {f"p_{name}": shares[:, i].tolist() for i, name in enumerate(self.names)}

    def answers(self, logits: "np.ndarray") -> list[dict[str, Any]]:
        shares, given = _sigmoid(logits), self.predictions(logits) > 0
        return [
            {
                "labels": [name for name, has in zip(self.names, row_given, strict=True) if has],
                "probabilities": dict(zip(self.names, row, strict=True)),
            }
            for row, row_given in zip(shares.tolist(), given.tolist(), strict=True)
        ]

    def submission_text(self, prediction: Any, form: str) -> str:
        raise ValueError("GLUE's server takes one label a row, and this task has several")


def best_threshold(shares: "np.ndarray", labels: "np.ndarray") -> float:
    """Returns the threshold t in (0, 1) with the highest F1 of `shares > t`; see the module's text.

    shares [n] probabilities of one label;  labels [n] 0 or 1
    """
    import numpy as np

    positives = int(labels.sum())
    if not positives:
        return THRESHOLD
    order = np.argsort(-shares, kind="stable")
    ordered = shares[order]
    counts = np.arange(1, len(ordered) + 1)
    right = labels[order].cumsum()
    ends = np.append(ordered[1:] < ordered[:-1], True)  # rows of one probability are answered alike
    f1 = 2 * right[ends] / (counts[ends] + positives)
    best = f1 >= f1.max() - 1e-12
    upper, lower = ordered[ends][best], np.append(ordered[1:], 0.0)[ends][best]
    if ((lower <= THRESHOLD) & (upper > THRESHOLD)).any():
        return THRESHOLD
    middles = (upper + lower) / 2
    return min(max(float(middles[np.abs(middles - THRESHOLD).argmin()]), LOWEST), 1 - LOWEST)


def _parsed(cells: Sequence[str], names: Container[str], where: Where) -> dict[str, list[str]]:
    """Returns the labels that each different cell names; raises M442 for those that are no list of different labels."""
    by_cell: dict[str, list[str]] = {}
    wrong: dict[str, str] = {}
    for cell in dict.fromkeys(cells):
        try:
            by_cell[cell] = labels_of_cell(cell, names)
            if len(set(by_cell[cell])) < len(by_cell[cell]):
                wrong[cell] = _twice(cell)
        except ValueError as error:
            wrong[cell] = str(error)
    if wrong:
        raise _no_labels({row: wrong[cell] for row, cell in enumerate(cells) if cell in wrong}, where)
    return by_cell


def _twice(cell: str) -> str:
    return f"a label is named twice: {cell[:SHORT]}"


def _sigmoid(logits: "np.ndarray") -> "np.ndarray":
    from microbert_cli.models.predictor import sigmoid  # loads numpy, which a task's TOML is read without

    return sigmoid(logits)


def _checked(value: Any, name: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1:
        return float(value)
    raise MbertError(
        "M443",
        f'the threshold of "{name}" is {str(value)[:SHORT]}, and no share between 0 and 1',
        where=f"config.json, {CONFIG_KEY}",
        allowed="A number above 0 and below 1 for each label.",
        fix=f"Correct {CONFIG_KEY} in the model's config.json, or take it out: then it is 0.5.",
    )


def _no_labels(wrong: dict[int, str], where: Where) -> MbertError:
    rows = sorted(wrong)
    return MbertError(
        "M442",
        first_of_rows(wrong),
        where=where(rows),
        allowed='The labels of a row, each once: ["a", "b"], a|b, or nothing for a row without any.',
        fix=f"Correct {'the row' if len(rows) == 1 else 'these rows'}, or name another column: --label COLUMN",
    )
