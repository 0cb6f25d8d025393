"""Words as rows: what a model says of a batch at the tokens where words begin, one behind the other.

With that a loss on answers is one of words without knowing so: its mean over rows is one over words.
"""

from dataclasses import replace

import torch
from torch import Tensor

from microbert_cli.models.capture import Batch, ModelOutputs


def words_as_rows(batch: Batch, student: ModelOutputs, teacher: ModelOutputs) -> tuple[Batch, ModelOutputs, ModelOutputs]:
    """Returns a batch with labels [P], and logits [P, C] of both models, of its P words; other batches as they are.

    Words that the teacher did not read (NaN, see `aligned`) are left out.
    """
    if "words" not in batch or student.logits is None:
        return batch, student, teacher
    starts_BT = batch["words"] >= 0
    if teacher.logits is not None:
        starts_BT = starts_BT & teacher.logits.isfinite().all(-1)
        teacher = replace(teacher, logits=teacher.logits[starts_BT])
    by_word = {"labels": batch["labels"][starts_BT]} if "labels" in batch else {}
    if "augmented" in batch:
        by_word["augmented"] = batch["augmented"][:, None].expand_as(starts_BT)[starts_BT]
    return {**batch, **by_word}, replace(student, logits=student.logits[starts_BT]), teacher


def aligned(logits_BUC: Tensor, teacher_words_BU: Tensor, words_BT: Tensor) -> Tensor:
    """Returns a teacher's logits where the same words begin in the student's tokens, [B, T, C]; NaN elsewhere.

    logits_BUC  at the teacher's own tokens;  teacher_words_BU, words_BT  the number of the word that each token begins, or -1
    """
    rows, width = words_BT.shape
    most = int(max(words_BT.max(), teacher_words_BU.max())) + 1
    by_word = logits_BUC.new_full((rows, most + 1, logits_BUC.shape[-1]), torch.nan)  # the last is that of no word
    numbers_B = torch.arange(rows, device=words_BT.device)[:, None]
    begins = teacher_words_BU >= 0
    by_word[numbers_B.expand_as(begins)[begins], teacher_words_BU[begins]] = logits_BUC[begins]
    result: Tensor = by_word[numbers_B, torch.where(words_BT >= 0, words_BT, most)]
    return result
