"""OpenVINO's int8 beside ONNX Runtime's: python benchmarks/openvino_latency.py EXPORT TSV [--rounds 400] [--threads 1]

EXPORT  made with --set 'export.formats=["onnx", "int8", "optimized", "q4", "openvino"]'
TSV     dev.tsv of SST-2: a header, the text in the first column

Single rows of real text in one interleaved run, in this process: wall clock and CPU time of a row (of all threads), medians
and best. "openvino, of the int8 file" is the int8 ONNX file as OpenVINO converts it, for comparison.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from microbert_cli.models.exported.files import EXPORTED_FILES, file_of, precisions
from microbert_cli.models.exported.openvino import OpenVinoSession
from microbert_cli.models.exported.session import feed, open_session

ROWS = 64
COLUMNS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


def batches(export: Path, table: Path) -> list[Mapping[str, np.ndarray]]:
    """Returns single rows of the table, taken evenly."""
    tokenizer = Tokenizer.from_file(str(export / "tokenizer.json"))
    texts = [line.split("\t")[0] for line in table.read_text(encoding="utf-8").splitlines()[1:]]
    encoded = [tokenizer.encode(text) for text in texts[:: max(1, len(texts) // ROWS)][:ROWS]]
    return [{name: np.array([getattr(row, column)], np.int64) for name, column in COLUMNS.items()} for row in encoded]


def sessions(export: Path, threads: int, folder: Path) -> dict[str, Any]:
    """Returns the open files of an export by their precision, and the int8 file as OpenVINO converts it."""
    import openvino

    opened = {name: open_session(file_of(export, name), threads) for name in precisions(export)}
    converted = folder / "converted.xml"
    openvino.save_model(openvino.convert_model(file_of(export, "int8")), converted, compress_to_fp16=False)
    return opened | {"openvino, of the int8 file": OpenVinoSession(converted, threads)}


def measure(opened: Mapping[str, Any], rows: list[Mapping[str, np.ndarray]], rounds: int) -> dict[str, dict[str, float]]:
    """Returns milliseconds of a row, every session in turn on the same row, and the largest difference of logits to fp32."""
    walls, cpus, worst = ({name: [] for name in opened} for _ in range(3))
    names = {name: [each.name for each in session.get_inputs()] for name, session in opened.items()}
    for round_ in range(rounds + ROWS):
        batch, expected = rows[round_ % len(rows)], None
        for name, session in opened.items():
            inputs = feed(batch, names[name])
            wall, cpu = time.perf_counter(), time.process_time()
            (logits,) = session.run(["logits"], inputs)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            expected = logits if expected is None else expected
            if round_ >= ROWS:
                walls[name].append(1e3 * wall)
                cpus[name].append(1e3 * cpu)
                worst[name].append(float(np.abs(logits - expected).max()))
    return {
        name: {
            "wall_median": round(statistics.median(walls[name]), 2), "wall_best": round(min(walls[name]), 2),
            "cpu_median": round(statistics.median(cpus[name]), 2), "cpu_best": round(min(cpus[name]), 2),
            "largest_difference": round(max(worst[name]), 3),
        }
        for name in opened
    }  # fmt: skip


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if "openvino" not in precisions(options.export):
        parser.error(f"{options.export} has no {EXPORTED_FILES['openvino']}")
    rows, load = batches(options.export, options.table), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(sessions(options.export, options.threads, Path(folder)), rows, options.rounds)
    tokens = sum(row["input_ids"].shape[1] for row in rows) / len(rows)
    print(json.dumps({"tokens": round(tokens, 1), "load": round(load, 1), "milliseconds": measured}, indent=1))


if __name__ == "__main__":
    main()
