"""Runs a classifier that was exported in segments: rows leave between them where they are sure, the others go on as fewer.

    logits, layers = EarlyExit("EXPORT/exits", speed=0.5)(input_ids=ids, attention_mask=mask, token_type_ids=segments)

Needs numpy and onnxruntime alone. A copy of this file lies beside the segments.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class EarlyExit:
    """Segments of a classifier: arrays [B, T] to logits [B, C], and the layer behind which each row left."""

    def __init__(self, folder: str | Path, speed: float | None = None, threads: int = 0):
        self.facts = json.loads((Path(folder) / "exits.json").read_text(encoding="utf-8"))
        self.speed = self.facts["speed"] if speed is None else speed
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        files = [str(Path(folder) / name) for name in self.facts["segments"]]
        self.segments = [onnxruntime.InferenceSession(f, options, providers=["CPUExecutionProvider"]) for f in files]

    def __call__(self, **inputs: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns logits and layers."""
        state = {name: np.ascontiguousarray(value, dtype=np.int64) for name, value in inputs.items()}
        rows = np.arange(len(state["input_ids"]))
        layers, before, answers = np.full(len(rows), self.facts["layers"][-1]), None, np.empty((0, 0))
        for session, layer in zip(self.segments, self.facts["layers"], strict=True):
            *hidden, z = session.run(None, {each.name: state[each.name] for each in session.get_inputs()})
            answers = answers if answers.size else np.empty_like(z)
            stays = self.unsure(z, before) if hidden else np.zeros(len(z), bool)
            answers[rows[~stays]], layers[rows[~stays]] = z[~stays], layer
            rows, before = rows[stays], z[stays]
            state = {name: value if stays.all() else value[stays] for name, value in state.items()}
            if not len(rows):
                break
            state["hidden"] = hidden[0] if stays.all() else hidden[0][stays]
        return answers, layers

    def unsure(self, z: np.ndarray, before: np.ndarray | None) -> np.ndarray:
        """Returns which rows are less sure than the speed asks: by entropy, a score by its distance from the exit before."""
        if z.shape[-1] == 1:
            return np.ones(len(z), bool) if before is None else np.abs(z - before)[:, 0] > self.speed * self.facts["spread"]
        log_p = z - z.max(-1, keepdims=True)
        log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
        entropy: np.ndarray = -(np.exp(log_p) * log_p).sum(-1) / np.log(z.shape[-1])
        return (np.minimum(entropy, 1.0) > self.speed) | (self.speed == 0)
