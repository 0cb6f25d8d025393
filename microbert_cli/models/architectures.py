"""The one table of what is known of each model type, and the sizes of a model of any type.

A new model type is one entry of ARCHITECTURES. A type that has none is GENERIC: its sizes are read from the configuration
under transformers' usual names, its forward pass is taken as it is, and its FLOPs are not counted.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from microbert_cli.errors import MbertError

VOCABULARY = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")  # any of them makes a tokenizer
# DistilBERT's parameters, as regular expressions, and what BERT calls the same ones.
DISTILBERT_NAMES = {
    r"^transformer\.layer\.": "encoder.layer.",
    r"attention\.q_lin": "attention.self.query",
    r"attention\.k_lin": "attention.self.key",
    r"attention\.v_lin": "attention.self.value",
    r"attention\.out_lin": "attention.output.dense",
    r"sa_layer_norm": "attention.output.LayerNorm",
    r"ffn\.lin1": "intermediate.dense",
    r"ffn\.lin2": "output.dense",
    r"output_layer_norm": "output.LayerNorm",
    r"^vocab_transform": "cls.predictions.transform.dense",
    r"^vocab_layer_norm": "cls.predictions.transform.LayerNorm",
    r"^vocab_projector\.bias": "cls.predictions.bias",
}

# Heads have no common name over model types, so these patterns hold for all of them.
HEAD_WEIGHTS = {  # that a checkpoint may lack, by the kind of model that is made of it
    "classifier": r"classifier\.|pre_classifier\.|score\.|pooler\.|.*\.pooler\.|head\.",
    "masked-lm": r"cls\.|lm_head\.|generator_|vocab_|predictions\.|head\.|decoder\.|.*\.pooler\.",
    "encoder": r"pooler\.",
    "seq2seq": r"lm_head\.|final_logits_bias",
}
UNUSED_WEIGHTS = (  # of heads that a checkpoint may have in excess
    r"(.*\.)?(position_ids|fit_dense\..*|cls\..*|lm_head\..*|(pre_|sop_)?classifier\..*|pooler\..*|vocab_.*|score\..*)"
    r"|(generator_|discriminator_)?predictions\..*|generator_lm_head\..*|head\..*|decoder\..*"
)
# encoder.layer.3., transformer.layer.3., layers.3.; lstm.weight_ih_l0, as torch names the layers of recurrent networks
_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.|\.(?:weight|bias)_[ih]h_l(\d+)(?:_reverse)?$")


@dataclass(frozen=True)
class Architecture:
    """What is known of the model types of one family; the defaults are what may be assumed of any.

    stack                where the encoder keeps its layers, if each hands one tensor to the next and they can be left out
    first_token_head     the classifier reads [CLS] alone, so that the top layer need compute no other token
    positions            the configuration's key for the rows of its position table; None = it has no such table
    offset_by_padding    positions are numbered from behind the padding's id, which wastes the rows before them
    inner                the configuration's key for the width of the feed-forward networks
    flops                the rule of size.py: "plain", "bottleneck", "apart", "recurrent", or None where they are not counted
    layer_weights        layers and embeddings can be copied and sliced between types of one such name
    end_weights          embeddings and heads can be copied between types of one such name, or within one type
    bert_names           regular expressions of parameter names -> BERT's names for them
    experts              "task": it has a head per task, and may have experts; "convertible": it can become such a model
    wraps                the configuration's key for that of the model within, whose facts are its own
    reads_apart          its classifier reads the two texts of a pair one by one, so that no token of it sees the other text;
                         where that is a matter of the configuration, its key `siamese` says so: `reads_apart`
    recurrent            no Transformer: it has no layers to compare, and of another model it can take word embeddings alone
    """

    stack: str | None = None
    first_token_head: bool = False
    positions: str | None = "max_position_embeddings"
    offset_by_padding: bool = False
    inner: str = "intermediate_size"
    flops: str | None = None
    layer_weights: str | None = None
    end_weights: str | None = None
    bert_names: Mapping[str, str] = field(default_factory=dict)
    experts: str | None = None
    reads_apart: bool = False
    wraps: str | None = None
    recurrent: bool = False


GENERIC = Architecture()
_ENCODER = Architecture(stack="encoder.layer", first_token_head=True, flops="plain")
_ROBERTA = replace(_ENCODER, layer_weights="roberta", offset_by_padding=True)
_MOBILEBERT = Architecture(stack="encoder.layer", flops="bottleneck", end_weights="mobilebert")
_OFFSET = Architecture(offset_by_padding=True)

ARCHITECTURES = {
    "bert": replace(_ENCODER, layer_weights="bert", experts="convertible"),
    "distilbert": Architecture(
        stack="transformer.layer", inner="hidden_dim", flops="plain", layer_weights="bert", bert_names=DISTILBERT_NAMES
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": replace(_ENCODER, layer_weights="electra"),
    "mobilebert": _MOBILEBERT,
    "mbert-inverted-bottleneck": _MOBILEBERT,
    "mbert-routed-bert": Architecture(stack="encoder.layer", flops="plain", experts="task"),
    "mbert-bi-encoder": Architecture(stack="encoder.layer", flops="apart", layer_weights="bert", reads_apart=True),
    "mbert-early-exit": Architecture(wraps="classifier_config"),
    "mbert-bilstm": Architecture(positions=None, flops="recurrent", recurrent=True),
    "data2vec-text": _OFFSET,
    "ibert": _OFFSET,
    "lilt": _OFFSET,
    "longformer": _OFFSET,
    "luke": _OFFSET,
    "mpnet": _OFFSET,
    "roberta-prelayernorm": _OFFSET,
    "xlm-roberta-xl": _OFFSET,
    "xmod": _OFFSET,
}


TITLES = {
    "bert": "BERT", "distilbert": "DistilBERT", "roberta": "RoBERTa", "xlm-roberta": "XLM-RoBERTa", "camembert": "CamemBERT",
    "electra": "ELECTRA", "albert": "ALBERT", "mobilebert": "MobileBERT", "deberta-v2": "DeBERTa", "modernbert": "ModernBERT",
    "mpnet": "MPNet", "mbert-bilstm": "BiLSTM", "mbert-bi-encoder": "BERT bi-encoder", "mbert-early-exit": "BERT with exits",
    "mbert-inverted-bottleneck": "BERT with inverted bottlenecks",
}  # fmt: skip


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model; None for what its type does not have: a recurrent one has no heads and no positions.

    inner          width of the feed-forward networks
    embedding      width of the token embeddings, where it is not `width`
    position_rows  of the position table; positions: how many tokens the model can read, fewer where rows are wasted
    """

    width: int
    layers: int = 0
    heads: int | None = None
    inner: int | None = None
    vocabulary: int = 0
    embedding: int = 0
    position_rows: int | None = None
    positions: int | None = None

    @property
    def head_width(self) -> int:
        """The width of one attention head."""
        return self.width // (self.heads or 1)


