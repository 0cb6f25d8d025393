"""A tiny random checkpoint of every encoder type that transformers can classify texts with, and the tokenizer it has.

    TYPES                              the types, by model_type
    skipped()                          {model_type: reason} of all others with a sequence classifier
    build("roberta", path)             path/classifier, and path/base: masked-LM where there is one, else the encoder

Everything follows from the arguments alone; nothing is downloaded.
"""

import inspect
import json
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_glue import WORDS
from tiny_models import vocabulary
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as token_models
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

POSITIONS = 64  # tokens that a model can read
CHARACTERS = (*string.ascii_letters, *string.digits, *string.punctuation)
SIZE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, initializer_range=0.1)
LABELS = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}

# Inputs beside token ids that only other things than plain text have.
OTHER_INPUTS = {
    "pixel_values": "images",
    "image": "images",
    "bbox": "page layouts",
    "xpath_tags_seq": "web page layouts",
    "inputs": "bytes of any modality",
}
# What no signature says.
OTHER_REASONS = {
    "tapas": "reads tables: seven columns of token types",
    "mistral4": "decoder-only",
    "esm": "reads proteins",
    "esmc": "reads proteins",
}
NOT_DECODERS = ("xlnet",)  # permuted language models stand among the causal ones, and read in both directions


def skipped() -> dict[str, str]:
    """The types with a sequence classifier that are no encoders of text, and why."""
    reasons = {name: reason_to_skip(name) for name in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES}
    return {name: reason for name, reason in reasons.items() if reason}


def reason_to_skip(model_type: str) -> str | None:
    """Why a type is no encoder of plain text; None where it is one.

    An encoder of text reads token ids alone, in both directions: it has no decoder, no input of another modality,
    and no causal language model (unless it has a masked one too, as BERT).
    """
    if model_type in OTHER_REASONS:
        return OTHER_REASONS[model_type]
    is_causal = model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    model_class = getattr(transformers, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[model_type])
    names = inspect.signature(model_class.forward).parameters
    if any(name.startswith("decoder_") for name in names):
        return "encoder-decoder"
    if is_causal and model_type not in NOT_DECODERS:
        return "decoder-only"
    other = next((what for name, what in OTHER_INPUTS.items() if name in names), None)
    return other and f"reads {other}"


def wordpiece(path: Path, class_name: str = "BertTokenizer", special: dict[str, str] | None = None, **options: Any) -> Any:
    """A lower-casing WordPiece tokenizer; `special` renames BERT's special tokens."""
    vocab = [(special or {}).get(token, token) for token in vocabulary()]
    tokenizer = getattr(transformers, class_name)(vocab={token: n for n, token in enumerate(vocab)}, **options)
    tokenizer.save_pretrained(path)
    return tokenizer


