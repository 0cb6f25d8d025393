"""A plain implementation of two-stage distillation, to measure against: what the published code does, in our own words.

It is what anybody writes who follows TinyBERT's paper and looks at nothing else, and it wastes what its code wastes:

    every row is padded to a fixed maximum
    the teacher is asked at every step of every epoch, in training mode, so that its dropout is at work
    every layer of both models keeps its raw attention scores and its hidden states, whoever reads them
    LayerNorm and GELU are spelt out, the optimiser walks over the parameters one at a time
    the student's states are mapped to the teacher's width in the prediction stage too, and thrown away
    augmentation asks the masked language model one word at a time: a batch of one, [CLS] masked [SEP] original [SEP], the
        vocabulary head at every position, a full sort of the vocabulary, with the autograd graph recorded
    evaluation pads to the maximum and takes rows as they come

The formulas are BERT's, and weights can be taken over from a transformers model: both then give the same answers, which
`tests/test_benchmarks.py` checks.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microbert_cli.models.capture import Batch
from microbert_cli.training.optimisers import BertAdam

UNSEEN = -100.0  # scores at or below are padding
HIDE = -10_000.0  # added to the scores of padded keys
NAMES = {
    "attention.self.": "",
    "attention.output.dense": "mixed",
    "attention.output.LayerNorm": "first_norm",
    "intermediate.dense": "wide",
    "output.dense": "narrow",
    "output.LayerNorm": "second_norm",
    "encoder.layer.": "layers.",
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "segments",
    "embeddings.LayerNorm": "norm",
    "pooler.dense": "pooler",
}


@dataclass
class Shown:
    """Everything a forward pass computes: logits [B, C], states of layers 0..N [B, T, d], scores of 1..N [B, A, T, T]."""

    logits: Tensor
    states: list[Tensor]
    scores: list[Tensor]


class Norm(nn.Module):
    """LayerNorm, step by step."""

    def __init__(self, width: int, epsilon: float = 1e-12):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        square = (x - mean).pow(2).mean(-1, keepdim=True)
        x = (x - mean) / torch.sqrt(square + self.epsilon)
        return self.weight * x + self.bias


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), by the error function."""
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


