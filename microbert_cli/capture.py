"""What a forward pass shows: logits, hidden states, attention scores - of the asked layers only.

Attention scores come out of transformers' own attention call: this module registers an attention function named "mbert"
that runs SDPA for layers nobody asked about, and the explicit product for the others, keeping Q K^T / sqrt(head size) as it
was BEFORE mask and softmax (`output_attentions` gives probabilities after dropout, and nothing at all under SDPA).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.modeling_outputs import BaseModelOutput

ATTENTION = "mbert"


@dataclass(frozen=True)
class Want:
    """What is asked of a model. Layers: 0 = embedding output, 1..N = Transformer layers."""

    logits: bool = False
    token_logits: bool = False
    hidden: frozenset[int] = frozenset()
    scores: frozenset[int] = frozenset()


@dataclass
class Seen:
    """What a model showed: logits [B, C], token_logits [P, V], hidden {layer: [B, T, d]}, scores {layer: [B, A, T, T]}."""

    logits: Tensor | None = None
    token_logits: Tensor | None = None
    hidden: dict[int, Tensor] = field(default_factory=dict)
    scores: dict[int, Tensor] = field(default_factory=dict)


class _Recorder:
    """The layers whose scores the running forward pass keeps; one pass runs at a time.

    Layers are counted as they are passed: DistilBERT's attention does not know its number, ALBERT's is the same in all.
    """

    layers: frozenset[int] = frozenset()
    scores: dict[int, Tensor] = {}
    passed = 0


def look(model: Any, batch: Mapping[str, Tensor], want: Want) -> Seen:
    """Runs `model` on `batch` and returns what `want` asks for, and nothing else.

    An architecture of our own may say itself what it shows: a method `look(batch, want)` is used where there is one.
    Raises RuntimeError if a layer asked for did not report its scores (an attention that bypasses transformers' interface).
    """
    own = getattr(model, "look", None)
    if own is not None:
        seen: Seen = own(batch, want)
        return seen
    inputs = {name: batch[name] for name in input_names(model) if name in batch}
    with _recording(want.scores) as scores:
        if want.logits:
            output = model(**inputs, output_hidden_states=bool(want.hidden))
        else:
            with _only_what_is_read(model.base_model, want):
                output = model.base_model(**inputs, output_hidden_states=bool(want.hidden))
    if missing := want.scores - scores.keys():
        raise RuntimeError(f"{type(model).__name__} did not show the attention scores of layers {sorted(missing)}")
    seen = Seen(scores=scores, hidden={layer: output.hidden_states[layer] for layer in want.hidden})
    if want.logits:
        seen.logits = output.logits
    if want.token_logits:
        chosen_Pd = output.last_hidden_state.flatten(0, 1)[batch["token_positions"]]
        seen.token_logits = _vocabulary_logits(model, chosen_Pd)
    return seen


def input_names(model: Any) -> tuple[str, ...]:
    """The tensors of a batch that this model takes; models of one segment (RoBERTa) or none get no token_type_ids."""
    segments = getattr(getattr(model, "config", None), "type_vocab_size", 0)
    return ("input_ids", "attention_mask", *(["token_type_ids"] if segments > 1 else []))


def show_scores(model: Any) -> None:
    """Makes `model` use this module's attention, so that `look` can see its scores."""
    model.set_attn_implementation(ATTENTION)


@contextmanager
def _recording(layers: frozenset[int]) -> Iterator[dict[int, Tensor]]:
    _Recorder.layers, _Recorder.scores, _Recorder.passed = layers, {}, 0
    try:
        yield _Recorder.scores
    finally:
        _Recorder.layers, _Recorder.scores = frozenset(), {}


@contextmanager
def _only_what_is_read(encoder: Any, want: Want) -> Iterator[None]:
    """Leaves out the pooler, and the layers above the deepest one that is asked, for one forward pass without logits."""
    stack = next((part for name in ("encoder", "transformer") if (part := getattr(encoder, name, None)) is not None), None)
    layers, pooler = getattr(stack, "layer", None), getattr(encoder, "pooler", None)
    deepest = max(want.hidden | want.scores, default=0) or 1  # what goes into the first layer is seen as it goes in
    cuts = isinstance(layers, nn.ModuleList) and not want.token_logits and deepest < len(layers)
    try:
        if pooler is not None:
            encoder.pooler = None
        if cuts:
            stack.layer = layers[:deepest]  # type: ignore[union-attr, index]
        yield
    finally:
        if pooler is not None:
            encoder.pooler = pooler
        if cuts:
            stack.layer = layers  # type: ignore[union-attr]


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
    if layer not in _Recorder.layers:
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling)
        return context.transpose(1, 2).contiguous(), None
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    _Recorder.scores[layer] = scores
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
