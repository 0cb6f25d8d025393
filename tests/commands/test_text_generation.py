"""A task of texts through the commands: teacher, student, scores, texts; what resumes; what is refused."""

import csv
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice, permutations
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mbert_command import mbert, refused, works
from stopping import stopped_everywhere
from tiny_models import tiny_bert, tiny_glue

from microbert_cli import api
from microbert_cli.reporter import Reporter
from microbert_cli.runs.stage_result import StageResult

sacrebleu = pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")

WORDS = ("good", "dull", "long", "slow", "movie", "story", "actor", "plot")
OTHERS = dict(zip(WORDS, WORDS[1:] + WORDS[:1], strict=True))  # the "translation" of a word
DATA = (
    "--train-file",
    "train.csv",
    "--dev-file",
    "dev.csv",
    "--set",
    "data.kind=text_generation",
    "--set",
    "data.max_length=32",
)
ROWS = {"data__train_file": "train.csv", "data__dev_file": "dev.csv", "data__kind": "text_generation", "data__max_length": 32}
C_MLM = ("--set", "method=c-mlm", "--set", "phases.distillation.batch_size=16", "--set", "phases.distillation.evaluations=1")
DISTIL = ("task-distill", "--teacher", "teacher", "--student", "seq2seq-1x32", *DATA, *C_MLM)


