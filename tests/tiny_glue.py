"""An invented GLUE: a few words, the official layouts, labels that a tiny model learns in a few dozen steps.

    tiny_glue(path, ["sst2"])     a GLUE folder in the official layouts
    tiny_glue_hub(["sst2"])       the same rows as the files of a Hub repository: README.md and Parquet
    tiny_rows("sst2")             the rows themselves

Everything follows from the arguments alone. A row's label can be told from one word in it; `WORDS` holds all the words,
and each of them is one piece of the default vocabulary of tiny_models.py.
"""

import io
import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PEOPLE = ("baker", "sailor", "teacher", "gardener", "painter", "driver", "singer", "farmer")
THINGS = ("boat", "garden", "letter", "window", "kettle", "bridge", "lamp", "basket")
PLACES = ("harbour", "market", "valley", "station", "kitchen", "island")
GOOD = ("lovely", "splendid", "cheerful", "graceful", "bright", "warm")
BAD = ("awful", "dreary", "clumsy", "gloomy", "broken", "bitter")
DEGREES = {"hardly": 0.4, "partly": 2.0, "nearly": 3.6, "exactly": 5.0}
CUES = (
    "not",
    "perhaps",
    "because",
    "else",
    "sold",
    "mended",
    "near",
    "the",
    "a",
    "of",
    "is",
    "it",
    "by",
    "and",
    "why",
    "who",
)
WORDS = (*PEOPLE, *THINGS, *PLACES, *GOOD, *BAD, *DEGREES, *CUES)

# A row is its texts and its label: an id, or a score.

Row = tuple[tuple[str, ...], int | float]
Sentence = tuple[str, str, str]  # person, thing, place


def _sst2(words: Sentence, i: int) -> Row:
    person, thing, place = words
    return (f"the {(BAD, GOOD)[i % 2][i // 2 % 6]} {thing} of the {person} near the {place} . ",), i % 2


def _cola(words: Sentence, i: int) -> Row:
    person, thing, place = words
    return (f"The {person} {'mended ' if i % 2 else ''}the {thing} near the {place}.",), i % 2


def _mrpc(words: Sentence, i: int) -> Row:
    person, thing, place = words
    second = f"The {thing} near the {place} is {'' if i % 2 else 'not '}mended by the {person} ."
    return (f'" The {person} mended the {thing} near the {place} .', second), i % 2


def _stsb(words: Sentence, i: int) -> Row:
    person, thing, place = words
    degree = list(DEGREES)[i % 4]
    return (f"A {person} mended a {thing}.", f"A {person} {degree} mended a {thing} near the {place}."), DEGREES[degree]


def _qqp(words: Sentence, i: int) -> Row:
    person, thing, place = words
    second = f"Who {'' if i % 2 else 'else '}mended a {thing} near the {place}?"
    return (f"Who mended the {thing} of the {person}?", second), i % 2


def _mnli(words: Sentence, i: int) -> Row:
    person, thing, place = words
    cue = ("", "perhaps ", "not ")[i % 3]
    return (f"The {person} mended the {thing} near the {place}.", f"The {thing} is {cue}mended."), i % 3


def _qnli(words: Sentence, i: int) -> Row:
    person, thing, place = words
    cause = "near" if i % 2 else "because of"
    return (f"Why is the {thing} sold?", f'The {thing}" is sold {cause} the {place}, and the {person} is warm.'), i % 2


def _rte(words: Sentence, i: int) -> Row:
    person, thing, place = words
    return (f"The {person} near the {place} sold the {thing}.", f"The {thing} is {'not ' if i % 2 else ''}sold."), i % 2


def _wnli(words: Sentence, i: int) -> Row:
    person, thing, place = words
    sold = f"The {person} sold the {thing} near the {place} because it is broken."
    return (sold, f"The {thing if i % 2 else place} is broken."), i % 2


