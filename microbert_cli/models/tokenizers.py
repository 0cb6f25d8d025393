"""Tokenizers: loaded, checked against the embedding table, compared; and their rows of pairs, cut into single texts."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_MAPPING, AutoTokenizer

from microbert_cli.errors import MbertError, unreadable_model
from microbert_cli.models.architectures import VOCABULARY, forward_parameters, model_shape, model_type_of
from microbert_cli.models.config import NO_CODE


def same_vocabulary(teacher: Any, student: Any, *, where: str, keys: Sequence[str], without: str = "0") -> None:
    """Raises M312 unless both tokenizers map every text to the same ids, as what stands under `keys` requires.

    without  the value that does without
    """
    if teacher.get_vocab() != student.get_vocab():
        leave_out = " ".join(f"--set {key}={without}" for key in keys)
        raise MbertError(
            "M312",
            f"teacher and student have different vocabularies ({len(teacher)} and {len(student)} tokens), and {keys[0]} needs "
            "the same token ids",
            where=where,
            allowed="Two models of one vocabulary: what is looked at here is compared token by token. Logits and vectors of "
            "whole texts need none.",
            fix=f"Build the student anew (--student bert-4x312), or leave out what needs it: {leave_out}",
        )


def same_tokens(teacher: Any, student: Any, *, where: str) -> None:
    """Raises M313 unless both tokenizers have one vocabulary: stage one gives both nets the same blocks of a corpus."""
    if teacher.get_vocab() != student.get_vocab():
        raise MbertError(
            "M313",
            f"teacher and student have other vocabularies ({len(teacher)} and {len(student)} tokens), and stage one "
            "cuts text once",
            where=where,
            allowed="Two models of one vocabulary: a corpus becomes blocks of one tokenizer's tokens. In stage two each "
            "of them reads every row in its own tokens.",
            fix="Build the student anew (--student bert-4x312), or go straight to mbert task-distill.",
        )


def load_tokenizer(path: str | Path, config: Any, *, where: str) -> Any:
    """Loads the tokenizer beside a model and checks it against the embedding table.

    From a missing vocabulary transformers silently builds a tokenizer of nothing but special tokens.
    Raises M303 (another vocabulary), M336 (inputs that are not token ids), M338 (no vocabulary at all).
    """
    if not model_shape(config).vocabulary:
        raise _no_vocabulary(config, f"{where} {path}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, config=config, **NO_CODE)
    except Exception as error:  # tokenizers' Rust code raises bare exceptions
        if not _has_vocabulary(Path(path)):
            raise _no_tokenizer(path, config, where) from error
        raise unreadable_model(path, where, error) from error
    # Both would be written beside what is made of the model: templates under names of their own, and a call for code.
    tokenizer.chat_template, tokenizer._auto_map = None, None
    tokenizer.init_kwargs.pop("auto_map", None)
    size, rows = rows_needed(tokenizer), model_shape(config).vocabulary
    if size <= len(tokenizer.all_special_ids):
        raise _no_tokenizer(path, config, where)
    if size > rows:
        raise _wrong_tokenizer(f"the tokenizer knows {size} tokens, the model's embedding has {rows} rows", path, where)
    _check_inputs(tokenizer, config, f"{where} {path}")
    return tokenizer


CARRIED_INPUTS = frozenset(("input_ids", "attention_mask", "token_type_ids"))


def _check_inputs(tokenizer: Any, config: Any, where: str) -> None:
    """Raises M336 where the tokenizer gives inputs that the model reads and batches do not hold."""
    others = tokenizer("a").keys() - CARRIED_INPUTS
    if not others or type(config) not in MODEL_MAPPING:
        return
    read = sorted(others & (forward_parameters(MODEL_MAPPING[type(config)]) or set()))
    if read:
        raise MbertError(
            "M336",
            f'the architecture "{model_type_of(config)}" reads {" and ".join(read)} beside token ids, and would answer '
            "otherwise without",
            where=where,
            allowed="Models that read token ids, with an attention mask and segments.",
            fix="Take a model of another architecture.",
        )


def _no_vocabulary(config: Any, where: str) -> MbertError:
    return MbertError(
        "M338",
        f'the architecture "{model_type_of(config)}" has no vocabulary: it reads characters, or something else than text',
        where=where,
        allowed="Models with a table of token embeddings (vocab_size in config.json) and a tokenizer of that vocabulary.",
        fix="Take a model of another architecture.",
    )


def pad_right(tokenizer: Any) -> Any:
    """Returns a tokenizer that pads on the right, for a new student: its head reads the first token, as XLNet's the last."""
    if tokenizer.padding_side != "right":
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "right"
    return tokenizer