def model_type_of(config: Any) -> str:
    """Returns transformers' name for the model's type; "" for a configuration that names none."""
    return getattr(config, "model_type", None) or ""


def display_name(config: Any) -> str:
    """Returns what people call a model of this type and size: `BERT 6x384`."""
    name, shape = model_type_of(config), model_shape(config)
    title = TITLES.get(name, name.removeprefix("mbert-") or "model")
    return f"{title} {shape.layers}x{shape.width}" if shape.layers else f"{title} {shape.width}"


def inner_config(config: Any) -> Any:
    """Returns the configuration of the model itself: of one that wraps another, the inner one's."""
    wraps = ARCHITECTURES.get(model_type_of(config), GENERIC).wraps
    return config if wraps is None else getattr(config, wraps)


def inner_model(model: Any) -> Any:
    """Returns the model itself: of one that wraps another, the inner one."""
    return model.backbone if ARCHITECTURES.get(model_type_of(model.config), GENERIC).wraps else model


def architecture_of(model: Any) -> Architecture:
    """Returns the table's entry for a configuration, or for the name of a model type."""
    return ARCHITECTURES.get(model if isinstance(model, str) else model_type_of(inner_config(model)), GENERIC)


def model_shape(config: Any) -> ModelShape:
    """Returns the sizes that a configuration describes."""
    config = inner_config(config)
    width = config.hidden_size
    return ModelShape(
        width=width,
        layers=getattr(config, "num_hidden_layers", 0),
        heads=getattr(config, "num_attention_heads", None),
        inner=getattr(config, architecture_of(config).inner, None),
        vocabulary=getattr(config, "vocab_size", 0),
        embedding=getattr(config, "embedding_size", width),
        position_rows=_position_rows(config),
        positions=positions_of(config),
    )


def positions_of(config: Any) -> int | None:
    """Returns how many tokens a model can read; None where nothing in its configuration limits them."""
    config = inner_config(config)
    rows = _position_rows(config)
    return None if rows is None else rows - wasted_positions(config, getattr(config, "pad_token_id", None))


