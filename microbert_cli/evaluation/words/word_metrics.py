"""Metrics of tags: entity precision, recall and F1 over all types, accuracy and macro F1 of words."""

from collections.abc import Callable, Sequence
from typing import Any

from microbert_cli.evaluation.metrics import unknown_metric
from microbert_cli.models.words.scores import count_entities, over_all
from microbert_cli.models.words.tags import OUTSIDE
from microbert_cli.recipe.task_kinds import MEAN

Rows = Sequence[Sequence[int]]
NO_ANSWER = "-"  # the tag of a word that a model did not read, where there is no O
WORD_METRICS = ("entity_f1", "entity_precision", "entity_recall", "accuracy", "macro_f1")


def word_scores(metrics: Sequence[str], predicted: Any, labels: Rows, names: Sequence[str]) -> dict[str, float]:
    """Returns the named metrics of rows of class ids.

    predicted  as many rows as labels: [n, W], or of rows; what is behind a row's words is left alone, what lacks is O, or wrong
    """
    tags = [[names[i] for i in row] for row in labels]
    answers = [_answers(row, len(label), names) for row, label in zip(predicted, labels, strict=True)]
    named = [name for name in metrics if name != MEAN]
    if unknown := [name for name in named if name not in WORD_METRICS]:
        raise unknown_metric(unknown[0], WORD_METRICS)
    of_entities = over_all(count_entities(answers, tags)) if any(name.startswith("entity") for name in named) else {}
    scores = {
        name: float(of_entities[name.removeprefix("entity_")])
        if name.startswith("entity_")
        else OF_WORDS[name](_flat(tags), _flat(answers))
        for name in named
    }
    if MEAN in metrics:
        scores[MEAN] = sum(scores.values()) / len(scores)
    return {name: scores[name] for name in metrics}


def _answers(row: Sequence[int], words: int, names: Sequence[str]) -> list[str]:
    fill = OUTSIDE if OUTSIDE in names else NO_ANSWER
    answers = [names[int(i)] if i >= 0 else fill for i in row[:words]]
    return answers + [fill] * (words - len(answers))


def _flat(rows: Sequence[Sequence[str]]) -> list[str]:
    return [tag for row in rows for tag in row]


def _accuracy(gold: list[str], answers: list[str]) -> float:
    return sum(a == b for a, b in zip(gold, answers, strict=True)) / max(1, len(gold))


def _macro_f1(gold: list[str], answers: list[str]) -> float:
    from sklearn.metrics import f1_score  # a second of start-up that commands without scores do without

    return float(f1_score(gold, answers, average="macro", zero_division=0, labels=sorted(set(gold))))


OF_WORDS: dict[str, Callable[[list[str], list[str]], float]] = {"accuracy": _accuracy, "macro_f1": _macro_f1}
