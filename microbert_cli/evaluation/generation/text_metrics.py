"""BLEU, chrF and ROUGE of texts, as sacrebleu and Google's rouge-score compute them; all from 0 to 100, higher is better.

    bleu     corpus BLEU, sacrebleu's defaults (13a tokens, exponential smoothing)
    chrf     chrF2 of characters, sacrebleu's defaults
    rouge1, rouge2, rougeL   mean F of words, pairs of words, longest common subsequence; words are not stemmed

Texts are compared in lower case where the model's tokens know no other: the signature says so. A score without its signature
cannot be compared with anybody's.
"""

from collections.abc import Sequence
from typing import Any

from microbert_cli.errors import MbertError
from microbert_cli.recipe.task_kinds import MEAN

ROUGE = ("rouge1", "rouge2", "rougeL")
TEXT_METRICS = ("bleu", "chrf", *ROUGE)
INSTALL = 'Install them: pip install "microbert-cli[text]"'


def text_scores(
    names: Sequence[str], written: Sequence[str], references: Sequence[str], *, lower: bool = False
) -> dict[str, float]:
    """Returns the named metrics of n texts; raises M520 where their packages are missing."""
    if len(written) != len(references) or not len(references):
        raise ValueError(f"{len(written)} texts for {len(references)} references")
    scores: dict[str, float] = {}
    for name in [name for name in names if name not in (*ROUGE, MEAN)]:
        scores[name] = float(_sacrebleu(name, lower).corpus_score(list(written), [list(references)]).score)
    if rouge := [name for name in names if name in ROUGE]:
        scores |= _rouge(rouge, written, references)
    if MEAN in names:
        scores[MEAN] = sum(scores.values()) / len(scores)
    return {name: scores[name] for name in names}


def signatures(names: Sequence[str], *, lower: bool = False) -> dict[str, str]:
    """Returns what sacrebleu says of how its scores were computed, for those of `names` that are sacrebleu's."""
    signed = {}
    for name in names:
        if name not in (*ROUGE, MEAN):
            metric = _sacrebleu(name, lower)
            metric.corpus_score(["a"], [["a"]])  # which counts the references that the signature names
            signed[name] = str(metric.get_signature())
    return signed


def check_installed() -> None:
    """Raises M520 where sacrebleu or rouge-score is missing, before any work."""
    _module("sacrebleu.metrics")
    _module("rouge_score.rouge_scorer")


def _sacrebleu(name: str, lower: bool) -> Any:
    metrics = _module("sacrebleu.metrics")
    return metrics.BLEU(lowercase=lower) if name == "bleu" else metrics.CHRF(lowercase=lower)


def _rouge(names: list[str], written: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    scorer = _module("rouge_score.rouge_scorer").RougeScorer(names, tokenizer=_Words())
    rows = [scorer.score(reference, text) for reference, text in zip(references, written, strict=True)]
    return {name: 100 * sum(row[name].fmeasure for row in rows) / len(rows) for name in names}


class _Words:
    """Words for ROUGE: runs of letters and digits of any script; rouge-score's own keep ASCII alone."""

    def tokenize(self, text: str) -> list[str]:
        import re

        return re.findall(r"\w+", text.lower())


def _module(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise MbertError(
            "M520",
            f"texts are scored by sacrebleu and rouge-score, and {error.name} is not installed",
            where="metrics",
            allowed="Both packages.",
            fix=INSTALL,
        ) from error
