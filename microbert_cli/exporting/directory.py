"""An export directory: the model as safetensors, ONNX, int8, with fused operators and more, each checked against the model.

Every file is read back, and its logits on real rows, padded and of several shapes, are compared with those of the model in
memory. int8 may differ; by how much, and what that does to the score, is measured and returned.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.errors import MbertError
from microbert_cli.exporting.onnx_fusion import operators, write_optimized
from microbert_cli.exporting.openvino import write_openvino
from microbert_cli.models.architectures import positions_of
from microbert_cli.models.exits.build import exit_ends, has_exits
from microbert_cli.models.exits.graph import EXITS_FILE, ExitSession, write_exits
from microbert_cli.models.exported.files import EARLIER_EXITS_FILE, EARLIER_FILES, EXPORTED_FILES, require_openvino
from microbert_cli.models.graphs.embeddings import Format, table_errors
from microbert_cli.models.graphs.products import Row
from microbert_cli.models.load import class_of
from microbert_cli.models.onnx import (
    ONNX_FILES,
    Batch,
    LogitsFunction,
    OnnxClassifier,
    inputs_of_export,
    quantise,
    quantise_to_4_bits,
    require_onnx,
    torch_logits,
    write_onnx,
)
from microbert_cli.models.save import save_model
from microbert_cli.models.size import weights_bytes
from microbert_cli.recipe.task_kinds import TaskKind, kind_of_model
from microbert_cli.reporter import SILENT, Reporter

SAFETENSORS_TOLERANCE = 1e-6  # safetensors read back by transformers alone
FP32_TOLERANCE = 1e-4  # ONNX in float32
MAX_INT8_DROP = 0.02  # loss of score by int8 that deserves a warning
PARITY_ROWS = 256
SHAPES = ((1, 8), (3, 17), (8, 64), (32, None))  # rows x length; None = as long as the longest of the rows

Scores = Mapping[str, float]


def export_model(
    model: Any,
    tokenizer: Any,
    out: Path,
    rows: Sequence[Row],
    *,
    score: Callable[[LogitsFunction], Scores] | None = None,
    primary: str | None = None,
    onnx: bool = True,
    int8: bool = True,
    optimize: bool = True,
    q4: bool = False,
    openvino: bool = False,
    embeddings: Format = "int8",
    calibration: Sequence[Row] = (),
    tolerance: float = FP32_TOLERANCE,
    max_length: int | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Writes the export directory of a trained classifier and returns all that was measured.

    model, tokenizer   as loaded from any directory; the files are written anew, so foreign `.bin` become safetensors
    rows     real rows as the tokenizer encodes them, not padded: input_ids, and token_type_ids where there are any
    score    the dev scores of a function that gives logits; asked for the model and for every file
    primary  which of the scores decides whether int8 lost too much (a warning; the numbers stand in the result)
    tolerance  the largest difference of logits that the fp32 files may have; of scores above 1 as a share of the largest
    max_length  the number of tokens after which the exported tokenizer cuts a text, where it is told to cut
    onnx     False leaves all out but safetensors; int8, optimize (graphs for ONNX Runtime alone), q4, openvino: these files
    embeddings  how the small files store tables of embeddings; see models/graphs/embeddings.py
    calibration  real rows that set the scales of the int8 files, see `quantise`; by default `rows`
    A model with exits is also written as a graph that rows leave early, models/exits/graph.py: "exits" in the result.
    Returns {"files": {name: {"file", "bytes", "seconds", "max_difference", "agreement", "scores", "graph", "embeddings"}},
    "parity": {...}}, names: safetensors and those of EXPORTED_FILES; max_difference of logits and agreement (share of equal
    answers) against the model; graph: what operators it has, see `onnx_fusion.operators`; embeddings, of int8 files: the
    format, size and relative error of each table, the largest first.
    Raises M510, M511 (packages missing; before anything is written), M612 (a file answers differently), M611 (no ONNX for
    this architecture), ValueError (no rows).
    """
    if onnx:
        require_onnx("onnx", "onnxscript", "onnxruntime")
    if onnx and openvino:
        require_openvino()
    batches = comparison_batches(rows, tokenizer, model)
    model_logits = torch_logits(model)
    expected = [model_logits(batch) for batch in batches]
    files: dict[str, dict[str, Any]] = {}
    kind = kind_of_model(model.config)
    # Float32 rounds by a share of the value: of scores up to 1,000 the last digit is larger than the tolerance itself.
    unit = 1.0 if kind.exclusive else max(1.0, *(float(np.abs(logits).max()) for logits in expected))

    def check(name: str, logits: LogitsFunction, path: Path, tolerance: float | None, seconds: float | None) -> None:
        measured = compare(logits, batches, expected, kind)
        if tolerance is not None:
            refuse_difference(path, measured["max_difference"], tolerance * unit)
        measured |= {"file": path.relative_to(out).as_posix(), "bytes": weights_bytes(path), "seconds": seconds}
        measured["graph"] = operators(path) if name in ONNX_FILES else None
        measured["embeddings"] = table_errors(out / ONNX_FILES["fp32"], path) if name.startswith("int8") else None
        files[name] = measured | {"scores": dict(score(logits)) if score else None}
        reporter.note(_line(files[name]))

    inputs = inputs_of_export(model, tokenizer)
    save_model(model, exported_tokenizer(tokenizer, inputs, max_length), out)
    check("safetensors", torch_logits(read_back(out)), out / "model.safetensors", SAFETENSORS_TOLERANCE, None)
    for name in (*EARLIER_FILES.values(), EARLIER_EXITS_FILE):
        (out / name).unlink(missing_ok=True)  # an earlier mbert may have begun this directory
    if onnx:
        seconds = write_onnx(model, out / ONNX_FILES["fp32"], inputs=inputs)
        check("fp32", OnnxClassifier(out, precision="fp32").logits, out / ONNX_FILES["fp32"], tolerance, seconds)
    if onnx and int8:
        seconds = quantise(out / ONNX_FILES["fp32"], out / ONNX_FILES["int8"], embeddings=embeddings, rows=calibration or rows)
        check("int8", OnnxClassifier(out, precision="int8").logits, out / ONNX_FILES["int8"], None, seconds)
        _warn_of_drop(files, "int8", primary, reporter)
    if onnx and q4:
        seconds = quantise_to_4_bits(out / ONNX_FILES["fp32"], out / ONNX_FILES["q4"], embeddings=embeddings)
        check("q4", OnnxClassifier(out, precision="q4").logits, out / ONNX_FILES["q4"], None, seconds)
        _warn_of_drop(files, "q4", primary, reporter)
    if onnx and optimize:
        options: Any = {"int8": int8, "embeddings": embeddings, "rows": calibration or rows}
        for name, seconds in write_optimized(model, out, inputs=inputs, **options).items():
            close = tolerance if name.startswith("fp32") else None
            check(name, OnnxClassifier(out, precision=name).logits, out / ONNX_FILES[name], close, seconds)
    if onnx and openvino:
        path = out / EXPORTED_FILES["openvino"]
        seconds = write_openvino(out / ONNX_FILES["fp32"], path, embeddings=embeddings)
        check("openvino", OnnxClassifier(out, precision="openvino").logits, path, None, seconds)
        _warn_of_drop(files, "openvino", primary, reporter)
    exits = (
        _write_exits(model, out, inputs, batches, score, tolerance * unit, reporter) if onnx and has_exits(model.config) else {}
    )
    shapes = [list(batch["input_ids"].shape) for batch in batches]
    return {
        "files": files,
        **exits,
        "parity": {"shapes": shapes, "tolerance": tolerance, "rows": sum(count for count, _ in shapes)},
    }


