"""What there is to compute: batches by their padded shape as the loop will draw them, and the work done on such batches.

`Workload` counts batches; `Job` is one kind of work on a batch: what it computes, and what it keeps in memory. Nothing is timed
here; `calibration.py` does that on this machine, `hardware.py` by published rates.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from microbert_cli.data.batching import batches_by_length, epoch_batches, token_budget_batches
from microbert_cli.models.architectures import architecture_of, model_shape
from microbert_cli.models.capture import OutputRequest, tokens_at_once
from microbert_cli.models.exits.build import has_exits
from microbert_cli.models.exits.flops import branch_flops
from microbert_cli.models.factory import config_parameters
from microbert_cli.models.size import batch_flops
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.task_kinds import answers_words
from microbert_cli.runs import atomic
from microbert_cli.training.freeze import BACKBONE

Shape = tuple[int, int]
EXACT = 3_000_000  # rows drawn batch by batch; of what a longer training sees, whole epochs are taken to be alike
PASSES = {"train": 3, "judge": 1, "ask": 1, "answer": 1}  # forward passes' worth of products; backward has two
NAMELESS = ("_name_or_path", "transformers_version", "id2label", "label2id", "architectures", "dtype", "torch_dtype")
FLOAT = 4  # bytes
PROCESS = 700_000_000  # bytes of Python with torch and transformers loaded, measured: 0.62 to 0.75 GB


@dataclass(frozen=True)
class Workload:
    """Batches by shape, {(rows, padded length): how many}, and the tokens in them that are not padding."""

    shapes: Mapping[Shape, float] = field(default_factory=dict)
    useful: float = 0

    @property
    def batches(self) -> float:
        """How many batches there are."""
        return sum(self.shapes.values())

    @property
    def rows(self) -> float:
        """Rows of all batches."""
        return sum(rows * count for (rows, _), count in self.shapes.items())

    @property
    def tokens(self) -> float:
        """Tokens of all batches, padding included."""
        return sum(rows * length * count for (rows, length), count in self.shapes.items())

    @property
    def squares(self) -> float:
        """Squared padded lengths, summed over all rows: what attention grows with."""
        return sum(rows * length**2 * count for (rows, length), count in self.shapes.items())

    @property
    def widest(self) -> Shape:
        """The shape with most tokens; (0, 0) where there is none."""
        return max(self.shapes, key=lambda shape: (shape[0] * shape[1], shape), default=(0, 0))

    def __add__(self, other: "Workload") -> "Workload":
        return Workload(Counter(self.shapes) + Counter(other.shapes), self.useful + other.useful)

    def times(self, factor: float) -> "Workload":
        """Returns the workload repeated `factor` times."""
        return Workload({shape: count * factor for shape, count in self.shapes.items()}, self.useful * factor)


def training_load(
    lengths: Sequence[int] | np.ndarray,
    *,
    batches: int,
    batch_size: int,
    seed: int,
    drop_last: bool = False,
    pad_to: int | None = None,
    tokens: int | None = None,
) -> Workload:
    """Returns the first `batches` batches that training draws, over as many epochs as that takes.

    lengths  of the rows in tokens;  pad_to  the padded length where every batch has the same
    Exact up to EXACT rows; beyond them the epochs counted stand for the others.
    """
    lengths = np.asarray(lengths)
    workload, epoch = Workload(), 0
    while (missing := batches - workload.batches) > 0:
        if epoch and len(lengths) * epoch > EXACT:
            return workload.times(batches / workload.batches)
        epoch_rows = epoch_batches(lengths, batch_size=batch_size, seed=seed, epoch=epoch, drop_last=drop_last, tokens=tokens)
        workload += load_of_batches((lengths[rows] for rows in epoch_rows[: int(missing)]), pad_to)
        epoch += 1
    return workload


def answering_load(lengths: Sequence[int] | np.ndarray, *, batch_size: int) -> Workload:
    """Returns all rows once, longest first, as evaluation reads them."""
    lengths = np.asarray(lengths)
    return load_of_batches(lengths[rows] for rows in batches_by_length(lengths, batch_size=batch_size))


def at_once(lengths: Sequence[int] | np.ndarray, device: str, *, in_bfloat16: bool = False) -> Workload:
    """Returns all rows once, in the batches that fill the teacher's cache."""
    lengths, tokens = np.sort(np.asarray(lengths))[::-1], tokens_at_once(device, in_bfloat16=in_bfloat16)
    return load_of_batches(lengths[rows] for rows in token_budget_batches(lengths, np.arange(len(lengths)), tokens))