class Layer(nn.Module):
    """One Transformer layer that hands out its scores."""

    def __init__(self, config: Any):
        super().__init__()
        d = config.hidden_size
        self.heads = config.num_attention_heads
        self.query, self.key, self.value, self.mixed = (nn.Linear(d, d) for _ in range(4))
        self.wide, self.narrow = nn.Linear(d, config.intermediate_size), nn.Linear(config.intermediate_size, d)
        self.first_norm, self.second_norm = Norm(d, config.layer_norm_eps), Norm(d, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.attention_dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(self, x_BTd: Tensor, bias_B11T: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value = (self._split(each(x_BTd)) for each in (self.query, self.key, self.value))
        scores = torch.matmul(query, key.transpose(-1, -2))
        scores = scores / math.sqrt(query.shape[-1])
        scores = scores + bias_B11T
        weights = self.attention_dropout(F.softmax(scores, dim=-1))
        context = torch.matmul(weights, value).permute(0, 2, 1, 3).contiguous().view(x_BTd.shape)
        x_BTd = self.first_norm(self.dropout(self.mixed(context)) + x_BTd)
        inner = self.narrow(gelu(self.wide(x_BTd)))
        return self.second_norm(self.dropout(inner) + x_BTd), scores

    def _split(self, x_BTd: Tensor) -> Tensor:
        rows, width, d = x_BTd.shape
        return x_BTd.view(rows, width, self.heads, d // self.heads).permute(0, 2, 1, 3)


class Bert(nn.Module):
    """A BERT with a classifier; with `taught_width`, also the map of its states to a teacher's width."""

    def __init__(self, config: Any, taught_width: int | None = None):
        super().__init__()
        self.config, d = config, config.hidden_size
        self.words = nn.Embedding(config.vocab_size, d)
        self.positions = nn.Embedding(config.max_position_embeddings, d)
        self.segments = nn.Embedding(config.type_vocab_size, d)
        self.norm, self.dropout = Norm(d, config.layer_norm_eps), nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.pooler, self.classifier = nn.Linear(d, d), nn.Linear(d, config.num_labels)
        self.fit_dense = nn.Linear(d, taught_width) if taught_width else None

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Shown:
        places = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0).expand_as(input_ids)
        x = self.words(input_ids) + self.positions(places) + self.segments(token_type_ids)
        x = self.dropout(self.norm(x))
        bias = (1.0 - attention_mask[:, None, None, :].float()) * HIDE
        states, scores = [x], []
        for layer in self.layers:
            x, seen = layer(x, bias)
            states.append(x)
            scores.append(seen)
        logits = self.classifier(torch.tanh(self.pooler(x[:, 0])))
        if self.fit_dense is not None:
            states = [self.fit_dense(state) for state in states]
        return Shown(logits, states, scores)


class MaskedLM(nn.Module):
    """A BERT with the vocabulary head at every position."""

    def __init__(self, config: Any):
        super().__init__()
        self.config, self.bert = config, Bert(config)
        self.dense, self.norm = (
            nn.Linear(config.hidden_size, config.hidden_size),
            Norm(config.hidden_size, config.layer_norm_eps),
        )
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        shown = self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return F.linear(self.norm(gelu(self.dense(shown.states[-1]))), self.bert.words.weight, self.bias)


def classifier_like(model: Any, taught_width: int | None = None) -> Bert:
    """A plain BERT with copies of the weights of a transformers encoder or classifier; what that lacks stays random."""
    copy = Bert(model.config, taught_width)
    weights = {_renamed(name.removeprefix("bert.")): value for name, value in model.state_dict().items()}
    missing, unknown = copy.load_state_dict(weights, strict=False)
    strange = [name for name in missing if not name.startswith(("fit_dense", "classifier", "pooler"))]
    assert not strange and not [name for name in unknown if "position_ids" not in name], (strange, unknown)
    return copy


def masked_lm_like(model: Any) -> MaskedLM:
    """A plain masked language model with copies of the weights of a transformers one."""
    copy, weights = MaskedLM(model.config), model.state_dict()
    copy.bert = classifier_like(model.bert)
    head = {name: weights[f"cls.predictions.transform.dense.{name}"] for name in ("weight", "bias")}
    copy.dense.load_state_dict(head)
    copy.norm.load_state_dict({n: weights[f"cls.predictions.transform.LayerNorm.{n}"] for n in ("weight", "bias")})
    copy.bias.data.copy_(weights["cls.predictions.bias"])
    return copy


def _renamed(name: str) -> str:
    for long, short in NAMES.items():
        name = name.replace(long, short)
    return name


def inputs(batch: Batch) -> dict[str, Tensor]:
    """What a model takes of a batch."""
    return {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}


def bert_adam(student: nn.Module, learning_rate: float = 5e-5) -> BertAdam:
    """The published optimiser over all parameters."""
    named = list(student.named_parameters())
    return BertAdam(
        [
            {"params": [p for n, p in named if not n.endswith("bias") and "norm" not in n], "weight_decay": 0.01},
            {"params": [p for n, p in named if n.endswith("bias") or "norm" in n], "weight_decay": 0.0},
        ],
        lr=learning_rate,
    )


def intermediate_losses(student: Shown, teacher: Shown) -> tuple[Tensor, Tensor]:
    """(attention, hidden): per layer, means over every element, padding included; scores of padded keys count as 0."""
    share = len(teacher.scores) // len(student.scores)
    attention = [F.mse_loss(_seen(s), _seen(teacher.scores[(m + 1) * share - 1])) for m, s in enumerate(student.scores)]
    hidden = [F.mse_loss(s, teacher.states[m * share]) for m, s in enumerate(student.states)]
    return torch.stack(attention).sum(), torch.stack(hidden).sum()


def _seen(scores: Tensor) -> Tensor:
    return torch.where(scores <= UNSEEN, torch.zeros_like(scores), scores)


def intermediate_step(teacher: Bert, student: Bert, optimiser: BertAdam, batch: Batch, *, autograd: bool = False) -> float:
    """One step of the intermediate stage, or of general distillation, where the teacher runs under `autograd`."""
    shown = student(**inputs(batch))
    with torch.set_grad_enabled(autograd):
        taught = teacher(**inputs(batch))
    if autograd:
        taught = Shown(taught.logits, [s.detach() for s in taught.states], [s.detach() for s in taught.scores])
    attention, hidden = intermediate_losses(shown, taught)
    return _learn(attention + hidden, optimiser)


def prediction_step(teacher: Bert, student: Bert, optimiser: BertAdam, batch: Batch) -> float:
    """One step of the prediction stage: soft cross-entropy at temperature 1, averaged over rows and classes."""
    with torch.no_grad():
        taught = teacher(**inputs(batch))
    shown = student(**inputs(batch))
    loss = (-F.softmax(taught.logits, -1) * F.log_softmax(shown.logits, -1)).mean()
    return _learn(loss, optimiser)


def _learn(loss: Tensor, optimiser: BertAdam) -> float:
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    return loss.item()


@torch.no_grad()
def answer(model: Bert, batch: Batch) -> np.ndarray:
    """Logits of one batch, dropout off."""
    return model.eval()(**inputs(batch)).logits.cpu().numpy()


class Augmenter:
    """TinyBERT's augmentation, a word at a time.

    spelling  microbert_cli.words.Spelling, so that both sides agree on what a word is;  vectors  (words, [W, D]) or None
    """

    def __init__(
        self, model: MaskedLM, spelling: Any, stop_words: Any, vectors: tuple[Sequence[str], np.ndarray] | None = None
    ):
        self.model, self.spelling, self.stop_words = model.eval(), spelling, stop_words
        self.names, self.vectors = vectors or ([], np.empty((0, 1)))
        self.places = {word: i for i, word in enumerate(self.names)}
        self.forwards = 0

    def vary(self, text: str, *, copies: int = 20, probability: float = 0.4, count: int = 15, seed: int = 0) -> list[str]:
        """Up to `copies` sentences that differ from `text` in some words."""
        words, variants, draw = self.spelling.splitter.split(text), set(), random.Random(seed)
        chosen = self.candidates(words, count)
        for _ in range(copies):
            copy = list(words)
            for position, candidates in chosen.items():
                candidate = draw.choice(candidates)
                if draw.random() < probability:
                    copy[position] = candidate
            variants.add(" ".join(copy))
        return sorted(variants)

    def candidates(self, words: Sequence[str], count: int = 15) -> dict[int, list[str]]:
        """Other words for every position that may be changed."""
        eligible = [i for i, word in enumerate(words) if not self.stop_words.keeps(word)]
        return {i: self._for(words, i, count) or [words[i]] for i in eligible}

    def _for(self, words: Sequence[str], position: int, count: int) -> list[str]:
        if len(self.spelling.pieces(words[position])) > 1:
            return self._near(words[position], count)
        ranked = self.likeliest(words, position).tolist()[:count]
        return [word for word in (self.spelling.words[i] for i in ranked) if word is not None]

    def likeliest(self, words: Sequence[str], position: int) -> Tensor:
        """The whole vocabulary, the likeliest first."""
        return torch.sort(self.logits(words, position), descending=True)[1]

    def logits(self, words: Sequence[str], position: int) -> Tensor:
        """[V] at a masked word: one forward pass over the masked and the original sentence."""
        tokenizer = self.spelling.tokenizer
        pieces = [[tokenizer.mask_token_id] if i == position else self.spelling.pieces(word) for i, word in enumerate(words)]
        masked = [tokenizer.cls_token_id, *(piece for word in pieces for piece in word), tokenizer.sep_token_id]
        original = [*(piece for word in words for piece in self.spelling.pieces(word)), tokenizer.sep_token_id]
        device = self.model.bias.device
        ids = torch.tensor([masked + original], device=device)
        segments = torch.tensor([[0] * len(masked) + [1] * len(original)], device=device)
        self.forwards += 1
        logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=segments)
        return logits[0, masked.index(tokenizer.mask_token_id)]

    def _near(self, word: str, count: int) -> list[str]:
        if word not in self.places:
            return []
        vector = self.vectors[self.places[word]]
        cosines = self.vectors @ vector / (np.linalg.norm(self.vectors, axis=1) * np.linalg.norm(vector))
        return [self.names[i] for i in np.argsort(-cosines)[1 : count + 1]]
