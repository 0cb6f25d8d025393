"""A teacher's logits from its int8 copy: on CPUs two to three times as fast, and near the truth, not equal to it.

The copy is written once and kept in the cache: ONNX, weights as int8 with one scale a column, activations quantised on the way
(dynamic). Hidden states and attention scores are not offered: activations of BERT have outliers that int8 does not hold
(docs/lab-notes.md).
"""

from collections.abc import Mapping
from typing import Any

import torch

from microbert_cli import cache, onnx_model
from microbert_cli.capture import Seen, Want
from microbert_cli.durable import digest
from microbert_cli.objective import Batch
from microbert_cli.teacher import Teacher
from microbert_cli.tracking import SILENT, Talk

LOGITS = Want(logits=True)
FORMAT = 1


class Int8Teacher(Teacher):
    """The same teacher; asked for logits alone it answers in int8, asked for more it answers as it is.

    weights  what the teacher's weights are, for the cache
    Raises M510 (ONNX packages missing), M611 (no ONNX for this architecture).
    """

    def __init__(self, teacher: Teacher, *, weights: Mapping[str, Any], talk: Talk = SILENT):
        self.model, self.columns = teacher.model, teacher.columns
        onnx_model.need("onnx", "onnxscript", "onnxruntime")
        key = digest({"weights": weights, "torch": torch.__version__, "format": FORMAT})
        with cache.entry("int8", key, talk=talk) as (directory, ready):
            if not ready:
                talk.note(f"teacher: an int8 copy is written to {directory}")
                self.model.config.save_pretrained(directory)
                whole = directory / onnx_model.FILES["fp32"]
                onnx_model.write_onnx(self.model, whole)
                onnx_model.quantise(whole, directory / onnx_model.FILES["int8"])
                whole.unlink()
            self._copy = onnx_model.OnnxClassifier(directory, precision="int8")

    def ask(self, batch: Batch, want: Want) -> Seen:
        """What the teacher shows of a batch, logits alone in int8."""
        if want != LOGITS:
            return super().ask(batch, want)
        self.asked += len(batch["input_ids"])
        logits_BC = torch.from_numpy(self._copy.logits(batch))
        return Seen(logits=logits_BC[:, self.columns] if self.columns else logits_BC)
