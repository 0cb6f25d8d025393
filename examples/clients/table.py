"""Opens an export in every client at hand and compares the answers with mbert's: python examples/clients/table.py EXPORT

--npm DIR       a folder where `npm install @huggingface/transformers` was run
--pairs         the export reads two texts
--optimum PY    a Python that has optimum[onnxruntime] and sentence-transformers, which want an older transformers than mbert

Prints a table; exit code 1 where a client's answers are others. What is not at hand is said, and is no failure.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

FP32, INT8, Q4 = "onnx/model.onnx", "onnx/model_quantized.onnx", "onnx/model_q4.onnx"
OPENVINO = "openvino/openvino_model_qint8_quantized.xml"
HERE = Path(__file__).resolve().parent
TEXTS = (
    "a fine film , warm and funny from the first minute to the last",
    "the plot is thin and the acting is worse",
    "it is neither good nor bad , just long",
)
PAIRS = (
    "the company said its sales rose\tits sales rose, the company said",
    "the company said its sales rose\tthe court adjourned until monday",
    "shares fell 3 percent on friday\ton friday shares lost 3 percent",
)
LONG = "a long and winding sentence about a film that never ends , " * 40
EXACT, NEAR = 1e-4, 0.03  # of a probability; int8 rounds otherwise from version to version and from processor to processor
SECONDS = 300


@dataclass(frozen=True)
class Client:
    """One client and file: its name, the command, the file that mbert answers with, and why it cannot be tried, if so."""

    name: str
    command: tuple[str, ...]
    file: str
    missing: str = ""
    folder: Path | None = None
    cuts_its_own_way: bool = False


def clients(export: Path, npm: Path | None, optimum: str | None, pairs: bool) -> list[Client]:
    """Returns all clients of an export; of one for pairs those that take pairs."""
    export = export.resolve()
    node = "" if shutil.which("node") and npm and (npm / "node_modules/@huggingface/transformers").is_dir() else "--npm, node"
    old = "" if optimum else "--optimum"
    openvino = "" if find_spec("openvino") else "openvino"
    here, python, place = str(HERE), sys.executable, str(export)
    alone = Client("onnxruntime + tokenizers", (python, f"{here}/runtime_alone.py", place), INT8)
    cross = f"{here}/sentence_transformers_model.py"
    of_pairs = [
        alone,
        Client("sentence-transformers", (optimum or "", cross, place), FP32, old),
        Client("sentence-transformers, int8", (optimum or "", cross, place, INT8), INT8, old),
    ]
    of_texts = [
        # transformers.js cuts a long text's closing token off with the rest
        Client("transformers.js, q8", ("node", f"{here}/transformers_js.mjs", place), INT8, node, npm, True),
        Client("transformers.js, fp32", ("node", f"{here}/transformers_js.mjs", place, "fp32"), FP32, node, npm, True),
        Client("transformers.js, q4", ("node", f"{here}/transformers_js.mjs", place, "q4"), Q4, node, npm, True),
        alone,
        Client("transformers pipeline", (python, f"{here}/transformers_pipeline.py", place), FP32),
        Client("openvino + tokenizers", (python, f"{here}/openvino_alone.py", place), OPENVINO, openvino),
        Client("optimum", (optimum or "", f"{here}/optimum_pipeline.py", place), FP32, old),
        Client("optimum, int8", (optimum or "", f"{here}/optimum_pipeline.py", place, Path(INT8).name), INT8, old),
    ]
    return [client for client in (of_pairs if pairs else of_texts) if (export / client.file).is_file()]


def try_client(client: Client, export: Path, pairs: bool) -> dict[str, str]:
    """Returns a row: the client, its file, the largest difference of a probability, and whether it passed."""
    if client.missing:
        return {"client": client.name, "file": client.file, "difference": "", "result": f"not tried: needs {client.missing}"}
    texts = [*PAIRS, f"{LONG}\t{LONG}"] if pairs else [*TEXTS, LONG]
    ran = subprocess.run(
        client.command, input="\n".join(texts) + "\n", capture_output=True, text=True, cwd=client.folder, timeout=SECONDS,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if ran.returncode:
        reason = next(reversed(ran.stderr.strip().splitlines()), "")
        return {"client": client.name, "file": client.file, "difference": "", "result": f"failed: {reason}"}
    answers = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    expected = [predict(str(export / client.file), text) for text in texts]
    differences = [
        max(abs(given[label] - wanted[label]) for label in wanted) for given, wanted in zip(answers, expected, strict=True)
    ]
    compared = differences[:-1] if client.cuts_its_own_way else differences
    bound = EXACT if client.file == FP32 else NEAR
    passed = max(compared) <= bound and all(
        max(given, key=given.get) == max(wanted, key=wanted.get)
        for given, wanted in zip(answers[: len(compared)], expected[: len(compared)], strict=True)
    )
    said = f"{max(compared):.1e}" + (f"; of a text that is cut {differences[-1]:.1e}" if client.cuts_its_own_way else "")
    return {"client": client.name, "file": client.file, "difference": said, "result": "passed" if passed else "other answers"}


def predict(model: str, text: str) -> dict[str, float]:
    """Returns mbert's probability of every label, of a text by itself."""
    from microbert_cli import api

    pair = tuple(text.split("\t"))
    return api.predict(model, [pair if len(pair) > 1 else text])[0]["probabilities"]


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("--npm", type=Path)
    parser.add_argument("--optimum")
    parser.add_argument("--pairs", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [
        try_client(client, options.export, options.pairs)
        for client in clients(options.export, options.npm, options.optimum, options.pairs)
    ]
    if options.json:
        print(json.dumps(rows))
    else:
        print("| client | file | largest difference of a probability | |\n|---|---|---|---|")
        for row in rows:
            print(f"| {row['client']} | `{row['file']}` | {row['difference']} | {row['result']} |")
    return int(any(row["result"].startswith(("failed", "other")) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
