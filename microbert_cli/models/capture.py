"""What a forward pass shows: logits, hidden states, attention scores, queries, keys and values - of the asked layers only.

Attention scores come out of transformers' own attention call: this module registers an attention function named "mbert"
that runs SDPA for layers nobody asked about, and the explicit product for the others, keeping Q K^T / sqrt(head size) as it
was BEFORE mask and softmax (`output_attentions` gives probabilities after dropout, and nothing at all under SDPA). Queries,
keys and values are those of that product: by head, and turned by their positions where the architecture does so (ModernBERT).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.modeling_outputs import BaseModelOutput

from microbert_cli.models.architectures import architecture_of

TOKENS_AT_ONCE = {"cpu": 1024, "cuda": 32_768}  # more is slower there: what a layer makes no longer stays in the cache


ATTENTION = "mbert"
Vectors = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class OutputRequest:
    """What is asked of a model. Layers: 0 = embedding output, 1..N = Transformer layers."""

    logits: bool = False
    token_logits: bool = False
    token_head: bool = False
    hidden: frozenset[int] = frozenset()
    scores: frozenset[int] = frozenset()
    qkv: frozenset[int] = frozenset()
    routing: bool = False


@dataclass
class ModelOutputs:
    """What a model showed: logits [B, C], token_logits [P, V], hidden {layer: [B, T, d]}, scores {layer: [B, A, T, T]}.

    token_head  the masked-LM head by itself: top vectors [P, d] -> logits [P, V], for those who cannot hold all at once
    qkv      {layer: (queries, keys, values)}, each [B, A, T, head size]
    mask     real tokens of what is shown [B, T], where they are not the batch's: of a teacher that reads its own tokens
    routing  of a mixture of experts: (share of tokens, mean gate) of every expert, both [layers, E]
    """

    logits: Tensor | None = None
    token_logits: Tensor | None = None
    token_head: Callable[[Tensor], Tensor] | None = None
    hidden: dict[int, Tensor] = field(default_factory=dict)
    scores: dict[int, Tensor] = field(default_factory=dict)
    qkv: dict[int, Vectors] = field(default_factory=dict)
    mask: Tensor | None = None
    routing: tuple[Tensor, Tensor] | None = None


class _Recorder:
    """The layers whose scores or vectors the running forward pass keeps; one pass runs at a time.

    Layers are counted as they are passed: DistilBERT's attention does not know its number, ALBERT's is the same in all.
    """

    want = OutputRequest()
    shown = ModelOutputs()
    passed = 0


def forward_outputs(model: Any, batch: Mapping[str, Tensor], want: OutputRequest) -> ModelOutputs:
    """Runs `model` on `batch` and returns what `want` asks for, and nothing else.

    An architecture of our own may say itself what it shows: a method `look(batch, want)` is used where there is one.
    Raises RuntimeError if a layer asked for did not report its attention (an attention that bypasses transformers' interface).
    """
    own = getattr(model, "look", None)
    if own is not None:
        seen: ModelOutputs = own(batch, want)
        return seen
    inputs = {name: batch[name] for name in input_names(model) if name in batch}
    with _recording(want) as seen:
        if want.logits:
            with _first_token_at_the_top(model, want):
                output = model(**inputs, output_hidden_states=bool(want.hidden))
        else:
            with _only_what_is_read(model.base_model, want):
                output = model.base_model(**inputs, output_hidden_states=bool(want.hidden))
    if missing := (want.scores - seen.scores.keys()) | (want.qkv - seen.qkv.keys()):
        raise RuntimeError(f"{type(model).__name__} did not show the attention of layers {sorted(missing)}")
    seen.hidden = {layer: output.hidden_states[layer] for layer in want.hidden}
    if want.routing:
        seen.routing = output.routing
    if want.logits:
        seen.logits = output.logits
    if want.token_head:
        seen.token_head = partial(_vocabulary_logits, model)
    if want.token_logits:
        chosen_Pd = output.last_hidden_state.flatten(0, 1)[batch["token_positions"]]
        seen.token_logits = _vocabulary_logits(model, chosen_Pd)
    return seen


def input_names(model: Any) -> tuple[str, ...]:
    """The tensors of a batch that this model takes: token_type_ids where it knows segments, `task` where it knows tasks."""
    config = getattr(model, "config", None)
    names = {"token_type_ids": getattr(config, "type_vocab_size", 0) > 1, "task": getattr(config, "tasks", None) is not None}
    return ("input_ids", "attention_mask", *(name for name, taken in names.items() if taken))


def show_scores(model: Any) -> None:
    """Makes `model` use this module's attention, so that `look` can see its scores."""
    model.set_attn_implementation(ATTENTION)


@contextmanager
def _recording(want: OutputRequest) -> Iterator[ModelOutputs]:
    _Recorder.want, _Recorder.shown, _Recorder.passed = want, ModelOutputs(), 0
    try:
        yield _Recorder.shown
    finally:
        _Recorder.want, _Recorder.shown = OutputRequest(), ModelOutputs()


class _FirstToken(nn.Module):
    """A BERT layer for the first token alone: keys and values of all, the rest of one. What a classifier reads of the last."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, hidden_BTd: Tensor, mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        layer: Any = self.layer
        own, first_B1d = layer.attention.self, hidden_BTd[:, :1]
        query, key, value = (
            part(x).unflatten(-1, (-1, own.attention_head_size)).transpose(1, 2)
            for part, x in ((own.query, first_B1d), (own.key, hidden_BTd), (own.value, hidden_BTd))
        )
        seen = None if mask is None else mask[..., :1, :]
        dropout = own.dropout.p if own.training else 0.0
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=dropout)
        attended_B1d = layer.attention.output(context.transpose(1, 2).flatten(2), first_B1d)
        top_B1d: Tensor = layer.output(layer.intermediate(attended_B1d), attended_B1d)
        return top_B1d


@contextmanager
def _first_token_at_the_top(model: Any, want: OutputRequest) -> Iterator[None]:
    """For one forward pass that is asked for logits alone: the top layer computes the token that the head reads."""
    plain = architecture_of(model.config).first_token_head and not getattr(model.config, "is_decoder", False)
    layers = _layers_of(model.base_model)
    if not plain or want != OutputRequest(logits=True) or not layers or _is_compiled(model):
        yield
        return
    with _standing_in(layers, {len(layers) - 1: _FirstToken(layers[-1])}):
        yield


@contextmanager
def _standing_in(layers: nn.ModuleList, others: Mapping[int, nn.Module]) -> Iterator[None]:
    """For one forward pass: other modules in the places of some layers."""
    own = {place: layers[place] for place in others}
    try:
        for place, other in others.items():
            layers[place] = other
        yield
    finally:
        for place, layer in own.items():
            layers[place] = layer


def _layers_of(encoder: Any) -> nn.ModuleList:
    """The encoder's layers, where its architecture lets some be left out; else none."""
    part = encoder
    for name in (architecture_of(encoder.config).stack or "").split("."):
        part = getattr(part, name, None)
    return part if isinstance(part, nn.ModuleList) else nn.ModuleList()


def _is_compiled(model: Any) -> bool:
    """A compiled encoder would be compiled again for every change of its parts."""
    return getattr(model.base_model, "_compiled_call_impl", None) is not None


class _PassedOver(nn.Module):
    """A layer that nobody asked for; it stays a child, since transformers looks for its layers once and hooks what it finds."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, hidden_BTd: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_BTd


@contextmanager
def _only_what_is_read(encoder: Any, want: OutputRequest) -> Iterator[None]:
    """Leaves out the pooler, and the layers above the deepest one that is asked, for one forward pass without logits."""
    if _is_compiled(encoder):
        yield
        return
    layers, pooler = _layers_of(encoder), getattr(encoder, "pooler", None)
    deepest = max(want.hidden | want.scores | want.qkv, default=0) or 1  # what goes into the first layer is seen as it goes in
    if want.token_logits or want.routing:
        layers = nn.ModuleList()
    above = {place: _PassedOver(layers[place]) for place in range(deepest, len(layers))}
    try:
        if pooler is not None:
            encoder.pooler = None
        with _standing_in(layers, above):
            yield
    finally:
        if pooler is not None:
            encoder.pooler = pooler


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    _Recorder.passed += 1
    layer = _Recorder.passed
    if layer in _Recorder.want.qkv:
        _Recorder.shown.qkv[layer] = query, key, value
    if layer not in _Recorder.want.scores:
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling)
        return context.transpose(1, 2).contiguous(), None
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    _Recorder.shown.scores[layer] = scores
    masked = scores if attention_mask is None else scores + attention_mask
    weights = F.dropout(masked.softmax(-1), dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), None


def _vocabulary_logits(model: Any, chosen_Pd: Tensor) -> Tensor:
    """The masked-LM head on chosen positions alone, [P, V]: most of a small model's work is this product.

    Heads have no common name or shape (BERT one module, DistilBERT three, ELECTRA two), but each model's forward applies its
    own to whatever the encoder hands it; so the encoder hands it these vectors.
    """
    encoder = model.base_model
    encoder.forward = lambda *_, **__: BaseModelOutput(last_hidden_state=chosen_Pd[None])
    try:
        logits: Tensor = model(input_ids=torch.zeros(1, len(chosen_Pd), dtype=torch.long, device=chosen_Pd.device)).logits[0]
    finally:
        del encoder.forward
    return logits


AttentionInterface.register(ATTENTION, _attend)


AttentionMaskInterface.register(ATTENTION, eager_mask)


torch.set_float32_matmul_precision("highest")


def forward_in_pieces(model: Any, batch: Mapping[str, Tensor], request: OutputRequest) -> ModelOutputs:
    """`forward_outputs` of a large batch in pieces of `tokens_at_once` tokens; whole in training and for token logits."""
    rows, width = batch["input_ids"].shape
    step = max(1, tokens_at_once(batch["input_ids"].device.type) // width)
    if rows <= step or model.training or request.token_logits:
        return forward_outputs(model, batch, request)
    pieces = []
    for first in range(0, rows, step):
        piece = {name: value[first : first + step] for name, value in batch.items() if len(value) == rows}
        pieces.append(forward_outputs(model, piece, request))
    return _joined(pieces)


def tokens_at_once(device: str) -> int:
    """As many tokens, padding included, as a device does best in one forward pass of a teacher."""
    return TOKENS_AT_ONCE.get(device, TOKENS_AT_ONCE["cpu"])


def _joined(pieces: list[ModelOutputs]) -> ModelOutputs:
    """What was shown of a batch's pieces, as of the whole."""
    if len(pieces) == 1:
        return pieces[0]
    first = pieces[0]
    return ModelOutputs(
        logits=None if first.logits is None else torch.cat([one.logits for one in pieces if one.logits is not None]),
        hidden={layer: torch.cat([one.hidden[layer] for one in pieces]) for layer in first.hidden},
        scores={layer: torch.cat([one.scores[layer] for one in pieces]) for layer in first.scores},
        token_head=first.token_head,
        qkv={layer: _joined_vectors([one.qkv[layer] for one in pieces]) for layer in first.qkv},
    )


def _joined_vectors(pieces: list[Vectors]) -> Vectors:
    queries, keys, values = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return queries, keys, values
