"""Expert feed-forward networks and their routers: by task, by text, by token with a gate, or by token with a table.

    y(x) = sum over the chosen experts e  g_e(x) f_e(x),   f_e(x) = W2_e act(W1_e x + b1_e) + b2_e

Task routing: logits l = W e_k of task k's vector e_k [64], p = softmax(l); the top_k largest of l + tau * Gumbel are chosen.
    top_k = 1: g = p_e / stopgrad(p_e), exactly 1 forward, while the gradient reaches p_e;  top_k > 1: g_e = p_e / sum of the
    chosen. tau falls from 1 to 0.1 over the first half of training; then the choice without noise becomes a table, and the
    table decides. In eval mode the choice is always the one without noise.
Token routing: l = W x of every token x, no noise, no table, the same g. Sentence routing: l = W m of every row, m the mean of
its real tokens. With gate = "probability" g_e = p_e there, for one expert too, as MoEBERT has it.
Hash routing: a table of the vocabulary says which one expert a token's id goes to, g = 1; drawn once from the seed, [V].
An expert with residual and LayerNorm of its own (MoEBERT) is LayerNorm_e(x + dropout(f_e(x))).

x [B, T, d], E experts, K tasks. What decides later behaviour is in buffers, so that it is saved: `table` [K, top_k] (-1 = not
frozen yet), `noise` (tau), `draws` (training passes so far, from which the noise follows), `recent` [100, E] (real tokens that
each of the last 100 passes sent to each expert). Padding is computed and not counted.

Sources: routing by task: Kudugunta et al. 2021 (arXiv 2110.03742); by token: GShard (arXiv 2006.16668), without its capacity
and random second expert; by table, and gates of p: MoEBERT (NAACL 2022, released code, where a layer's table is drawn as the
model is made and is not saved); annealing, the table of tasks and the gate of 1 are this toolkit's.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from microbert_cli import distributed
from microbert_cli.reduce import denominator

TASK_WIDTH = 64
WINDOW = 100
NOISE_FIRST, NOISE_LAST, ANNEALED = 1.0, 0.1, 0.5


class Expert(nn.Module):
    """One feed-forward network without what comes after it: x [..., d] -> [..., d]."""

    def __init__(self, width: int, inner: int, activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        """W2 act(W1 x + b1) + b2."""
        out: Tensor = self.down(self.activation(self.up(hidden)))
        return out


class NormedExpert(Expert):
    """An expert with dropout, residual and LayerNorm of its own; nothing comes after it."""

    def __init__(self, width: int, inner: int, activation: Callable[[Tensor], Tensor], *, epsilon: float, dropout: float):
        super().__init__(width, inner, activation)
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(width, eps=epsilon)

    def forward(self, hidden: Tensor) -> Tensor:
        """LayerNorm(x + dropout(f(x)))."""
        out: Tensor = self.norm(self.dropout(super().forward(hidden)) + hidden)
        return out


@dataclass
class RoutingContext:
    """What routers need to know of a forward pass, and what they record of it.

    task, vector           the task's number, and its vector [64] with gradient
    mask_BT, ids_BT        which tokens are real (None = all), and which tokens they are
    shares, gates          of every layer passed, [E]: f and P of the balance (losses/load_balance.py)
    """

    task: int = 0
    vector: Tensor | None = None
    mask_BT: Tensor | None = None
    ids_BT: Tensor | None = None
    shares: list[Tensor] = field(default_factory=list)
    gates: list[Tensor] = field(default_factory=list)

    def record(self, shares_E: Tensor, gates_E: Tensor) -> None:
        """Adds one layer's shares of tokens and mean gates."""
        self.shares.append(shares_E.detach())
        self.gates.append(gates_E)

    @property
    def routing(self) -> tuple[Tensor, Tensor] | None:
        """Shares and gates of all layers, both [layers, E]; None where no layer recorded any."""
        return (torch.stack(self.shares), torch.stack(self.gates)) if self.shares else None


