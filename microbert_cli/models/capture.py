"""Runs a model and keeps what is asked for: logits, hidden states, attention scores, queries, keys and values.

Attention scores come out of transformers' own attention call: this module registers an attention function named "mbert"
that runs SDPA for layers that are not asked for, and the explicit product for the others, keeping Q K^T / sqrt(head size) as it
was BEFORE mask and softmax (`output_attentions` gives probabilities after dropout, and nothing at all under SDPA). Queries,
keys and values are those of that product: by head, and rotated by their positions where the architecture does so (ModernBERT).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.modeling_outputs import BaseModelOutput

from microbert_cli.models.architectures import architecture_of, inner_model, input_names
from microbert_cli.recipe.task_kinds import answers_words

ATTENTION = "mbert"  # the name under which this module's attention is registered with transformers
# Larger batches are slower: a layer's activations then no longer fit into the cache.
TOKENS_AT_ONCE = {"cpu": 1024, "cuda": 32_768}
IN_BFLOAT16 = {"cpu": 2}  # times as many, of half the bytes
Vectors = tuple[Tensor, Tensor, Tensor]
Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class OutputRequest:
    """The outputs that a forward pass is to return. Layers: 0 = embedding output, 1..N; of `vectors` the first token alone.

    top_k, copies   of a teacher that fills in targets: its likeliest tokens at every position, asked with so many masked copies
    """

    logits: bool = False
    token_logits: bool = False
    token_head: bool = False
    hidden: frozenset[int] = frozenset()
    scores: frozenset[int] = frozenset()
    qkv: frozenset[int] = frozenset()
    routing: bool = False
    exits: bool = False
    vectors: frozenset[int] = frozenset()
    top_k: int = 0
    copies: int = 0


@dataclass
class ModelOutputs:
    """A forward pass's logits [B, C], of token classifiers [B, T, C]; token_logits [P, V], hidden {layer: [B, T, d]}
    and scores {layer: [B, A, T, T]}.

    token_head  the masked-LM head by itself: top vectors [P, d] -> logits [P, V], where all logits at once would not fit
    qkv      {layer: (queries, keys, values)}, each [B, A, T, head size]
    mask     real tokens [B, T], where they are not the batch's: of a teacher with a tokenizer of its own
    routing  of a mixture of experts: (share of tokens, mean gate) of every expert, both [layers, E]
    exits    of a model with exits: the logits of all, [exits, B, C], the last layer's at the end
    top      of a teacher that fills in targets: the largest logits of every position, and whose they are, both [B, T, k]
    """

    logits: Tensor | None = None
    token_logits: Tensor | None = None
    token_head: Callable[[Tensor], Tensor] | None = None
    hidden: dict[int, Tensor] = field(default_factory=dict)
    scores: dict[int, Tensor] = field(default_factory=dict)
    qkv: dict[int, Vectors] = field(default_factory=dict)
    mask: Tensor | None = None
    routing: tuple[Tensor, Tensor] | None = None
    exits: Tensor | None = None
    top: tuple[Tensor, Tensor] | None = None


class _Recorder:
    """The request and the outputs of the running forward pass; one runs at a time.

    Layers are counted as they run: DistilBERT's attention does not know its number, ALBERT's is the same in all.
    """

    request = OutputRequest()
    outputs = ModelOutputs()
    layers_run = 0


def forward_outputs(model: Any, batch: Mapping[str, Tensor], request: OutputRequest) -> ModelOutputs:
    """Runs `model` on `batch` and returns what `request` asks for, and nothing else.

    A model may implement this itself, as a method `look(batch, request)`.
    Raises RuntimeError if a layer asked for did not report its attention (an attention that bypasses transformers' interface).
    """
    if (custom := getattr(model, "look", None)) is not None:
        custom_outputs: ModelOutputs = custom(batch, request)
        return custom_outputs
    inputs = {name: batch[name] for name in input_names(model) if name in batch}
    reads_hidden = bool(request.hidden | request.vectors)
    with _recording(request) as outputs:
        if request.exits:
            output = model(**inputs, output_hidden_states=bool(request.hidden), output_exits=True)
        elif request.logits:
            with _first_token_on_top(model, request):
                output = model(**inputs, output_hidden_states=reads_hidden)
        else:
            with _without_unread_parts(model.base_model, request):
                output = model.base_model(**inputs, output_hidden_states=reads_hidden)
    if missing := (request.scores - outputs.scores.keys()) | (request.qkv - outputs.qkv.keys()):
        raise RuntimeError(f"{type(model).__name__} did not show the attention of layers {sorted(missing)}")
    outputs.hidden = {layer: output.hidden_states[layer] for layer in request.hidden}
    outputs.hidden |= {layer: output.hidden_states[layer][:, :1] for layer in request.vectors - request.hidden}
    if request.routing:
        outputs.routing = output.routing
    if request.exits:
        outputs.exits = output.exits
    if request.logits:
        outputs.logits = output.logits
    if request.token_head:
        outputs.token_head = partial(vocabulary_logits, model)
    if request.token_logits:
        chosen_Pd = output.last_hidden_state.flatten(0, 1)[batch["token_positions"]]
        outputs.token_logits = vocabulary_logits(model, chosen_Pd)
    return outputs


def show_scores(model: Any) -> None:
    """Makes `model` use this module's attention, so that `forward_outputs` can return its scores."""
    model.set_attn_implementation(ATTENTION)


@contextmanager
def _recording(request: OutputRequest) -> Iterator[ModelOutputs]:
    _Recorder.request, _Recorder.outputs, _Recorder.layers_run = request, ModelOutputs(), 0
    try:
        yield _Recorder.outputs
    finally:
        _Recorder.request, _Recorder.outputs = OutputRequest(), ModelOutputs()


class FirstToken(nn.Module):
    """A BERT layer that computes the first token alone, which is all that a classifier reads; keys and values are of all."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, hidden_BTd: Tensor, mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        layer: Any = self.layer
        attention, first_B1d = layer.attention.self, hidden_BTd[:, :1]
        query, key, value = (
            linear(x).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
            for linear, x in ((attention.query, first_B1d), (attention.key, hidden_BTd), (attention.value, hidden_BTd))
        )
        first_mask = None if mask is None else mask[..., :1, :]
        dropout = attention.dropout.p if attention.training else 0.0
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=first_mask, dropout_p=dropout)
        attended_B1d = layer.attention.output(context.transpose(1, 2).flatten(2), first_B1d)
        top_B1d: Tensor = layer.output(layer.intermediate(attended_B1d), attended_B1d)
        return top_B1d


@contextmanager
def _first_token_on_top(model: Any, request: OutputRequest) -> Iterator[None]:
    """Makes the top layer compute the first token alone, for one forward pass that is asked for logits and nothing else."""
    top = None if request != OutputRequest(logits=True) or is_compiled(model) else first_token_layer(model)
    with nullcontext() if top is None else replaced(top[0], {top[1]: FirstToken(top[0][top[1]])}):
        yield


def first_token_layer(model: Any) -> tuple[nn.ModuleList, int] | None:
    """Returns a classifier's layers and the number of the top one that computes, where its head reads the first token alone."""
    model = inner_model(model)
    # A decoder's first token sees no other, and its heads read the last one.
    of_texts = not answers_words(model.config)
    reads_first = of_texts and architecture_of(model.config).first_token_head and not getattr(model.config, "is_decoder", False)
    layers = removable_layers(model.base_model) if reads_first else nn.ModuleList()
    # Layers that are skipped hand on the one token.
    computing = [index for index, layer in enumerate(layers) if not is_skipped(layer)]
    return (layers, computing[-1]) if computing else None


def skip_layer(layer: nn.Module) -> None:
    """Makes a layer hand on what it gets; it stays among the others, which keep their numbers."""
    layer.forward = _hand_on


def is_skipped(layer: nn.Module) -> bool:
    """Whether a layer only hands on what it gets."""
    return layer.forward is _hand_on


def _hand_on(hidden_BTd: Tensor, *_: Any, **__: Any) -> Tensor:
    _Recorder.layers_run += 1
    return hidden_BTd


@contextmanager
def replaced(layers: nn.ModuleList, substitutes: Mapping[int, nn.Module]) -> Iterator[None]:
    """Puts other modules in the places of some layers, for one forward pass."""
    originals = {index: layers[index] for index in substitutes}
    try:
        for index, substitute in substitutes.items():
            layers[index] = substitute
        yield
    finally:
        for index, layer in originals.items():
            layers[index] = layer


def removable_layers(encoder: Any) -> nn.ModuleList:
    """Returns the encoder's layers where its architecture lets some be left out, else an empty list."""
    part = encoder
    for name in (architecture_of(encoder.config).stack or "").split("."):
        part = getattr(part, name, None)
    return part if isinstance(part, nn.ModuleList) else nn.ModuleList()


def is_compiled(model: Any) -> bool:
    """Whether the encoder is compiled: it would be compiled again for every change of its parts."""
    return getattr(getattr(model, "base_model", model), "_compiled_call_impl", None) is not None


class _SkippedLayer(nn.Module):
    """Stands for a layer that is not read. The layer stays a child: transformers looks for layers once, and hooks those."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, hidden_BTd: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_BTd


@contextmanager
def _without_unread_parts(encoder: Any, request: OutputRequest) -> Iterator[None]:
    """Leaves out the pooler, and the layers above the deepest one asked for, in one forward pass without logits."""
    if is_compiled(encoder):
        yield
        return
    layers, pooler = removable_layers(encoder), getattr(encoder, "pooler", None)
    # Embeddings are read at the first layer's input.
    deepest = max(request.hidden | request.vectors | request.scores | request.qkv, default=0) or 1
    if request.token_logits or request.routing:
        layers = nn.ModuleList()
    unread = {index: _SkippedLayer(layers[index]) for index in range(deepest, len(layers))}
    try:
        if pooler is not None:
            encoder.pooler = None
        with replaced(layers, unread):
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
    _Recorder.layers_run += 1
    layer = _Recorder.layers_run
    if layer in _Recorder.request.qkv:
        _Recorder.outputs.qkv[layer] = query, key, value
    if layer not in _Recorder.request.scores:
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling)
        return context.transpose(1, 2).contiguous(), None
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    _Recorder.outputs.scores[layer] = scores
    # The rest is transformers' eager attention.
    masked = scores if attention_mask is None else scores + attention_mask
    weights = F.dropout(masked.softmax(-1), dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), None


def vocabulary_logits(model: Any, chosen_Pd: Tensor) -> Tensor:
    """Applies the masked-LM head to chosen positions alone, [P, V]: most of a small model's work is this product.

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
    if model.training or request.token_logits:
        return forward_outputs(model, batch, request)
    pieces = [forward_outputs(model, piece, request) for piece in in_pieces(batch)]
    return pieces[0] if len(pieces) == 1 else _concatenated(pieces)


def in_pieces(batch: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """Yields a batch in pieces of rows with `tokens_at_once` tokens; whole where it has no more."""
    rows, width = batch["input_ids"].shape
    kind = batch["input_ids"].device.type
    step = max(1, tokens_at_once(kind, in_bfloat16=torch.is_autocast_enabled(kind)) // width)
    if rows <= step:
        yield batch
        return
    for first in range(0, rows, step):
        yield {name: value[first : first + step] for name, value in batch.items() if len(value) == rows}


def tokens_at_once(device: str, *, in_bfloat16: bool = False) -> int:
    """Returns how many tokens, padding included, a device computes fastest in one forward pass of a teacher."""
    return TOKENS_AT_ONCE.get(device, TOKENS_AT_ONCE["cpu"]) * (IN_BFLOAT16.get(device, 1) if in_bfloat16 else 1)


def _concatenated(pieces: list[ModelOutputs]) -> ModelOutputs:
    """Returns the outputs of a batch from those of its pieces."""
    if len(pieces) == 1:
        return pieces[0]
    first = pieces[0]
    return ModelOutputs(
        logits=None if first.logits is None else torch.cat([piece.logits for piece in pieces if piece.logits is not None]),
        hidden={layer: torch.cat([piece.hidden[layer] for piece in pieces]) for layer in first.hidden},
        scores={layer: torch.cat([piece.scores[layer] for piece in pieces]) for layer in first.scores},
        token_head=first.token_head,
        qkv={layer: _concatenated_vectors([piece.qkv[layer] for piece in pieces]) for layer in first.qkv},
    )


def _concatenated_vectors(pieces: list[Vectors]) -> Vectors:
    queries, keys, values = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return queries, keys, values


TeacherFunction = Callable[[Batch, OutputRequest], ModelOutputs]
OptionalTeacherFunction = Callable[[Batch, OutputRequest], ModelOutputs | None]  # None: this batch's task has no teacher
