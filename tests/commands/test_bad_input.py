"""Whatever is wrong with the input is said in four parts, with its exit code, and leaves nothing behind that looks whole.

Each row of the tables is one mistake: what the user does, and what the error must name. `refused` checks the exit code, the
error code and that no part is empty, on stderr and as JSON; after every mistake there must be no output directory.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from advice import follow
from mbert_command import Done, mbert, refused, works
from tiny_models import tiny_bert, tiny_glue, tiny_rows

from microbert_cli.runs import atomic

TRAIN = ("--set", "finetune.learning_rate=1e-2", "--set", "finetune.epochs=12", "--set", "finetune.batch_size=8")
SHORT = (
    "--set",
    "method=tinybert",
    "--set",
    "phases.intermediate.steps=2",
    "--set",
    "phases.prediction.steps=2",
    "--set",
    "phases.prediction.warmup=0",
)
CSV = "text,stars\n" + "".join(
    f'"{texts[0].strip()}, they say",{["bad", "good"][int(label)]}\n' for texts, label in tiny_rows("sst2", 60)["train"]
)
COLUMNS = ("--text", "text", "--label", "stars")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a GLUE task, models right and wrong, and a teacher fine-tuned on the task."""
    root = tmp_path_factory.mktemp("workshop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MBERT_CACHE", str(root / "cache"))
        patch.setenv("MBERT_DATA", "glue")
        tiny_glue("glue", ["sst2", "mnli"], rows=40)
        tiny_bert("base", kind="masked-lm", dropout=0.0)
        tiny_bert("bare", kind="encoder")
        Path("reviews.csv").write_text(CSV, encoding="utf-8")
        Path("text.txt").write_text("\n\n".join(f"The baker sold boat {i}. It is lovely." for i in range(30)), encoding="utf-8")
        works("finetune", "--model", "base", "--task", "sst2", "-o", "teacher", *TRAIN)
        yield root


@pytest.fixture(autouse=True)
def here(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test starts in the workshop, and must leave no output there: `out` and its relatives."""
    monkeypatch.chdir(workshop)
    monkeypatch.setenv("MBERT_CACHE", str(workshop / "cache"))
    monkeypatch.setenv("MBERT_DATA", "glue")
    yield
    left = sorted(path.name for path in workshop.iterdir() if path.name.lstrip(".").startswith("out"))
    for path in workshop.glob("*out*"):
        shutil.rmtree(path)
    assert left == []


def distil(teacher: str | Path = "teacher", student: str = "bert-1x16", *more: str) -> tuple[str, ...]:
    """The words of a distillation."""
    return ("task-distill", "--teacher", str(teacher), "--student", student, "--task", "sst2", "-o", "out", *SHORT, *more)


def plain_copy(source: str, target: Path) -> Path:
    """The model files of a stage's output as a plain Hugging Face directory, as if they came from elsewhere."""
    target.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(source) / name, target / name)
    return target


# --- what is typed and what a recipe says ------------------------------------------------------------------------------

FINETUNE = ("finetune", "--model", "base", "--task", "sst2", "-o", "out")
GENERAL = ("general-distill", "--teacher", "base", "--student", "bert-1x16", "-o", "out", "--set", "general.steps=1")
AUGMENT = ("augment", "--masked-lm", "base", "--task", "sst2", "-o", "out")

