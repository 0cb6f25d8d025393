"""The stages as Python functions: nothing is printed, every function gives a directory and its numbers."""

import inspect
import math
import os
import subprocess
import sys
import threading

import pytest
from recording import RecordingReporter
from tiny_models import tiny_bert, tiny_glue, tiny_rows

import microbert_cli
from microbert_cli import api
from microbert_cli.errors import MbertError
from microbert_cli.runs.stage_result import StageResult

pytestmark = pytest.mark.usefixtures("own_cache")
QUICK = {"batch_size": 8, "steps": 3}


def keys(table, **values):
    return {f"{table}__{name}": value for name, value in (QUICK | values).items()}


def sst2(place):
    return {"task": "sst2", "data__folder": f"{place}/glue", "data__max_length": 24}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    tiny_bert(folder / "base", kind="masked-lm")
    tiny_glue(folder / "glue", ["sst2", "stsb"], rows=80)
    texts = [texts[0] for texts, _ in tiny_rows("sst2", 60)["train"]]
    (folder / "text.txt").write_text("\n\n".join("\n".join(texts[i : i + 4]) for i in range(0, 60, 4)))
    return folder


@pytest.fixture(scope="module")
def teacher(place):
    return api.finetune(
        model=place / "base", **sst2(place), out=place / "teacher",
        **keys("finetune", steps=60, batch_size=16, learning_rate=1e-2),
    )  # fmt: skip


def test_every_function_is_offered_lazily():
    names = set(microbert_cli.__all__) - {"__version__"}
    assert names == {name for name, f in vars(api).items() if inspect.isfunction(f) and f.__module__ == api.__name__
                     and not name.startswith("_")}  # fmt: skip
    assert all(getattr(microbert_cli, name) is getattr(api, name) for name in names)
    assert all(getattr(api, name).__doc__ for name in names)
    with pytest.raises(AttributeError, match="no attribute 'destill'"):
        microbert_cli.destill  # noqa: B018


def test_importing_it_loads_nothing_heavy():
    code = (
        "import sys, microbert_cli, microbert_cli.api; print(sorted({'torch', 'transformers', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=os.path.dirname(
        os.path.dirname(microbert_cli.__file__)))  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_a_teacher(place, teacher, capsys):
    assert isinstance(teacher, StageResult) and teacher.out == place / "teacher" and not teacher.up_to_date
    assert teacher.metrics["dev"]["accuracy"] > 0.8
    assert teacher.metrics["majority"] == 0.5
    again = api.finetune(
        model=str(place / "base"), **sst2(str(place)), out=place / "teacher",
        **keys("finetune", steps=60, batch_size=16, learning_rate=1e-2),
    )  # fmt: skip
    assert again.up_to_date and again.metrics == teacher.metrics
    assert capsys.readouterr().out == ""


def test_pretrain_trains_a_vocabulary_and_a_model(place):
    result = api.pretrain(
        model="bert-1x16",
        corpus=place / "text.txt",
        vocabulary=120,
        corpus__max_length=24,
        out=place / "pre",
        **keys("pretrain"),
    )
    assert result.metrics["vocabulary"] <= 120 and result.metrics["steps"] == 3
    assert 0 < result.metrics["heldout"]["loss"] and result.metrics["heldout"]["perplexity"] == pytest.approx(
        math.exp(result.metrics["heldout"]["loss"])
    )
    assert not (result.out / "resume").exists()
    gone_on = api.pretrain(
        model=result.out, corpus=place / "text.txt", corpus__max_length=24, out=place / "pre2", **keys("pretrain")
    )
    assert gone_on.metrics["vocabulary"] == result.metrics["vocabulary"]


def test_general_and_task_distillation(place, teacher):
    general = api.general_distill(
        teacher=place / "base", student="bert-1x8", corpus=place / "text.txt", corpus__max_length=24, out=place / "general",
        **keys("general"),
    )  # fmt: skip
    assert set(general.metrics["heldout"]) == {"loss", "minus_loss", "embedding", "hidden_states", "attention_scores"}
    assert general.metrics["heldout"]["loss"] < general.metrics["heldout_before"]["loss"]
    student = api.distill(
        teacher=teacher.out, student=general.out, **sst2(place),
        out=place / "student", method="tinybert", **keys("phases__intermediate"), **keys("phases__prediction"),
    )  # fmt: skip
    assert student.metrics["teacher"] == teacher.metrics["dev"]
    assert student.metrics["retention"] == pytest.approx(
        student.metrics["dev"]["accuracy"] / teacher.metrics["dev"]["accuracy"]
    )
    assert student.metrics["parameters"] < teacher.metrics["parameters"]
    scored = api.evaluate(
        model=student.out,
        teacher=teacher.out,
        **sst2(place),
        out=place / "scores",
    )
    assert scored.metrics["dev"] == student.metrics["dev"]
    teacher_scores = scored.metrics["splits"]["dev"]["teacher"]
    assert 0 <= teacher_scores["agreement"] <= 1 and teacher_scores["kl"] >= 0


