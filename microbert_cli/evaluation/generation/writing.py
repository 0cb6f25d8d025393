"""What a model writes for rows, and how likely it finds what it was to write."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from microbert_cli import distributed
from microbert_cli.data.batching import batches_by_length
from microbert_cli.data.examples import Examples
from microbert_cli.data.generation.rows import NO_TOKEN, TextPairs
from microbert_cli.evaluation.generation.text_metrics import text_scores
from microbert_cli.evaluation.scoring import EVALUATION_BATCH
from microbert_cli.models.capture import OutputRequest, forward_outputs
from microbert_cli.models.generation.writer import decode, is_lower_case, write
from microbert_cli.recipe.task import Task
from microbert_cli.reporter import SILENT, Reporter

PERPLEXITY = "perplexity"
MAX_LOSS = 700.0  # beyond it the exponential is no float


def written_texts(
    model: Any,
    tokenizer: Any,
    pairs: TextPairs,
    *,
    beams: int,
    length_penalty: float,
    most: int,
    batch_size: int = EVALUATION_BATCH,
    reporter: Reporter = SILENT,
    name: str = "write",
) -> list[str]:
    """Returns the texts that a model writes for the sources, in the rows' order; several processes share them.

    most  tokens at most, the one that ends a text among them
    """
    device = next(model.parameters()).device
    groups = batches_by_length(pairs.sources.lengths, batch_size=max(1, batch_size // beams))
    written: list[tuple[int, str]] = []
    done = 0
    for number, indices in enumerate(groups):
        if number % distributed.world_size() == distributed.rank():
            batch = pairs.sources.batch(indices, pad_id=tokenizer.pad_token_id)
            inputs = {key: batch[key].to(device) for key in ("input_ids", "attention_mask")}
            ids = write(model, inputs, beams=beams, length_penalty=length_penalty, most=most)
            written += zip(indices.tolist(), decode(tokenizer, ids), strict=True)
        done += len(indices)
        reporter.progress(name, done, len(pairs))
    return [text for _, text in sorted(distributed.gather(written))]


def perplexity(model: Any, tokenizer: Any, pairs: TextPairs, *, batch_size: int = EVALUATION_BATCH) -> float:
    """Returns exp of the mean over all targets' tokens of -log of what a model gives them, the target so far before it."""
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    sums = np.zeros(2)
    with torch.inference_mode():
        for number, indices in enumerate(batches_by_length(pairs.lengths, batch_size=batch_size)):
            if number % distributed.world_size() != distributed.rank():
                continue
            batch = {key: value.to(device) for key, value in pairs.batch(indices, pad_id=tokenizer.pad_token_id).items()}
            logits = forward_outputs(model, batch, OutputRequest(logits=True)).logits
            assert logits is not None
            labels = batch["labels"].flatten()
            loss = F.cross_entropy(logits.float().flatten(0, 1), labels, ignore_index=NO_TOKEN, reduction="sum")
            sums += (loss.item(), int((labels != NO_TOKEN).sum()))
    model.train(was_training)
    total, count = (float(value) for value in np.sum(distributed.gather([sums]), axis=0))
    return math.exp(min(total / max(1.0, count), MAX_LOSS))


def scores_of_texts(task: Task, tokenizer: Any, written: Sequence[str], rows: Examples) -> dict[str, float]:
    """Returns the task's metrics of what was written for rows; in lower case where the tokenizer knows no other."""
    return text_scores(task.metrics, written, [str(label) for label in rows.labels or []], lower=is_lower_case(tokenizer))


def commonest_text_score(task: Task, tokenizer: Any, rows: Examples) -> float:
    """Returns what the commonest of the rows' targets scores, written for every row."""
    text = task.kind.constant(rows.labels or [])
    return scores_of_texts(task, tokenizer, [text] * len(rows), rows)[task.primary]


def score_writer(
    task: Task, rows: Examples, model: Any, tokenizer: Any, pairs: TextPairs, *, most: int, reporter: Reporter = SILENT
) -> dict[str, float]:
    """Returns a model's scores while it is trained: of texts of the likeliest token at every step, which is quick."""
    written = written_texts(model, tokenizer, pairs, beams=1, length_penalty=1.0, most=most, reporter=reporter, name="dev")
    return {**scores_of_texts(task, tokenizer, written, rows), PERPLEXITY: perplexity(model, tokenizer, pairs)}