WORDS = {
    "an option that is none": (2, "M100", ("finetune", "--taks", "sst2"), ["--taks", "--task"]),
    "a command that is none": (2, "M100", ("finetun",), ["finetun", "finetune"]),
    "a seed that is no number": (2, "M100", ("finetune", "--seed", "x"), ["--seed"]),
    "a --set without equals sign": (2, "M101", (*FINETUNE, "--set", "finetune.epochs"), ["finetune.epochs", "--set"]),
    "seeds that are no numbers": (2, "M102", (*FINETUNE, "--seeds", "one,two"), ["one,two", "--seeds"]),
    "a kind of names that is none": (2, "M103", ("list", "lossess"), ["lossess", "losses"]),
    "a score without a number": (2, "M105", ("evaluate", "teacher", "--min-score", "accuracy"), ["accuracy", "--min-score"]),
    "a device that is not there": (2, "M109", (*FINETUNE, "--device", "gpuu"), ["gpuu", "--device", "cpu"]),
    "an unknown key": (3, "M002", (*FINETUNE, "--set", "finetune.epocs=2"), ["finetune.epocs", "--set", '"epochs"']),
    "a key outside every table": (3, "M002", (*FINETUNE, "--set", "epochs=2"), ["epochs", "--set"]),
    "a value of the wrong kind": (3, "M003", (*FINETUNE, "--set", "finetune.epochs=many"), ["many", "finetune.epochs"]),
    "a value that is not allowed": (3, "M003", (*FINETUNE, "--set", "finetune.schedule=cosine"), ["cosine", "linear"]),
    "a misspelt stage": (3, "M004", ("run", "--set", 'stages=["finetun"]'), ["finetun", '"finetune"']),
    "a misspelt loss": (3, "M005", (*GENERAL, "--set", "general.losses.hiden_states=1"), ["hiden_states", '"hidden_states"']),
    "a misspelt task": (3, "M005", ("finetune", "--model", "base", "--task", "sst-2"), ["sst-2", "--task", '"sst2"']),
    "a misspelt student": (3, "M005", distil(student="tinybert-4l-321"), ["tinybert-4l-321", '"tinybert-4l-312"']),
    "a student of a pattern, misspelt": (
        3, "M005", distil(student="distilbert-6l-768"), ["distilbert-6l-768", '"distilbert-6x768"'],
    ),
    "a misspelt method": (3, "M005", distil("teacher", "bert-1x16", "--set", "method=tinybrt"), ["tinybrt", '"tinybert"']),
    "a parameter a loss has not": (
        3, "M006", distil("teacher", "bert-1x16", "--set", "phases.prediction.losses.soft_target.temprature=2"),
        ["temprature", '"temperature"'],
    ),
    "a parameter that is no number": (
        3, "M017", distil("teacher", "bert-1x16", "--set", "phases.prediction.losses.soft_target.temperature=hot"),
        ["hot", "soft_target.temperature"],
    ),
    "a layer map that is none": (3, "M003", distil("teacher", "bert-1x16", "--set", "layer_map=middle"), ["middle", "uniform"]),
    "a layer map of another depth": (
        3, "M010", distil("teacher", "bert-1x16", "--set", "layer_map=[1, 2]"), ["[1, 2]", "1 student"],
    ),
    "a variant of no stage": (
        3, "M024", ("run", "--set", 'stages=["x"]', "--set", "variant.x.stage=finetun", "--task", "sst2"), ["finetun"],
    ),
    "a stage with the name of the student": (
        3, "M025",
        ("run", "--set", 'stages=["compact", "again"]', "--set", "variant.compact.stage=task-distill", "--set",
         "variant.again.stage=task-distill", "--set", "student=compact", "--set", "teacher=teacher", "--task", "sst2"),
        ["compact", "stage"],
    ),
    "seeds that are the same": (2, "M102", (*FINETUNE, "--seeds", "1,1"), ["1,1"]),
    "a precision that is not there": (
        4, "M231", ("evaluate", "teacher", "-o", "out", "--set", "evaluate.precision=int8"), ["int8", "mbert export"],
    ),
    "a task with other labels": (5, "M320", ("evaluate", "teacher", "--task", "mnli", "-o", "out"), ["2 outputs", "task 3"]),
    "a phase of another method": (
        3, "M069",
        ("task-distill", "--teacher", "teacher", "--student", "bert-1x16", "--task", "sst2", "-o", "out", *SHORT[2:]),
        ["intermediate", "compact", "distillation", "tinybert"],
    ),
    "no loss at all": (3, "M007", (*FINETUNE, "--set", "finetune.losses.hard_label=0"), ["loss"]),
    "a loss the stage cannot feed": (
        3, "M008", (*GENERAL, "--corpus", "text.txt", "--set", "general.losses.hard_label=1"), ["hard_label", "labels"],
    ),
    "no task": (3, "M020", ("finetune", "--model", "base"), ["task", "sst2"]),
    "a recipe without stages": (3, "M023", ("run",), ["stages"]),
    "nothing to distil from": (3, "M022", ("general-distill", "--corpus", "text.txt"), ["base", "--teacher"]),
    "a recipe that is not there": (4, "M201", ("run", "nope.toml"), ["nope.toml"]),
    "a folder of names that is not there": (4, "M202", ("list", "--include", "nope"), ["nope"]),
    "a model that is not there": (4, "M203", ("finetune", "--model", "./bas", "--task", "sst2"), ["bas", '"base"']),
    "a Hub model while offline": (4, "M204", ("finetune", "--model", "tiny/no", "--task", "sst2"), ["tiny/no", "OFFLINE"]),
    "a folder without a model": (4, "M211", ("finetune", "--model", "glue", "--task", "sst2"), ["glue", "config.json"]),
    "a baseline that is not there": (4, "M205", ("evaluate", "teacher", "--baseline", "nope.json"), ["nope.json"]),
    "a corpus that is not there": (4, "M230", (*GENERAL, "--corpus", "nope.txt"), ["nope.txt", "python-docs"]),
    "stop words that are not there": (4, "M241", (*AUGMENT, "--set", "augment.stop_words=nope.txt"), ["nope.txt", "builtin"]),
    "word vectors that are not there": (4, "M242", (*AUGMENT, "--vectors", "nope.txt"), ["nope.txt"]),
    "data that is not there": (4, "M250", (*FINETUNE, "--data", "nope"), ["nope/SST-2/train.tsv", "--data"]),
    "a split that is not there": (
        4, "M251", ("evaluate", "teacher", "-o", "out", "--set", 'evaluate.splits=["tets"]'), ["tets", '"test"'],
    ),
    "hidden labels asked for a score": (
        4, "M260", ("evaluate", "teacher", "-o", "out", "--set", 'evaluate.splits=["test"]'), ["hidden", "--submission"],
    ),
    "augmented data that is not there": (4, "M255", distil("teacher", "bert-1x16", "--augmented", "nope"), ["nope"]),
    "a masked-LM without its head": (5, "M311", ("augment", "--masked-lm", "bare", "--task", "sst2", "-o", "out"), ["bare"]),
    "texts longer than the positions": (3, "M012", (*FINETUNE, "--set", "data.max_length=129"), ["129", "128"]),
    "blocks longer than the positions": (
        3, "M012", (*GENERAL, "--corpus", "text.txt", "--set", "corpus.max_length=129"), ["129", "corpus.max_length=128"],
    ),
    "columns named but no table": (2, "M107", ("predict", "teacher", "--text", "text"), ["--text", "--file"]),
    "a table but no column": (2, "M106", ("predict", "teacher", "--file", "reviews.csv"), ["reviews.csv", "--text"]),
    "an answer that cannot be written": (4, "M221", ("predict", "teacher", "fine", "-o", "no/where/x"), ["no/where/x"]),
    "an output that is a file": (2, "M114", (*FINETUNE[:-1], "reviews.csv"), ["reviews.csv"]),
    "an output inside a file": (4, "M221", (*FINETUNE[:-1], "reviews.csv/out"), ["reviews.csv/out"]),
    "an output full of other things": (2, "M111", (*FINETUNE[:-1], "glue"), ["glue", "--force"]),
}  # fmt: skip