def write_rows(name: str, rows_wanted: int, seed: int) -> None:
    generator = random.Random(seed)
    with open(name, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["source", "target"])
        for _ in range(rows_wanted):
            word, count = generator.choice(WORDS), generator.randint(1, 3)
            rows.writerow([" ".join([word] * count), " ".join([OTHERS[word]] * count)])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A table, a masked-LM, the teacher that it becomes, and a student of it."""
    folder = tmp_path_factory.mktemp("texts")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MBERT_CACHE", str(folder / "cache"))
        write_rows("train.csv", 240, 0)
        write_rows("dev.csv", 24, 1)
        tiny_bert("base", kind="masked-lm", dropout=0.0, hidden=32, vocab=WORDS)
        works("finetune", "--model", "base", *DATA, "-o", "teacher", "--set", "finetune.steps=150", "--set",
              "finetune.learning_rate=5e-3", "--set", "finetune.evaluations=1")  # fmt: skip
        works(*DISTIL, "-o", "student", "--set", "phases.distillation.steps=150",
              "--set", "phases.distillation.learning_rate=5e-3")  # fmt: skip
        yield folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def metrics(directory: str) -> dict[str, object]:
    values: dict[str, object] = json.loads(Path(directory, "metrics.json").read_text(encoding="utf-8"))
    return values


# --- the chain ----------------------------------------------------------------------------------------------------------------


def test_a_teacher_is_a_plain_masked_lm_with_the_vocabulary_of_its_student() -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    of_teacher = metrics("teacher")
    assert of_teacher["primary"] == "token_accuracy" and of_teacher["dev"]["token_accuracy"] > of_teacher["majority"]  # type: ignore[index,operator]
    model, info = AutoModelForMaskedLM.from_pretrained("teacher", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and model.config.tie_word_embeddings is False
    target = AutoTokenizer.from_pretrained("teacher/target")
    assert set(target.get_vocab()) <= set(AutoTokenizer.from_pretrained("teacher").get_vocab())
    assert set(WORDS) <= set(target.get_vocab())


def test_a_student_learns_from_the_cache_and_stands_beside_its_teachers_warning() -> None:
    of_student = metrics("student")
    assert of_student["teacher"] is None and of_student["retention"] is None
    assert set(of_student["teacher_sees_the_future"]) == {"token_accuracy", "perplexity"}  # type: ignore[call-overload]
    assert of_student["dev"]["perplexity"] < 3  # type: ignore[index,operator]
    assert set(of_student["phases"]["distillation"]["losses"]) == {"loss", "bidirectional_target", "hard_label"}  # type: ignore[index]
    log = json.loads(Path("student/teacher.jsonl").read_text(encoding="utf-8").splitlines()[0])
    tokens = sum(len(row["target"].split()) + 1 for row in csv.DictReader(Path("train.csv").open(encoding="utf-8")))
    assert (log["kept"], log["rows"], log["asked"], log["bytes"]) == (True, 240, 240, 48 * tokens)  # 8 fp16 values, 8 numbers


def test_transformers_alone_writes_what_the_command_writes() -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained("student").eval(), AutoTokenizer.from_pretrained("student")
    assert model.generation_config.num_beams == 5 and model.generation_config.length_penalty == 0.6
    batch = tokenizer(["good movie plot"], return_tensors="pt", return_token_type_ids=False)
    (ids,) = model.generate(**batch, max_new_tokens=32, max_length=None)
    assert works("predict", "student", "good movie plot").out == tokenizer.decode(ids, skip_special_tokens=True) + "\n"


def test_scores_are_those_of_sacrebleu_with_its_signature(tmp_path: Path) -> None:
    done = works("evaluate", "student", *DATA, "--teacher", "teacher", "-o", tmp_path / "scores", "--json").json
    rows = pq.read_table(tmp_path / "scores" / "predictions.parquet").to_pydict()
    assert rows["label"] == [row["target"] for row in csv.DictReader(Path("dev.csv").open(encoding="utf-8"))]
    bleu = sacrebleu.metrics.BLEU(lowercase=True)
    scores = done["splits"]["dev"]
    assert scores["metrics"]["bleu"] == pytest.approx(bleu.corpus_score(rows["prediction"], [rows["label"]]).score)
    assert scores["signatures"]["bleu"] == str(bleu.get_signature()) and "case:lc" in scores["signatures"]["bleu"]
    chrf = sacrebleu.metrics.CHRF(lowercase=True).corpus_score(rows["prediction"], [rows["label"]]).score
    assert scores["metrics"]["chrf"] == pytest.approx(chrf)
    assert scores["perplexity"] == pytest.approx(metrics("student")["dev"]["perplexity"], rel=1e-5)  # type: ignore[index]
    assert scores["teacher_sees_the_future"] == pytest.approx(metrics("student")["teacher_sees_the_future"], rel=1e-5)


def test_another_table_is_read_as_the_students_own(tmp_path: Path) -> None:
    """Kind and columns come from the student's manifest, of a file that is named now as of the one that it was trained on."""
    Path("new.csv").write_text("source,target\ngood,dull\nmovie movie,story story\n", encoding="utf-8")
    scores = works("evaluate", "student", "--dev-file", "new.csv", "-o", tmp_path / "scores", "--json").json
    assert scores["splits"]["dev"]["rows"] == 2 and "bleu" in scores["dev"]


def test_texts_from_a_table_and_as_json(tmp_path: Path) -> None:
    lines = works("predict", "student", "--file", "dev.csv", "--json").out.splitlines()
    assert len(lines) == 24 and set(json.loads(lines[0])) == {"text"}
    assert works("predict", "student", "--file", "dev.csv", "--text", "source", "-o", tmp_path / "texts.txt")
    assert (tmp_path / "texts.txt").read_text(encoding="utf-8").splitlines() == [json.loads(line)["text"] for line in lines]
    assert api.predict("student", ["good movie"])[0].keys() == {"text"}


def test_labels_alone_ask_no_teacher_and_need_no_cache(tmp_path: Path) -> None:
    words = ("--set", "phases.distillation.losses.bidirectional_target=0", "--set", "phases.distillation.steps=3")
    works(*DISTIL, *words, "-o", tmp_path / "alone")
    assert set(metrics(str(tmp_path / "alone"))["phases"]["distillation"]["losses"]) == {"loss", "hard_label"}  # type: ignore[index]
    assert not (tmp_path / "alone" / "teacher.jsonl").exists()
    works(
        "finetune", "--model", "seq2seq-1x32", *DATA, "--set", "base=base", "--set", "finetune.steps=3", "-o", tmp_path / "own"
    )
    assert metrics(str(tmp_path / "own"))["primary"] == "bleu"
    # A checkpoint that was begun so goes on, in its own tokens.
    more = ("--set", "phases.distillation.steps=2", "-o", tmp_path / "more")
    works("task-distill", "--teacher", "teacher", "--student", tmp_path / "own", *DATA, *C_MLM, *more)