def _write_exits(
    model: Any,
    out: Path,
    inputs: Sequence[str],
    batches: Sequence[Batch],
    score: Callable[[LogitsFunction], Scores] | None,
    tolerance: float,
    reporter: Reporter,
) -> dict[str, Any]:
    """Writes the graph that rows leave early; returns {"exits": ...}: size, difference of all exits' logits, dev scores."""
    speed, path = float(model.config.speed), out / EXITS_FILE
    seconds, difference = write_exits(model, path, inputs=inputs, batches=batches)
    refuse_difference(path, difference, tolerance)
    measured: dict[str, Any] = {"file": EXITS_FILE, "bytes": weights_bytes(path), "seconds": seconds}
    scores = dict(score(ExitSession(path, speed).logits)) if score else None
    measured |= {"max_difference": difference, "scores": scores, "graph": None}
    reporter.note(_line(measured))
    return {"exits": measured | {"layers": exit_ends(model.config), "speed": speed}}


def exported_tokenizer(tokenizer: Any, inputs: Sequence[str], max_length: int | None) -> Any:
    """Returns the tokenizer as it is exported: it gives the graph's inputs, and cuts texts where training cut them."""
    exported = copy.deepcopy(tokenizer)
    # Its class's own names count too: they are what is read where the file names none.
    if not set(inputs) == set(tokenizer.model_input_names) == set(type(tokenizer).model_input_names):
        exported.model_input_names = exported.init_kwargs["model_input_names"] = list(inputs)
    if max_length is not None:
        exported.model_max_length = max_length
    return exported