# What placeholders in advice stand for here.
MEANINGS = {
    "MODEL": "teacher", "DIR": "teacher", "FILE": "reviews.csv", "TASK": "sst2", "METHOD": "tinybert", "STUDENT": "bert-1x16",
    "NAME": "tinybert", "OLD_MODEL": "teacher", "--data DIR": "glue", "--masked-lm MODEL": "base",
    "--corpus python-docs": "text.txt",
}  # fmt: skip


@pytest.mark.parametrize("case", WORDS)
def test_wrong_words(case: str, tmp_path: Path) -> None:
    exit_code, code, words, named = WORDS[case]
    error = refused(exit_code, code, *words)
    message = " ".join(str(error[part]) for part in ("what", "where", "allowed", "fix"))
    assert [name for name in named if name not in message] == [], message
    follow(error, words, tmp_path, MEANINGS)


def test_all_errors_of_a_recipe_come_at_once() -> None:
    wrong = ("--set", "finetune.epocs=1", "--set", "finetune.batch_size=0", "--set", "finetune.losses.hard_lable=1")
    errors = mbert("finetune", "--task", "sst3", *wrong, "--json").json["error"]["errors"]
    assert sorted(error["code"] for error in errors) == ["M002", "M003", "M005", "M005"]


def test_a_copy_overwrites_nothing() -> None:
    done = mbert("copy", "tasks", "sst2", "-o", "reviews.csv")
    assert done.code == 2 and "[M113] -o reviews.csv" in done.err and Path("reviews.csv").read_text(encoding="utf-8") == CSV
    done = mbert("copy", "tasks", "sst2", "-o", "no/where.toml")
    assert done.code == 4 and "[M221] -o no/where.toml" in done.err