def test_marian_s_shape_and_more_of_the_teachers_answer(tmp_path: Path) -> None:
    words = ("--set", "phases.distillation.steps=2", "--set", "phases.distillation.losses.bidirectional_target.k=128")
    works("task-distill", "--teacher", "teacher", "--student", "marian-1x32", *DATA, *C_MLM, *words, "-o", tmp_path / "marian")
    assert works("predict", tmp_path / "marian", "good movie").out.endswith("\n")


# --- resume -------------------------------------------------------------------------------------------------------------------


def test_a_teacher_stopped_anywhere_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(out: Path, reporter: Reporter) -> StageResult:
        return api.finetune(model="base", out=out, reporter=reporter, **ROWS, finetune__steps=4, finetune__batch_size=8,
                            finetune__evaluations=2, finetune__accumulate=2)  # fmt: skip

    assert stopped_everywhere(make, tmp_path / "teacher", fresh_cache=monkeypatch) >= 3


def test_a_student_stopped_anywhere_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the extraction of the teacher's answers, in training, while it writes dev, between two seeds."""

    def make(out: Path, reporter: Reporter) -> StageResult:
        return api.distill(
            out=out, reporter=reporter, teacher="teacher", student="seq2seq-1x16", method="c-mlm", seeds=[1, 2], **ROWS,
            **{f"phases__distillation__{key}": value for key, value in {"steps": 4, "batch_size": 8, "evaluations": 2}.items()},
        )  # fmt: skip

    assert stopped_everywhere(make, tmp_path / "student", fresh_cache=monkeypatch) >= 5


KILLED = (
    *("--set", "phases.distillation.steps=40", "--set", "phases.distillation.checkpoint_steps=1"),
    *("--set", "phases.distillation.learning_rate=1e-3"),
)


