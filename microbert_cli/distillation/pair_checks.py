"""A teacher and a student at hand: may every loss compare the two? Checked before any work; see `requirements.py`."""

from collections.abc import Mapping
from typing import Any

from microbert_cli.errors import MbertError
from microbert_cli.models.capture import ATTENTION
from microbert_cli.models.load import LoadedModel
from microbert_cli.models.tokenizers import same_vocabulary
from microbert_cli.recipe.loss_checks import check_head_count, heads_mismatch, width_mismatch
from microbert_cli.training.loss_terms import LossTerm


def check_pair(terms: Mapping[str, LossTerm], teacher: LoadedModel, student: LoadedModel, *, where: str) -> None:
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


def _check(key: str, term: LossTerm, theirs: Any, ours: Any, where: str) -> None:
    if term.needs & {"scores", "qkv"}:
        for config in (theirs, ours):
            if config._attn_implementation != ATTENTION:
                raise _hidden_attention(config.model_type, where, key)
    if "heads" in term.requires and theirs.num_attention_heads != ours.num_attention_heads:
        raise heads_mismatch(theirs.num_attention_heads, ours.num_attention_heads, key, where)
    if "width" in term.requires and theirs.hidden_size != ours.hidden_size:
        raise width_mismatch(theirs.hidden_size, ours.hidden_size, key, where)
    if term.divides:
        number, widths = term.parameter(term.divides), {"student": ours.hidden_size, "teacher": theirs.hidden_size}
        for error in check_head_count(f"{key}.{term.divides}", where, number, widths):
            raise error


def _hidden_attention(model_type: str, where: str, key: str) -> MbertError:
    return MbertError(
        "M014",
        f'the architecture "{model_type}" computes its attention by itself and does not show it, and {key} compares attention',
        where=where,
        allowed="BERT, RoBERTa, XLM-R, ELECTRA, DistilBERT, ALBERT, MobileBERT or ModernBERT, where attention is distilled.",
        fix=f"Leave attention out: --set {key}=0",
    )


def other_tokens(teacher: LoadedModel, student: LoadedModel) -> bool:
    """Whether the two read a text as different token ids."""
    mapped: bool = teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab()
    return mapped