def test_a_recipe_file_is_named_with_the_key() -> None:
    Path("wrong.toml").write_text('task = "sst2"\n[finetune]\nepocs = 2\n', encoding="utf-8")
    assert refused(3, "M002", "finetune", "wrong.toml")["where"] == "wrong.toml, finetune.epocs"
    Path("wrong.toml").write_text("task = = 2\n", encoding="utf-8")
    assert "line 1" in refused(3, "M001", "finetune", "wrong.toml")["what"]
    Path("wrong.toml").write_bytes(b'title = "caf\xe9"\n')
    refused(3, "M001", "finetune", "wrong.toml")


# --- tables of the user's own ---------------------------------------------------------------------------------------------

LAST = CSV.count("\n") + 1
TABLES: dict[str, tuple[int, str, str, bytes | str, list[str]]] = {
    "a missing column": (4, "M253", "a.csv", CSV.replace("text,stars", "text,star"), ["stars", '"star"']),
    "a row with too few columns": (5, "M350", "a.csv", CSV + "only\n", [f"line {LAST}", "1, not 2"]),
    "a row with too many columns": (5, "M350", "a.csv", CSV + "a,b,c\n", [f"line {LAST}", "3, not 2"]),
    "an empty text": (5, "M352", "a.csv", CSV + ",good\n", [f"line {LAST}", '"text"', "empty"]),
    "a text of spaces": (5, "M352", "a.csv", CSV + "   ,good\n", [f"line {LAST}", "empty"]),
    "no label": (5, "M365", "a.csv", CSV + "fine,\n", [f"line {LAST}", '"stars"']),
    "bytes that are not UTF-8": (5, "M353", "a.csv", CSV.encode() + b"caf\xe9,good\n", [f"line {LAST}", "0xe9"]),
    "quotes that are never closed": (5, "M354", "a.csv", CSV + '"so it ends,good\n', [f"line {LAST}"]),
    "an empty file": (5, "M357", "a.csv", "", ["a.csv"]),
    "a header alone": (5, "M357", "a.csv", "text,stars\n", ["a.csv"]),
    "one class alone": (5, "M358", "a.csv", "text,stars\n" + "a,good\nb,good\nc,good\n", ['"good"']),
    "too few rows to hold some out": (5, "M366", "a.csv", "text,stars\na,good\nb,bad\n", ["2 rows", "--dev-file"]),
    "a label that is a text": (
        5, "M363", "a.csv", "text,stars\n" + "".join(f"{i},n{i}\n" for i in range(50)), ["stars", "50"],
    ),
    "a suffix of another program": (3, "M030", "a.xlsx", CSV, [".csv"]),
    "JSON that is none": (5, "M355", "a.jsonl", '{"text": "a", "stars": "b"}\n{"text": \n', ["line 2"]),
    "JSON without the key": (5, "M355", "a.jsonl", '{"text": "a", "stars": "b"}\n{"txt": "c"}\n', ["line 2", '"text"']),
    "a number as text": (5, "M352", "a.jsonl", '{"text": "a", "stars": "b"}\n{"text": 3, "stars": "c"}\n', ["line 2", "int"]),
    "a damaged Parquet file": (5, "M356", "a.parquet", b"PAR1 and no more", ["a.parquet"]),
    "a damaged gzip": (5, "M356", "a.csv.gz", b"\x1f\x8b\x08 and no more", ["a.csv.gz"]),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_wrong_tables(case: str, tmp_path: Path) -> None:
    exit_code, code, name, content, named = TABLES[case]
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    error = refused(exit_code, code, "finetune", "--model", "base", "--train-file", str(file), *COLUMNS, "-o", "out")
    message = " ".join(str(error[part]) for part in ("what", "where", "allowed", "fix"))
    assert [name for name in named if name not in message] == [], message
    follow(error, ("finetune", "--model", "base", "--train-file", str(file), *COLUMNS), tmp_path, MEANINGS)


def test_labels_and_files_that_do_not_belong(tmp_path: Path) -> None:
    words = ("finetune", "--model", "base", "--train-file", "reviews.csv", *COLUMNS, "-o", "out")
    assert '"bad"' in refused(5, "M351", *words, "--set", 'data.labels=["good", "poor"]')["what"]
    assert '"reviews.csv"' in refused(4, "M252", *words, "--dev-file", "review.csv")["allowed"]
    assert "--train-file" in refused(4, "M256", "finetune", "--model", "base", "--dev-file", "reviews.csv", *COLUMNS)["fix"]
    glue = tmp_path / "SST-2"
    glue.mkdir()
    (glue / "train.tsv").write_text("sentence\tlabel\nfine\t1\nbad\t2\n", encoding="utf-8")
    error = refused(5, "M351", *FINETUNE, "--data", str(tmp_path))
    assert '"2"' in error["what"] and "line 3" in error["where"] and "negative, positive" in error["allowed"]


def test_a_byte_order_mark_and_quotes_of_glue_are_no_mistakes(tmp_path: Path) -> None:
    with_mark = tmp_path / "mark.csv"
    with_mark.write_text("\ufeff" + CSV, encoding="utf-8")
    one_step = ("--set", "finetune.steps=1", "--set", "finetune.evaluations=0")
    done = works("finetune", "--model", "base", "--train-file", with_mark, *COLUMNS, "-o", tmp_path / "own", *one_step)
    assert 'column "stars" has the classes bad, good' in done.err
    folder = tmp_path / "SST-2"
    folder.mkdir()
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text('sentence\tlabel\n"so it begins\t1\nan end " here\t0\n', encoding="utf-8")
    works(*FINETUNE[:-1], tmp_path / "glue", "--data", tmp_path, *one_step)


# --- corpora --------------------------------------------------------------------------------------------------------------

CORPORA = {
    "two lines of one document": (5, "M331", "a.txt", b"one line\nanother line\n", ["1", "blank line"]),
    "nothing": (5, "M331", "a.txt", b"", ["0"]),
    "bytes of a program": (5, "M330", "a.txt", bytes(range(256)) * 20, ["a.txt, line 2", "UTF-8"]),
    "half a gzip": (5, "M330", "a.gz", b"\x1f\x8b\x08 no", ["a.gz"]),
    "half a Parquet file": (5, "M330", "a.parquet", b"PAR1", ["a.parquet"]),
}


@pytest.mark.parametrize("case", CORPORA)
def test_wrong_corpora(case: str, tmp_path: Path) -> None:
    exit_code, code, name, content, named = CORPORA[case]
    (tmp_path / name).write_bytes(content)
    error = refused(exit_code, code, *GENERAL, "--corpus", tmp_path / name)
    message = " ".join(str(error[part]) for part in ("what", "where", "allowed", "fix"))
    assert [name for name in named if name not in message] == [], message
    follow(error, (*GENERAL, "--corpus", str(tmp_path / name)), tmp_path, MEANINGS)


def test_two_short_documents_are_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("one line\n\nanother line\n", encoding="utf-8")
    works(*GENERAL[:-3], tmp_path / "general", "--corpus", tmp_path / "two.txt", "--set", "general.steps=1")


# --- teachers and students ------------------------------------------------------------------------------------------------


def test_a_raw_encoder_is_no_teacher(tmp_path: Path) -> None:
    error = refused(5, "M311", *distil("bare"))
    assert "bare" in error["where"] and "mbert finetune --model bare" in error["fix"]
    follow(error, distil("bare"), tmp_path, MEANINGS)


def test_an_untrained_classifier_is_no_teacher(tmp_path: Path) -> None:
    raw = tiny_bert(tmp_path / "raw", labels=["negative", "positive"])
    error = refused(1, "M610", *distil(raw))
    assert "0.500" in error["what"] and "mbert finetune" in error["fix"] and "allow_weak" in error["fix"]
    assert follow(error, distil(raw), tmp_path, MEANINGS) == 2
    works(*distil(raw, "bert-1x16", "--set", "teacher.allow_weak=true")[:-2], "-o", tmp_path / "insisted", *SHORT,
          "--set", "teacher.allow_weak=true")  # fmt: skip


@pytest.mark.parametrize(
    ("exit_code", "code", "student", "shape", "named"),
    [
        (5, "M312", "other-words", {"vocab": ("alpha", "beta")}, ["162", "111"]),
        (3, "M013", "more-heads", {"heads": 4}, ["2 attention heads", "4", "phases.intermediate.losses.attention_scores=0"]),
        (3, "M015", "deeper", {"layers": 3}, ["3 layers", "at most 2"]),
        (3, "M012", "shorter", {"positions": 32}, ["64", "32"]),
    ],
)
def test_students_that_do_not_fit(
    exit_code: int, code: str, student: str, shape: dict[str, Any], named: list[str], tmp_path: Path
) -> None:
    directory = tiny_bert(tmp_path / student, kind="encoder", **shape)
    # A length that nobody typed would quietly be the shorter student's.
    words = (*distil("teacher", str(directory)), "--set", "data.max_length=64")
    error = refused(exit_code, code, *words)
    message = " ".join(str(error[part]) for part in ("what", "where", "allowed", "fix"))
    assert [name for name in named if name not in message] == [], message
    follow(error, words, tmp_path, MEANINGS)


def test_layers_that_do_not_divide(tmp_path: Path) -> None:
    deep = tiny_bert(tmp_path / "deep", layers=3, kind="encoder")
    words = ("general-distill", "--teacher", deep, "--student", "bert-2x16", "--corpus", "text.txt")
    error = refused(3, "M010", *words, "-o", "out")
    assert "2 divides" in error["what"] and "last" in error["allowed"] and "layer_map=last" in error["fix"]
    assert follow(error, words, tmp_path / "advice", MEANINGS) == 1
    mapped = ("--set", "layer_map=last", "--set", "general.steps=1", "-o", tmp_path / "general")
    works(*words, *mapped)


def test_a_number_of_labels_that_does_not_fit(tmp_path: Path) -> None:
    words = distil(tiny_bert(tmp_path / "three", num_labels=3))
    error = refused(5, "M320", *words)
    assert "3 outputs" in error["what"] and "negative, positive" in error["allowed"]
    assert follow(error, words, tmp_path, MEANINGS) == 1
    data = ("--train-file", "reviews.csv", *COLUMNS)
    error = refused(5, "M320", "evaluate", tmp_path / "three", *data, "-o", "out")
    assert follow(error, ("evaluate",), tmp_path / "own", MEANINGS) == 1, "a command that trains on the user's own file"


def relabelled(target: Path, names: list[str], *, swapped: bool) -> Path:
    """The teacher with other label names; `swapped` exchanges its two outputs as well."""
    from safetensors.torch import load_file, save_file

    plain_copy("teacher", target)
    config = json.loads((target / "config.json").read_text())
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    (target / "config.json").write_text(json.dumps(config))
    weights = load_file(target / "model.safetensors")
    if swapped:
        weights |= {key: weights[key].flip(0).contiguous() for key in ("classifier.weight", "classifier.bias")}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_permuted_labels_with_names_are_put_right(tmp_path: Path) -> None:
    """The same teacher, its outputs exchanged and named: nothing changes but the order inside it."""
    outs = []
    for name, teacher in {
        "straight": relabelled(tmp_path / "a", ["negative", "positive"], swapped=False),
        "permuted": relabelled(tmp_path / "b", ["Positive", "negative"], swapped=True),
    }.items():
        out = tmp_path / name
        done = works(*distil(teacher)[:7], "-o", out, *SHORT, "--json")
        assert done.json["teacher"]["accuracy"] >= 0.9
        outs.append((out / "model.safetensors").read_bytes())
    assert outs[0] == outs[1]


def test_permuted_labels_without_names_are_refused(tmp_path: Path) -> None:
    teacher = relabelled(tmp_path / "nameless", ["LABEL_0", "LABEL_1"], swapped=True)
    error = refused(5, "M322", *distil(teacher))
    assert "positive, negative" in error["what"]
    for words in (("evaluate", teacher), ("export", teacher), ("evaluate", "teacher", "--teacher", teacher)):
        assert "positive, negative" in refused(5, "M322", *words, "--task", "sst2", "-o", "out")["what"]
    assert follow(error, distil(teacher), tmp_path / "advice", MEANINGS) == 1
    order = 'teacher.label_order=["positive", "negative"]'
    assert f"--set '{order}'" in error["fix"]
    done = works(*distil(teacher)[:7], "-o", tmp_path / "right", *SHORT, "--set", order, "--json")
    assert done.json["teacher"]["accuracy"] >= 0.9


def test_label_names_that_cannot_be_matched_are_refused(tmp_path: Path) -> None:
    teacher = relabelled(tmp_path / "foreign", ["schlecht", "gut"], swapped=False)
    error = refused(5, "M321", *distil(teacher))
    assert "schlecht, gut" in error["what"] and "negative, positive" in error["allowed"] and "label_order" in error["fix"]
    assert follow(error, distil(teacher), tmp_path / "advice", MEANINGS) == 1
    assert refused(5, "M321", "evaluate", teacher, "--task", "sst2", "-o", "out")["where"].startswith("evaluate.model")


# --- directories that are not whole -----------------------------------------------------------------------------------------


def test_a_truncated_model_is_named(tmp_path: Path) -> None:
    model = plain_copy("teacher", tmp_path / "short")
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:-1000], whole[:20], b""):
        weights.write_bytes(content)
        assert str(model) in refused(5, "M302", *distil(model))["where"]
    weights.unlink()
    refused(5, "M302", *distil(model))
    weights.write_bytes(whole)
    works(*distil(model)[:7], "-o", tmp_path / "fine", *SHORT)


