"""A teacher and a student at hand: may every loss compare the two? Checked before any work; see `requirements.py`."""

from collections.abc import Mapping
from typing import Any

from microbert_cli.capture import ATTENTION
from microbert_cli.errors import MbertError
from microbert_cli.models import Loaded
from microbert_cli.requirements import check_widths, other_heads, other_width
from microbert_cli.terms import LossTerm


def check_pair(terms: Mapping[str, LossTerm], teacher: Loaded, student: Loaded, *, where: str) -> None:
    """Raises the error of the first loss, by its key in the recipe, that cannot compare this student with this teacher.

    M312 their token ids differ, M014 one shows no attention, M013 their heads differ, M094 their widths do, M095 heads of the
    loss's own do not divide them
    """
    for key, term in terms.items():
        if term.by_token:
            same_vocabulary(teacher.tokenizer, student.tokenizer, where=where, key=key)
    for key, term in terms.items():
        if term.asks_teacher:
            _check(key, term, teacher.model.config, student.model.config, where)


def same_vocabulary(one: Any, other: Any, *, where: str, key: str) -> None:
    """Raises M312 unless both tokenizers map every text to the same ids: what the loss `key` requires."""
    if one.get_vocab() != other.get_vocab():
        raise MbertError(
            "M312",
            f"teacher and student have different vocabularies ({len(one)} and {len(other)} tokens), and {key} needs the same "
            "token ids",
            where=where,
            allowed="Two models of one vocabulary: what this loss looks at is compared token by token. Logits and vectors of "
            "whole texts need none.",
            fix=f"Build the student anew (--student bert-4x312), or leave the loss out: --set {key}=0",
        )


def one_cut(one: Any, other: Any, *, where: str) -> None:
    """Raises M313 unless both tokenizers have one vocabulary: stage one gives both nets the same blocks of a corpus."""
    if one.get_vocab() != other.get_vocab():
        raise MbertError(
            "M313",
            f"teacher and student have other vocabularies ({len(one)} and {len(other)} tokens), and stage one cuts text once",
            where=where,
            allowed="Two models of one vocabulary: a corpus becomes blocks of one tokenizer's tokens. In stage two each "
            "of them reads every row in its own tokens.",
            fix="Build the student anew (--student bert-4x312), or go straight to mbert task-distill.",
        )


def other_tokens(teacher: Loaded, student: Loaded) -> bool:
    """Whether the two read a text as different token ids."""
    mapped: bool = teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab()
    return mapped


def _check(key: str, term: LossTerm, theirs: Any, ours: Any, where: str) -> None:
    if term.needs & {"scores", "qkv"}:
        for config in (theirs, ours):
            if config._attn_implementation != ATTENTION:
                raise _hidden_attention(config.model_type, where, key)
    if "heads" in term.requires and theirs.num_attention_heads != ours.num_attention_heads:
        raise other_heads(theirs.num_attention_heads, ours.num_attention_heads, key, where)
    if "width" in term.requires and theirs.hidden_size != ours.hidden_size:
        raise other_width(theirs.hidden_size, ours.hidden_size, key, where)
    if term.divides:
        number, widths = term.parameter(term.divides), {"student": ours.hidden_size, "teacher": theirs.hidden_size}
        for error in check_widths(f"{key}.{term.divides}", where, number, widths):
            raise error


def _hidden_attention(model_type: str, where: str, key: str) -> MbertError:
    return MbertError(
        "M014",
        f'the architecture "{model_type}" computes its attention by itself and does not show it, and {key} compares attention',
        where=where,
        allowed="BERT, RoBERTa, XLM-R, ELECTRA, DistilBERT, ALBERT, MobileBERT or ModernBERT, where attention is distilled.",
        fix=f"Leave attention out: --set {key}=0",
    )