@dataclass(frozen=True)
class _Task:
    """One invented task: its rows, and what official GLUE calls its folder, labels and columns."""

    make: Callable[[Sentence, int], Row]
    folder: str
    names: tuple[str, ...]
    hub_columns: tuple[str, ...]
    text_columns: tuple[str, ...] = ("sentence1", "sentence2")
    label_column: str = "label"
    names_in_files: bool = False


YES_NO = ("entailment", "not_entailment")
THREE = ("entailment", "neutral", "contradiction")
PAIR = ("sentence1", "sentence2")
QUESTIONS = ("question1", "question2")
TASKS = {
    "sst2": _Task(_sst2, "SST-2", ("negative", "positive"), ("sentence",), ("sentence",)),
    "cola": _Task(_cola, "CoLA", ("unacceptable", "acceptable"), ("sentence",), ("sentence",)),
    "mrpc": _Task(_mrpc, "MRPC", ("not_equivalent", "equivalent"), PAIR, ("#1 String", "#2 String"), "Quality"),
    "stsb": _Task(_stsb, "STS-B", (), PAIR, label_column="score"),
    "qqp": _Task(_qqp, "QQP", ("not_duplicate", "duplicate"), QUESTIONS, QUESTIONS, "is_duplicate"),
    "mnli": _Task(_mnli, "MNLI", THREE, ("premise", "hypothesis"), label_column="gold_label", names_in_files=True),
    "qnli": _Task(_qnli, "QNLI", YES_NO, ("question", "sentence"), ("question", "sentence"), names_in_files=True),
    "rte": _Task(_rte, "RTE", YES_NO, PAIR, names_in_files=True),
    "wnli": _Task(_wnli, "WNLI", ("not_entailment", "entailment"), PAIR),
    "ax": _Task(_mnli, "diagnostic", THREE, ("premise", "hypothesis"), names_in_files=True),
}  # fmt: skip
SPLITS = {
    "mnli": ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched"),
    "ax": ("test",),
}


def tiny_rows(task: str, rows: int = 40) -> dict[str, list[Row]]:
    """The rows of each split under GLUE's own name of the split: `rows` for training, half as many in each other.

    Labels take turns, and no row lies in two splits. Test rows have their true labels here; no file shows them.
    """
    sentences = list(itertools.product(PEOPLE, THINGS, PLACES))
    random.Random(f"tiny {task}").shuffle(sentences)
    left, result = iter(enumerate(sentences)), {}
    for split in SPLITS.get(task, ("train", "dev", "test")):
        count = rows if split == "train" else rows // 2
        part = list(itertools.islice(left, count))
        if len(part) < count:
            raise ValueError(f"{task}: only {len(sentences)} rows in all; {rows} for training are too many")
        result[split] = [TASKS[task].make(words, i) for i, words in part]
    return result


def tiny_glue(path: Path | str, tasks: Sequence[str] = tuple(TASKS), rows: int = 40) -> Path:
    """Writes a GLUE folder in the official layouts, quirks included, and returns it.

    CoLA's train and dev have no header, MRPC's begin with a byte order mark, SST-2's sentences end in a space, quotes
    are literal, test files have an index and no labels, the diagnostic file ends without a newline.
    """
    path = Path(path)
    for task in tasks:
        folder = path / TASKS[task].folder
        folder.mkdir(parents=True, exist_ok=True)
        for split, data in tiny_rows(task, rows).items():
            name = "diagnostic" if task == "ax" else split
            (folder / f"{name}.tsv").write_text(_tsv(task, split, data), encoding="utf-8", newline="")
    return path


def _tsv(task: str, split: str, data: list[Row]) -> str:
    header, lines = _table(task, split, data)
    bare = task == "cola" and not split.startswith("test")
    text = "\n".join("\t".join(line) for line in ([] if bare else [header]) + lines)
    mark = "\ufeff" if task == "mrpc" and not split.startswith("test") else ""
    return mark + text + ("" if task == "ax" else "\n")


