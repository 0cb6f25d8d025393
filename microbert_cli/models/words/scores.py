"""Scores of entities, as seqeval computes them: an entity is right where its type and both of its ends are.

    precision = right / predicted      recall = right / gold      F1 = 2 p r / (p + r), 0 where there is nothing

Over all entities at once ("micro"), and of each type.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from microbert_cli.models.words.tags import entities


@dataclass
class EntityCounts:
    """Entities of one type: right ones, predicted ones, gold ones."""

    right: int = 0
    predicted: int = 0
    gold: int = 0

    @property
    def scores(self) -> dict[str, float | int]:
        """Precision, recall, F1 and support."""
        precision = self.right / self.predicted if self.predicted else 0.0
        recall = self.right / self.gold if self.gold else 0.0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        return {"precision": precision, "recall": recall, "f1": f1, "support": self.gold}


def count_entities(predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> dict[str, EntityCounts]:
    """Returns the counts by type, in alphabetical order, of rows of tags."""
    counts: dict[str, EntityCounts] = {}
    for predicted_tags, gold_tags in zip(predicted, gold, strict=True):
        predicted_spans, gold_spans = set(entities(predicted_tags)), set(entities(gold_tags))
        for spans, name in ((predicted_spans & gold_spans, "right"), (predicted_spans, "predicted"), (gold_spans, "gold")):
            for tag_type, _, _ in spans:
                of_type = counts.setdefault(tag_type, EntityCounts())
                setattr(of_type, name, getattr(of_type, name) + 1)
    return dict(sorted(counts.items()))


def over_all(counts: dict[str, EntityCounts]) -> dict[str, float | int]:
    """Returns precision, recall, F1 and support over the entities of all types."""
    total = EntityCounts(*(sum(getattr(each, name) for each in counts.values()) for name in ("right", "predicted", "gold")))
    return total.scores