def wasted_positions(model: Any, pad_token_id: int | None) -> int:
    """Returns how many rows of the position table no token can have, by configuration or name of the model type."""
    if not architecture_of(model).offset_by_padding:
        return 0
    return (1 if pad_token_id is None else pad_token_id) + 1  # these types' classes take row 1 for padding where none is named


def _position_rows(config: Any) -> int | None:
    key = architecture_of(config).positions
    rows: int | None = getattr(config, key, None) if key else None
    # Types without a table say so with 0 or -1 (XLNet).
    return rows if rows and rows > 0 else None


def check_length(max_length: int, config: Any, *, where: str) -> None:
    """Raises M012 if texts may become longer than the model has positions."""
    positions = positions_of(config) or max_length
    option = f"--set {'corpus' if where.startswith('corpus') else 'data'}.max_length="
    if max_length > positions:
        raise MbertError(
            "M012",
            f"a maximum length of {max_length} tokens is beyond the model's {positions} positions",
            where=where,
            allowed=f"1 to {positions} tokens.",
            fix=f"{'--max-length ' if where == '--max-length' else option}{positions}",
        )


def reads_apart(config: Any) -> bool:
    """Whether a model reads the two texts of a pair one by one."""
    return architecture_of(config).reads_apart or bool(getattr(config, "siamese", False))


def check_texts(texts: int, config: Any, *, where: str, fix: str = "Choose another student: mbert list students") -> None:
    """Raises M324 if rows of single texts are to be read by a model that compares two."""
    if texts == 1 and reads_apart(config):
        raise MbertError(
            "M324",
            "this model reads the two texts of a pair apart and compares them, and here a row is one text",
            where=where,
            allowed="Tasks of pairs, such as mrpc, stsb, rte, qnli and qqp; own files with two text columns.",
            fix=fix,
        )


def layer_index(name: str) -> int | None:
    """Returns the layer, from 0, that a parameter belongs to by its name; None for embeddings, poolers and heads."""
    match = _LAYER.search(name)
    return int(match[1] or match[2]) if match else None


def bert_name(name: str, config: Any) -> str:
    """Returns BERT's name for a parameter of another model type."""
    for pattern, plain in architecture_of(config).bert_names.items():
        name = re.sub(pattern, plain, name)
    return name


def families(kind: str) -> dict[str, list[str]]:
    """Returns the model types by the field `kind` of their entries, such as "layer_weights"."""
    groups: dict[str, list[str]] = {}
    for model_type, architecture in ARCHITECTURES.items():
        if (name := getattr(architecture, kind)) is not None:
            groups.setdefault(name, []).append(model_type)
    return groups


def writes_texts(config: Any) -> bool:
    """Whether a checkpoint is an encoder with a decoder that writes; one with a classifier on top is a classifier."""
    names = [str(name) for name in getattr(config, "architectures", None) or ()]
    is_classifier = any(name.endswith("Classification") for name in names)
    return bool(getattr(config, "is_encoder_decoder", False)) and not is_classifier


def input_names(model: Any) -> tuple[str, ...]:
    """Returns the names of a batch's tensors that the model takes: token_type_ids with segments, `task` with heads by task.

    A table of segments with one row says nothing. XLM, FlauBERT, XLNet and Funnel have no such table, and read segments.
    """
    if (config := getattr(model, "config", None)) is not None:
        # Of the model, not of its configuration, which would be made anew for every batch.
        model, config = inner_model(model), inner_model(model).config
    model_class: Any = type(model)
    parameters = forward_parameters(model_class)
    segments = getattr(config, "type_vocab_size", None)
    optional = {
        "attention_mask": parameters is None or "attention_mask" in parameters,  # FNet has none
        "token_type_ids": _takes_segments(parameters, segments),
        "task": getattr(config, "tasks", None) is not None,
        "decoder_input_ids": parameters is not None and "decoder_input_ids" in parameters,
    }
    return ("input_ids", *(name for name, is_taken in optional.items() if is_taken))


def _takes_segments(parameters: frozenset[str] | None, segments: int | None) -> bool:
    if parameters is None:
        return (segments or 0) > 1
    return "token_type_ids" in parameters and (segments is None or segments > 1)


@lru_cache
def forward_parameters(model_class: Any) -> frozenset[str] | None:
    """Returns the names that a model's forward takes; None where its signature names none."""
    names = inspect.signature(getattr(model_class, "forward", model_class.__call__)).parameters
    return frozenset(names) if "input_ids" in names else None
