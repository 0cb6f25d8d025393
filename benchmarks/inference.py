"""Row of the table: what a user could run instead of the small student, from texts to classes, in one interleaved run.

Every contestant gets the same texts and does all of its work, tokenising included, on the threads of the run: a teacher of
BERT-base's size in PyTorch, as ONNX in float32 and in int8 and, where the package is installed, through OpenVINO; the default
student's shape in int8; static vectors (a mean of one vector a token and a linear map, as model2vec has them); and TF-IDF with
a linear model. Weights are random but for the linear model's, so that times say something and answers do not.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from meter import GEMM, QUIET, gemm_gflops
from shapes import Setup, Shape, build, evenly

from microbert_cli.evaluation.benchmark import Batch, TimedModel, time_interleaved
from microbert_cli.models.onnx import quantise, write_onnx

COMPACT = Shape(3, 384, 12, 128)  # the student called compact
VECTOR = 256  # numbers a token of the static vectors
ROWS, BATCH = 16, 32  # rows for each step asked for; of a batch
FITTED = 20_000  # training rows of the linear model
Classes = Callable[[Sequence[str]], np.ndarray]
Result = dict[str, Any]


def inference(setup: Setup, steps: int, rounds: int) -> Result:
    """From texts to classes, in batches of 32 and one text alone: teacher, student in int8, static vectors, TF-IDF."""
    picked = setup.dev.take(sorted(evenly([len(text) for (text,) in setup.dev.texts], ROWS * steps)[:, 0]))
    texts = [text for (text,) in picked.texts]
    with tempfile.TemporaryDirectory() as place:
        ways = contestants(setup, Path(place))
        models = {name: TimedModel(_answer(way), _batches(texts, 1), _batches(texts, BATCH)) for name, (way, _) in ways.items()}
        timings = time_interleaved(models, rounds=10 * rounds, passes=rounds)
    speeds = {
        name: {
            "rate": round(speed.throughput, 1),
            "latency_ms": round(speed.latency_ms, 3),
            "mb": round(ways[name][1] / 1e6, 1),
        }
        for name, speed in timings.speeds.items()
    }
    loads = (timings.load_before, timings.load_after)
    return {
        "contestants": speeds,
        "gemm_gflops": round(gemm_gflops(GEMM), 1),
        "rounds": rounds,
        "rows": timings.rows,
        "threads": timings.threads,
        "cores": timings.cores,
        "load_before": loads[0],
        "load_after": loads[1],
        "quiet": all(load is None or load < QUIET for load in loads),
        "ratios": _ratios(speeds),
    }


def _ratios(speeds: dict[str, Any]) -> Result:
    """How many times shorter the student's latency is; the aims are those of docs/results.md."""
    aims = {"teacher, PyTorch": 15.0, "teacher, ONNX int8": 3.5}
    student = speeds["student, ONNX int8"]["latency_ms"]
    ratios = {name: speeds[name]["latency_ms"] / student for name in aims}
    return {
        f"latency, {name} / student": {"ratio": round(ratio, 2), "target": aims[name], "reached": ratio >= aims[name]}
        for name, ratio in ratios.items()
    }


def contestants(setup: Setup, place: Path) -> dict[str, tuple[Classes, float]]:
    """Returns by name a function from texts to class numbers, and the bytes of what it reads."""
    teacher = build(setup.teacher, "classifier", setup.tokenizer, seed=1).eval()
    small = COMPACT if setup.teacher.width > COMPACT.width else setup.student  # a miniature stays one
    student = build(small, "classifier", setup.tokenizer, seed=2).eval()
    files = {name: _exported(model, place / name) for name, model in (("teacher", teacher), ("student", student))}
    weights = sum(4 * value.numel() for value in teacher.state_dict().values())
    ways: dict[str, tuple[Classes, float]] = {"teacher, PyTorch": (_torch(setup, teacher), float(weights))}
    for form, file in files["teacher"].items():
        ways[f"teacher, ONNX {form}"] = _onnx(setup, file), float(file.stat().st_size)
    if importlib.util.find_spec("openvino"):
        ways["teacher, OpenVINO int8"] = _openvino(setup, files["teacher"]["int8"]), ways["teacher, ONNX int8"][1]
    ways["student, ONNX int8"] = _onnx(setup, files["student"]["int8"]), float(files["student"]["int8"].stat().st_size)
    return ways | {"static vectors": _static(setup), "TF-IDF, linear": _linear(setup)}


def _exported(model: Any, folder: Path) -> dict[str, Path]:
    folder.mkdir()
    files = {"fp32": folder / "model.onnx", "int8": folder / "model_quantized.onnx"}
    write_onnx(model, files["fp32"])
    quantise(files["fp32"], files["int8"])
    return files


def _encoded(setup: Setup, texts: Sequence[str], form: str) -> Any:
    return setup.tokenizer(list(texts), padding=True, truncation=True, max_length=setup.length, return_tensors=form)


def _torch(setup: Setup, model: Any) -> Classes:
    @torch.inference_mode()
    def classes(texts: Sequence[str]) -> np.ndarray:
        best: np.ndarray = model(**_encoded(setup, texts, "pt")).logits.argmax(-1).numpy()
        return best

    return classes


def _onnx(setup: Setup, file: Path) -> Classes:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # else it takes turns' time from the next one
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = {each.name for each in session.get_inputs()}

    def classes(texts: Sequence[str]) -> np.ndarray:
        encoded = _encoded(setup, texts, "np")
        logits = session.run(None, {name: value.astype(np.int64) for name, value in encoded.items() if name in names})[0]
        best: np.ndarray = np.asarray(logits).argmax(-1)
        return best

    return classes


def _openvino(setup: Setup, file: Path) -> Classes:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(file, "CPU", settings)
    names = {name for each in compiled.inputs for name in each.names}

    def classes(texts: Sequence[str]) -> np.ndarray:
        encoded = _encoded(setup, texts, "np")
        answer = compiled({name: value.astype(np.int64) for name, value in encoded.items() if name in names})
        best: np.ndarray = np.asarray(answer[0]).argmax(-1)
        return best

    return classes


def _static(setup: Setup) -> tuple[Classes, float]:
    generator = np.random.default_rng(0)
    table_VD = generator.standard_normal((len(setup.tokenizer), VECTOR), dtype=np.float32)
    head_DC = generator.standard_normal((VECTOR, 2), dtype=np.float32)

    def classes(texts: Sequence[str]) -> np.ndarray:
        encoded = setup.tokenizer(list(texts), truncation=True, max_length=setup.length, add_special_tokens=False)
        vectors_BD = np.stack([table_VD[ids].mean(0) if ids else table_VD[0] for ids in encoded["input_ids"]])
        best: np.ndarray = (vectors_BD @ head_DC).argmax(-1)
        return best

    return classes, float(table_VD.nbytes + head_DC.nbytes)


def _linear(setup: Setup) -> tuple[Classes, float]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    rows = setup.train.take(range(min(FITTED, len(setup.train))))
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True), LogisticRegression(C=10.0, max_iter=300)
    )
    model.fit([text for (text,) in rows.texts], rows.labels)
    words = model[0].vocabulary_

    def classes(texts: Sequence[str]) -> np.ndarray:
        best: np.ndarray = model.predict(list(texts))
        return best

    return classes, float(sum(len(word.encode()) + 8 for word in words) + 8 * len(words))


def _batches(texts: Sequence[str], size: int) -> list[Batch]:
    return [{"texts": texts[start : start + size]} for start in range(0, len(texts), size)]


def _answer(classes: Classes) -> Callable[[Batch], object]:
    return lambda batch: classes(batch["texts"])