def _merges(special: list[str], alphabet: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary of byte pairs and its merges, learnt from the words."""
    model = Tokenizer(token_models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator([*WORDS, *WORDS], trainer)
    learnt = json.loads(model.to_str())["model"]
    return learnt["vocab"], [tuple(pair) for pair in learnt["merges"]]


def byte_pairs(path: Path, class_name: str = "RobertaTokenizer", **options: Any) -> Any:
    """RoBERTa's kind: pieces of bytes, `<s> text </s>`."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    if class_name == "DebertaTokenizer":
        special = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    if class_name == "LukeTokenizer":
        options |= {"entity_vocab": {"[PAD]": 0, "[UNK]": 1, "[MASK]": 2, "[MASK2]": 3}}
    vocab, merges = _merges(special, sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = getattr(transformers, class_name)(vocab=vocab, merges=merges, **options)
    tokenizer.save_pretrained(path)
    return tokenizer


def plain_byte_pairs(path: Path, edges: tuple[str, str], special: dict[str, str]) -> Any:
    """Pieces of bytes between two tokens, without a class of their own and without segments, as ModernBERT has."""
    vocab, merges = _merges([*edges, *special.values()], sorted(pre_tokenizers.ByteLevel.alphabet()))
    model = Tokenizer(token_models.BPE(vocab=vocab, merges=merges))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    first, last = edges
    model.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B {last}", special_tokens=[(edge, vocab[edge]) for edge in edges]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, cls_token=first, sep_token=last, bos_token=first, eos_token=last,
        model_input_names=["input_ids", "attention_mask"], **special,
    )  # fmt: skip
    tokenizer.save_pretrained(path)
    return tokenizer


def modern(path: Path) -> Any:
    return plain_byte_pairs(path, ("[CLS]", "[SEP]"), dict(pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]"))


def llama_like(path: Path) -> Any:
    special = dict(pad_token="<|pad|>", mask_token="<|mask|>")
    return plain_byte_pairs(path, ("<|begin_of_text|>", "<|end_of_text|>"), special)


def words_and_ends(path: Path) -> Any:
    """XLM's and FlauBERT's kind: lower-cased words with an end mark, `<s> text </s>`, no segments.

    Their own classes need sacremoses, which is no part of transformers.
    """
    special = ["<s>", "</s>", "<pad>", "<unk>", "<mask>"]
    tokens = dict.fromkeys([*special, *CHARACTERS, *(f"{character}</w>" for character in CHARACTERS)])
    vocab = {token: n for n, token in enumerate(tokens)}
    model = Tokenizer(token_models.BPE(vocab=vocab, merges=[], unk_token="<unk>", end_of_word_suffix="</w>"))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    names = dict(bos_token="<s>", cls_token="</s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token="<mask>")
    inputs = ["input_ids", "attention_mask", "token_type_ids"]  # as XLMTokenizer says
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=model, model_input_names=inputs, **names)
    tokenizer.save_pretrained(path)
    return tokenizer


UNIGRAM_FIRST = {
    "AlbertTokenizer": ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
    "FNetTokenizer": ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
    "BigBirdTokenizer": ("<pad>", "</s>", "<s>", "[SEP]", "[CLS]", "[MASK]", "<unk>"),
    "RemBertTokenizer": ("[PAD]", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
    "DebertaV2Tokenizer": ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"),
    "XLNetTokenizer": ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>"),
    "XLMRobertaTokenizer": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    "CamembertTokenizer": ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>", "<mask>"),
}


def unigram(path: Path, class_name: str) -> Any:
    """SentencePiece's kind: scored pieces, a space is part of the word behind it."""
    first = UNIGRAM_FIRST[class_name]
    pieces = ["▁", *CHARACTERS, *(f"▁{word}" for word in WORDS)]
    vocab = [(token, 0.0) for token in first] + [(piece, -1.0 - len(CHARACTERS) / (1 + len(piece)) ** 2) for piece in pieces]
    options = {"unk_id": next(n for n, token in enumerate(first) if token in ("<unk>", "[UNK]"))}
    takes_unk = "unk_id" in inspect.signature(getattr(transformers, class_name).__init__).parameters
    tokenizer = getattr(transformers, class_name)(vocab=vocab, **(options if takes_unk else {}))
    tokenizer.save_pretrained(path)
    return tokenizer


def reformer_pieces(path: Path) -> Any:
    """Reformer's: byte pairs of characters, neither special tokens around a text nor one for padding of its own."""
    vocab = {token: n for n, token in enumerate(dict.fromkeys(["<pad>", "</s>", "<unk>", "▁", *CHARACTERS]))}
    tokenizer = transformers.ReformerTokenizer(vocab=vocab, merges=[], pad_token="<pad>")
    tokenizer.save_pretrained(path)
    return tokenizer


def characters(path: Path) -> Any:
    """CANINE's: a code point a character; there is no vocabulary."""
    tokenizer = transformers.CanineTokenizer(model_max_length=POSITIONS)
    tokenizer.save_pretrained(path)
    return tokenizer


def roc_bert(path: Path) -> Any:
    """RoCBert's: word pieces, each with the number of its shape and of its pronunciation."""
    path.mkdir(parents=True, exist_ok=True)
    tokens = vocabulary()
    (path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    numbers = json.dumps({token: n % 7 for n, token in enumerate(tokens)})
    for name in ("word_shape", "word_pronunciation"):
        (path / f"{name}.json").write_text(numbers, encoding="utf-8")
    tokenizer = transformers.RoCBertTokenizer(
        *(str(path / name) for name in ("vocab.txt", "word_shape.json", "word_pronunciation.json"))
    )
    tokenizer.save_pretrained(path)
    return tokenizer


@dataclass(frozen=True)
class EncoderType:
    """How a tiny checkpoint of one type is built.

    tokenizer  writes it into a directory and returns it
    fields     of its configuration, beside or instead of SIZE
    wasted     how many positions come before the first token's, where these begin behind the padding's number
    """

    tokenizer: Callable[[Path], Any] = wordpiece
    fields: dict[str, Any] = field(default_factory=dict)
    wasted: int = 0


def _of(class_name: str, kind: Callable[..., Any]) -> Callable[[Path], Any]:
    return lambda path: kind(path, class_name)


ROBERTA = _of("RobertaTokenizer", byte_pairs)
XLM_ROBERTA = _of("XLMRobertaTokenizer", unigram)
ALBERT = _of("AlbertTokenizer", unigram)
XLM_SIZE = dict(emb_dim=32, n_layers=2, n_heads=2, embed_init_std=0.1, init_std=0.1)
GROUPED = dict(num_key_value_heads=2, head_dim=16)


def mpnet(path: Path) -> Any:
    renamed = {"[CLS]": "<s>", "[SEP]": "</s>", "[PAD]": "<pad>", "[MASK]": "<mask>"}
    tokens = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    rest = [token for token in vocabulary() if token not in renamed and token != "[UNK]"]
    tokenizer = transformers.MPNetTokenizer(vocab={token: n for n, token in enumerate([*tokens, *rest])})
    tokenizer.save_pretrained(path)
    return tokenizer


def funnel(path: Path) -> Any:
    renamed = {"[CLS]": "<cls>", "[SEP]": "<sep>", "[PAD]": "<pad>", "[MASK]": "<mask>", "[UNK]": "<unk>"}
    return wordpiece(path, "FunnelTokenizer", renamed)


TYPES: dict[str, EncoderType] = {
    "albert": EncoderType(ALBERT, dict(embedding_size=16)),
    "bert": EncoderType(),
    "big_bird": EncoderType(_of("BigBirdTokenizer", unigram)),
    "camembert": EncoderType(_of("CamembertTokenizer", unigram), dict(type_vocab_size=1), wasted=2),
    "canine": EncoderType(characters, dict(local_transformer_stride=8, num_hash_buckets=64)),
    "convbert": EncoderType(fields=dict(embedding_size=16, conv_kernel_size=3)),
    "data2vec-text": EncoderType(ROBERTA, dict(type_vocab_size=1), wasted=2),
    "deberta": EncoderType(
        _of("DebertaTokenizer", byte_pairs),
        dict(relative_attention=True, pos_att_type=["c2p", "p2c"], position_biased_input=False),
    ),
    "deberta-v2": EncoderType(
        _of("DebertaV2Tokenizer", unigram),
        dict(
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_buckets=16,
            share_att_key=True,
            norm_rel_ebd="layer_norm",
            position_biased_input=False,
        ),
    ),
    "distilbert": EncoderType(fields=dict(dim=32, n_layers=2, n_heads=2, hidden_dim=64)),
    "electra": EncoderType(fields=dict(embedding_size=16)),
    "ernie": EncoderType(fields=dict(use_task_id=True)),
    "eurobert": EncoderType(llama_like, GROUPED),
    "flaubert": EncoderType(words_and_ends, XLM_SIZE),  # pre_norm, as of its large one, fails inside transformers 5.23
    "fnet": EncoderType(_of("FNetTokenizer", unigram)),
    "funnel": EncoderType(funnel, dict(block_sizes=[1, 1], num_decoder_layers=1, d_model=32, n_head=2, d_head=16, d_inner=64)),
    "gte": EncoderType(XLM_ROBERTA),
    "ibert": EncoderType(ROBERTA, dict(type_vocab_size=1), wasted=2),
    "jina_embeddings_v3": EncoderType(XLM_ROBERTA),
    "longformer": EncoderType(ROBERTA, dict(type_vocab_size=1, attention_window=[8, 8]), wasted=2),
    "luke": EncoderType(
        _of("LukeTokenizer", byte_pairs), dict(entity_vocab_size=8, entity_emb_size=16, type_vocab_size=1), wasted=2
    ),
    "megatron-bert": EncoderType(),
    "mobilebert": EncoderType(fields=dict(embedding_size=16, intra_bottleneck_size=16)),
    "modernbert": EncoderType(modern),
    "mpnet": EncoderType(mpnet, wasted=2),
    "mra": EncoderType(ROBERTA, dict(type_vocab_size=1)),
    "nomic_bert": EncoderType(fields=dict(head_dim=16)),
    "nystromformer": EncoderType(ALBERT, dict(conv_kernel_size=5)),
    "reformer": EncoderType(
        reformer_pieces,
        dict(
            attention_head_size=16,
            feed_forward_size=64,
            attn_layers=["local", "lsh"],
            local_attn_chunk_length=8,
            lsh_attn_chunk_length=8,
            num_buckets=4,
            axial_pos_shape=[8, 8],
            axial_pos_embds_dim=[16, 16],
            hash_seed=0,
        ),
    ),
    "rembert": EncoderType(_of("RemBertTokenizer", unigram), dict(input_embedding_size=16, output_embedding_size=16)),
    "roberta": EncoderType(ROBERTA, dict(type_vocab_size=1), wasted=2),
    "roberta-prelayernorm": EncoderType(ROBERTA, dict(type_vocab_size=1), wasted=2),
    "roc_bert": EncoderType(
        roc_bert, dict(shape_vocab_size=8, pronunciation_vocab_size=8, shape_embed_dim=8, pronunciation_embed_dim=8)
    ),
    "roformer": EncoderType(),  # its own tokenizer needs rjieba; the English ones are BERT's
    "squeezebert": EncoderType(
        fields=dict(
            embedding_size=32,
            q_groups=2,
            k_groups=2,
            v_groups=2,
            post_attention_groups=1,
            intermediate_groups=2,
            output_groups=2,
        )
    ),
    "ultrabert": EncoderType(modern, GROUPED | dict(prediction_head_size=32)),
    "xlm": EncoderType(words_and_ends, XLM_SIZE),
    "xlm-roberta": EncoderType(XLM_ROBERTA, dict(type_vocab_size=1), wasted=2),
    "xlm-roberta-xl": EncoderType(XLM_ROBERTA, dict(type_vocab_size=1), wasted=2),
    "xlnet": EncoderType(_of("XLNetTokenizer", unigram), dict(d_model=32, n_layer=2, n_head=2, d_inner=64)),
    "xmod": EncoderType(XLM_ROBERTA, dict(type_vocab_size=1, languages=["en_XX"], default_language="en_XX"), wasted=2),
    "yoso": EncoderType(ALBERT),
}


def build(model_type: str, path: Path, *, seed: int = 0) -> tuple[Path, Path]:
    """Writes a classifier of two classes and a model to fine-tune: a masked-LM where the type has one, else an encoder."""
    head = "masked-lm" if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "encoder"
    classes = {"classifier": "AutoModelForSequenceClassification", "masked-lm": "AutoModelForMaskedLM", "encoder": "AutoModel"}
    paths = []
    for name, kind in (("classifier", "classifier"), ("base", head)):
        tokenizer = TYPES[model_type].tokenizer(path / name)
        config = tiny_config(model_type, tokenizer)
        if kind == "classifier":
            config.id2label, config.label2id = LABELS["id2label"], LABELS["label2id"]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = getattr(transformers, classes[kind]).from_config(config)
        model.save_pretrained(path / name)
        paths.append(path / name)
    return paths[0], paths[1]


def tiny_config(model_type: str, tokenizer: Any) -> Any:
    """The configuration of a tiny model that reads up to POSITIONS tokens of this tokenizer."""
    chosen, config_class = TYPES[model_type], CONFIG_MAPPING[model_type]
    accepted = set(dir(config_class())) | set(config_class.attribute_map)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep", "bos", "eos", "mask")}
    fields = SIZE | {"max_position_embeddings": POSITIONS + chosen.wasted} | ids
    if model_type != "canine":
        fields["vocab_size"] = len(tokenizer)
    fields = {name: value for name, value in fields.items() if name in accepted and value is not None}
    # A class that calls a size otherwise is given that name alone.
    other_names = {"emb_dim", "d_model", "dim"} & chosen.fields.keys()
    if other_names:
        fields = {name: value for name, value in fields.items() if name not in SIZE or name == "initializer_range"}
    if model_type in ("funnel", "xlnet"):
        fields.pop("max_position_embeddings", None)
    return config_class(**fields | chosen.fields)
