"""The tokenizer of an export through the package `tokenizers` alone, where it splits texts exactly as transformers would.

transformers builds a BERT tokenizer anew from the words of tokenizer.json and the settings of tokenizer_config.json, whatever
else tokenizer.json says. So the file is taken as it stands only where its own rules are those that transformers would set.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from microbert_cli.models.architectures import model_shape

# Classes of transformers that are BERT's, and the inputs that they give unless the file names others.
INPUTS: Mapping[str, Sequence[str]] = {
    "BertTokenizer": ("input_ids", "token_type_ids", "attention_mask"),
    "ElectraTokenizer": ("input_ids", "token_type_ids", "attention_mask"),
    "MobileBertTokenizer": ("input_ids", "token_type_ids", "attention_mask"),
    "DistilBertTokenizer": ("input_ids", "attention_mask"),
}
SPECIAL = {
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
}  # fmt: skip
MAX_CHARACTERS = 100  # of a word, beyond which transformers takes it for an unknown one
PLAIN_TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
# What would add tokens or change how they are split.
UNREAD_KEYS = ("auto_map", "extra_special_tokens", "additional_special_tokens", "split_special_tokens")
UNREAD_FILES = ("added_tokens.json", "special_tokens_map.json")


class ExportedTokenizer:
    """A BERT tokenizer with the part of transformers' interface that rows are encoded by."""

    def __init__(self, backend: Any, *, pad_token_id: int, padding_side: str, model_input_names: Sequence[str]):
        backend.no_truncation()
        backend.no_padding()
        self.backend_tokenizer = backend
        self.pad_token_id, self.padding_side, self.model_input_names = pad_token_id, padding_side, list(model_input_names)

    def __call__(
        self, *texts: Any, add_special_tokens: bool = True, return_offsets_mapping: bool = False, **_: Any
    ) -> dict[str, Any]:
        """Returns the ids of a list of texts; of a text or a pair its ids, segments and mask of special tokens.

        return_offsets_mapping  of a list also the characters where each token begins and ends

        Nothing is cut or padded, whatever else is asked for.
        """
        if isinstance(texts[0], list) and return_offsets_mapping:
            rows = self.backend_tokenizer.encode_batch(texts[0], add_special_tokens=add_special_tokens)
            return {"input_ids": [row.ids for row in rows], "offset_mapping": [row.offsets for row in rows]}
        if isinstance(texts[0], list):
            rows = self.backend_tokenizer.encode_batch_fast(texts[0], add_special_tokens=add_special_tokens)
            return {"input_ids": [row.ids for row in rows]}
        row = self.backend_tokenizer.encode(*texts, add_special_tokens=add_special_tokens)
        return {"input_ids": row.ids, "token_type_ids": row.type_ids, "special_tokens_mask": row.special_tokens_mask}

    def get_vocab(self) -> dict[str, int]:
        """Returns the id of every token."""
        vocabulary: dict[str, int] = self.backend_tokenizer.get_vocab(with_added_tokens=True)
        return vocabulary


def read_exported_tokenizer(directory: Path, config: Any) -> ExportedTokenizer | None:
    """Returns the tokenizer of an export; None where transformers has to say how it splits texts, or what is wrong with it."""
    with suppress(OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError, ImportError):
        if not any((directory / name).exists() for name in UNREAD_FILES):
            text = (directory / "tokenizer.json").read_text(encoding="utf-8")
            settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
            return _tokenizer(text, json.loads(text), settings, model_shape(config).vocabulary)
    return None


def _tokenizer(text: str, rules: Mapping[str, Any], settings: Mapping[str, Any], rows: int) -> ExportedTokenizer | None:
    """Returns the tokenizer of the text of a tokenizer.json; rows: of the table of embeddings."""
    inputs = INPUTS.get(settings["tokenizer_class"].removesuffix("Fast"))
    tokens = {name: settings.get(name, default) for name, default in SPECIAL.items()}
    vocabulary = rules["model"]["vocab"]
    if inputs is None or any(settings.get(key) for key in UNREAD_KEYS) or not _is_rebuilt_alike(rules, settings, tokens):
        return None
    if max(vocabulary.values()) >= rows or len(vocabulary) <= len(SPECIAL):
        return None
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(text)
    tokenizer = ExportedTokenizer(
        backend,
        pad_token_id=vocabulary[tokens["pad_token"]],
        padding_side=settings.get("padding_side", "right"),
        model_input_names=settings.get("model_input_names", inputs),
    )
    cls_id, sep_id = (vocabulary[tokens[name]] for name in ("cls_token", "sep_token"))
    return tokenizer if _frames_like_bert(tokenizer, cls_id, sep_id) else None


def _is_rebuilt_alike(rules: Mapping[str, Any], settings: Mapping[str, Any], tokens: Mapping[str, str]) -> bool:
    """Whether a tokenizer that is built from the words and the settings has the rules of the file."""
    model, vocabulary = rules["model"], rules["model"]["vocab"]
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
        "strip_accents": settings.get("strip_accents"),
        "lowercase": settings.get("do_lower_case", True),
    }
    word_pieces = {
        "type": "WordPiece",
        "unk_token": tokens["unk_token"],
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": MAX_CHARACTERS,
    }
    added = [{"id": vocabulary[token], "content": token, **PLAIN_TOKEN} for token in tokens.values()]
    added_too = [{"id": int(number), **token} for number, token in settings.get("added_tokens_decoder", {}).items()]
    return (
        rules["normalizer"] == normalizer
        and rules["pre_tokenizer"] == {"type": "BertPreTokenizer"}
        and {key: model[key] for key in word_pieces} == word_pieces
        and _by_id(rules["added_tokens"]) == _by_id(added)
        and all(token in added for token in added_too)
    )


def _by_id(tokens: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(tokens, key=lambda token: int(token["id"]))


def _frames_like_bert(tokenizer: ExportedTokenizer, cls_id: int, sep_id: int) -> bool:
    """Whether the file puts around texts what transformers would: [CLS] a [SEP] b [SEP], with segment 1 from b on."""
    word = tokenizer("a", add_special_tokens=False)["input_ids"]
    single, pair = tokenizer("a"), tokenizer("a", "a")
    ids = [cls_id, *word, sep_id]
    segments = [0] * len(ids) + [1] * (len(word) + 1)
    return (single["input_ids"], single["token_type_ids"]) == (ids, [0] * len(ids)) and (
        pair["input_ids"],
        pair["token_type_ids"],
    ) == ([*ids, *word, sep_id], segments)
