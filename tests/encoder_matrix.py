"""Each encoder type through every command, and the page of what came of it: docs/architectures.md.

    workshop = Workshop(tmp_path)              data and a BERT that teaches
    cells = workshop.row("roberta")            {column: Cell}
    rows = read_rows(text)                     {type: {column: result}} of a page
    page(rows)                                 a page's text

A cell works only if the answers are right too: those of transformers alone, and not the same for every text.
"""

import contextlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from encoder_types import POSITIONS, build, skipped
from mbert_command import Done, mbert
from tiny_glue import tiny_glue
from tiny_models import tiny_bert

COLUMNS = ("finetune", "teaches", "teaches layers", "is taught", "evaluate", "export", "predict", "bench")
TEXTS = (
    "lovely",
    "the bitter window of the singer near the island .",
    "the splendid boat of the baker near the harbour . the teacher is warm and the lamp is mended .",
)
LONG = " ".join(["the dreary basket of the farmer near the valley is broken because it is sold ."] * 12)
LENGTH = 24  # tokens, in training
DATA = ("--task", "sst2", "--data", "glue", "--set", f"data.max_length={LENGTH}")
GRAPHS = (
    "onnx/model.onnx", "onnx/model_quantized.onnx", "onnx/model_optimized.onnx", "onnx/model_optimized_quantized.onnx",
)  # fmt: skip
CLOSE = 2e-4  # logits of one model by two ways of computing them
WORKS, FAILED = "works", "FAILED"
# What the codes of refusals that the page may hold mean for a type.
CODES = {
    "M014": "computes its attention by itself, so that no layer's attention can be compared; losses without attention can",
    "M334": "fails inside transformers: Reformer in training, where every row must have the length that its positions make",
    "M335": "answers all texts alike without its kernel for GPUs",
    "M336": "reads inputs beside token ids, mask and segments",
    "M337": "pads on the left, so that tokens cannot be compared by their place; losses on answers can",
    "M338": "reads characters, and has no vocabulary",
    "M611": "takes other steps for other inputs, which ONNX cannot hold; safetensors are exported with export.onnx=false",
}
# Refusals that are never right here: every checkpoint is whole, reads more tokens than are asked for, and may teach a BERT.
UNFOUNDED = ("M012", "M042", "M310")
START = """# Encoder types

Every encoder type of transformers that can classify texts, tiny and random, through the commands of mbert. This page is written
and checked by tests/cases/test_encoder_types.py: `make encoders` writes it anew, `make slow` compares it.

- `works`: the command ended well and its answers are those of transformers alone, different for different texts
- `refused CODE`: the command said in four parts why not
- `FAILED`: a traceback, a wrong answer, or a refusal without reason; to be mended

In transformers itself the padding of a batch changes what some types answer: `fnet` has no attention mask (by up to 0.07),
`yoso` (0.05), `nystromformer` (0.001), `convbert` (0.0002). The same text alone and in a batch then has two answers.

| column | what is done |
|---|---|
| finetune | a masked-LM of the type, or its encoder where it has none, becomes a classifier |
| teaches | the classifier teaches a new BERT by its answers |
| teaches layers | the same by hidden states and attention (TinyBERT) |
| is taught | a BERT teaches a student of the type |
| evaluate | accuracy on dev |
| export | four ONNX graphs; each answers `session.run(None, dict(tokenizer(texts, padding=True, return_tensors="np")))` |
| predict | short, long and several texts; from the checkpoint, the fine-tuned model and the export |
| bench | size, FLOPs and speed of model and export |

## Types
"""


@dataclass(frozen=True)
class Cell:
    """What came of one command with one type: works, refused with which code, or FAILED; `detail` says why."""

    result: str
    detail: str = ""

    @property
    def works(self) -> bool:
        return self.result == WORKS


class Wrong(AssertionError):
    """A command that ended well with an answer that is not right."""


class Stopped(Exception):
    """A command that did not end well."""

    def __init__(self, cell: Cell):
        super().__init__(cell.result)
        self.cell = cell


def command(*arguments: str | Path, stdin: str = "") -> Done:
    """Runs a command that must end well; raises Stopped with the cell of one that does not."""
    done = mbert(*arguments, stdin=stdin)
    if done.code == 0 and "Traceback" not in done.err:
        return done
    code = re.search(r"\[([BM]\d{3})\]", done.err)
    message = f"mbert {arguments[0]}: " + " ".join(done.err.split())[-1200:]
    if done.code in (1, 2, 3, 4, 5, 7) and code and "Traceback" not in done.err:
        raise Stopped(Cell(FAILED if code[1] in UNFOUNDED else f"refused {code[1]}", message))
    raise Stopped(Cell(FAILED, f"exit {done.code}: {_frames(done.err)}"))


