"""Functions around a teacher's `ask`: an ensemble of teachers, that of each task, one of another vocabulary, a table.

Of n teachers with class probabilities p_1 .. p_n, each [B, C], the ensemble has

    logits = log( (p_1 + .. + p_n) / n )        classes: the softmax of it is the mean probability
    logits = log( sum_i p_i / sum_i (1 - p_i) ) several labels a row, p = sigmoid(z): their sigmoid is the mean probability
    logits = (z_1 + .. + z_n) / n               regression, C = 1

Only logits are averaged: hidden states and attention scores of teachers that were trained separately have no common axes.

Source: MT-DNN distillation (arXiv 1904.09482, section 3): soft targets are the mean of the ensemble's class probabilities.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.models.capture import Batch, ModelOutputs, OptionalTeacherFunction, OutputRequest, TeacherFunction
from microbert_cli.models.windows.pooling import pool_outputs
from microbert_cli.models.words.rows import aligned


def average_logits(logits: Sequence[Tensor], *, independent: bool = False) -> Tensor:
    """Returns the ensemble's logits [B, C]; a single teacher's are returned unchanged."""
    if len(logits) == 1:
        return logits[0]
    stacked_NBC = torch.stack([teacher_BC.float() for teacher_BC in logits])
    if stacked_NBC.shape[-1] == 1:
        return stacked_NBC.mean(0)
    if independent:
        return logsigmoid(stacked_NBC).logsumexp(0) - logsigmoid(-stacked_NBC).logsumexp(0)
    # In log space, where probabilities near 0 keep their digits.
    return stacked_NBC.log_softmax(-1).logsumexp(0) - math.log(len(logits))


def ensemble_ask(asks: Sequence[TeacherFunction], *, independent: bool = False) -> TeacherFunction:
    """Returns a function for the ensemble's logits; that of a single teacher is returned unchanged, with all its outputs."""
    if len(asks) == 1:
        return asks[0]

    def ask(batch: Batch, request: OutputRequest) -> ModelOutputs:
        logits = [ask_teacher(batch, request).logits for ask_teacher in asks]
        answered = [logits_BC for logits_BC in logits if logits_BC is not None]
        return ModelOutputs(logits=average_logits(answered, independent=independent))

    return ask


def retokenized_ask(rows: TokenizedExamples, ask: TeacherFunction, *, pad_id: int, same_ids: bool = False) -> TeacherFunction:
    """Returns `ask` for a teacher that cannot read the student's batches; `rows` are the dataset's rows in its tokens.

    same_ids  only segments or padding differ, so that both have batches of one width

    The outputs carry the mask of the teacher's own tokens, since their positions are not the student's.
    """

    def ask_in_own_tokens(batch: Batch, request: OutputRequest) -> ModelOutputs:
        device = batch["input_ids"].device
        # Rows are matched by their number in the dataset, the only thing that both tokenisations share.
        width = batch["input_ids"].shape[1] if same_ids else None
        teacher_batch = rows.batch(_row_numbers(batch).cpu().numpy(), pad_to=width, pad_id=pad_id)
        teacher_batch = {name: value.to(device) for name, value in teacher_batch.items()}
        outputs = ask(teacher_batch, request)
        outputs.mask = teacher_batch["attention_mask"]
        if "words" in batch and outputs.logits is not None:  # answers of tokens: those at the same words
            outputs.logits = aligned(outputs.logits, teacher_batch["words"], batch["words"])
        return outputs

    return ask_in_own_tokens


def pooled_ask(ask: TeacherFunction) -> TeacherFunction:
    """Returns `ask` with the logits of rows where a batch has windows of them."""
    return lambda batch, request: pool_outputs(ask(batch, request), batch)


def _row_numbers(batch: Batch) -> Tensor:
    """Returns the numbers of a batch's rows in their dataset, also where it has windows of rows."""
    return batch.get("row_numbers", batch["rows"])


def rescaled_ask(ask: TeacherFunction, line: tuple[float, float] | None) -> TeacherFunction:
    """Returns `ask` with logits times a slope plus an intercept; None leaves them as they are."""
    if line is None:
        return ask

    def ask_in_table_units(batch: Batch, request: OutputRequest) -> ModelOutputs:
        outputs = ask(batch, request)
        return outputs if outputs.logits is None else replace(outputs, logits=outputs.logits * line[0] + line[1])

    return ask_in_table_units


def table_ask(logits: np.ndarray) -> TeacherFunction:
    """Returns a function for a teacher whose answers are known: logits [n, C] of a dataset's rows, matched by number."""
    known_BC = torch.from_numpy(logits)

    def ask(batch: Batch, request: OutputRequest) -> ModelOutputs:
        rows = _row_numbers(batch)
        return ModelOutputs(logits=known_BC[rows.cpu()].to(rows.device) if request.logits else None)

    return ask


def ask_by_task(asks: Mapping[int | None, TeacherFunction | None]) -> OptionalTeacherFunction:
    """Returns a function that asks the teacher of the batch's task, and gives None for a task without a teacher."""

    def ask(batch: Batch, request: OutputRequest) -> ModelOutputs | None:
        ask_teacher = asks[int(batch["task"][0])]  # all rows of a batch are of one task
        return ask_teacher(batch, request) if ask_teacher else None

    return ask