class TaskRouter(nn.Module):
    """Chooses experts by task; see the module's formulas. f is of the last 100 training passes, P the task's p."""

    def __init__(self, tasks: int, experts: int, top_k: int, *, seed: int, layer: int):
        super().__init__()
        self.seed, self.layer, self.top_k = seed, layer, top_k
        self.gate = nn.Linear(TASK_WIDTH, experts, bias=False)
        self.register_buffer("table", torch.full((tasks, top_k), -1))
        self.register_buffer("noise", torch.tensor(NOISE_FIRST))
        self.register_buffer("draws", torch.tensor(0))
        self.register_buffer("recent", torch.zeros(WINDOW, experts))

    table: Tensor
    noise: Tensor
    draws: Tensor
    recent: Tensor

    def forward(self, hidden_BTd: Tensor, context: RoutingContext) -> tuple[list[int], Tensor]:
        """Returns the chosen experts and the gate of each, [top_k]; in training it draws noise and counts tokens."""
        assert context.vector is not None
        logits_E = self.logits(context.vector)
        chosen = self.choose(logits_E.detach(), context.task)
        probabilities_E = logits_E.softmax(-1)
        if self.training:
            self._count(chosen, _token_weights(hidden_BTd, context).sum())
        context.record(self.recent.sum(0) / self.recent.sum().clamp(min=1), probabilities_E)
        return chosen, gates_of(probabilities_E[chosen])

    def logits(self, vector: Tensor) -> Tensor:
        """Returns W e_k [E], in float32 under autocast too, so that training and inference choose alike."""
        return (self.gate.weight.float() * vector.float()).sum(-1)

    def choose(self, logits_E: Tensor, task: int) -> list[int]:
        """Returns the experts of a task by its logits: those of the frozen table, else the largest, in training with noise."""
        if (frozen_choice := self.table[task].tolist())[0] >= 0:
            return list(frozen_choice)
        if self.training:
            logits_E = logits_E + self.noise * self._gumbel(logits_E)
        return list(logits_E.topk(self.top_k).indices.tolist())

    def progress(self, share: float, vectors_K64: Tensor) -> None:
        """Sets the noise for the share of training that is done; at the half it freezes the table of experts."""
        self.noise.fill_(NOISE_FIRST + (NOISE_LAST - NOISE_FIRST) * min(share / ANNEALED, 1.0))
        if share >= ANNEALED and not self.is_frozen:
            self.table.copy_(torch.stack([self.logits(vector).topk(self.top_k).indices for vector in vectors_K64]))

    @property
    def is_frozen(self) -> bool:
        """Whether the table decides."""
        return bool((self.table >= 0).all())

    def _gumbel(self, like: Tensor) -> Tensor:
        """Draws noise from seed, layer and number of draws: the same in every process, and after a resume."""
        generator = _generator(self.seed, self.layer, int(self.draws))
        # log(-log(u)) is finite only strictly between 0 and 1.
        uniform = torch.rand(like.shape, generator=generator).clamp(1e-9, 1 - 1e-7)
        return -(-uniform.log()).log().to(like.device)

    def _count(self, chosen: Sequence[int], tokens: Tensor) -> None:
        counts = torch.zeros_like(self.recent[0])
        counts[list(chosen)] = distributed.all_reduce_sum(tokens).to(counts) / len(chosen)
        self.recent[int(self.draws) % WINDOW] = counts
        self.draws += 1


class TokenRouter(nn.Module):
    """Chooses experts for every token. f is the share of real tokens whose first choice an expert is, P the mean of their p."""

    def __init__(self, width: int, experts: int, top_k: int, gate: str = "share"):
        super().__init__()
        self.top_k, self.gate_kind = top_k, gate
        self.gate = nn.Linear(width, experts, bias=False)

    def forward(self, hidden_BTd: Tensor, context: RoutingContext) -> tuple[Tensor, Tensor]:
        """Returns the chosen experts of every token and their gates, both [B, T, top_k]."""
        return self.choose(hidden_BTd, _token_weights(hidden_BTd, context), context)

    def choose(self, hidden: Tensor, real: Tensor, context: RoutingContext) -> tuple[Tensor, Tensor]:
        """Returns the experts and gates [..., k] of vectors [..., d]; those that are not `real` [...] are not counted."""
        # In bfloat16 close probabilities would become equal, and the choice would follow from rounding.
        with torch.autocast(hidden.device.type, enabled=False):
            probabilities = self.gate(hidden.float()).softmax(-1)
        largest, chosen = probabilities.topk(self.top_k)
        weights = real[..., None].float()
        first = nn.functional.one_hot(chosen[..., 0], probabilities.shape[-1]) * weights
        counts_E, sums_E = first.flatten(0, -2).sum(0), (probabilities * weights).flatten(0, -2).sum(0)
        if self.training:  # in evaluation processes have different batches, and must not wait for each other
            context.record(
                distributed.all_reduce_sum(counts_E) / distributed.all_reduce_sum(weights.sum()),
                sums_E / denominator(weights.sum()),
            )
        else:
            context.record(counts_E / weights.sum(), sums_E / weights.sum())
        return chosen, largest if self.gate_kind == "probability" else gates_of(largest)


