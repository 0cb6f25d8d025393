"""A teacher's logits from its int8 copy: on CPUs two to three times as fast, and close to the float32 logits, not equal.

The copy is written once and kept in the cache: ONNX, weights as int8 with one scale per column, activations quantised
dynamically. Hidden states and attention scores are not offered: BERT's activations have outliers that int8 cannot represent
(docs/lab-notes.md).
"""

from collections.abc import Mapping
from typing import Any

import torch

from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.distillation.teacher import Teacher
from microbert_cli.evaluation.alternatives.int8_copy import FORMAT, int8_session
from microbert_cli.models.capture import Batch, ModelOutputs, OutputRequest
from microbert_cli.models.graphs.products import evenly
from microbert_cli.reporter import SILENT, Reporter

LOGITS = OutputRequest(logits=True)


class Int8Teacher(Teacher):
    """The same teacher, which computes logits in int8; requests for anything else go to the float32 model.

    weights  identifies the teacher's weights in the cache
    rows     those it will be asked about, in its tokens; some of them calibrate the copy
    Raises M510 (ONNX packages missing), M611 (no ONNX for this architecture).
    """

    def __init__(self, teacher: Teacher, *, weights: Mapping[str, Any], rows: TokenizedExamples, reporter: Reporter = SILENT):
        self.model, self.tokenizer, self.columns = teacher.model, teacher.tokenizer, teacher.columns
        self._cast_weights = teacher._cast_weights
        calibrating = [rows.row(index) for index in evenly(len(rows))]
        self._copy = int8_session(
            teacher.model, teacher.tokenizer, weights=weights, name="teacher", rows=calibrating, reporter=reporter
        )

    @property
    def cache_name(self) -> str:
        """Names these answers in the cache: those of copies in another format are others."""
        return f"{type(self).__name__}-{FORMAT}"

    def ask(self, batch: Batch, request: OutputRequest) -> ModelOutputs:
        """Returns the requested outputs for a batch; logits alone are computed in int8."""
        if request != LOGITS:
            return super().ask(batch, request)
        self.rows_asked += len(batch["input_ids"])
        logits_BC = torch.from_numpy(self._copy.logits(batch))
        return ModelOutputs(logits=logits_BC[..., self.columns] if self.columns else logits_BC)