@pytest.mark.parametrize(("file", "code"), [("config.json", "M302"), ("tokenizer.json", "M302"), ("manifest.json", "M301")])
def test_damaged_json_beside_a_model(file: str, code: str, tmp_path: Path) -> None:
    shutil.copytree("teacher", tmp_path / "model")
    (tmp_path / "model" / file).write_text('{"half": ', encoding="utf-8")
    if file != "manifest.json":
        assert f"{file} is damaged" in refused(5, "M306", *distil(tmp_path / "model"))["what"]
        (tmp_path / "model" / "manifest.json").unlink()
        (tmp_path / "model" / "recipe.resolved.toml").unlink()
        (tmp_path / "model" / "log.jsonl").unlink()
    error = refused(5, code, *distil(tmp_path / "model"))
    assert str(tmp_path / "model") in error["where"]


def test_a_model_without_its_words(tmp_path: Path) -> None:
    model = plain_copy("teacher", tmp_path / "mute")
    (model / "tokenizer.json").unlink()
    error = refused(5, "M303", *distil(model))
    assert "162" in error["what"] and "vocab.txt" in error["fix"]


def test_a_directory_without_its_manifest_is_unfinished(tmp_path: Path) -> None:
    shutil.copytree("teacher", tmp_path / "half")
    (tmp_path / "half" / "manifest.json").unlink()
    assert str(tmp_path / "half") in refused(4, "M210", *distil(tmp_path / "half"))["where"]
    works("finetune", "--model", "base", "--task", "sst2", "-o", tmp_path / "begun", *TRAIN)
    (tmp_path / "begun").rename(tmp_path / "begun.partial")
    begun = {"stage": "finetune", "identity_hash": "?", "argv": ["mbert", "finetune", "--task", "sst2"]}
    (tmp_path / "begun.partial" / "begun.json").write_text(json.dumps(begun), encoding="utf-8")
    error = refused(4, "M210", *distil(tmp_path / "begun"))
    assert "mbert finetune --task sst2" in error["fix"], "the command that finishes it"


