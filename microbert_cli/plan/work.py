"""One kind of work on a batch - train, judge, ask, answer - by architecture: what it computes, and what it keeps in memory.

Nothing is timed here; `calibration.py` does that on this machine, `machines.py` on paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from microbert_cli.models.architectures import FIRST_TOKEN_READ
from microbert_cli.models.capture import OutputRequest
from microbert_cli.models.factory import counted
from microbert_cli.models.size import batch_flops
from microbert_cli.plan.load import Workload
from microbert_cli.runs import atomic

PASSES = {"train": 3, "judge": 1, "ask": 1, "answer": 1}  # forward passes' worth of products; backward has two
NAMELESS = ("_name_or_path", "transformers_version", "id2label", "label2id", "architectures", "dtype", "torch_dtype")
FLOAT = 4  # bytes
RELATION_HEADS = 48  # of losses/relations.py, where the recipe does not say
PROCESS = 700_000_000  # bytes of Python with torch and transformers loaded, measured: 0.62 to 0.75 GB


@dataclass(frozen=True)
class Job:
    """Work on batches of `rows` rows.

    kind      train: a step of `accumulate` batches, the teacher's answers at hand; judge: the same losses without a
              gradient; ask: a teacher's pass; answer: the logits of a classifier, as evaluation gets them
    config    of the model that works; head: classifier, masked-lm or encoder, and whether `logits` are read from it
    losses    {name: (weight, parameters)}; layers: g(0)..g(M); teacher: the configuration whose answers are compared
    want      what a teacher that is asked shows
    predicted share of a batch's tokens that a masked-LM predicts; heads: how often its head runs over all tokens beside that
    """

    kind: str
    config: Any
    rows: int
    head: str = "classifier"
    logits: bool = True
    losses: Mapping[str, tuple[float, Mapping[str, Any]]] = field(default_factory=dict)
    layers: tuple[int, ...] = (0,)
    teacher: Any = None
    want: OutputRequest = OutputRequest()
    predicted: float = 0.0
    heads: float = 0.0
    normalisation: str = "masked"
    optimizer: str = "adamw"
    accumulate: int = 1

    def flops(self, load: Workload) -> int | None:
        """Floating-point operations of matrix products; None for an architecture that is not counted."""
        forward = batch_flops(
            self.config,
            rows=load.rows,
            tokens=load.tokens,
            squares=load.squares,
            head=self.head if self.logits else "encoder",
            predicted=(self.predicted + self.heads) * load.useful,
            first_token=self.only_logits,
        )
        return None if forward is None else PASSES[self.kind] * forward

    @property
    def only_logits(self) -> bool:
        """Whether nothing but a classifier's logits is read, so that its top layer computes one token a row."""
        asked = bool(self.want.hidden | self.want.scores | self.want.qkv)
        deep = asked if self.kind == "ask" else len(self.layers) > 1 or "embedding" in self.losses
        return self.head == "classifier" and self.logits and not deep and self.config.model_type in FIRST_TOKEN_READ

    def key(self) -> str:
        """What decides how long a batch of one shape takes, as a hash."""
        shown = [*map(sorted, (self.want.hidden, self.want.scores, self.want.qkv)), self.want.logits, self.want.token_logits]
        facts = {name: value for name, value in vars(self).items() if name not in ("config", "teacher", "want", "rows")}
        return atomic.digest({**facts, "config": shape(self.config), "teacher": shape(self.teacher), "want": shown})


def shape(config: Any) -> dict[str, Any] | None:
    """A configuration without names: what an architecture is."""
    return None if config is None else {k: v for k, v in config.to_dict().items() if k not in NAMELESS}


def activations(job: Job, rows: int, length: int) -> int:
    """Bytes that the forward pass of a training step keeps for the backward pass; an estimate.

        4 bytes x [ L S (14 d + 3 F) + Q m + P V 3 ]

    Per layer and token: inputs of the projections, q, k, v, context, residuals and LayerNorms (14 d), and the feed-forward
    block before and behind its activation (3 F). m = matrices of token pairs that losses read; SDPA keeps none.
    S padded tokens, Q = rows x length^2, A heads, P predicted positions, V vocabulary.
    """
    config = job.config
    d, L, A = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
    F = getattr(config, "intermediate_size", 4 * d)
    body = rows * length * (L * (14 * d + 3 * F) + _matrices(job, L, A) * length)
    words = 3 * job.predicted * rows * length * config.vocab_size if job.head == "masked-lm" else 0
    return int(FLOAT * (body + words))


def _matrices(job: Job, layers: int, heads: int) -> int:
    """How many matrices of token pairs a row has in the graph: the scores, what the loss makes of them, the teacher's."""
    told = {name: parameters for name, (_, parameters) in job.losses.items()}
    kept = 4 * layers * heads if "attention_scores" in told else 0
    kept += 5 * layers * heads if "attention_transfer" in told else 0
    kept += 5 * heads * sum(name in told for name in ("attention_distribution", "value_relation"))
    return kept + (15 * int(told["relations"].get("heads", RELATION_HEADS)) if "relations" in told else 0)


def shown(job: Job, rows: int, length: int) -> int:
    """Bytes of one teacher's answer to a batch, and of the widest layer at work."""
    config, S = job.config, rows * length
    kept = (len(job.want.hidden) + 3 * len(job.want.qkv)) * S * config.hidden_size
    kept += len(job.want.scores) * config.num_attention_heads * rows * length**2
    if job.want.hidden:  # transformers hands out all of them or none
        kept += config.num_hidden_layers * S * config.hidden_size
    return FLOAT * (kept + S * (4 * config.hidden_size + 2 * getattr(config, "intermediate_size", 0)))


def training_bytes(job: Job, *, scored: bool, copies: int = 1) -> int:
    """Weights, gradients and AdamW's two moments; the best weights so far; `copies` of the start of a race of rates."""
    return FLOAT * counted(job.config, job.head) * (4 + scored + copies)


def state_bytes(job: Job, *, scored: bool) -> int:
    """A resume state on disk: weights, both moments, and the best weights so far."""
    return FLOAT * counted(job.config, job.head) * (3 + scored)
