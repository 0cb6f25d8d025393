"""The teacher of C-MLM: a masked-LM that fills in hidden tokens of a target, its source and the rest of the target before it.

It sees what comes AFTER a hidden token: what it gets right says nothing of what a student, which sees none of that, could get
right, and is no upper bound of it.

Its answers are over the student's vocabulary: of the masked-LM's output layer the rows of those tokens are read, which began as
the embeddings of the same tokens and are trained apart from them. The rest of that layer stays where it is, so that the
directory is a plain masked-LM of transformers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microbert_cli import distributed
from microbert_cli.data.generation.rows import FilledRows
from microbert_cli.distillation.generation.copies import Batch, copied_batches, positions_hidden_at_random
from microbert_cli.evaluation.scoring import EVALUATION_BATCH
from microbert_cli.models.capture import ModelOutputs, OutputRequest, forward_outputs
from microbert_cli.models.load import frozen
from microbert_cli.training.loss_terms import LossTerm
from microbert_cli.training.objective import Objective

TOKEN_ACCURACY = "token_accuracy"
TOKENS = OutputRequest(token_logits=True)


@dataclass(frozen=True)
class Filler:
    """A masked-LM with what its answers are over.

    teacher_ids  [V] int64: the teacher's id of each of the student's tokens
    """

    model: Any
    tokenizer: Any
    teacher_ids: np.ndarray

    @property
    def device(self) -> torch.device:
        """The device of the model's weights."""
        return next(self.model.parameters()).device

    def pieces(self, batch: Batch, copies: int) -> "list[tuple[Tensor, Tensor, Tensor]]":
        """Returns the logits [P, V] of every hidden token of a batch's copies, with row and target position [P] of each."""
        columns = torch.from_numpy(self.teacher_ids).to(self.device)
        return [
            (forward_outputs(self.model, inputs, TOKENS).token_logits[:, columns], rows, places)  # type: ignore[index]
            for inputs, rows, places in copied_batches(batch, copies, mask_id=self.tokenizer.mask_token_id)
        ]


class FillingTeacher:
    """A frozen teacher, asked about the rows of a student's batch by their numbers.

    rows_asked  how many rows went through it so far
    """

    rows_asked = 0

    def __init__(self, filler: Filler, rows: FilledRows):
        self.filler, self.rows = Filler(frozen(filler.model), filler.tokenizer, filler.teacher_ids), rows

    def ask(self, batch: Batch, request: OutputRequest) -> ModelOutputs:
        """Returns the k likeliest of the student's tokens at every position of the batch's targets, with their logits."""
        numbers = batch["rows"].cpu().numpy()
        inputs = self.rows.batch(numbers, pad_id=self.filler.tokenizer.pad_token_id)
        values, tokens = self.top(inputs, request)
        device = batch["input_ids"].device
        return ModelOutputs(top=(values.to(device), tokens.to(device)))

    @torch.no_grad()
    def top(self, batch: Batch, request: OutputRequest) -> tuple[Tensor, Tensor]:
        """Returns the k largest logits of every position, and whose they are: [B, T, k] float32 and int64, 0 where padded."""
        batch = {name: value.to(self.filler.device) for name, value in batch.items()}
        count, width = len(batch["targets"]), int(batch["targets"].max())
        k = min(request.top_k, len(self.filler.teacher_ids))
        values = torch.zeros(count, width, k, device=self.filler.device)
        tokens = torch.zeros(count, width, k, dtype=torch.long, device=self.filler.device)
        for logits, rows, places in self.filler.pieces(batch, request.copies):
            values[rows, places], tokens[rows, places] = logits.float().topk(k, dim=-1)
        self.rows_asked += count
        return values, tokens


def untie(model: Any) -> None:
    """Gives a masked-LM's output layer rows of its own, which begin as the embeddings of the same tokens."""
    output: Any = model.get_output_embeddings()
    table: Tensor = model.get_input_embeddings().weight
    if output is not None and getattr(output, "weight", None) is table:
        output.weight = nn.Parameter(table.detach().clone())
        bias: Any = getattr(output, "bias", None)
        if bias is not None:  # which is tied too, and would be written once and wanted twice
            output.bias = nn.Parameter(bias.detach().clone())
    model.config.tie_word_embeddings = False