class SentenceRouter(TokenRouter):
    """Chooses experts for every row, by the mean of its real tokens. f and P are of rows."""

    def forward(self, hidden_BTd: Tensor, context: RoutingContext) -> tuple[Tensor, Tensor]:
        """Returns the chosen experts of every token and their gates, both [B, T, top_k], the same throughout a row."""
        real_BT1 = _token_weights(hidden_BTd, context)[..., None]
        mean_Bd = (hidden_BTd * real_BT1).sum(1) / real_BT1.sum(1).clamp(min=1)
        chosen_Bk, gates_Bk = self.choose(mean_Bd, real_BT1[..., 0].amax(1), context)
        length = hidden_BTd.shape[1]
        return tuple(value[:, None].expand(-1, length, -1) for value in (chosen_Bk, gates_Bk))  # type: ignore[return-value]


class HashRouter(nn.Module):
    """Chooses one expert for each token of the vocabulary by a saved table. Nothing is trained or recorded."""

    def __init__(self, vocabulary: int, experts: int, *, seed: int, layer: int):
        super().__init__()
        # int16 keeps the table small in the checkpoint.
        table = torch.randint(experts, (vocabulary,), generator=_generator(seed, layer, "hash"), device="cpu")
        self.register_buffer("table", table.to(torch.int16))

    table: Tensor

    def forward(self, hidden_BTd: Tensor, context: RoutingContext) -> tuple[Tensor, Tensor]:
        """Returns every token's expert and a gate of 1, both [B, T, 1]. Raises ValueError without token ids."""
        if context.ids_BT is None:
            raise ValueError("routing by a table of tokens needs input_ids")
        return self.table[context.ids_BT][..., None], hidden_BTd.new_ones((*context.ids_BT.shape, 1))


class Experts(nn.Module):
    """E feed-forward networks and a router in the place of one network; `context` is the running pass's."""

    def __init__(self, experts: Sequence[Expert], router: TaskRouter | TokenRouter | HashRouter):
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.router: Any = router
        self.context = RoutingContext()

    def forward(self, hidden_BTd: Tensor) -> Tensor:
        """Returns y(x); see the module's formula."""
        chosen, gates = self.router(hidden_BTd, self.context)
        if isinstance(chosen, list):  # by task: the same experts for the whole batch
            parts = [self.experts[e](hidden_BTd) * gate.to(hidden_BTd) for e, gate in zip(chosen, gates, strict=True)]
            return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        out_BTd = torch.zeros_like(hidden_BTd)
        for number, expert in enumerate(self.experts):
            # Each expert computes its own tokens alone.
            rows = (chosen == number).nonzero(as_tuple=True)
            vectors_Nd = expert(hidden_BTd[rows[:2]])
            out_BTd = out_BTd.index_put(rows[:2], (vectors_Nd * gates[rows][:, None]).to(out_BTd), accumulate=True)
        return out_BTd


def deal_neurons(importance_F: Tensor, *, experts: int, width: int, shared: int) -> list[list[int]]:
    """Returns which of F neurons each expert gets: all of them the `shared` most important, the rest in turn (MoEBERT).

    Expert i has the ranks 0 .. shared - 1, then shared + i, shared + i + E, ... until it is `width` wide; the rest is dropped.
    """
    ranked = importance_F.argsort(descending=True, stable=True).tolist()
    private = width - shared
    return [ranked[:shared] + ranked[shared + number :: experts][:private] for number in range(experts)]


def gates_of(chosen: Tensor) -> Tensor:
    """Returns gates [..., k] of the chosen probabilities: for one exactly 1, with a gradient, for several their shares."""
    return chosen / (chosen.detach() if chosen.shape[-1] == 1 else chosen.sum(-1, keepdim=True))


def _generator(*source: object) -> torch.Generator:
    """Returns a generator seeded by its arguments, alike in every process."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(repr(source).encode()).digest()[:4]))


def _token_weights(hidden_BTd: Tensor, context: RoutingContext) -> Tensor:
    """Returns 1 for real tokens and 0 for padding, [B, T]."""
    return hidden_BTd.new_ones(hidden_BTd.shape[:2]) if context.mask_BT is None else context.mask_BT.to(hidden_BTd.dtype)