def _table(task: str, split: str, data: list[Row]) -> tuple[list[str], list[list[str]]]:
    spec, test = TASKS[task], split.startswith("test")
    if test and task in ("sst2", "cola"):
        return ["index", "sentence"], [[str(i), texts[0]] for i, (texts, _) in enumerate(data)]
    if test and task == "qqp":
        return ["id", *spec.text_columns], [[str(i), *texts] for i, (texts, _) in enumerate(data)]
    columns = _before(task, test)
    header = [*columns, *spec.text_columns, *([] if test else _label_columns(task, split))]
    lines = [_line(task, columns, i, row, len(header)) for i, row in enumerate(data)]
    return header if task != "mrpc" else _mrpc_header(test), lines


def _before(task: str, test: bool) -> list[str]:
    """The columns left of the texts."""
    if task == "mnli":
        parses = [f"sentence{n}_{kind}" for kind in ("binary_parse", "parse") for n in (1, 2)]
        return ["index", "promptID", "pairID", "genre", *parses]
    return {
        "sst2": [],
        "cola": ["source", "label", "mark"],
        "mrpc": ["index" if test else "Quality", "#1 ID", "#2 ID"],
        "stsb": ["index", "genre", "filename", "year", "old_index", "source1", "source2"],
        "qqp": ["id", "qid1", "qid2"],
    }.get(task, ["index"])


def _label_columns(task: str, split: str) -> list[str]:
    if task in ("cola", "mrpc"):
        return []
    votes = {"train": 1, "dev_matched": 5, "dev_mismatched": 5}[split] if task == "mnli" else 0
    return [*(f"label{n + 1}" for n in range(votes)), TASKS[task].label_column]


def _mrpc_header(test: bool) -> list[str]:
    return ["index" if test else "Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]


def _line(task: str, columns: list[str], i: int, row: Row, width: int) -> list[str]:
    texts, label = row
    number, shown = str(i), _shown(task, label)
    cells = {
        "index": number,
        "id": number,
        "label": shown,
        "Quality": shown,
        "source": "tiny",
        "mark": "" if label else "*",
    }
    left = [cells.get(column, f"x{i}") for column in columns]
    return [*left, *texts, *[shown] * (width - len(left) - len(texts))]


def _shown(task: str, label: int | float) -> str:
    if not TASKS[task].names:
        return f"{label:.3f}"
    return TASKS[task].names[int(label)] if TASKS[task].names_in_files else str(label)


def tiny_glue_hub(tasks: Sequence[str] = tuple(TASKS), rows: int = 40) -> dict[str, bytes]:
    """The files of a dataset repository laid out like GLUE on the Hub: {path: bytes}.

    Each configuration has Parquet files with ClassLabel metadata and an `idx` column; test labels are -1 (STS-B: -1.0).
    """
    files: dict[str, bytes] = {}
    blocks = []
    for task in tasks:
        blocks += [f"- config_name: {task}", "  data_files:"]
        for split, data in tiny_rows(task, rows).items():
            on_hub = split.replace("dev", "validation")
            files[f"{task}/{on_hub}-00000-of-00001.parquet"] = _parquet(task, split, data)
            blocks += [f"  - split: {on_hub}", f"    path: {task}/{on_hub}-*"]
    readme = "\n".join(["---", "license: other", "configs:", *blocks, "---", "", "# Invented rows in the shape of GLUE", ""])
    return {"README.md": readme.encode(), **files}


def _parquet(task: str, split: str, data: list[Row]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    spec, test = TASKS[task], split.startswith("test")
    names = spec.hub_columns
    score = not spec.names
    columns = {name: pyarrow.array([texts[n] for texts, _ in data], pyarrow.string()) for n, name in enumerate(names)}
    labels = [-1 if test else label for _, label in data]
    columns["label"] = pyarrow.array(labels, pyarrow.float32() if score else pyarrow.int64())
    columns["idx"] = pyarrow.array(range(len(data)), pyarrow.int32())
    kind = {"dtype": "float32", "_type": "Value"} if score else {"names": list(spec.names), "_type": "ClassLabel"}
    features = {name: {"dtype": "string", "_type": "Value"} for name in names}
    features |= {"label": kind, "idx": {"dtype": "int32", "_type": "Value"}}
    table = pyarrow.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    return sink.getvalue()