def load_of_batches(batches: Iterable[np.ndarray], pad_to: int | None = None) -> Workload:
    """Counts batches given as the lengths of their rows, each padded to its longest, or to `pad_to` if that is more."""
    shapes: Counter[Shape] = Counter()
    useful = 0
    for lengths in batches:
        shapes[len(lengths), max(int(lengths.max()), pad_to or 0)] += 1
        useful += int(lengths.sum())
    return Workload(dict(shapes), useful)


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
    freeze: tuple[str, ...] = ()

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
        if forward is None:
            return None
        if not (self.kind == "train" and has_exits(self.config)):
            return round(self.passes * forward)
        branches = len(self.config.exit_layers) * branch_flops(self.config, rows=load.rows, tokens=load.tokens)
        return round(self.passes * forward) + PASSES["train"] * branches

    @property
    def passes(self) -> float:
        """Forward passes' worth of products: a backward pass has two, and ends above the lowest layer that is trained."""
        if self.kind == "train" and BACKBONE in self.freeze:
            return 1
        if self.kind != "train" or "embeddings" not in self.freeze:
            return PASSES[self.kind]
        layers = model_shape(self.config).layers
        below = next((n for n in range(layers) if f"layer.{n + 1}" not in self.freeze), layers)
        return 1 + (PASSES["train"] - 1) * (1 - below / layers)

    @property
    def only_logits(self) -> bool:
        """Whether nothing but a classifier's logits is read, so that its top layer computes one token a row."""
        reads_layers = bool(self.want.hidden | self.want.scores | self.want.qkv | self.want.vectors)
        reads_inside = reads_layers if self.kind == "ask" else len(self.layers) > 1 or "embedding" in self.losses
        return (
            self.head == "classifier"
            and self.logits
            and not reads_inside
            and architecture_of(self.config).first_token_head
            and not answers_words(self.config)
        )

    def key(self) -> str:
        """Returns a hash of all that decides how long a batch of one shape takes."""
        want = [*map(sorted, (self.want.hidden, self.want.scores, self.want.qkv)), self.want.logits, self.want.token_logits]
        want += [sorted(self.want.vectors)] if self.want.vectors else []
        fields = {name: value for name, value in vars(self).items() if name not in ("config", "teacher", "want", "rows")}
        return atomic.digest({**fields, "config": shape(self.config), "teacher": shape(self.teacher), "want": want})


def shape(config: Any) -> dict[str, Any] | None:
    """Returns a configuration without names and labels: two equal ones take the same time."""
    return None if config is None else {k: v for k, v in config.to_dict().items() if k not in NAMELESS}


def activations(job: Job, rows: int, length: int) -> int:
    """Estimates the bytes that the forward pass of a training step keeps for the backward pass.

        4 bytes x [ L S (14 d + 3 F) + Q m + P V 3 ]

    Per layer and token: inputs of the projections, q, k, v, context, residuals and LayerNorms (14 d), and the feed-forward
    block before and behind its activation (3 F). m = matrices of token pairs that losses read; SDPA keeps none.
    S padded tokens, Q = rows x length^2, A heads, P predicted positions, V vocabulary. Under a frozen backbone branches alone
    keep anything: what is narrowed, keys, values, and what comes of them (6 w).
    Of a recurrent network, of width H over inputs of width x: 4 bytes x S (2 x + 2 (4 H + 3 H)), the inputs in both orders,
    gates, cells and states in both orders.
    """
    if BACKBONE in job.freeze and has_exits(job.config):
        return FLOAT * rows * length * 6 * job.config.branch_width * len(job.config.exit_layers)
    shape = model_shape(job.config)
    if architecture_of(job.config).recurrent:
        return FLOAT * rows * length * (2 * job.config.input_size + 14 * shape.width)
    d, L, A = shape.width, shape.layers, shape.heads or 0
    F = shape.inner or 4 * d
    body = rows * length * (L * (14 * d + 3 * F) + _matrices(job, L, A) * length)
    vocabulary_logits = 3 * job.predicted * rows * length * shape.vocabulary if job.head == "masked-lm" else 0
    return int(FLOAT * (body + vocabulary_logits))


def _matrices(job: Job, layers: int, heads: int) -> int:
    """Counts the matrices of token pairs that a row has in the graph: scores, what the losses make of them, the teacher's."""
    losses = {name: parameters for name, (_, parameters) in job.losses.items()}
    matrices = 4 * layers * heads if "attention_scores" in losses else 0
    matrices += 5 * layers * heads if "attention_transfer" in losses else 0
    matrices += 5 * heads * sum(name in losses for name in ("attention_distribution", "value_relation"))
    return matrices + (
        15 * int(losses["relations"].get("heads", Catalog().loss_defaults("relations")["heads"]))
        if "relations" in losses
        else 0
    )


def shown(job: Job, rows: int, length: int) -> int:
    """Returns the bytes of a teacher's outputs for a batch, and of its widest layer at work."""
    sizes, S = model_shape(job.config), rows * length
    values = (len(job.want.hidden) + 3 * len(job.want.qkv)) * S * sizes.width
    values += len(job.want.scores) * (sizes.heads or 0) * rows * length**2
    values += len(job.want.vectors) * rows * sizes.width
    if job.want.hidden | job.want.vectors:  # transformers hands out all of them or none
        values += sizes.layers * S * sizes.width
    return FLOAT * (values + S * (4 * sizes.width + 2 * (sizes.inner or 0)))


def training_bytes(job: Job, *, scored: bool, copies: int = 1) -> int:
    """Weights, gradients and AdamW's two moments; the best weights so far; `copies` of the start of a race of rates."""
    return FLOAT * config_parameters(job.config, job.head) * (4 + scored + copies)


def state_bytes(job: Job, *, scored: bool) -> int:
    """A resume state on disk: weights, both moments, and the best weights so far."""
    return FLOAT * config_parameters(job.config, job.head) * (3 + scored)