class FillingObjective(Objective):
    """The objective that a teacher is trained by: hides tokens of every target, of which the losses are asked.

    share  of a target's tokens that are hidden at a step, at least one
    """

    def __init__(self, terms: Sequence[LossTerm], filler: Filler, *, share: float, seed: int, **options: Any):
        super().__init__(terms, filler.model, **options)
        self.share_hidden, self.seed, self.step = share, seed, 0
        self.mask_id = filler.tokenizer.mask_token_id
        numbers = np.zeros(int(filler.teacher_ids.max()) + 1, dtype=np.int64)
        numbers[filler.teacher_ids] = np.arange(len(filler.teacher_ids))
        self.register_buffer("columns", torch.from_numpy(filler.teacher_ids), persistent=False)
        self.register_buffer("numbers", torch.from_numpy(numbers), persistent=False)

    def progress(self, step: int, steps: int) -> None:
        """Sets the step, which decides what is hidden."""
        super().progress(step, steps)
        self.step = step

    def losses(self, batch: Batch) -> Any:
        """Yields what the objective yields, of the batch with hidden tokens."""
        return super().losses(self.hide(batch))

    def hide(self, batch: Batch) -> dict[str, Tensor]:
        """Returns a batch with hidden tokens: token_positions [P] into the flattened [B x L], token_labels [P]."""
        ids_BL, numbers = batch["input_ids"], self.numbers
        assert isinstance(numbers, Tensor)
        targets, rows = batch["targets"].tolist(), batch["rows"].tolist()
        starts = (batch["attention_mask"].sum(1) - batch["targets"]).tolist()
        drawn = positions_hidden_at_random(targets, rows, share=self.share_hidden, seed=self.seed, step=self.step)
        width = ids_BL.shape[1]
        flat = [row * width + start + places for row, (start, places) in enumerate(zip(starts, drawn, strict=True))]
        positions = torch.from_numpy(np.concatenate(flat) if flat else np.empty(0, np.int64)).to(ids_BL.device)
        labels = numbers[ids_BL.flatten()[positions]]
        masked = ids_BL.flatten().index_fill(0, positions, self.mask_id).view_as(ids_BL)
        return {**batch, "input_ids": masked, "token_positions": positions, "token_labels": labels}

    def _value(self, term: LossTerm, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> Tensor:
        columns = self.columns
        assert isinstance(columns, Tensor) and student.token_logits is not None
        return super()._value(term, replace(student, token_logits=student.token_logits[:, columns]), teacher, batch)


def score_teacher(
    filler: Filler, rows: FilledRows, pairs_labels: Callable[[np.ndarray], Tensor], copies: int
) -> dict[str, float]:
    """Returns how a teacher fills in every token of all targets, each hidden once: its accuracy, and its perplexity.

    pairs_labels  the student's tokens [B, T] of rows by their numbers, negative behind a target's end
    """
    model, was_training = filler.model, filler.model.training
    model.eval()
    sums = np.zeros(3)
    batches = [
        rows_of for number, rows_of in enumerate(_groups(rows)) if number % distributed.world_size() == distributed.rank()
    ]
    with torch.no_grad():
        for numbers in batches:
            labels_BT = pairs_labels(numbers).to(filler.device)
            batch = rows.batch(numbers, pad_id=filler.tokenizer.pad_token_id)
            for logits, row, place in filler.pieces({name: value.to(filler.device) for name, value in batch.items()}, copies):
                gold = labels_BT[row, place]
                sums += (
                    float((logits.argmax(-1) == gold).sum()),
                    F.cross_entropy(logits.float(), gold, reduction="sum").item(),
                    len(gold),
                )
    model.train(was_training)
    # Plain numbers: they are kept in resume states, which hold no object of a library's own.
    right, loss, count = (float(value) for value in np.sum(distributed.gather([sums]), axis=0))
    return {TOKEN_ACCURACY: right / count, "perplexity": math.exp(min(loss / count, 700.0))}


def _groups(rows: FilledRows) -> list[np.ndarray]:
    """Returns all rows once, longest first, in batches."""
    order = np.argsort(-rows.lengths, kind="stable")
    return [order[first : first + EVALUATION_BATCH] for first in range(0, len(order), EVALUATION_BATCH)]