def test_damaged_state_of_begun_work(tmp_path: Path) -> None:
    out = tmp_path / "model"
    words = (*FINETUNE[:-1], out, "--set", "finetune.steps=2")
    works(*words)
    whole = (out / "model.safetensors").read_bytes()
    identity = json.loads((out / "manifest.json").read_text())["identity"]
    begun = out.rename(tmp_path / "model.partial")
    (begun / "begun.json").write_text(atomic.dump_with_checksum({"identity": identity, "argv": []}), encoding="utf-8")
    (begun / "seed.json").write_text("{", encoding="utf-8")
    (begun / "resume/phases/finetune").mkdir(parents=True)
    (begun / "resume/phases/finetune/step-00000002-00112233.pt").write_bytes(b"half")
    assert "step-00000002-00112233.pt is damaged" in works(*words).err
    assert (out / "model.safetensors").read_bytes() == whole


def test_damaged_scores_of_a_finished_output(tmp_path: Path) -> None:
    words = ("evaluate", "teacher", "-o", tmp_path / "scores")
    works(*words)
    (tmp_path / "scores" / "metrics.json").write_text("{", encoding="utf-8")
    error = refused(5, "M306", *words)
    assert "metrics.json is damaged" in error["what"] and "--force" in error["fix"]
    works(*words, "--force")
    assert (tmp_path / "scores.old-1").is_dir()