def test_general_distillation_with_the_released_arithmetic(place):
    """Padding counts there: every batch is as long as the corpus allows, and whole."""
    done = api.general_distill(
        teacher=place / "base", student="bert-1x8", corpus=place / "text.txt", corpus__max_length=64, out=place / "released",
        method="tinybert-reference", **keys("general", batch_size=4),
    )  # fmt: skip
    plain = api.general_distill(
        teacher=place / "base", student="bert-1x8", corpus=place / "text.txt", corpus__max_length=64, out=place / "masked",
        **keys("general", batch_size=4),
    )  # fmt: skip
    assert done.metrics["heldout_before"]["embedding"] != pytest.approx(plain.metrics["heldout_before"]["embedding"], rel=1e-3)


def test_augmentation(place):
    result = api.augment(
        task="sst2", masked_lm=place / "base", data__folder=place / "glue", out=place / "more", augment__copies=1
    )
    assert result.metrics["rows_in"] == 80 < result.metrics["rows_out"]


def test_prediction(place, teacher):
    texts = [texts[0] for texts, _ in tiny_rows("sst2")["dev"]]
    answers = api.predict(teacher.out, texts)
    assert len(answers) == len(texts)
    assert answers == api.predict(str(teacher.out), [(text,) for text in texts])
    alone = api.predict(teacher.out, texts[:1])
    assert alone[0]["label"] == answers[0]["label"] and alone[0]["label"] in ("negative", "positive")


def test_regression(place):
    result = api.finetune(
        model=place / "base", task="stsb", data__folder=place / "glue", out=place / "stsb", data__max_length=40,
        seeds=[1, 2], **keys("finetune"),
    )  # fmt: skip
    assert set(result.metrics["seeds"]) == {"1", "2"} and "pearson" in result.metrics["mean"]


def test_what_is_missing_is_an_error_that_helps(place):
    with pytest.raises(MbertError) as caught:
        api.distill(task="sst2", student="bert-1x8", out=place / "nothing")
    assert caught.value.code == "M022" and not (place / "nothing").exists()
    with pytest.raises(MbertError) as caught:
        api.finetune(model=place / "base", task="sst2", finetune__epoch=1, out=place / "nothing")
    assert caught.value.code == "M002"
    assert not [path for path in place.iterdir() if "nothing" in path.name]


def test_another_recipe_in_the_same_place(place, teacher):
    arguments = dict(model=place / "base", task="sst2", data__folder=place / "glue", out=place / "teacher", **keys("finetune"))
    with pytest.raises(MbertError) as caught:
        api.finetune(**arguments)
    assert caught.value.code == "M110" and "finetune.steps: 60 -> 3" in caught.value.what


def test_a_talk_hears_everything(place):
    reporter = RecordingReporter()
    api.finetune(
        model=place / "base", **sst2(place), out=place / "heard", reporter=reporter,
        **keys("finetune"),
    )  # fmt: skip
    assert ("finetune", 3, 3) in reporter.steps and any(note.startswith("seed 42: accuracy") for note in reporter.notes)


@pytest.mark.parametrize("name", ["reporter", "talk"])
def test_talk_is_the_earlier_name_of_reporter(place, name):
    reporter = RecordingReporter()
    api.finetune(model=place / "base", **sst2(place), out=place / f"told-{name}", **{name: reporter}, **keys("finetune"))
    assert reporter.notes[0].startswith("finetune: model ")


def test_files_of_ones_own_through_include(place, teacher, tmp_path):
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "mine.py").write_text(
        'needs = {"logits"}\nover = "batch"\n\n\n'
        "def mine(student_BC, teacher_BC, *, power=2.0):\n"
        "    return (student_BC - teacher_BC).abs().pow(power).mean()\n"
    )
    result = api.distill(
        teacher=teacher.out, student="bert-1x8", **sst2(place),
        out=tmp_path / "mine", include=[tmp_path], phases__prediction__losses={"mine": {"power": 1.0}},
        method="tinybert", **keys("phases__intermediate"), **keys("phases__prediction"),
    )  # fmt: skip
    assert "mine" in result.metrics["phases"]["prediction"]["losses"]


def test_stages_run_in_a_thread(place):
    results = []
    arguments = dict(model=place / "base", **sst2(place), out=place / "threaded")
    thread = threading.Thread(target=lambda: results.append(api.finetune(**arguments, **keys("finetune"))))
    thread.start()
    thread.join(60)
    assert results and results[0].metrics["phases"]["finetune"]["steps"] == 3


@pytest.mark.slow
def test_a_phase_that_reads_logits_alone_may_ask_in_int8(place, teacher):
    pytest.importorskip("onnxscript")
    reporter = RecordingReporter()
    result = api.distill(
        teacher=teacher.out, student="bert-1x8", **sst2(place), teacher__precision="int8", reporter=reporter,
        out=place / "int8", method="tinybert", **keys("phases__intermediate"), **keys("phases__prediction"),
    )  # fmt: skip
    assert result.metrics["phases"]["prediction"]["steps"] == 3
    assert any("int8 copy" in text for text in reporter.notes) and any("float32 here" in text for text in reporter.notes)
