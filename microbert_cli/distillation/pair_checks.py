"""Checks that every loss can compare a loaded teacher with a loaded student, before anything is trained.

`recipe/loss_checks.py` makes the same checks earlier, from the recipe alone, wherever the shapes are known without loading.
"""

from collections.abc import Mapping
from typing import Any

from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import architecture_of, input_names, model_shape, model_type_of
from microbert_cli.models.capture import ATTENTION
from microbert_cli.models.load import LoadedModel
from microbert_cli.models.tokenizers import same_vocabulary
from microbert_cli.recipe.loss_checks import check_head_count, heads_mismatch, width_mismatch
from microbert_cli.training.loss_terms import LossTerm

ANSWERS_ALONE = "Losses on answers: soft_target, hard_label, logit_mse."
INSIDE = {"hidden", "layers", "scores", "qkv", "token_logits"}  # what there is of every token


def check_pair(terms: Mapping[str, LossTerm], teacher: LoadedModel, student: LoadedModel, *, where: str) -> None:
    """Raises the error of the first loss, by its key in the recipe, that cannot compare this student with this teacher.

    M329 one of them is no Transformer, M326 one of them reads pairs apart, M312 their token ids differ,
    M337 one of them pads on the left, M014 one of them does not give attention scores, M013 their numbers of heads differ,
    M094 their widths differ, M095 the loss's own number of heads does not divide the widths
    """
    inside = [key for key, term in terms.items() if term.asks_teacher and term.needs & INSIDE]
    for model in (teacher, student):
        if inside and architecture_of(model.model.config).recurrent:
            raise _no_transformer(model_type_of(model.model.config), where, inside)
    if inside and any(getattr(model.model, "reads_apart", False) for model in (teacher, student)):
        raise _read_apart(where, inside)
    if by_token := [key for key, term in terms.items() if term.by_token]:
        same_vocabulary(teacher.tokenizer, student.tokenizer, where=where, keys=by_token)
    for key, term in terms.items():
        if (
            term.asks_teacher
            and term.needs & {"hidden", "layers", "scores", "qkv"}
            and "left" in _padding_sides(teacher, student)
        ):
            raise _padded_left(
                where, [key for key, term in terms.items() if term.needs & {"hidden", "layers", "scores", "qkv"}]
            )
    for key, term in terms.items():
        if term.asks_teacher:
            _check_term(key, term, teacher.model.config, student.model.config, where)


def _check_term(key: str, term: LossTerm, teacher: Any, student: Any, where: str) -> None:
    if term.needs & {"scores", "qkv"} or "heads" in term.requires:
        for config in (teacher, student):
            if config._attn_implementation != ATTENTION or model_shape(config).heads is None:
                raise _no_attention_scores(model_type_of(config), where, key)
    teacher_shape, student_shape = model_shape(teacher), model_shape(student)
    if "heads" in term.requires and teacher_shape.heads != student_shape.heads:
        raise heads_mismatch(teacher_shape.heads or 0, student_shape.heads or 0, key, where)
    if "width" in term.requires and teacher_shape.width != student_shape.width:
        raise width_mismatch(teacher_shape.width, student_shape.width, key, where)
    if term.divides:
        number, widths = term.parameter(term.divides), {"student": student_shape.width, "teacher": teacher_shape.width}
        for error in check_head_count(f"{key}.{term.divides}", where, number, widths):
            raise error


def _no_attention_scores(model_type: str, where: str, key: str) -> MbertError:
    return MbertError(
        "M014",
        f'the architecture "{model_type}" computes its attention by itself and does not show it, and {key} compares attention',
        where=where,
        allowed="BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA, DistilBERT, ALBERT, MobileBERT, ModernBERT, EuroBERT and others, "
        "where attention is distilled: docs/architectures.md, column teaches layers.",
        fix=f"Leave attention out: --set {key}=0",
    )


def _no_transformer(model_type: str, where: str, keys: list[str]) -> MbertError:
    return MbertError(
        "M329",
        f'"{model_type}" is no Transformer and has no layers of tokens to compare, and {" and ".join(keys)} '
        f"compare{'s' * (len(keys) == 1)} layers",
        where=where,
        allowed=ANSWERS_ALONE,
        fix=f"{_leave_out(keys)}; or take a method of answers alone: --set method=bilstm",
    )


def _read_apart(where: str, keys: list[str]) -> MbertError:
    return MbertError(
        "M326",
        f"one of the two reads the texts of a pair apart, so that it has no layers of the pair, and {' and '.join(keys)} "
        f"compare{'s' * (len(keys) == 1)} layers",
        where=where,
        allowed=ANSWERS_ALONE,
        fix=f"{_leave_out(keys)}; or take a method of answers alone: --set method=kd",
    )


def _leave_out(keys: list[str]) -> str:
    return f"Leave out what compares layers: {' '.join(f'--set {key}=0' for key in keys)}"


def _padding_sides(*models: LoadedModel) -> set[str]:
    return {model.tokenizer.padding_side for model in models}


def _padded_left(where: str, keys: list[str]) -> MbertError:
    return MbertError(
        "M337",
        "one of the two pads texts on the left and reads the last token (XLNet), and "
        f"{' and '.join(keys)} compare{'s' * (len(keys) == 1)} tokens by their place",
        where=where,
        allowed="Teachers and students that pad on the right, where layers are compared; losses on answers take any.",
        fix=f"Leave out what compares layers: {' '.join(f'--set {key}=0' for key in keys)}",
    )


def vocabularies_differ(teacher: LoadedModel, student: LoadedModel) -> bool:
    """Whether teacher and student turn a text into different token ids."""
    differ: bool = teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab()
    return differ


def encodings_differ(teacher: LoadedModel, student: LoadedModel) -> bool:
    """Whether a teacher cannot read the student's batches: other token ids, padding side or segments."""
    takes_segments = "token_type_ids" in input_names(teacher.model)
    gives_segments = {takes_segments and "token_type_ids" in model.tokenizer.model_input_names for model in (teacher, student)}
    sides = _padding_sides(teacher, student)
    return vocabularies_differ(teacher, student) or len(sides) > 1 or len(gives_segments) > 1