def read_back(directory: Path) -> Any:
    """Loads the classifier from `directory` with transformers alone, without any code of this package."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    return class_of("classifier", config).from_pretrained(
        directory, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )


def parity_rows(encoded: TokenizedExamples) -> list[Row]:
    """Returns the rows that files are compared on: the first PARITY_ROWS, or so many windows of rows."""
    encoded = encoded.windows
    return [encoded.row(index) for index in range(min(len(encoded), PARITY_ROWS))]


def comparison_batches(rows: Sequence[Row], tokenizer: Any, model: Any) -> list[Batch]:
    """Returns the batches of these rows that a model and its files are compared on; see `parity_batches`."""
    return list(parity_batches(rows, tokenizer.pad_token_id or 0, longest=_positions(tokenizer, model)))


def parity_batches(rows: Sequence[Row], pad: int, *, longest: int) -> Iterator[Batch]:
    """Yields batches of real rows, padded on the right, in the shapes of SHAPES (cut to `longest` tokens).

    Rows are taken evenly over all lengths, again where there are too few. In a batch of several rows the first is cut
    to half the width at most, so that every such batch has padding.
    """
    if not rows:
        raise ValueError("parity is checked on real rows; there are none")
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    for count, width in SHAPES:
        positions = np.linspace(0, len(ordered) - 1, count).round().astype(int)
        chosen = [ordered[position] for position in positions]
        yield _padded(chosen, min(width or len(chosen[-1]["input_ids"]), longest), pad)


def compare(logits: LogitsFunction, batches: Sequence[Batch], expected: Sequence[np.ndarray], kind: TaskKind) -> dict[str, Any]:
    """Returns the largest difference of logits, and the share of rows or tokens with the same prediction (None for a score)."""
    actual = [_of_real_tokens(logits(batch), batch) for batch in batches]
    expected = [_of_real_tokens(output, batch) for output, batch in zip(expected, batches, strict=True)]
    # np.max keeps a NaN, which max() may lose, so that a file whose logits are NaN is refused
    difference = float(np.max([np.abs(output - target).max() for output, target in zip(actual, expected, strict=True)]))
    return {"max_difference": difference, "agreement": kind.agreement(np.concatenate(actual), np.concatenate(expected))}


def _of_real_tokens(logits: np.ndarray, batch: Batch) -> np.ndarray:
    """Returns logits [B, T, C] of tokens without those of padding, [N, C]; logits of rows as they are."""
    return logits[np.asarray(batch["attention_mask"]) > 0] if logits.ndim == 3 else logits


def _padded(rows: Sequence[Row], width: int, pad: int) -> Batch:
    fills = {"input_ids": pad, "attention_mask": 0}
    if any("token_type_ids" in row for row in rows):
        fills["token_type_ids"] = 0
    batch = {name: torch.full((len(rows), width), fill) for name, fill in fills.items()}
    for index, row in enumerate(rows):
        length = max(1, width // 2) if index == 0 and len(rows) > 1 else width
        ids = torch.tensor(row["input_ids"][:length])
        batch["input_ids"][index, : len(ids)] = ids
        batch["attention_mask"][index, : len(ids)] = 1
        if "token_type_ids" in row:
            batch["token_type_ids"][index, : len(ids)] = torch.tensor(row["token_type_ids"][:length])
    return batch


def _positions(tokenizer: Any, model: Any) -> int:
    """Returns the longest input that both the model and its tokenizer allow."""
    return min(positions_of(model.config) or 512, tokenizer.model_max_length)


def refuse_difference(path: Path, difference: float, tolerance: float) -> None:
    """Raises M612 for a file whose logits differ by more than the tolerance."""
    if difference <= tolerance:  # false for NaN too
        return
    raise MbertError(
        "M612",
        f"its logits differ from the model's by {difference:.2g}",
        where=str(path),
        allowed=f"At most {tolerance:g} on padded batches of real rows; more means that the file is not the model.",
        fix="Check the model for NaN, or leave ONNX out: --set export.onnx=false",
    )


def _line(measured: Mapping[str, Any]) -> str:
    size = f"{measured['bytes'] / 1e6:.1f} MB"
    duration = "" if measured["seconds"] is None else f", {measured['seconds']:.1f} s"
    scores = "".join(f", {name} {value:.4f}" for name, value in (measured["scores"] or {}).items())
    graph = f"; {_graph(measured['graph'])}" if measured["graph"] else ""
    return f"{measured['file']}: {size}{duration}, largest difference of logits {measured['max_difference']:.1e}{scores}{graph}"


def _graph(graph: Mapping[str, Any]) -> str:
    """Operators as ONNX Runtime runs them: `56 operators of 127, with 3 Attention, 3 BiasGelu`."""
    fused = ", ".join(f"{count} {name}" for name, count in graph["loaded"]["fused"].items())
    return f"{graph['written']['nodes']} operators, {graph['loaded']['nodes']} when loaded" + (f": {fused}" if fused else "")


def _warn_of_drop(files: Mapping[str, Mapping[str, Any]], name: str, primary: str | None, reporter: Reporter) -> None:
    fp32, small = files["fp32"]["scores"], files[name]["scores"]
    if primary is None or not fp32 or not small or not fp32[primary] - small[primary] > MAX_INT8_DROP:
        return
    reporter.warn(
        f"{name} loses {primary}: {small[primary]:.4f}, fp32 has {fp32[primary]:.4f}; {ONNX_FILES['fp32']} is the safer file"
    )
