"""Several models on the same texts, side by side: size, FLOPs, latency of one row, throughput of batches."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from microbert_cli.data.batching import batches_by_length
from microbert_cli.data.encoded.cascade import CascadeExamples
from microbert_cli.data.task_data import TaskData
from microbert_cli.evaluation.benchmark import Batch, TimedModel, time_interleaved
from microbert_cli.evaluation.linear.interface import Linear
from microbert_cli.evaluation.scoring import check_finite
from microbert_cli.models.exits.flops import exit_summary
from microbert_cli.models.exported.files import EXPORTED_FILES, file_of
from microbert_cli.models.predictor import Predictor, open_predictor
from microbert_cli.models.size import count_parameters, forward_flops, weights_bytes
from microbert_cli.reporter import SILENT, Reporter

# What reports and exports measure; `mbert plan` prices the same.
ROWS, BATCH_SIZE, ROUNDS, PASSES = 256, 32, 30, 3


@dataclass(frozen=True)
class BenchmarkModel:
    """A model to time, with its name in the table; `precision` is "torch", "auto" or a key of EXPORTED_FILES.

    label_order  names of the model's outputs, over those in its configuration
    where        what named the model, for errors
    opened       the model itself, where somebody has opened it already
    speed        of a model with exits
    """

    name: str
    source: str
    precision: str = "auto"
    label_order: Sequence[str] | None = None
    where: str = "model"
    in_the_making: bool = False
    opened: Predictor | None = None
    speed: float | None = None


def benchmark_models(
    entrants: Sequence[BenchmarkModel], data: TaskData, *, rows: int = ROWS, batch_size: int = BATCH_SIZE,
    rounds: int = ROUNDS, passes: int = PASSES, linear: Mapping[str, Linear] | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:  # fmt: skip
    """Measures all entrants in one interleaved run on the task's dev rows, each with its own tokenizer.

    linear  models that read texts, by name
    Returns {"models": {name: parameters, bytes, flops, latency_ms, ...}, "conditions": {...}}; flops are those of one row of
    the mean length; of a model with exits by the layers that rows run through, with `speed`, `left` and `layers`.
    """
    opened = {entrant.name: _open(entrant, data) for entrant in entrants}
    timed_models, measured = {}, {}
    for entrant in entrants:
        model = opened[entrant.name]
        encoded = data.encode("dev", model, where=entrant.name)
        positions = np.arange(len(encoded))[:: max(1, len(encoded) // rows)][:rows]
        pad_id = model.tokenizer.pad_token_id
        lengths = np.asarray(encoded.lengths)[positions]
        first_answer = model.answers.logits(encoded.batch_for(model.answers, [int(positions[0])], pad_id))
        check_finite(first_answer, place=f"{entrant.name}, row")
        timed_models[entrant.name] = TimedModel(
            answer=model.answers.logits,
            single=[encoded.batch_for(model.answers, [int(i)], pad_id) for i in positions[:64]],
            batches=[
                encoded.batch_for(model.answers, positions[i], pad_id)
                for i in batches_by_length(lengths, batch_size=batch_size)
            ],
        )
        parts = encoded.take(positions).windows
        length = round(float(np.asarray(parts.lengths).mean()))
        measured[entrant.name] = _sizes(entrant, model, length, windows=len(parts) / len(positions))
        if isinstance(encoded, CascadeExamples) and encoded.big is not None:
            big_length = round(float(np.asarray(encoded.big.lengths)[positions].mean()))
            measured[entrant.name]["flops"] = model.answers.flops(length, big_length)
        if hasattr(model.answers, "left"):
            measured[entrant.name] |= _exits(model, timed_models[entrant.name].batches, length)
    for name, model_of_texts in (linear or {}).items():
        timed_models[name] = _timed_linear(model_of_texts, data, rows=rows, batch_size=batch_size)
        measured[name] = {"bytes": model_of_texts.bytes, "flops": None}
    timings = time_interleaved(timed_models, rounds=rounds, passes=passes, reporter=reporter)
    for name, speed in timings.speeds.items():
        measured[name] |= asdict(speed)
    conditions = {key: value for key, value in asdict(timings).items() if key != "speeds"}
    return {"models": measured, "conditions": conditions}


def _exits(model: Predictor, batches: Sequence[Batch], length: int) -> dict[str, Any]:
    """Returns behind which layers the rows leave, and what that costs, counted in one pass that is not timed."""
    model.answers.left.clear()
    for batch in batches:
        model.answers.logits(batch)
    return exit_summary(model.model.config, model.answers.left, length=length, speed=model.answers.speed)


def _timed_linear(model: Linear, data: TaskData, *, rows: int, batch_size: int) -> TimedModel:
    texts = data.rows["dev"].texts
    texts = texts[:: max(1, len(texts) // rows)][:rows]
    return TimedModel(
        answer=lambda batch: model.predict(batch["texts"]),
        single=[{"texts": [row]} for row in texts[:64]],
        batches=[{"texts": texts[start : start + batch_size]} for start in range(0, len(texts), batch_size)],
    )


def _open(entrant: BenchmarkModel, data: TaskData) -> Predictor:
    return entrant.opened or open_predictor(
        entrant.source,
        data.task,
        precision=entrant.precision,
        where=entrant.where,
        label_order=entrant.label_order,
        in_the_making=entrant.in_the_making,
        speed=entrant.speed,
    )


def _sizes(entrant: BenchmarkModel, model: Predictor, length: int, windows: float) -> dict[str, Any]:
    """Returns parameters, bytes, and operations of a row of so many windows, each of `length` tokens."""
    path = Path(entrant.source)
    weights = file_of(path, entrant.precision) if entrant.precision in EXPORTED_FILES else path
    sizes: dict[str, Any] = {"bytes": weights_bytes(weights) if weights.exists() else None, "length": length}
    if hasattr(model.model, "parameters"):
        sizes["parameters"] = count_parameters(model.model).total
    flops = forward_flops(model.model.config, length)
    several = {} if windows == 1 else {"windows": round(windows, 2)}
    return sizes | several | {"flops": flops if flops is None or windows == 1 else round(windows * flops)}
