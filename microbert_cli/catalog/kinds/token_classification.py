"""A tag for every word of a text: named entities in BIO or BIOES, or any other tags, such as parts of speech.

A label is a tuple of class ids, one a word. Logits are [n, W, C]: NaN where a row has no such word, or a model did not read it
(cut off, or a word of no tokens). Such a word is predicted O where that is a tag, else nothing.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from microbert_cli.models.words.scores import count_entities, over_all
from microbert_cli.models.words.tags import OUTSIDE, Scheme, entities, scheme_of, split_tag
from microbert_cli.models.words.text import split_text, word_spans
from microbert_cli.recipe.task_kinds import (
    TOKENS,
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

NO_ANSWER = -1
FEWEST_ENTITIES = 8  # of a type: nothing is learnt from fewer


class Kind(NamedKind):
    """One of `names` for each word."""

    name = "token_classification"
    problem_type = TOKENS
    metrics = ("entity_f1", "entity_precision", "entity_recall", "accuracy", "macro_f1")
    default_metrics = ()
    metric_refusal = '"{}" is none of words, which have entity_f1, entity_precision, entity_recall, accuracy and macro_f1'
    exclusive = False
    of_words = True
    columns = ("tokens", "ner_tags")

    @classmethod
    def has_head(cls, num_outputs: int, problem_type: str | None) -> bool:
        return problem_type == cls.problem_type

    @classmethod
    def default_metrics_of(cls, names: Sequence[str]) -> tuple[str, ...]:
        """Entity scores and accuracy for entities; accuracy and macro F1 of words for other tags."""
        if not names:
            return ()
        return ("accuracy", "macro_f1") if scheme_of(names) == "plain" else cls.metrics[:4]

    @cached_property
    def scheme(self) -> Scheme:
        """How tags stand for entities."""
        return scheme_of(self.names)

    def check(self) -> None:
        super().check()
        if any(split_text(name) != [name] for name in self.names):
            raise ValueError("a tag must be one word, without spaces")

    def check_metrics(self, metrics: Sequence[str]) -> None:
        super().check_metrics(metrics)
        if self.scheme == "plain" and (entity := [metric for metric in metrics if metric.startswith("entity_")]):
            raise ValueError(f'"{entity[0]}" needs tags of entities, B-TYPE and I-TYPE; these have accuracy and macro_f1')

    def configure(self, config: Any) -> None:
        super().configure(config)
        config.problem_type = None  # transformers knows three, and none of them is of words
        # until a model is made, which says its class alone
        config.architectures = [*(getattr(config, "architectures", None) or ()), "ForTokenClassification"]

    @property
    def hidden(self) -> frozenset[str]:
        return frozenset({""})

    def read_labels(self, cells: Sequence[Any], where: Where) -> Labels:
        """Returns a tuple of class ids a row; `cells` are sequences of tags."""
        ids = {name: i for i, name in enumerate(self.names)}
        wrong = {
            row: f'the tag "{unknown[0]}" is none of the task\'s'
            for row, tags in enumerate(cells)
            if (unknown := [tag for tag in tags if tag not in ids])
        }
        if wrong:
            raise wrong_labels(wrong, self.describe(), where)
        labels: Any = [tuple(ids[tag] for tag in tags) for tags in cells]
        return labels

    def label_text(self, label: Any) -> str:
        return " ".join(self.names[i] for i in label)

    def check_training_labels(self, labels: Sequence[Any], place: str) -> None:
        present = {self.names[i] for label in labels for i in label}
        if len(present) < 2:
            raise too_few_classes(place, present, f"all words have the tag {' '.join(present)}")

    def examine(self, labels: Sequence[Any]) -> tuple[str, str]:
        words = sum(len(label) for label in labels)
        if self.scheme == "plain":
            counts = Counter(self.names[i] for label in labels for i in label)
            unit = "words"
        else:
            counts = Counter(span[0] for label in labels for span in entities(self._tags(label)))
            unit = "entities"
        summary = f"{len(labels):,} rows of {words:,} words; {unit}: "
        summary += ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) or "none"
        types = sorted({split_tag(name)[1] for name in self.names} - {""})
        rare = [name for name in types if counts[name] < FEWEST_ENTITIES]
        return summary, f"fewer than {FEWEST_ENTITIES} {unit} of {', '.join(rare)}: {summary}" if rare else ""

    def label_array(self, labels: Labels) -> "np.ndarray":
        """Returns the labels of all rows one behind the other; those of tokens are made where words meet tokens."""
        import numpy as np

        rows: Any = labels
        return np.asarray([i for label in rows for i in label or ()], dtype=np.int64)

    def class_weights(self, labels: Sequence[Any], wanted: ClassWeights) -> tuple[float, ...] | None:
        """Returns the weight of each tag; "balanced" is n / (C n_c), of n words with a label, n_c of them with tag c of C."""
        if wanted is None or not isinstance(wanted, str):
            return None if wanted is None else weights_by_name(self.names, wanted)
        counts = _counts(labels)
        return tuple(counts.total() / (len(self.names) * counts[i]) if counts[i] else 1.0 for i in range(len(self.names)))

    def head_bias(self, labels: Sequence[Any], weights: Sequence[float] | None) -> tuple[float, ...] | None:
        """Returns the log share of each tag, log w_c (n_c + 1/2) / sum of these, n_c words with tag c: most words are O."""
        counts = _counts(labels)
        shares = [weight * (counts[i] + 0.5) for i, weight in enumerate(weights or [1.0] * len(self.names))]
        total = sum(shares)
        return tuple(math.log(share / total) for share in shares)

    def random_labels(self, generator: Any, count: int) -> Any:
        return generator.integers(self.num_outputs, size=count)

    def predictions(self, logits: "np.ndarray") -> "np.ndarray":
        """Returns class ids [n, W]; for words without an answer that of O, or -1."""
        import numpy as np

        answered = np.isfinite(logits).all(-1)
        ids: np.ndarray = np.where(answered, np.where(answered[..., None], logits, 0.0).argmax(-1), self.unanswered)
        return ids

    @property
    def unanswered(self) -> int:
        """The prediction for a word that a model did not read."""
        return self.names.index(OUTSIDE) if OUTSIDE in self.names else NO_ANSWER

    def constant(self, labels: Sequence[Any]) -> Any:
        """Returns the commonest tag, which `constant_predictions` gives to every word."""
        return _counts(labels).most_common(1)[0][0]

    def constant_predictions(self, labels: Sequence[Any]) -> Any:
        commonest = self.constant(labels)
        return [(commonest,) * len(label) for label in labels]

    def linear_model(self, seed: int) -> Any:
        from sklearn.linear_model import SGDClassifier

        # Averaged stochastic descent: entity F1 of python-roles 0.675 in 4 s; L-BFGS has 0.685 in 47 s.
        return SGDClassifier(loss="log_loss", alpha=5e-6, average=True, max_iter=10, tol=None, random_state=seed)

    def report(self, predictions: Any, labels: Sequence[Any]) -> dict[str, Any]:
        """Returns precision, recall, F1 and support of every type of entity, or of every tag; words without an answer."""
        rows = list(self.rows_of(predictions, labels))
        lost = sum(i == NO_ANSWER for row in rows for i in row)
        facts: dict[str, Any] = {"labels": list(self.names), "words": sum(map(len, labels))}
        if self.scheme == "plain":
            from sklearn.metrics import precision_recall_fscore_support

            flat, gold = [i for row in rows for i in row], [i for label in labels for i in label]
            ids = range(len(self.names))
            columns = precision_recall_fscore_support(gold, flat, labels=ids, zero_division=0)
            by_tag = {
                name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
                for name, p, r, f, s in zip(self.names, *columns, strict=True)
            }
            return facts | {"classes": by_tag} | ({"unanswered_words": lost} if lost else {})
        counts = count_entities([self._tags(row) for row in rows], [self._tags(label) for label in labels])
        return facts | {"entities": {name: each.scores for name, each in counts.items()} | {"all": over_all(counts)}}

    def rows_of(self, predictions: Any, labels: Sequence[Any]) -> Iterator[tuple[int, ...]]:
        """Yields predictions [n, W], or rows of them, as tuples of as many ids as each row has words."""
        for row, label in zip(predictions, labels, strict=True):
            ids = tuple(int(i) for i in row[: len(label)])
            yield ids + (self.unanswered,) * (len(label) - len(ids))

    def _tags(self, ids: Sequence[int]) -> list[str]:
        return [self.names[i] if i != NO_ANSWER else OUTSIDE for i in ids]

    def agreement(self, logits: "np.ndarray", others: "np.ndarray") -> float | None:
        """Returns the share of words, or of tokens, with the same answer."""
        import numpy as np

        both = np.isfinite(logits).all(-1) & np.isfinite(others).all(-1)
        return float((logits.argmax(-1) == others.argmax(-1))[both].mean()) if both.any() else None

    def compare_with_teacher(self, logits: "np.ndarray", teacher: "np.ndarray") -> dict[str, float]:
        """Returns agreement, and KL(teacher || student) in nats, over the words that both answered."""
        import numpy as np

        width = min(logits.shape[1], teacher.shape[1])
        logits, teacher = logits[:, :width], teacher[:, :width]
        both = np.isfinite(logits).all(-1) & np.isfinite(teacher).all(-1)
        q, p = _probabilities(logits[both]), _probabilities(teacher[both])
        kl = (p * (np.log(p + 1e-12) - np.log(q + 1e-12))).sum(-1).mean()
        return {"agreement": float((p.argmax(-1) == q.argmax(-1)).mean()), "kl": float(kl)}

    def prediction_columns(self, logits: "np.ndarray") -> dict[str, list[Any]]:
        """Returns the tags of every row with spaces between them; of a word that was not read "-" where there is no O."""
        import numpy as np

        ids = self.predictions(logits)
        ends = [int(np.flatnonzero(row)[-1]) + 1 if row.any() else 0 for row in np.isfinite(logits).all(-1)]
        return {"prediction": [self._text(row[:end]) for row, end in zip(ids.tolist(), ends, strict=True)]}

    def _text(self, ids: Sequence[int]) -> str:
        return " ".join("-" if i == NO_ANSWER else self.names[i] for i in ids)

    def answers(self, logits: "np.ndarray") -> list[dict[str, Any]]:
        return [{"tags": text.split()} for text in self.prediction_columns(logits)["prediction"]]

    def text_answers(self, logits: "np.ndarray", texts: Sequence[tuple[str, ...]]) -> list[dict[str, Any]]:
        """Returns one record a text: words, tags, scores (the probability of the tag), and entities where tags stand for them.

        An entity has its type, text, mean score, and the character where it begins and that behind its end.
        """
        import numpy as np

        records = []
        for row, (text,) in zip(logits, texts, strict=True):
            spans = word_spans(text)
            answered = np.isfinite(row).all(-1)[: len(spans)]
            shares = _probabilities(np.where(answered[:, None], row[: len(spans)], 0.0)).max(-1)
            ids = self.predictions(row[None, : len(spans)])[0].tolist()
            ids += [self.unanswered] * (len(spans) - len(ids))
            scores: list[float | None] = [float(s) if a else None for s, a in zip(shares, answered, strict=True)]
            scores += [None] * (len(spans) - len(scores))
            tags = [None if i == NO_ANSWER else self.names[i] for i in ids]
            record: dict[str, Any] = {"words": [text[a:b] for a, b in spans], "tags": tags, "scores": scores}
            if self.scheme != "plain":
                record["entities"] = list(_records(text, spans, self._tags(ids), scores))
            if None in scores:
                record["unread_words"] = scores.count(None)
            records.append(record)
        return records

    def submission_text(self, prediction: Any, form: str) -> str:
        raise ValueError("no test server takes tags of words")


def _records(
    text: str, spans: Sequence[tuple[int, int]], tags: Sequence[str], scores: Sequence[float | None]
) -> Iterator[dict[str, Any]]:
    for tag_type, first, end in entities(tags):
        start, stop = spans[first][0], spans[end - 1][1]
        given = [score for score in scores[first:end] if score is not None]
        score = sum(given) / len(given) if given else None
        yield {"type": tag_type, "text": text[start:stop], "start": start, "end": stop, "score": score}


def _probabilities(logits: "np.ndarray") -> "np.ndarray":
    from microbert_cli.models.predictor import probabilities  # loads numpy, which a task's TOML is read without

    return probabilities(logits)


def _counts(labels: Sequence[Any]) -> Counter[int]:
    """Returns how many words have each tag, by its number; None is a row that nobody labelled."""
    return Counter(i for label in labels for i in label or ())