def test_another_recipe_in_the_output_directory(tmp_path: Path) -> None:
    out = tmp_path / "model"
    words = ("finetune", "--model", "base", "--task", "sst2", "-o", out, "--set", "finetune.steps=1")
    works(*words)
    before = (out / "manifest.json").read_bytes()
    error = refused(2, "M110", *words, "--set", "finetune.learning_rate=1e-3")
    assert "finetune.learning_rate: 5e-05 -> 0.001" in error["what"] and "--force" in error["fix"]
    assert (out / "manifest.json").read_bytes() == before
    assert "up to date" in works(*words).err
    assert "moved to" in works(*words, "--set", "finetune.learning_rate=1e-3", "--force").err
    assert (tmp_path / "model.old-1" / "manifest.json").read_bytes() == before


def test_two_runs_in_one_directory(tmp_path: Path) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / ".model.lock"):
        refused(2, "M112", *FINETUNE[:-1], tmp_path / "model")
    assert not (tmp_path / "model").exists()


# --- what happens while it works ----------------------------------------------------------------------------------------------


def test_a_diverging_loss(tmp_path: Path) -> None:
    wild = ("--set", "finetune.learning_rate=1e30", "--set", "finetune.warmup=0", "--set", "finetune.max_grad_norm=1e30")
    error = refused(6, "M401", *FINETUNE[:-1], tmp_path / "wild", *wild)
    assert "1e+30" in error["where"] and "finetune.learning_rate=" in error["fix"]
    assert not (tmp_path / "wild").exists()


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_safetensors(*_: Any, **__: Any) -> Any:
    from safetensors import SafetensorError

    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def on_manifest(original: Callable[..., Any]) -> Callable[..., Any]:
    """`Path.open` of a disk whose last block went to the file before the manifest."""

    def opened(self: Path, *args: Any, **keywords: Any) -> Any:
        return full() if self.name.startswith(".manifest.json.") else original(self, *args, **keywords)

    return opened


