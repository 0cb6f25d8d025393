"""Several models on the same texts, side by side: size, FLOPs, latency of one row, throughput of batches."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from microbert_cli import answering, counting, timing
from microbert_cli.batching import in_order
from microbert_cli.onnx_model import FILES
from microbert_cli.task_rows import TaskRows
from microbert_cli.tracking import SILENT, Talk

ROWS = 256


@dataclass(frozen=True)
class Entrant:
    """A model in the race: its name in the table, where it is, and how it runs: torch, one of onnx_model.FILES, or auto."""

    name: str
    source: str
    precision: str = "auto"


def race_models(
    entrants: Sequence[Entrant], data: TaskRows, *, rows: int = ROWS, batch_size: int = 32, rounds: int = 30, passes: int = 3,
    talk: Talk = SILENT,
) -> dict[str, Any]:  # fmt: skip
    """Measures all entrants in one interleaved run on the task's dev rows; each tokenizes the same texts its own way.

    Returns {"models": {name: parameters, bytes, flops, latency_ms, ...}, "conditions": {...}}; flops are those of one row of
    the mean length.
    """
    opened = {e.name: answering.open_model(e.source, data.task, precision=e.precision) for e in entrants}
    contestants, told = {}, {}
    for entrant in entrants:
        model = opened[entrant.name]
        encoded = data.encode("dev", model, where=entrant.name)
        chosen = np.arange(len(encoded))[:: max(1, len(encoded) // rows)][:rows]
        pad = model.tokenizer.pad_token_id
        lengths = np.asarray(encoded.lengths)[chosen]
        contestants[entrant.name] = timing.Contestant(
            answer=model.answers.logits,
            single=[encoded.batch([int(i)], pad_id=pad) for i in chosen[:64]],
            batches=[encoded.batch(chosen[i], pad_id=pad) for i in in_order(lengths, batch_size=batch_size)],
        )
        told[entrant.name] = _sizes(entrant, model, round(float(lengths.mean())))
    found = timing.race(contestants, rounds=rounds, passes=passes, talk=talk)
    for name, speed in found.speeds.items():
        told[name] |= asdict(speed)
    conditions = {key: value for key, value in asdict(found).items() if key != "speeds"}
    return {"models": told, "conditions": conditions}


def _sizes(entrant: Entrant, model: Any, length: int) -> dict[str, Any]:
    path = Path(entrant.source)
    weights = path / FILES[entrant.precision] if entrant.precision in FILES else path
    sizes: dict[str, Any] = {"bytes": counting.weights_bytes(weights) if weights.exists() else None, "length": length}
    if hasattr(model.model, "parameters"):
        sizes["parameters"] = counting.parameters(model.model).total
    return sizes | {"flops": counting.flops(model.model.config, length)}
