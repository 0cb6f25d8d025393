"""How time and memory of every stage grow with rows, tokens a row and classes: exponents of a fit in logarithms.

python benchmarks/growth.py --tokenizer MODEL [--stages read,finetune,...] [--rows 4000] [--times 1,4,16] [--out docs/growth.md]

Every measurement is a process of its own on one thread, with a cache of its own. CPU seconds are counted from where the stage
begins, after a first run on few rows in the same process, which loads libraries: so what is left grows with the data. Training
takes 20 steps whatever the data is, and one pass over dev. Memory is the anonymous memory of the process at its peak, above
what it had before the stage; files that are mapped are no part of it.

    seconds ~ size^e        e by least squares of log seconds over log size; so for memory, of bytes above the first run's
"""

import argparse
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROWS, TOKENS, CLASSES, FEW = 4000, 16, 2, 200
STAGES = ("read", "finetune", "task-distill", "augment", "evaluate", "predict", "export")
AXES = ("rows", "tokens", "classes")
STUDENT = "bert-2x32"
TRAINING = {"steps": 20, "evaluations": 1, "batch_size": 16}
WORDS = "a the of film is it plot with actors great dull story scene never always charming slow cast ending music".split()


def write_table(path: Path, rows: int, tokens: int, classes: int, seed: int) -> Path:
    """Writes rows of words with a class each."""
    chance = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        file.write("text,label\n")
        for row in range(rows):
            words = chance.choices(WORDS, k=max(3, round(chance.gauss(tokens, tokens / 4))))
            file.write(f"{' '.join(words)} {row},c{row % classes}\n")
    return path


class Stage:
    """One stage on tables of a size; `prepare` makes what it needs of earlier stages, and is not measured."""

    def __init__(self, name: str, folder: Path, tokenizer: str):
        self.name, self.folder, self.tokenizer = name, folder, tokenizer

    def prepared(self, label: str, rows: int, tokens: int, classes: int) -> Callable[[], Any]:
        """Returns the stage as a function without arguments."""
        from microbert_cli import api

        folder = self.folder / label
        folder.mkdir()
        train = write_table(folder / "train.csv", rows, tokens, classes, 1)
        dev = write_table(
            folder / "dev.csv", rows // 4 if self.name in ("evaluate", "predict") else 4 * classes, tokens, classes, 2
        )
        files = {"data__train_file": str(train), "data__dev_file": str(dev), "data__max_length": 512, "device": "cpu"}
        training = {f"finetune__{key}": value for key, value in TRAINING.items()}

        def finetune(out: str) -> Any:
            return api.finetune(model=STUDENT, base=self.tokenizer, out=folder / out, **files, **training)

        if self.name == "read":
            return lambda: read(files, self.tokenizer)
        if self.name == "finetune":
            return lambda: finetune("finetune")
        if self.name == "augment":
            return lambda: api.augment(out=folder / "augment", augment__sources=["windows"], augment__copies=2, **files)
        model = folder / "model"
        finetune("model")
        if self.name == "task-distill":
            steps = {f"phases__{phase}__steps": 20 for phase in ("intermediate", "prediction")}
            return lambda: api.distill(
                teacher=model,
                student=STUDENT,
                out=folder / "task-distill",
                method="tinybert",
                teacher__allow_weak=True,
                **files,
                **steps,
            )
        if self.name == "evaluate":
            return lambda: api.evaluate(model=model, out=folder / "evaluate", **files)
        if self.name == "predict":
            texts = [line.rpartition(",")[0] for line in dev.read_text(encoding="utf-8").splitlines()[1:]]
            return lambda: api.predict(model, texts)
        return lambda: api.export(model=model, out=folder / "export", **files)


def read(files: dict[str, Any], tokenizer: str) -> None:
    """Reads a table, and makes its token ids."""
    from transformers import AutoTokenizer

    from microbert_cli.data.load import load_split, own_task
    from microbert_cli.data.tokenized import tokenize_examples

    task = own_task(files["data__train_file"], files["data__dev_file"])
    tokenize_examples(load_split(task, "train"), AutoTokenizer.from_pretrained(tokenizer), 512, task.kind)


def anonymous_bytes() -> int:
    """Returns the anonymous memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def measure(name: str, tokenizer: str, rows: int, tokens: int, classes: int) -> dict[str, float]:
    """Runs a stage twice in this process, on few rows and on these; returns CPU seconds and bytes of the second."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MBERT_CACHE"] = f"{folder}/cache"
        stage = Stage(name, Path(folder), tokenizer)
        stage.prepared("few", FEW, TOKENS, CLASSES)()
        work = stage.prepared("these", rows, tokens, classes)
        before, peak, done = anonymous_bytes(), [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.02):
                peak[0] = max(peak[0], anonymous_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        facts = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        done.set()
        watcher.join()
    return {**facts, "bytes": max(0, peak[0] - before), "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Returns the slope of log value over log size, by least squares; nothing (NaN) where a value is 0."""
    if min(values) <= 0:
        return math.nan
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / sum((a - middle_x) ** 2 for a in x)


def row_of(stage: str, axis: str, times: Sequence[int], results: Sequence[dict[str, float]]) -> str:
    """Returns a row of the table."""
    seconds, memory = [each["cpu"] for each in results], [each["bytes"] / 2**20 for each in results]
    cells = [
        stage, axis, ", ".join(f"{each:.2f}" for each in seconds), f"{exponent(times, seconds):.2f}",
        ", ".join(f"{each:.0f}" for each in memory), f"{exponent(times, memory):.2f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="a directory whose tokenizer is taken")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--axes", default=",".join(AXES))
    parser.add_argument("--rows", type=int, default=ROWS, help="of the smallest table")
    parser.add_argument("--times", default="1,4,16")
    parser.add_argument("--one", help="STAGE ROWS TOKENS CLASSES with commas: measures one, prints JSON")
    parser.add_argument("--out", type=Path, help="where the table goes; else stdout")
    options = parser.parse_args()
    if options.one:
        name, *sizes = options.one.split(",")
        print(json.dumps(measure(name, options.tokenizer, *map(int, sizes))))
        return
    times = [int(each) for each in options.times.split(",")]
    table = ["| stage | grows | CPU s | exponent | MB above the start | exponent |", "|---|---|---|---|---|---|"]
    for stage in options.stages.split(","):
        for axis in options.axes.split(","):
            results = []
            for factor in times:
                sizes = {"rows": options.rows, "tokens": TOKENS, "classes": CLASSES}
                sizes[axis] *= factor
                words = ["--tokenizer", options.tokenizer, "--one", ",".join([stage, *map(str, sizes.values())])]
                done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
                results.append(json.loads(done.stdout.splitlines()[-1]))
            table.append(row_of(stage, axis, times, results))
            print(table[-1], file=sys.stderr, flush=True)
    text = "\n".join(table) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
