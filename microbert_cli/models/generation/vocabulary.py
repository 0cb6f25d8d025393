"""The vocabulary of a student that writes: the teacher's tokens that the training texts use, under numbers of its own.

It holds every token of the training sources and targets, special tokens, and what any other text can be written with
(`models/vocabulary/closure.py`). All of it are tokens of the teacher: the same piece of a text has a number in both
vocabularies, which `teacher_ids` looks up by the token itself.
"""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from microbert_cli.errors import MbertError, unreadable_model
from microbert_cli.models.config import NO_CODE
from microbert_cli.models.tokenizers import rows_needed
from microbert_cli.models.vocabulary import closure
from microbert_cli.models.vocabulary.tokenizer import cut_tokenizer, encode_each, fall_backs, read_rules, renumbered
from microbert_cli.models.vocabulary.weights import cut_config, named_ids
from microbert_cli.reporter import SILENT, Reporter

FOLDER = "target"  # of a teacher's directory: the tokenizer of the student that it can teach
NEEDED = {"cls_token_id": "begins a text", "sep_token_id": "ends a text", "pad_token_id": "fills up a row"}


def vocabulary_of_texts(tokenizer: Any, config: Any, texts: Iterable[str], *, where: str, reporter: Reporter = SILENT) -> Any:
    """Returns a tokenizer of the tokens that `texts` use and of what any text can be written with.

    config  of the model that the tokenizer belongs to, whose type decides the tokenizer's class
    A tokenizer that cannot be cut (M345) is returned as it is. Raises M392 where it has no token for an end or for padding.
    """
    check_special_tokens(tokenizer, where=where)
    try:
        rules = read_rules(tokenizer, where=where)
        added = closure.added_numbers(rules) | named_ids(config) & set(closure.token_numbers(rules).values())
        parts = closure.parts_of(rules)
        tokens = set(chain.from_iterable(encode_each(tokenizer, texts)))
        used = {part for number in tokens | fall_backs(tokenizer, rules) for part in parts(number)}
        numbers = renumbered(rules, added | used)
        smaller = cut_tokenizer(tokenizer, rules, numbers, cut_config(config, numbers), where=where)
    except MbertError as error:
        if error.code != "M345":
            raise
        reporter.note(f"the student takes all {len(tokenizer):,} tokens of the teacher: {error.what}")
        return tokenizer
    reporter.note(f"the student takes {len(smaller):,} of the teacher's {len(tokenizer):,} tokens: those that the rows use")
    return smaller


def check_special_tokens(tokenizer: Any, *, where: str, hides: bool = False) -> None:
    """Raises M392 where a tokenizer lacks a token that begins, ends or fills up a row; with `hides` one that hides a word."""
    needed = NEEDED | ({"mask_token_id": "hides a word"} if hides else {})
    if missing := [use for name, use in needed.items() if getattr(tokenizer, name, None) is None]:
        raise MbertError(
            "M392",
            f"this tokenizer has no token that {missing[0]}",
            where=where,
            allowed="Tokenizers like those of BERT and RoBERTa: with [CLS], [SEP], [PAD], of a teacher also [MASK].",
            fix="Take a model with such a tokenizer: --set base=google-bert/bert-base-uncased",
        )


def teacher_ids(student: Any, teacher: Any, *, where: str) -> np.ndarray:
    """Returns the teacher's id of each of the student's tokens, [V] by the student's id; raises M393 where one has none."""
    numbers = teacher.get_vocab()
    if foreign := [token for token in student.get_vocab() if token not in numbers]:
        raise MbertError(
            "M393",
            f"{len(foreign):,} tokens of this student are none of the teacher's, such as {foreign[0]!r}",
            where=where,
            allowed="A new student, which takes the teacher's tokens; or one that was begun so. The teacher fills in a target "
            "token by token, so that both must cut it alike.",
            fix="Begin a new one: --student seq2seq",
        )
    ids = np.full(rows_needed(student), numbers[teacher.unk_token] if teacher.unk_token in numbers else 0, dtype=np.int64)
    for token, number in student.get_vocab().items():
        ids[number] = numbers[token]
    return ids


def load_target_tokenizer(directory: str | Path, *, where: str, about: str = "--task TASK") -> Any:
    """Loads the student's tokenizer beside a teacher; raises M394 for a model that was not trained as such a teacher.

    about  the options of a command that name the task
    """
    folder = Path(directory) / FOLDER
    if not folder.is_dir():
        raise MbertError(
            "M394",
            "this model was not trained to fill in targets: it has no target vocabulary",
            where=f"{where} {directory}",
            allowed="What `mbert finetune` makes of a masked-LM on the rows of this task.",
            fix=f"Train it first: mbert finetune --model {directory} {about}",
        )
    try:
        return AutoTokenizer.from_pretrained(folder, **NO_CODE)
    except Exception as error:  # tokenizers' Rust code raises bare exceptions
        raise unreadable_model(folder, where, error) from error
