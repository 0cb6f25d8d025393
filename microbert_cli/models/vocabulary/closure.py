"""Which tokens a smaller vocabulary must have beside those that texts use, read off a `tokenizer.json`.

Two things are promised. A text whose tokens are all kept is split exactly as before. And no text fails: what the tokenizer
could write without its unknown token, it still can, if need be character by character.

WordPiece  takes the longest piece that fits, so that leaving out others changes nothing. All single characters stay.
BPE        merges pairs by rank. The pieces on the way to a kept token stay, with every merge of kept pieces. What is left of
           the list has the same order, and no merge of a kept word is missing, so that the same ones are applied.
Unigram    takes the split of the highest sum of log-probabilities; the best of all splits is the best of some of them. The
           piece of the lowest one stays, as an unknown character counts 10 less than that.

A character that a vocabulary has only inside longer pieces cannot be written alone: all pieces with it stay.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
MODELS = ("WordPiece", "BPE", "Unigram")
Spec = Mapping[str, Any]


def token_numbers(spec: Spec) -> dict[str, int]:
    """Returns the id of every token, those added to the model's vocabulary among them."""
    return model_numbers(spec["model"]) | {token["content"]: token["id"] for token in spec["added_tokens"]}


def model_numbers(model: Spec) -> dict[str, int]:
    """Returns the id of every piece of the tokenizer's own model."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, Mapping):
        return dict(vocabulary)
    return {piece: number for number, (piece, _) in enumerate(vocabulary)}


def added_numbers(spec: Spec) -> set[int]:
    """Returns the ids of special and added tokens, and of the unknown one: they always stay."""
    model, numbers = spec["model"], model_numbers(spec["model"])
    unknown = {numbers[model["unk_token"]]} if model.get("unk_token") in numbers else set()
    if model.get("unk_id") is not None:  # XLM-R's class takes the unknown piece by its position
        unknown = set(range(model["unk_id"] + 1))
    return {token["id"] for token in spec["added_tokens"]} | unknown


def fall_backs(spec: Spec, occurs: Callable[[str], bool] = lambda piece: True) -> set[int]:
    """Returns the ids of what a text can always be written with: single characters, bytes, pieces of rare characters.

    occurs  whether a piece, bare of prefix and suffix, can be part of a word at all: "[unused7]" cannot
    """
    model, numbers = spec["model"], model_numbers(spec["model"])
    units = {piece for piece in numbers if len(bare(piece, model)) == 1 or BYTE.fullmatch(piece)}
    if model["type"] == "Unigram":
        units.add(min(model["vocab"], key=lambda entry: entry[1])[0])
    if model["type"] != "BPE":  # which starts from single characters, whatever pieces there are
        units |= {
            piece for piece in numbers
            if not units.issuperset(symbols(piece, model)) and occurs(bare(piece, model))
        }  # fmt: skip
    return {numbers[piece] for piece in units}


def parts_of(spec: Spec) -> Callable[[int], set[int]]:
    """Returns a function: the ids of the pieces that a token is merged from, itself among them; of no BPE itself alone."""
    model = spec["model"]
    if model["type"] != "BPE":
        return lambda number: {number}
    numbers, ranks = model_numbers(model), merge_ranks(model)
    names = {number: piece for piece, number in numbers.items()}

    def parts(number: int) -> set[int]:
        pieces = pieces_on_the_way(names[number], model, ranks) if number in names else ()
        return {number, *(numbers[piece] for piece in pieces if piece in numbers)}

    return parts


def merge_ranks(model: Spec) -> dict[tuple[str, str], int]:
    """Returns the rank of every merge of a BPE, the lowest applied first."""
    pairs = (tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"])
    return {(left, right): rank for rank, (left, right) in enumerate(pairs)}


def merged(left: str, right: str, model: Spec) -> str:
    """Returns the piece that two neighbours become."""
    return left + right.removeprefix(model.get("continuing_subword_prefix") or "")


def pieces_on_the_way(token: str, model: Spec, ranks: Mapping[tuple[str, str], int]) -> Iterator[str]:
    """Yields all pieces that occur while a token is merged from its characters, as BPE merges it wherever it ends whole.

    What stands beside a token in a word has no part in it: no merge goes over its borders, or it would not end there.
    """
    pieces = symbols(token, model)
    yield from pieces
    while len(pieces) > 1:
        pairs = list(zip(pieces, pieces[1:], strict=False))
        rank, place = min((ranks.get(pair, len(ranks)), place) for place, pair in enumerate(pairs))
        if rank == len(ranks):
            return
        pieces[place : place + 2] = [merged(*pairs[place], model)]
        yield pieces[place]


def symbols(token: str, model: Spec) -> list[str]:
    """Returns a token as single characters in the vocabulary's form: "##ab" -> ["##a", "##b"], "ab" -> ["a", "##b"]."""
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    characters, inner = bare(token, model), bool(prefix) and token.startswith(prefix) and token != prefix
    forms = [f"{prefix if number or inner else ''}{character}" for number, character in enumerate(characters)]
    if forms and suffix and token.endswith(suffix) and token != suffix:
        forms[-1] += suffix
    return forms


def bare(token: str, model: Spec) -> str:
    """Returns a token without the marks of a vocabulary: "##ing" -> "ing", "ing</w>" -> "ing"."""
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    return (token.removeprefix(prefix) or token).removesuffix(suffix) or token
