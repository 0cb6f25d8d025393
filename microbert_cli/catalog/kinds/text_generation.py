"""A text a row: an encoder and a decoder write it word by word; BLEU, chrF and ROUGE."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from microbert_cli.errors import MbertError
from microbert_cli.recipe.task_kinds import Labels, TaskKind, Where
from microbert_cli.text import is_valid_text

if TYPE_CHECKING:
    import numpy as np


class Kind(TaskKind):
    """A label is a text, the target; there is no head, and what depends on one is asked in vain."""

    name = "text_generation"
    problem_type = "text_generation"
    metrics = ("bleu", "chrf", "rouge1", "rouge2", "rougeL")
    default_metrics = metrics
    metric_refusal = '"{}" needs classes or scores; a text has bleu, chrf, rouge1, rouge2 and rougeL'
    exclusive = False
    dtype = "string"
    writes = True
    columns = ("source", "target")

    @classmethod
    def has_head(cls, num_outputs: int, problem_type: str | None) -> bool:
        """Never: what writes is no classifier."""
        return False

    @property
    def num_outputs(self) -> int:
        return 1

    @property
    def is_complete(self) -> bool:
        return True

    def describe(self) -> str:
        return "a text"

    def check(self) -> None:
        if self.names:
            raise ValueError("a text has no names of classes")
        if self.range:
            raise ValueError("a range is that of a score")

    @property
    def hidden(self) -> frozenset[str]:
        return frozenset({""})

    def read_labels(self, cells: Sequence[str], where: Where) -> Labels:
        empty = [row for row, cell in enumerate(cells) if not cell.strip()]
        broken = [row for row, cell in enumerate(cells) if not is_valid_text(cell)]
        if wrong := empty or broken:
            what = "the text to be written is empty" if empty else "the text to be written holds half a character"
            more = f", and {len(wrong) - 1:,} more" if len(wrong) > 1 else ""
            raise MbertError(
                "M391",
                what + more,
                where=where(wrong),
                allowed="A text of whole characters in every row, with at least one that is no space.",
                fix="Correct or delete the rows, or name the column of the texts to be written: --label COLUMN",
            )
        texts: Any = list(cells)
        return texts

    def label_text(self, label: Any) -> str:
        return str(label)

    def check_training_labels(self, labels: Sequence[Any], place: str) -> None:
        """Any texts can be trained on."""

    def examine(self, labels: Sequence[Any]) -> tuple[str, str]:
        distinct, words = len(set(labels)), [len(str(label).split()) for label in labels]
        mean = sum(words) / max(1, len(words))
        summary = f"{len(labels):,} texts to be written, {distinct:,} of them different, of {mean:.1f} words on average"
        return summary, f"{summary}: there is nothing to learn" if distinct < 2 else ""

    def label_array(self, labels: Labels) -> "np.ndarray":
        _no_head()

    def random_labels(self, generator: Any, count: int) -> "np.ndarray":
        _no_head()

    def predictions(self, logits: "np.ndarray") -> "np.ndarray":
        _no_head()

    def constant(self, labels: Sequence[Any]) -> Any:
        """Returns the commonest text, of equally common ones the first by letters."""
        counts = Counter(labels)
        return min(counts, key=lambda text: (-counts[text], text))

    def linear_model(self, seed: int) -> Any:
        _no_head()

    def report(self, predictions: "np.ndarray", labels: Sequence[Any]) -> dict[str, Any]:
        return {}

    def agreement(self, logits: "np.ndarray", others: "np.ndarray") -> float | None:
        return None

    def compare_with_teacher(self, logits: "np.ndarray", teacher: "np.ndarray") -> dict[str, float]:
        return {}

    def prediction_columns(self, logits: "np.ndarray") -> dict[str, list[Any]]:
        _no_head()

    def answers(self, logits: "np.ndarray") -> list[dict[str, Any]]:
        _no_head()

    def submission_text(self, prediction: Any, form: str) -> str:
        return str(prediction)


def _no_head() -> NoReturn:
    raise TypeError("a text is written by a decoder, and is no output of a head")