@pytest.mark.slow
def test_a_student_killed_at_any_time_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a warning: once the cache of the teacher's answers is begun, then after some steps; at the end the same bits."""
    works(*DISTIL, *KILLED, "-o", tmp_path / "whole")
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path / "cache"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    log, command = tmp_path / "killed.partial" / "log.jsonl", [sys.executable, "-m", "microbert_cli", *DISTIL, *KILLED]
    moments = (
        lambda: any((tmp_path / "cache").rglob("values.bin")),
        lambda: log.is_file() and log.read_text().count('"norm"') >= 3,
        lambda: log.is_file() and log.read_text().count('"norm"') >= 12,
    )
    for has_come in moments:
        with subprocess.Popen([*command, "-o", tmp_path / "killed"], env=environment, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not has_come():
                time.sleep(0.01)
            assert process.poll() is None, "it was over before it was killed"
            process.kill()
    assert "going on after step" in works(*DISTIL, *KILLED, "-o", tmp_path / "killed").err
    for file in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


# --- looking before -----------------------------------------------------------------------------------------------------------


def write_recipe(path: Path) -> Path:
    path.write_text(
        'student = "seq2seq-1x32"\nmethod = "c-mlm"\nstages = ["finetune", "task-distill", "evaluate"]\n'
        'finetune = { model = "base", steps = 3 }\nphases = { distillation = { steps = 3 } }\n'
        'data = { train_file = "train.csv", dev_file = "dev.csv", kind = "text_generation", max_length = 32 }\n',
        encoding="utf-8",
    )
    return path


def test_a_plan_tells_the_size_of_the_cache(tmp_path: Path) -> None:
    plan = works("plan", write_recipe(tmp_path / "texts.toml"), "--json").json
    stages = {stage["name"]: stage for stage in plan["stages"]}
    assert list(stages) == ["finetune", "task-distill", "evaluate"]
    assert all(stage["steps"] == 3 for stage in list(stages.values())[:2]) and all(s["seconds"] > 0 for s in stages.values())
    tokens = sum(len(row["target"].split()) + 1 for row in csv.DictReader(Path("train.csv").open(encoding="utf-8")))
    assert any(f"{tokens:,} target tokens" in note and "k = 8" in note for note in stages["task-distill"]["notes"])


def test_the_doctor_takes_a_first_step(tmp_path: Path) -> None:
    words = [" ".join(triple) for triple in islice(permutations(WORDS, 3), 12)]  # none of which is in train
    Path("other.csv").write_text("source,target\n" + "".join(f"{text},{text}\n" for text in words), encoding="utf-8")
    done = mbert("doctor", write_recipe(tmp_path / "texts.toml"), "--set", "data.dev_file=other.csv", "--json")
    checks = {check["name"]: check for check in done.json["checks"]}
    assert done.code == 0, done.err
    assert "finite losses" in json.dumps(checks["first step"])


ALONE = """
[variant.alone]
stage  = "task-distill"
phases = { distillation = { losses = { bidirectional_target = 0, hard_label = 1.0 } } }
"""


def test_with_the_teacher_and_without_in_one_table(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "texts.toml")
    recipe.write_text(recipe.read_text(encoding="utf-8") + ALONE, encoding="utf-8")
    stages = 'stages=["finetune", "alone", "task-distill"]'
    done = works("compare", recipe, "--set", stages, "--seeds", "1,2", "-o", tmp_path / "compared", "--json").json
    (section,) = done["tasks"].values()
    assert [row["row"] for row in section["rows"]] == ["alone", "task-distill"]
    assert all(set(row["by_seed"]) == {"1", "2"} and row["megabytes"] > 0 for row in section["rows"])
    assert section["signatures"]["bleu"].startswith("nrefs:1|case:lc") and section["teacher"] == {}
    assert section["differences"][0]["against"] == "alone" and section["differences"][0]["paired"]["seeds"] == 2
    page = (tmp_path / "compared" / "comparison" / "table.md").read_text(encoding="utf-8")
    assert "no upper bound" in page and "| commonest text | " in page and "Signature of bleu" in page


# --- refusals -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["augment", "trim", "cascade", "export", "report", "expert-teacher"])
def test_stages_of_classes_refuse_a_task_of_texts(stage: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "texts.toml")
    stages = f'stages=["finetune", "task-distill", "{stage}"]'
    assert stage in refused(2, "M149", "run", recipe, "--set", stages)["what"]


def test_commands_refuse_a_student_that_writes(tmp_path: Path) -> None:
    assert "AutoModelForSeq2SeqLM" in refused(2, "M149", "export", "student")["allowed"]
    refused(2, "M149", "augment", "--masked-lm", "base", *DATA)
    refused(2, "M151", "compare", write_recipe(tmp_path / "teacher.toml"), "--set", 'stages=["finetune"]')


def test_models_that_write_and_those_that_read(tmp_path: Path) -> None:
    tiny_glue(tmp_path / "glue", ["sst2"], rows=16)
    sst2 = ("--task", "sst2", "--data", tmp_path / "glue")
    refused(5, "M376", "evaluate", "student", *sst2)
    refused(5, "M376", "finetune", "--model", "seq2seq-1x32", *sst2, "--set", "base=base")
    refused(5, "M376", "bench", "student")
    refused(5, "M375", "evaluate", "teacher", *DATA)
    refused(5, "M395", "evaluate", "base", *DATA)
    refused(5, "M395", "task-distill", "--teacher", "teacher", "--student", "bert-1x32", *DATA, *C_MLM)
    refused(5, "M394", "task-distill", "--teacher", "base", "--student", "seq2seq-1x32", *DATA, *C_MLM)
    refused(2, "M150", "predict", "student", "a\tb", "--pairs")
    refused(5, "M375", "predict", "teacher", "good movie")
    refused(2, "M157", "predict", "student", "good movie", "--speed", "0.5")
    refused(2, "M157", "evaluate", "student", *DATA, "--speed", "0.5", "-o", tmp_path / "scores")
    refused(2, "M161", "evaluate", "student", *DATA, "--set", "evaluate.precision=int8", "-o", tmp_path / "scores")


def test_a_student_of_other_tokens_is_refused(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "foreign", kind="masked-lm", vocab=("unheard", *WORDS))
    write = ("--set", f"base={tmp_path / 'foreign'}", "--set", "finetune.steps=1", "-o", tmp_path / "foreign-student")
    Path("foreign.csv").write_text("source,target\nunheard movie,unheard plot\ngood,dull\nlong,slow\n", encoding="utf-8")
    works("finetune", "--model", "seq2seq-1x16", "--train-file", "foreign.csv", "--dev-file", "foreign.csv", *DATA[4:], *write)
    error = refused(5, "M393", "task-distill", "--teacher", "teacher", "--student", tmp_path / "foreign-student", *DATA, *C_MLM)
    assert "unheard" in error["what"]


@pytest.mark.parametrize("key", [
    "moe.side=student", "early_exit.branch=linear", "teacher.precision=int8", "init=teacher",
    "phases.distillation.chunk_rows=10", "phases.distillation.best_by=loss", "phases.distillation.prune.every=1",
])  # fmt: skip
def test_what_a_student_that_writes_cannot_be(key: str) -> None:
    refused(3, "M028", *DISTIL, "--set", key)


def test_losses_of_classes_and_of_layers_are_refused() -> None:
    for loss in ("hidden_states", "soft_target"):
        refused(3, "M008", *DISTIL, "--set", f"phases.distillation.losses.{loss}=1")


def test_rows_that_hold_no_target(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("source,target\na,b\nc, \n", encoding="utf-8")
    words = ("--train-file", tmp_path / "rows.csv", "--set", "data.kind=text_generation")
    assert "line 3" in refused(5, "M391", "finetune", "--model", "base", *words)["where"]
    refused(4, "M253", "finetune", "--model", "base", *words, "--label", "answer")
    lists = '{"source": "a", "target": 3}\n{"source": "b", "target": ["c", "d"]}\n'
    (tmp_path / "rows.jsonl").write_text(lists, encoding="utf-8")
    error = refused(5, "M399", "finetune", "--model", "base", "--train-file", tmp_path / "rows.jsonl", *words[2:])
    assert "line 2" in error["where"] and "list" in error["what"]
    (tmp_path / "empty.tsv").write_text("source\ttarget\na\tb\n \tc\n", encoding="utf-8")
    assert (
        "line 3"
        in refused(5, "M352", "finetune", "--model", "base", "--train-file", tmp_path / "empty.tsv", *words[2:])["where"]
    )
    refused(3, "M027", "finetune", "--model", "base", *DATA[:6], "--set", "data.max_length=100")


def test_targets_that_are_too_long_are_told_by_their_row(tmp_path: Path) -> None:
    """A target that is cut would teach a student to end in mid-sentence; one of dev is scored as it stands."""
    rows = "source,target\ngood,dull\nlong," + "story " * 40 + "\nslow,movie\n"
    (tmp_path / "rows.csv").write_text(rows, encoding="utf-8")
    length = ("--set", "data.kind=text_generation", "--set", "data.max_length=32")
    error = refused(5, "M397", "finetune", "--model", "base", "--train-file", tmp_path / "rows.csv", *DATA[2:4], *length)
    assert error["what"].startswith("1 of 3 targets have more than 32 tokens, the longest 41") and "id 1" in error["where"]
    done = works("evaluate", "student", "--dev-file", tmp_path / "rows.csv", "-o", tmp_path / "scores")
    assert "1 targets are longer than 32" in done.err