def _frames(text: str) -> str:
    """The last frames of a traceback, and its exception."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    kept = [line for line in lines if line.startswith("File ") or re.match(r"\w*(Error|Exception|M\d{3})\b", line)]
    return " | ".join(kept[-6:] or lines[-12:])


class Workshop:
    """A folder with data and a BERT teacher, in which types are tried one after another."""

    def __init__(self, place: Path):
        self.place = place
        place.mkdir(parents=True, exist_ok=True)
        tiny_glue(place / "glue", ["sst2"], rows=32)
        tiny_bert(place / "bert-teacher", labels=["negative", "positive"])

    def row(self, model_type: str, columns: Sequence[str] = COLUMNS) -> dict[str, Cell]:
        """The cells of one type, by column. Where fine-tuning is refused, a classifier that others trained takes its place."""
        with contextlib.chdir(self.place):
            classifier, base = build(model_type, Path(model_type))
            out = Path(model_type)
            cells = {"finetune": _tried(lambda: finetune(base, out / "finetune"))}
            model = out / "finetune" if cells["finetune"].works else classifier
            steps: dict[str, Callable[[], None]] = {
                "teaches": lambda: teach(model, out / "student"),
                "teaches layers": lambda: teach_layers(model, out / "student-of-layers"),
                "is taught": lambda: be_taught(base, out / "taught"),
                "evaluate": lambda: evaluate(model, out / "evaluate"),
                "export": lambda: export(model, out / "export"),
                "predict": lambda: predict([model, classifier], out / "export"),
                "bench": lambda: bench(model, out / "export"),
            }
            return cells | {column: _tried(step) for column, step in steps.items() if column in columns}


def _tried(step: Callable[[], None]) -> Cell:
    try:
        step()
    except Stopped as stopped:
        return stopped.cell
    except Wrong as wrong:
        return Cell(FAILED, f"wrong: {wrong}")
    except Exception as error:  # of what a user does with an export: ONNX Runtime's own errors
        return Cell(FAILED, f"{type(error).__name__}: {str(error).strip()[:600]}")
    return Cell(WORKS)


def finetune(base: Path, out: Path) -> None:
    numbers = {"steps": 6, "batch_size": 8, "evaluations": 1, "learning_rate": "1e-3"}
    command("finetune", "--model", base, *DATA, *_sets("finetune", numbers), "-o", out)
    _must_tell_apart(reference(out, TEXTS, max_length=LENGTH), out)


PHASE = {"steps": 3, "batch_size": 8, "evaluations": 1}


def teach(model: Path, out: Path) -> None:
    method = ("--set", "method=soft-targets", *_sets("phases.prediction", PHASE), "--set", "teacher.allow_weak=true")
    metrics = command("task-distill", "--teacher", model, "--student", "bert-1x16", *DATA, *method, "-o", out, "--json").json
    _check_accuracy(model, metrics["teacher"]["accuracy"])


def teach_layers(model: Path, out: Path) -> None:
    """By hidden states and attention, with the teacher's own tokens."""
    phases = [*_sets("phases.intermediate", {"steps": 3, "batch_size": 8}), *_sets("phases.prediction", PHASE)]
    method = ("--set", "method=tinybert", "--set", "augmented=false", *phases, "--set", "teacher.allow_weak=true")
    command("task-distill", "--teacher", model, "--student", "bert-1x16", *DATA, *method, "-o", out)


def be_taught(base: Path, out: Path) -> None:
    method = ("--set", "method=soft-targets", *_sets("phases.prediction", PHASE), "--set", "teacher.allow_weak=true")
    command("task-distill", "--teacher", "bert-teacher", "--student", base, *DATA, *method, "-o", out)
    _must_tell_apart(reference(out, TEXTS, max_length=LENGTH), out)


def evaluate(model: Path, out: Path) -> None:
    metrics = command("evaluate", model, *DATA, "-o", out, "--json").json
    _check_accuracy(model, metrics["dev"]["accuracy"])