def _has_vocabulary(path: Path) -> bool:
    return any(True for pattern in VOCABULARY for _ in path.glob(pattern))


def _no_tokenizer(path: str | Path, config: Any, where: str) -> MbertError:
    what = f"there is no tokenizer beside this model, whose embedding has {model_shape(config).vocabulary} rows"
    return _wrong_tokenizer(what, path, where)


def _wrong_tokenizer(what: str, path: str | Path, where: str) -> MbertError:
    return MbertError(
        "M303",
        what,
        where=f"{where} {path}",
        allowed="A tokenizer of the model's own vocabulary beside its weights.",
        fix="Copy tokenizer.json or vocab.txt of the same model into the directory.",
    )


def rows_needed(tokenizer: Any) -> int:
    """Returns the rows of the embedding table that a tokenizer needs: one more than the highest id, as ids may have gaps."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def separator_id(tokenizer: Any, *, where: str) -> int:
    """Returns the id of the token that ends a text, by which the two texts of a pair can be told apart; raises M325."""
    if tokenizer.sep_token_id is None or tokenizer.cls_token_id is None:
        raise MbertError(
            "M325",
            "this tokenizer puts no tokens before and between the two texts of a pair, so that they cannot be read apart",
            where=where,
            allowed="Tokenizers like those of BERT, RoBERTa and DistilBERT, which have a token for both.",
            fix="Choose another student: mbert list students",
        )
    return int(tokenizer.sep_token_id)


def separate(
    ids_BT: Tensor, mask_BT: Tensor | None, segments_BT: Tensor | None, *, separator: int | None, pad: int
) -> tuple[Tensor, Tensor]:
    """Returns ids and mask [2 B, L] of the texts of pairs: B first texts, then B second ones; L tokens has the longest.

    A row's first token, such as [CLS], begins its second text as well.
    """
    real_BT = torch.ones_like(ids_BT, dtype=torch.bool) if mask_BT is None else mask_BT.bool()
    if segments_BT is None:
        first_BT, second_BT = _by_separator(ids_BT, real_BT, separator)
    else:
        first_BT, second_BT = real_BT & (segments_BT != 1), real_BT & (segments_BT == 1)
    lengths_2B = torch.cat([first_BT.sum(1), second_BT.sum(1) + 1])
    start_B = (real_BT.cumsum(1) == 0).sum(1)
    second_start_B = (second_BT.cumsum(1) == 0).sum(1)
    steps_L = torch.arange(_longest(lengths_2B, ids_BT.shape[1]), device=ids_BT.device)
    positions = [start_B[:, None] + steps_L, torch.where(steps_L == 0, start_B[:, None], second_start_B[:, None] + steps_L - 1)]
    texts_mask = (steps_L < lengths_2B[:, None]).long()
    taken = torch.cat([ids_BT.gather(1, rows.clamp(max=ids_BT.shape[1] - 1)) for rows in positions])
    return torch.where(texts_mask == 1, taken, pad), texts_mask


def _by_separator(ids_BT: Tensor, real_BT: Tensor, separator: int | None) -> tuple[Tensor, Tensor]:
    """Returns which tokens [B, T] are of the first text, its separator included, and which of the second.

    A separator next to it is of neither: RoBERTa has two between texts. Of an empty second text the last one is left.
    """
    if separator is None:
        raise ValueError("rows without token_type_ids are told apart by separator_token_id, and the configuration has none")
    separators_BT = (torch.eq(ids_BT, separator) & real_BT).long()
    earlier_BT = separators_BT.cumsum(1) - separators_BT
    is_last_BT = real_BT.long().flip(1).cumsum(1).flip(1) == 1
    begun_BT = ((earlier_BT > 0) & ((separators_BT == 0) | is_last_BT)).cumsum(1) > 0
    return real_BT & (earlier_BT == 0), real_BT & begun_BT


def _longest(lengths_2B: Tensor, width: int) -> Any:
    """Returns the tokens of the longest text; all of a row's where values cannot be looked at."""
    if lengths_2B.device.type == "meta":
        return width
    longest = lengths_2B.max().item()
    if torch.compiler.is_exporting():
        torch._check(longest >= 2)
        torch._check(longest <= width)
    return longest
