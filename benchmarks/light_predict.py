"""`mbert predict` of an export beside a script of tokenizers and onnxruntime alone: one line, many lines, memory; interleaved.

python benchmarks/light_predict.py EXPORT LINES.txt [--rows 20000] [--long 200000] [--rounds 5] [--sorted-alone] [--json]

EXPORT is an export directory, or one of its ONNX files. Every measurement is a process of its own, start-up included, on one
thread: its CPU seconds and wall seconds (the best of the rounds), and its peak memory. The script reads the same files, in
batches of 64 as the lines come, or sorted by length within windows of as many lines as `mbert` has. The least share of lines
that two commands answer alike is given too: 1 for float32; int8 rounds activations by the batch that a line is in.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

WINDOW, BATCH = 8192, 64
ONE_LINE = "a fine film"
ALONE = {"script": "as they come", "script, sorted": "sorted"}


def answer_alone(export: Path, order: str, text: str | None, lines: Path | None) -> None:
    """Answers with tokenizers and onnxruntime alone, and prints a label a line."""
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    file = export / "onnx/model.onnx" if export.is_dir() else export
    export = file.parent.parent if file.parent.name == "onnx" else file.parent
    settings = json.loads((export / "tokenizer_config.json").read_text(encoding="utf-8"))
    labels = json.loads((export / "config.json").read_text(encoding="utf-8"))["id2label"]
    tokenizer = Tokenizer.from_file(str(export / "tokenizer.json"))
    tokenizer.enable_truncation(settings["model_max_length"])
    tokenizer.enable_padding()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = {each.name for each in session.get_inputs()}

    def classes(texts: Sequence[str]) -> Any:
        rows = tokenizer.encode_batch(list(texts))
        arrays = {
            "input_ids": np.array([row.ids for row in rows]),
            "attention_mask": np.array([row.attention_mask for row in rows]),
            "token_type_ids": np.array([row.type_ids for row in rows]),
        }
        return session.run(["logits"], {name: arrays[name] for name in names})[0].argmax(-1)

    def show(answers: Iterable[int]) -> None:
        print("\n".join(labels[str(answer)] for answer in answers))

    if lines is None:
        show(classes([text or ""]))
        return
    with lines.open(encoding="utf-8", newline="\n") as texts:
        while window := [line.rstrip("\n") for _, line in zip(range(WINDOW), texts, strict=False)]:
            order_of = sorted(range(len(window)), key=lambda i: -len(window[i])) if order == "sorted" else range(len(window))
            answers = np.empty(len(window), dtype=int)
            for start in range(0, len(window), BATCH):
                chosen = list(order_of[start : start + BATCH])
                answers[chosen] = classes([window[i] for i in chosen])
            show(answers)


def measured(command: Sequence[str], out: Path) -> dict[str, float]:
    """Runs a process; returns its CPU seconds, wall seconds and peak memory in MB."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    start = time.perf_counter()
    with out.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} left with {process.returncode}")
    seconds = time.perf_counter() - start
    return {"cpu": usage.ru_utime + usage.ru_stime, "wall": seconds, "memory": usage.ru_maxrss / 1000}


def commands(export: Path, lines: Path | None) -> dict[str, list[str]]:
    """Returns what is compared, by name: on one line, or on the lines of a file."""
    mbert = [sys.executable, "-m", "microbert_cli", "predict", "-q", str(export)]
    texts = [ONE_LINE] if lines is None else ["--file", str(lines)]
    alone = [sys.executable, __file__, "--alone"]
    end = [str(export), *(["--text", ONE_LINE] if lines is None else [str(lines)])]
    return {"mbert": mbert + texts} | {name: [*alone, order, *end] for name, order in ALONE.items()}


def best(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Returns the least of each number."""
    return {name: min(run[name] for run in runs) for name in runs[0]}


def compare(export: Path, lines: Path | None, rounds: int, folder: Path) -> dict[str, dict[str, float]]:
    """Returns the best of each command's interleaved runs, of one line without the first, and how alike the answers are."""
    runs: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds + (lines is None)):
        for name, command in commands(export, lines).items():
            result = measured(command, folder / f"{name}.txt")
            if number or lines is not None:
                runs.setdefault(name, []).append(result)
    answers = [(folder / f"{name}.txt").read_text(encoding="utf-8").splitlines() for name in runs]
    assert len({len(of_command) for of_command in answers}) == 1, "not every line was answered"
    alike = min(sum(map(str.__eq__, answers[0], other)) / len(other) for other in answers[1:])
    return {name: best(of_command) | {"alike": alike} for name, of_command in runs.items()}


def write_lines(path: Path, lines: Sequence[str], count: int) -> Path:
    """Writes so many lines, again from the start where there are too few."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines[i % len(lines)] + "\n" for i in range(count))
    return path


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("export", type=Path)
    parser.add_argument("lines", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--long", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sorted-alone", action="store_true", help="Leaves out the script that takes lines as they come.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--text", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        answer_alone(arguments.export, arguments.alone, arguments.text, arguments.lines)
        return
    if arguments.sorted_alone:
        del ALONE["script"]
    lines = arguments.lines.read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        short, long = (write_lines(folder / f"{n}", lines, n) for n in (arguments.rows, arguments.long))
        result: dict[str, Any] = {
            "load": os.getloadavg()[0],
            "one line": compare(arguments.export, None, arguments.rounds, folder),
        }
        result["lines"] = compare(arguments.export, short, arguments.rounds, folder)
        result["long"] = {"mbert": measured(commands(arguments.export, long)["mbert"], folder / "long.txt")}
    for of_command in result["lines"].values():
        of_command["rows a CPU second"] = arguments.rows / of_command["cpu"]
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"answered alike: {min(of['alike'] for of in result['lines'].values()):.4f}")
    print(f"load {result['load']:.1f}; CPU seconds, wall seconds, peak MB; best of {arguments.rounds}")
    for part, count in (("one line", 1), ("lines", arguments.rows), ("long", arguments.long)):
        for command, figures in result[part].items():
            rate = f"{count / figures['cpu']:10,.0f} rows a CPU second" if count > 1 else ""
            print(f"{count:9,}  {command:16} {figures['cpu']:8.2f} {figures['wall']:8.2f} {figures['memory']:7.0f}  {rate}")


if __name__ == "__main__":
    main()