def _check_accuracy(model: Path, accuracy: float) -> None:
    """An accuracy on dev must be that of transformers alone, to within one row: to some types padding matters."""
    lines = [line.rsplit("\t", 1) for line in Path("glue/SST-2/dev.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    logits = np.concatenate([reference(model, [text.strip()], max_length=LENGTH) for text, _ in lines])
    expected = float(np.mean([int(label) == answer for (_, label), answer in zip(lines, logits.argmax(-1), strict=True)]))
    if abs(accuracy - expected) > 1.01 / len(lines):
        raise Wrong(f"{model}: accuracy {accuracy}, of transformers alone {expected}")


def export(model: Path, out: Path) -> None:
    """The graphs must answer as a user asks them, with nothing but ONNX Runtime and the tokenizer."""
    command("export", model, *DATA, "-o", out)
    torch_model = transformers.AutoModelForSequenceClassification.from_pretrained(out).eval()
    missing = [name for name in GRAPHS if not (out / name).is_file()]
    if missing:
        raise Wrong(f"no {', '.join(missing)}")
    problems = []
    for name in GRAPHS:
        try:
            _check_graph(out, name, torch_model)
        except Exception as error:
            problems.append(f"{name}: {type(error).__name__}: {str(error).strip()[:300]}")
    if problems:
        raise Wrong("; ".join(problems))


def _check_graph(directory: Path, name: str, torch_model: Any) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(directory / name, providers=["CPUExecutionProvider"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    singles = []
    for texts in ([TEXTS[0]], [TEXTS[1]], [TEXTS[2]], list(TEXTS), [TEXTS[0], TEXTS[0], TEXTS[1]]):
        feed = dict(tokenizer(texts, padding=True, truncation=True, return_tensors="np"))
        (logits,) = session.run(None, feed)
        with torch.no_grad():
            expected = torch_model(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).logits.numpy()
        if not np.isfinite(logits).all():
            raise Wrong("logits are not finite")
        far = float(np.abs(logits - expected).max())
        if "quantized" not in name and far > CLOSE:
            raise Wrong(f"logits of {len(texts)} texts differ from torch's by {far:.2g}")
        if len(texts) == 1:
            singles.append(logits)
    if "quantized" not in name:
        _must_tell_apart(np.concatenate(singles), directory / name)


def predict(models: Sequence[Path], exported: Path) -> None:
    """The answers must be those of transformers alone: of each text by itself, or of the batch as its tokenizer pads it."""
    for model in models:
        _check_predict(model, model)
        done = command("predict", model, LONG, "--json")
        if len(done.out.splitlines()) != 1:
            raise Wrong(f"{model}: {len(done.out.splitlines())} answers to one long text")
    if (exported / "onnx/model.onnx").is_file() and (exported / "manifest.json").is_file():
        _check_predict(exported, exported)


def _check_predict(path: Path, model: Path) -> None:
    lines = command("predict", path, *TEXTS, "--json").out.splitlines()
    shares = np.array([list(json.loads(line)["probabilities"].values()) for line in lines])
    if not np.isfinite(shares).all():
        raise Wrong(f"{path}: probabilities are not finite")
    length = LENGTH if (model / "manifest.json").is_file() else POSITIONS
    alone = np.concatenate([softmax(reference(model, [text], max_length=length)) for text in TEXTS])
    together = softmax(reference(model, TEXTS, max_length=length))
    far = [float(np.abs(shares - expected).max()) for expected in (alone, together)]
    if min(far) > CLOSE:
        raise Wrong(
            f"{path}: probabilities differ from those of transformers by {far[0]:.2g} (texts alone), {far[1]:.2g} (batch)"
        )
    _must_tell_apart(shares, path)


def bench(model: Path, exported: Path) -> None:
    """What is not known of a type is left out, not printed as zero."""
    few = ("--rows", "8", "--rounds", "3", "--passes", "1", "--batch-size", "4", "--no-baselines")
    models = [model, *([exported] if (exported / "manifest.json").is_file() else [])]
    measured = command("bench", *models, *DATA, *few, "--json").json["models"]
    if any(row["flops"] is None for row in measured.values()):
        table = command("bench", model, *DATA, *few).out
        if re.search(r"(?<![\d.])0\.0(?![\d])", table):
            raise Wrong("FLOPs that are not known are printed as 0.0")


def reference(directory: Path, texts: Sequence[str], *, max_length: int) -> np.ndarray:
    """The logits of transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    names = inspect.signature(model.forward).parameters
    with torch.no_grad():
        logits: np.ndarray = model(**{name: value for name, value in batch.items() if name in names}).logits.numpy()
    return logits


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(-1, keepdims=True)
    return shares


def _must_tell_apart(answers: np.ndarray, path: Path) -> None:
    """A model that reads its texts does not answer all of them alike."""
    if float(np.ptp(answers, axis=0).max()) < 1e-6:
        raise Wrong(f"{path}: the same answer to every text")


def _sets(prefix: str, numbers: Mapping[str, Any]) -> list[str]:
    return [word for key, value in numbers.items() for word in ("--set", f"{prefix}.{key}={value}")]


def page(rows: Mapping[str, Mapping[str, str]]) -> str:
    """The page of these results."""
    lines = [_line(["type", *COLUMNS]), _line(["---"] * (1 + len(COLUMNS)))]
    lines += [_line([f"`{name}`", *(rows[name][column] for column in COLUMNS)]) for name in sorted(rows)]
    results = {result for row in rows.values() for result in row.values()}
    codes = sorted({result.removeprefix("refused ") for result in results if result.startswith("refused ")})
    parts = [START, "\n".join(lines)]
    if codes:
        parts += ["\n## Refusals\n", "\n".join(f"- {code}: the type {CODES[code]}" for code in codes)]
    reasons: dict[str, list[str]] = {}
    for name, reason in sorted(skipped().items()):
        reasons.setdefault(reason, []).append(f"`{name}`")
    parts += ["\n## Not tried\n", "\n".join(f"- {reason}: {', '.join(names)}" for reason, names in sorted(reasons.items()))]
    return "\n".join(parts) + "\n"


def read_rows(text: str) -> dict[str, dict[str, str]]:
    """The results that a page holds."""
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 1 + len(COLUMNS) and cells[0].startswith("`"):
            rows[cells[0].strip("`")] = dict(zip(COLUMNS, cells[1:], strict=True))
    return rows


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
