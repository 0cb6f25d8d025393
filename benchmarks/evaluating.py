"""Row of the table: answers of the small student on the dev set."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plain
from meter import Lap, Watch, compared, in_turns
from shapes import TWO_CLASSES, Sample, Setup, build, evenly

from microbert_cli.data.tokenized import tokenize_examples
from microbert_cli.errors import MbertError
from microbert_cli.evaluation.scoring import logits_of
from microbert_cli.models.onnx import OnnxClassifier, quantise, write_onnx

BATCHES = 5  # of 32 rows, for each step asked for; 6 steps are all of SST-2's dev set
Result = dict[str, Any]


def evaluate(setup: Setup, steps: int, rounds: int) -> Result:
    """Evaluation of the student: padded to the maximum, as they come, against mbert's way; ONNX int8 beside."""
    model = build(setup.student, "classifier", setup.tokenizer, seed=2).eval()
    encoded = tokenize_examples(setup.dev, setup.tokenizer, setup.length, TWO_CLASSES)
    picked = np.sort(evenly(encoded.lengths, BATCHES * steps * setup.batch_size)[:, 0])
    rows = tokenize_examples(setup.dev.take(picked), setup.tokenizer, setup.length, TWO_CLASSES)
    cuts = list(range(setup.batch_size, len(rows), setup.batch_size))
    sample = Sample(rows, np.split(np.arange(len(rows)), cuts), setup.pad_id)
    watch, slow = Watch(), plain.classifier_like(model)
    watch.sees(slow)
    watch.sees(model.base_model)
    plain_way = lambda: _plain(slow, sample, setup.length)  # noqa: E731
    ways = {"plain": plain_way, "mbert": lambda: logits_of(model, rows, pad_id=setup.pad_id)}
    with tempfile.TemporaryDirectory() as place:
        quantised = _int8(model, Path(place))
        if quantised is not None:
            ways["mbert int8"] = lambda: logits_of(quantised, rows, pad_id=setup.pad_id)
        result = in_turns({name: _lap(way, len(rows), watch) for name, way in ways.items()}, rounds=rounds)
    difference = float(np.abs(ways["plain"]() - ways["mbert"]()).max())
    return compared(result, {"mbert / plain": 3.2}) | {"rows": len(rows), "largest_difference": difference}


def _plain(model: plain.Bert, sample: Sample, width: int) -> np.ndarray:
    return np.concatenate([plain.answer(model, sample.batch(i, pad_to=width)) for i in range(len(sample.batches))])


def _lap(way: Callable[[], np.ndarray], rows: int, watch: Watch) -> Callable[[], Lap]:
    def lap() -> Lap:
        way()
        watch.start()
        way()
        watch.stop(rows)
        return watch.lap()

    return lap


def _int8(model: Any, place: Path) -> OnnxClassifier | None:
    """The model through ONNX Runtime in int8; None where its packages are missing."""
    try:
        model.config.save_pretrained(place)
        write_onnx(model, place / "model.onnx")
        quantise(place / "model.onnx", place / "model.int8.onnx")
        return OnnxClassifier(place, precision="int8")
    except MbertError as error:
        if error.code != "M510":
            raise
        return None
