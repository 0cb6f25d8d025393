"""The waste-free ceiling of the intermediate stage: a bare loop, as fast as these formulas go with fused operators.

Rows fully sorted by length (no training run may do that, since nothing is shuffled), the teacher in evaluation mode without
autograd, scores of the mapped layers alone and fused attention elsewhere, no pooler, no head, fused AdamW, no clipping, no
logging, no checks, no `.item()` on anything. What mbert reaches of it is what its house costs.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microbert_cli.models.capture import Batch

Seen = tuple[dict[int, Tensor], dict[int, Tensor]]


class Lean(nn.Module):
    """Runs the encoder of a transformers BERT, on its own parameters, and keeps what is asked for.

    layers  whose states and scores are kept: numbers from 1; the embedding output, 0, is kept always
    """

    def __init__(self, model: Any, layers: Sequence[int]):
        super().__init__()
        self.bert, self.config, self.layers = model.base_model, model.config, frozenset(layers)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Seen:
        embeddings, p = self.bert.embeddings, self._dropout(self.config.hidden_dropout_prob)
        positions_Td = embeddings.position_embeddings.weight[: input_ids.shape[1]]
        x = embeddings.word_embeddings(input_ids) + embeddings.token_type_embeddings(token_type_ids) + positions_Td
        x = F.dropout(embeddings.LayerNorm(x), p)
        bias = None if bool(attention_mask.all()) else (attention_mask[:, None, None] == 0) * -1e4
        states, scores = {0: x}, {}
        for number, layer in enumerate(self.bert.encoder.layer, 1):
            context, seen = self._attend(layer.attention.self, x, bias, number in self.layers)
            x = self._residual(layer.attention.output, context, x, p)
            x = self._residual(layer.output, F.gelu(layer.intermediate.dense(x)), x, p)
            if seen is not None:
                states[number], scores[number] = x, seen
        return states, scores

    def _attend(self, attention: Any, x_BTd: Tensor, bias: Tensor | None, keep: bool) -> tuple[Tensor, Tensor | None]:
        p = self._dropout(self.config.attention_probs_dropout_prob)
        query, key, value = (
            each(x_BTd).unflatten(-1, (self.config.num_attention_heads, -1)).transpose(1, 2)
            for each in (attention.query, attention.key, attention.value)
        )
        if not keep:
            context = F.scaled_dot_product_attention(query, key, value, bias, p)
            return context.transpose(1, 2).flatten(2), None
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
        weights = F.dropout((scores if bias is None else scores + bias).softmax(-1), p)
        return (weights @ value).transpose(1, 2).flatten(2), scores

    def _residual(self, output: Any, inner: Tensor, x: Tensor, p: float) -> Tensor:
        return output.LayerNorm(F.dropout(output.dense(inner), p) + x)

    def _dropout(self, p: float) -> float:
        return p if self.training else 0.0


class Ceiling:
    """The two models, the map between their widths, the optimiser: `step` is all there is."""

    def __init__(self, teacher: Any, student: Any, layers: Sequence[int], *, learning_rate: float = 5e-5):
        student_layers = range(1, len(layers) + 1)
        self.layers = dict(zip([0, *student_layers], [0, *layers], strict=True))
        self.teacher = Lean(teacher, layers).eval()
        self.student = Lean(student, student_layers).train()
        self.fit = nn.Linear(student.config.hidden_size, teacher.config.hidden_size)
        parameters = [*self.student.parameters(), *self.fit.parameters()]
        self.optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01, fused=True)

    def losses(self, batch: Batch) -> Tensor:
        """Attention and hidden losses, means over real tokens and pairs."""
        given = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        with torch.no_grad():
            their_states, their_scores = self.teacher(**given)
        states, scores = self.student(**given)
        mask_BT = batch["attention_mask"].float()
        pairs_BQK = mask_BT[:, :, None] * mask_BT[:, None]
        hidden = [(self.fit(states[m]) - their_states[g]).square().mean(-1) for m, g in self.layers.items()]
        attention = [(scores[m] - their_scores[g]).square().mean(1) for m, g in self.layers.items() if m]
        return (sum(hidden) * mask_BT).sum() / mask_BT.sum() + (sum(attention) * pairs_BQK).sum() / pairs_BQK.sum()

    def step(self, batch: Batch) -> None:
        """One step of training."""
        self.losses(batch).backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