FAULTS = {
    "at the first file": lambda patch: patch.setattr("microbert_cli.runs.atomic.write_text", full),
    "at the weights": lambda patch: patch.setattr("transformers.modeling_utils.safe_save_file", full_safetensors),
    "at the training state": lambda patch: patch.setattr("torch.save", full),
    "at the manifest": lambda patch: patch.setattr(Path, "open", on_manifest(Path.open)),
    "at the last renaming": lambda patch: patch.setattr(Path, "rename", full),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_full_disk(case: str, tmp_path: Path) -> None:
    words = (*FINETUNE[:-1], tmp_path / "model", "--set", "finetune.steps=2")
    with pytest.MonkeyPatch.context() as patch:
        FAULTS[case](patch)
        error = refused(4, "M220", *words)
    assert "disk is full" in error["what"] and str(tmp_path / "model") in error["where"] and "mbert finetune" in error["fix"]
    assert not (tmp_path / "model").exists()
    refused(4, "M210" if (tmp_path / "model.partial").exists() else "M203", *distil(tmp_path / "model"))
    works(*words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    reference = tmp_path.parent / f"{tmp_path.name}-reference"
    works(*FINETUNE[:-1], reference, "--set", "finetune.steps=2")
    weights = [(place / "model.safetensors").read_bytes() for place in (tmp_path / "model", reference)]
    assert weights[0] == weights[1], "what was begun and finished later is what one run makes"


def test_onnx_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    error = refused(7, "M510", "export", "teacher", "-o", tmp_path / "shipped")
    assert "onnx" in error["what"] and "pip install" in error["fix"]
    assert list(tmp_path.iterdir()) == []
    works("export", "teacher", "-o", tmp_path / "shipped", "--set", "export.onnx=false")


def test_scores_below_what_is_wanted(tmp_path: Path) -> None:
    words = ("evaluate", "teacher", "-o", tmp_path / "scores")
    error = refused(1, "M620", *words, "--min-score", "accuracy=1.01")
    assert "1.01" in error["what"] and error["where"] == "--min-score"
    assert refused(2, "M104", *words, "--min-score", "acuracy=0.5")["allowed"].endswith('Did you mean "accuracy"?')
    done: Done = mbert(*words, "--min-score", "accuracy=1.01", "--json")
    assert {**done.json, "error": None} == {
        "out": str(tmp_path / "scores"),
        **json.loads((tmp_path / "scores" / "metrics.json").read_text()),
        "error": None,
    }
    (tmp_path / "better.json").write_text('{"dev": {"accuracy": 1.5}}', encoding="utf-8")
    refused(1, "M621", *words, "--baseline", tmp_path / "better.json")
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    refused(4, "M205", *words, "--baseline", tmp_path / "list.json")
    works(*words, "--baseline", tmp_path / "scores" / "metrics.json", "--min-score", "accuracy=0.5")
