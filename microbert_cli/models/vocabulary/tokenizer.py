"""Cuts a tokenizer to the tokens that are kept: the same rules, other numbers, in the same order."""

import copy
import json
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from microbert_cli.errors import MbertError
from microbert_cli.models.config import NO_CODE
from microbert_cli.models.vocabulary import closure

Numbers = dict[int, int]
TEXTS_AT_ONCE = 4096
TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"


def read_rules(tokenizer: Any, *, where: str) -> dict[str, Any]:
    """Returns the rules of a tokenizer as its `tokenizer.json` has them; raises M345 where they cannot be cut."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _uncuttable("it is written in Python alone, without a tokenizer.json", where)
    rules: dict[str, Any] = json.loads(backend.to_str())
    if (kind := rules["model"].get("type")) not in closure.MODELS:
        raise _uncuttable(f"its model is {kind}, which has nothing smaller to write a word with", where)
    return rules


def fall_backs(tokenizer: Any, rules: Mapping[str, Any]) -> set[int]:
    """Returns the ids of the tokens that any text can be written with."""
    backend = tokenizer.backend_tokenizer

    def occurs(piece: str) -> bool:
        normal = backend.normalizer.normalize_str(piece) if backend.normalizer else piece
        words = backend.pre_tokenizer.pre_tokenize_str(normal) if backend.pre_tokenizer else [(normal, None)]
        return len(words) == 1 and piece in words[0][0]

    return closure.fall_backs(rules, occurs)


def renumbered(rules: Mapping[str, Any], kept: Collection[int]) -> Numbers:
    """Returns the new id of each kept token: 0, 1, ... in the order of the old ones, tokens added behind the model's last."""
    of_model = set(closure.model_numbers(rules["model"]).values())
    order = sorted(set(kept), key=lambda number: (number not in of_model, number))
    return {old: new for new, old in enumerate(order)}


def cut_rules(rules: Mapping[str, Any], numbers: Mapping[int, int]) -> dict[str, Any]:
    """Returns the rules of the smaller vocabulary; scores and the order of merges are as they were."""
    cut = {**rules, "model": _cut_model(rules["model"], numbers)}
    cut["added_tokens"] = [{**token, "id": numbers[token["id"]]} for token in rules["added_tokens"]]
    cut["post_processor"] = _cut_processor(rules.get("post_processor"), numbers)
    if padding := rules.get("padding"):
        cut["padding"] = {**padding, "pad_id": numbers[padding["pad_id"]]}
    return cut


def _cut_model(model: Mapping[str, Any], numbers: Mapping[int, int]) -> dict[str, Any]:
    if model["type"] == "Unigram":
        unknown = model["unk_id"]
        pieces = [entry for number, entry in enumerate(model["vocab"]) if number in numbers]
        return {**model, "vocab": pieces, "unk_id": None if unknown is None else numbers[unknown]}
    pairs = sorted((numbers[number], piece) for piece, number in model["vocab"].items() if number in numbers)
    cut = {**model, "vocab": {piece: number for number, piece in pairs}}
    if model["type"] == "BPE":
        kept = cut["vocab"].keys()
        ranks = closure.merge_ranks(model)
        cut["merges"] = [
            list(pair) for pair in sorted(ranks, key=lambda pair: ranks[pair]) if kept >= {*pair, closure.merged(*pair, model)}
        ]
    return cut


def _cut_processor(processor: Any, numbers: Mapping[int, int]) -> Any:
    """Returns what puts special tokens around a text, with their new ids."""
    if not isinstance(processor, Mapping):
        return processor
    cut = dict(processor)
    for end in ("sep", "cls"):  # of BertProcessing and RobertaProcessing: [token, id]
        if isinstance(cut.get(end), list):
            cut[end] = [cut[end][0], numbers[cut[end][1]]]
    if isinstance(tokens := cut.get("special_tokens"), Mapping):
        cut["special_tokens"] = {
            name: {**token, "ids": [numbers[number] for number in token["ids"]]} for name, token in tokens.items()
        }
    if isinstance(cut.get("processors"), list):
        cut["processors"] = [_cut_processor(inner, numbers) for inner in cut["processors"]]
    return cut


def cut_tokenizer(tokenizer: Any, rules: Mapping[str, Any], numbers: Mapping[int, int], config: Any, *, where: str) -> Any:
    """Returns the tokenizer of the smaller vocabulary, as transformers loads it from its files.

    config  of the smaller model, whose type decides the tokenizer's class
    Raises M345 where the class builds another vocabulary of the same files.
    """
    cut = cut_rules(rules, numbers)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        config.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        (directory / TOKENIZER_FILE).write_text(json.dumps(cut, ensure_ascii=False), encoding="utf-8")
        _cut_settings(directory / SETTINGS_FILE, numbers)
        for other in directory.iterdir():  # of other forms of the vocabulary, which would be the uncut one
            if other.name not in (TOKENIZER_FILE, SETTINGS_FILE, "config.json"):
                other.unlink()
        smaller = AutoTokenizer.from_pretrained(directory, config=config, **NO_CODE)
    if smaller.get_vocab() != {token: numbers[old] for token, old in tokenizer.get_vocab().items() if old in numbers}:
        raise _uncuttable(f"{type(smaller).__name__} builds another vocabulary of a smaller tokenizer.json", where)
    return smaller


def _cut_settings(path: Path, numbers: Mapping[int, int]) -> None:
    """Rewrites the ids in a tokenizer_config.json, which lists added tokens by id."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(added := settings.get("added_tokens_decoder"), dict):
        settings["added_tokens_decoder"] = {str(numbers[int(old)]): token for old, token in added.items()}
    path.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Returns the token ids of texts, without special tokens, whole."""
    return list(encode_each(tokenizer, texts))


def encode_each(tokenizer: Any, texts: Iterable[str]) -> Iterator[list[int]]:
    """Yields the token ids of each text, without special tokens, whole; texts are read a part at a time."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    remaining = iter(texts)
    while part := list(islice(remaining, TEXTS_AT_ONCE)):
        yield from (encoding.ids for encoding in backend.encode_batch(part, add_special_tokens=False))


def _uncuttable(what: str, where: str) -> MbertError:
    return MbertError(
        "M345",
        f"the vocabulary of this tokenizer cannot be cut: {what}",
        where=where,
        allowed=f"A tokenizer.json whose model is {', '.join(closure.MODELS)}, as those of BERT, RoBERTa and XLM-R.",
        fix="Leave the stage trim out, or take a model with such a tokenizer.",
    )
