"""Several teachers asked as one, the right one of a run of several tasks, and one that reads in tokens of its own.

Of n teachers with class probabilities p_1 .. p_n, each [B, C], the answer has

    logits = log( (p_1 + .. + p_n) / n )        classes: their softmax is the mean probability
    logits = (z_1 + .. + z_n) / n               a score, C = 1

Hidden states and attention scores of teachers trained apart have no common axes; only logits are averaged.

Source: MT-DNN distillation (arXiv 1904.09482, section 3): soft targets are the mean of the ensemble's class probabilities.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.models.capture import ModelOutputs, OutputRequest
from microbert_cli.training.objective import Batch, OptionalTeacherFunction, TeacherFunction


def averaged(logits: Sequence[Tensor]) -> Tensor:
    """The ensemble's logits [B, C] of every teacher's; one teacher's are as they are."""
    if len(logits) == 1:
        return logits[0]
    stacked_NBC = torch.stack([one.float() for one in logits])
    if stacked_NBC.shape[-1] == 1:
        return stacked_NBC.mean(0)
    return stacked_NBC.log_softmax(-1).logsumexp(0) - math.log(len(logits))


def together(asks: Sequence[TeacherFunction]) -> TeacherFunction:
    """All teachers asked as one; one alone is asked as it is."""
    if len(asks) == 1:
        return asks[0]

    def ask(batch: Batch, want: OutputRequest) -> ModelOutputs:
        answers = [one(batch, want).logits for one in asks]
        return ModelOutputs(logits=averaged([logits for logits in answers if logits is not None]))

    return ask


def reading(rows: TokenizedExamples, ask: TeacherFunction, *, pad_id: int) -> TeacherFunction:
    """Asks a teacher about the same rows in its own tokens, `rows`; which of what it shows are real tokens goes with it."""

    def own(batch: Batch, want: OutputRequest) -> ModelOutputs:
        device = batch["input_ids"].device
        theirs = rows.batch(batch["rows"].cpu().numpy(), pad_id=pad_id)
        theirs = {name: value.to(device) for name, value in theirs.items()}
        seen = ask(theirs, want)
        seen.mask = theirs["attention_mask"]
        return seen

    return own


def by_task(asks: Mapping[int | None, TeacherFunction | None]) -> OptionalTeacherFunction:
    """Asks the teacher of the batch's task; a task without one has nothing to show."""

    def ask(batch: Batch, want: OutputRequest) -> ModelOutputs | None:
        own = asks[int(batch["task"][0])]
        return own(batch, want) if own else None

    return ask
