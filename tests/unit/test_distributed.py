"""Several processes compute what one does: the same losses, the same weights, the same files."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from mbert_command import refused, works
from several_processes import CASES, compute
from tiny_models import tiny_bert, tiny_glue

from microbert_cli import distributed, reduce
from microbert_cli.catalog.losses import attention_scores, embedding, hard_label, hidden_states, masked_lm, soft_target
from microbert_cli.errors import MbertError
from microbert_cli.models.device import Precision, choose_precision
from microbert_cli.training import checkpoint
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.objective import Objective

ROOT = Path(__file__).resolve().parents[2]
MATHS = {"masked": {}, "reference": {"normalisation": "reference"}}


def torchrun(count, *words, cwd=None):
    """The command line and environment of `count` processes on this machine, talking over the loopback."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    return {"args": command, "env": environment, "cwd": cwd, "text": True, "stdout": -1, "stderr": -1}


def together(count, *words, cwd=None, code=0):
    """Runs it; torchrun itself leaves with 0 or 1."""
    done = subprocess.run(**torchrun(count, *words, cwd=cwd), timeout=300)
    assert done.returncode == code, done.stderr[-4000:]
    return done


def mbert_together(count, *words, **options):
    return together(count, "-m", "microbert_cli", *words, **options)


# Denominators, with the other process played by a second pass


def played(dealt, loss):
    """The mean over `dealt` shares of `loss(share)`, where every count asked for is the sum over the shares."""
    asked = [[] for _ in dealt]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: len(dealt))
        for number, share in enumerate(dealt):
            patch.setattr(distributed, "all_reduce_sum", lambda count, number=number: asked[number].append(count) or count)
            loss(share)
        values = []
        for share in dealt:
            sums = iter([sum(counts) for counts in zip(*asked, strict=True)])
            patch.setattr(distributed, "all_reduce_sum", lambda count, sums=sums: next(sums))
            values.append(loss(share))
    return torch.stack(values).mean()


def whole_batch():
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    return {
        "mask": mask,
        "states": (draw(5, 5, 6), draw(5, 5, 6)),
        "scores": (draw(5, 2, 5, 5), draw(5, 2, 5, 5)),
        "logits": (draw(5, 3), draw(5, 3)),
        "score": (draw(5, 1), draw(5, 1)),
        "labels": torch.tensor([0, 2, 1, 1, 0]),
        "gold": draw(5),
        "augmented": torch.tensor([True, True, False, True, False]),
    }


def rows_of(value, rows):
    return tuple(part[rows] for part in value) if isinstance(value, tuple) else value[rows]


VALUES = {
    "embedding": lambda b, **k: embedding.embedding(*b["states"], b["mask"], **k),
    "hidden_states": lambda b, **k: hidden_states.hidden_states(*b["states"], b["mask"], **k),
    "attention_scores": lambda b, **k: attention_scores.attention_scores(*b["scores"], b["mask"], **k),
    "soft_target": lambda b, **k: soft_target.soft_target(*b["logits"], b["labels"], **k),
    "soft_target elements": lambda b, **k: soft_target.soft_target(*b["logits"], b["labels"], reduction="elements", **k),
    "soft_target score": lambda b, **k: soft_target.soft_target(*b["score"], b["gold"], **k),
    "hard_label": lambda b, normalisation="": hard_label.hard_label(b["logits"][0], b["labels"], b["augmented"]),
    "hard_label plain": lambda b, normalisation="": hard_label.hard_label(b["logits"][0], b["labels"]),
    "hard_label score": lambda b, normalisation="": hard_label.hard_label(b["score"][0], b["gold"], b["augmented"]),
    "masked_lm": lambda b, normalisation="": masked_lm.masked_lm(b["logits"][0], b["labels"]),
}


@pytest.mark.parametrize("deal", [[[0, 2, 4], [1, 3]], [[0], [1, 2, 3, 4]], [[0, 1, 2, 3, 4], []], [[2], [1, 4], [3, 0]]])
@pytest.mark.parametrize("maths", MATHS)
@pytest.mark.parametrize("name", VALUES)
def test_every_loss_divides_by_the_count_of_all(name, maths, deal):
    batch, loss = whole_batch(), partial(VALUES[name], **MATHS[maths])
    dealt = [{key: rows_of(value, rows) for key, value in batch.items()} for rows in deal]
    torch.testing.assert_close(played(dealt, loss), loss(batch), rtol=1e-6, atol=0)


def test_a_mean_of_means_is_something_else():
    """Otherwise the test above could not fail."""
    batch, loss = whole_batch(), VALUES["hidden_states"]
    dealt = [{key: rows_of(value, rows) for key, value in batch.items()} for rows in ([0, 2, 4], [1, 3])]
    assert abs(torch.stack([loss(share) for share in dealt]).mean() - loss(batch)) > 1e-3 * loss(batch)


def test_no_original_row_anywhere_gives_0():
    logits, labels = torch.randn(2, 2), torch.tensor([0, 1])
    assert played([(logits, labels)] * 2, lambda share: hard_label.hard_label(*share, torch.tensor([True, True]))) == 0


@pytest.mark.parametrize("size", [1, 7, 1000, 99_991])
def test_alone_means_are_those_of_torch_bit_by_bit(size):
    values = torch.randn(size, generator=torch.Generator().manual_seed(size), requires_grad=True)
    copied = values.detach().clone().requires_grad_()
    actual, expected = reduce.mean_over_rows(values.square()), copied.square().mean()
    actual.backward()
    expected.backward()
    assert torch.equal(actual, expected) and torch.equal(values.grad, copied.grad)


# Dealing out


def test_rows_are_dealt_out_once_each(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    rows, got = np.arange(10, 18), []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        batch = distributed.rank_batch(lambda indices: {"ids": torch.from_numpy(indices)}, rows)
        assert "idle" not in batch
        got += batch["ids"].tolist()
    assert sorted(got) == rows.tolist()


def test_a_process_without_rows_idles_on_one(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "2")
    batch = distributed.rank_batch(lambda indices: {"ids": torch.from_numpy(indices)}, np.array([4, 9]))
    assert batch["ids"].tolist() == [4] and "idle" in batch


def test_alone_nothing_is_said_to_anybody():
    numbers, value = {"loss": 1.5}, torch.tensor(2.0)
    assert distributed.all_reduce_mean(numbers) is numbers and distributed.all_reduce_sum(value) is value
    assert (
        distributed.broadcast(value) is value and distributed.gather([1]) == [1] and distributed.on_main_process(lambda: 3) == 3
    )
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)


def test_the_main_process_alone_is_as_if_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(distributed, "broadcast", lambda value: value)
    assert distributed.on_main_process(distributed.world_size) == 1 and distributed.world_size() == 2


@pytest.mark.parametrize("command", ["predict", "bench"])
def test_commands_of_one_process(tmp_path, monkeypatch, command):
    tiny_bert(tmp_path / "model")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    if command == "bench":
        with pytest.raises(Exception, match="one process"):
            distributed.require_single_process("mbert bench")
    else:
        refused(2, "M119", command, tmp_path / "model", "some text")


def test_one_gpu_for_two_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MbertError) as caught:
        distributed.initialise("auto")
    assert caught.value.code == "M118" and "--device cpu" in caught.value.fix


# Numbers of several processes beside those of one


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("several")
    tiny_bert(place / "teacher", layers=2, hidden=16, seed=1, dropout=0.0)
    tiny_bert(place / "student", layers=1, hidden=8, seed=2, dropout=0.0)
    tiny_bert(place / "masked-lm", kind="masked-lm", layers=1, hidden=8, seed=3, dropout=0.0)
    return place


@pytest.fixture(scope="module")
def alone(folder):
    return compute(folder)


@pytest.fixture(scope="module")
def two(folder):
    together(2, ROOT / "tests" / "several_processes.py", folder)
    return torch.load(folder / "2.pt")


def assert_same(actual, expected, *, losses=1e-5, weights=1e-6):
    """Losses relative, weights absolute. The gradient of a key's bias is 0 but for rounding, and AdamW scales that up."""
    assert actual["apart"] == 0
    assert len(actual["log"]) == len(expected["log"])
    for line, reference in zip(actual["log"], expected["log"], strict=True):
        assert line.keys() == reference.keys() and line["step"] == reference["step"]
        for name in line.keys() - {"phase", "seconds"}:
            assert math.isclose(line[name], reference[name], rel_tol=losses, abs_tol=1e-9), (line["step"], name)
    for name in expected["weights"].keys() - {name for name in expected["weights"] if "key.bias" in name}:
        torch.testing.assert_close(actual["weights"][name], expected["weights"][name], rtol=0, atol=weights, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("case", [*(name for name in CASES if name != "bfloat16"), "masked-lm"])
def test_two_processes_train_as_one(two, alone, case):
    assert_same(two[case], alone[case])
    if "dev" in alone[case]:
        torch.testing.assert_close(two[case]["dev"], alone[case]["dev"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_processes_train_in_bfloat16(two, alone):
    """Products are rounded to 8 bits, and sums of other rows round otherwise."""
    assert_same(two["bfloat16"], alone["bfloat16"], losses=2e-2, weights=2e-3)


def test_bfloat16_is_near_float32_and_not_the_same(alone, folder):
    from several_processes import distil

    exact = distil(folder, "float32", batch_size=8)
    for line, reference in zip(alone["bfloat16"]["log"], exact["log"], strict=True):
        assert line["loss"] != reference["loss"] and math.isclose(line["loss"], reference["loss"], rel_tol=2e-2)
    assert all(value.dtype in (torch.float32, torch.int64) for value in alone["bfloat16"]["weights"].values())


@pytest.mark.slow
def test_three_processes_train_as_one(folder, alone):
    together(3, ROOT / "tests" / "several_processes.py", folder)
    three = torch.load(folder / "3.pt")
    for case in [*CASES, "masked-lm"]:
        loose = {"losses": 2e-2, "weights": 2e-3} if case == "bfloat16" else {}
        assert_same(three[case], alone[case], **loose)


# Numerics


def test_float32_products_are_not_rounded():
    choose_precision("cpu")
    assert not torch.backends.cuda.matmul.allow_tf32


def test_losses_and_projection_see_bfloat16_forward_passes(folder):
    from microbert_cli.models.capture import OutputRequest, forward_outputs
    from microbert_cli.models.load import load_model
    from microbert_cli.recipe.registry import Catalog

    student = load_model(folder / "student", "classifier", where="student").model
    batch = {"input_ids": torch.randint(5, 50, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    with Precision("bf16").forward():
        seen = forward_outputs(student, batch, OutputRequest(logits=True, scores=frozenset({1})))
    assert seen.scores[1].dtype == seen.logits.dtype == torch.bfloat16
    terms = make_terms({"hard_label": (1.0, {})}, Catalog())
    objective = Objective(terms, student, numerics=Precision("bf16"))
    assert objective({**batch, "labels": torch.tensor([0, 1])}).dtype == torch.float32


@pytest.mark.slow
def test_a_compiled_model_shows_the_same(folder, monkeypatch):
    """With the tracer alone, which is what could lose the scores kept on the way; that needs no C++ compiler."""
    from microbert_cli.models.capture import OutputRequest, forward_outputs
    from microbert_cli.models.load import load_model

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **k: compile_module(self, backend="eager", **k))
    plain, compiled = (load_model(folder / "teacher", "classifier", where="teacher").model.eval() for _ in range(2))
    Precision(compile=True).place(compiled)
    for rows, length in ((2, 6), (3, 9)):
        batch = {"input_ids": torch.randint(5, 50, (rows, length)), "attention_mask": torch.ones(rows, length).long()}
        want = OutputRequest(logits=True, hidden=frozenset({0, 2}), scores=frozenset({1}))
        expected, seen = forward_outputs(plain, batch, want), forward_outputs(compiled, batch, want)
        torch.testing.assert_close(seen.logits, expected.logits)
        torch.testing.assert_close(seen.hidden, expected.hidden)
        torch.testing.assert_close(seen.scores, expected.scores)


# Whole commands


RECIPE = """
task    = "sst2"
base    = "base"
student = "pupil"
method  = "tinybert"
init    = "general-distill"
stages  = ["pretrain", "finetune", "general-distill", "task-distill", "evaluate", "report"]
data     = { folder = "glue", max_length = 24 }
teacher  = { allow_weak = true }
pretrain = { model = "base", steps = 5, batch_size = 4, accumulate = 2 }
finetune = { model = "base", steps = 9, batch_size = 7, evaluations = 3 }
corpus   = { source = "text.txt", max_length = 32, heldout = 0.2 }
general  = { steps = 4, batch_size = 7 }
phases.intermediate = { steps = 4, batch_size = 8 }
phases.prediction   = { steps = 6, batch_size = 8, learning_rates = [1e-3, 1e-4], evaluations = 2 }
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("commands")
    tiny_bert(path / "base", kind="masked-lm", layers=2, hidden=16, dropout=0.0)
    tiny_bert(path / "pupil", kind="encoder", layers=1, hidden=8, dropout=0.0, seed=3)
    tiny_bert(path / "dropout", kind="encoder", layers=1, hidden=8, dropout=0.1, seed=4)
    tiny_glue(path / "glue", ["sst2"])
    sentences = [line.split("\t")[0] for line in (path / "glue" / "SST-2" / "train.tsv").read_text().splitlines()[1:]]
    (path / "text.txt").write_text("\n\n".join("\n".join(sentences[i : i + 4]) for i in range(0, 40, 4)))
    (path / "small.toml").write_text(RECIPE)
    return path


def log_of(directory):
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def finetune(*words, model="dropout", out, steps=8):
    data = ("--model", model, "--task", "sst2", "--data", "glue", "--set", "data.max_length=24")
    return ("finetune", *data, "--set", f"finetune.steps={steps}", "--set", "finetune.batch_size=4", "-o", out, *words)


@pytest.mark.slow
def test_a_teacher_that_is_trained_too(place, monkeypatch):
    """Both read the same mixture of vocabularies, hide the same pieces, and move teacher, student and projections alike."""
    monkeypatch.chdir(place)
    words = (
        "general-distill",
        "--teacher",
        "base",
        "--student",
        "bert-2x8x16",
        "--corpus",
        "text.txt",
        "--set",
        "method=dualtrain",
    )
    numbers = {"general.steps": 4, "general.batch_size": 7, "general.dual.vocabulary": 90, "general.dual.keep": "true"}
    numbers |= {"corpus.max_length": 24, "corpus.heldout": 0.2, "general.dropout": "false"}
    words += tuple(word for key, value in numbers.items() for word in ("--set", f"{key}={value}"))
    works(*words, "-o", "dual-one")
    mbert_together(2, *words, "-o", "dual-two", cwd=place)
    for line, reference in zip(log_of(place / "dual-two"), log_of(place / "dual-one"), strict=True):
        line, reference = ({**record.pop("dev", {}), **record} for record in (line, reference))
        for name in line.keys() - {"phase", "seconds"}:
            assert math.isclose(line[name], reference[name], rel_tol=1e-4, abs_tol=1e-8), (line["step"], name)


@pytest.mark.slow
def test_a_whole_recipe(place, monkeypatch):
    monkeypatch.chdir(place)
    works("run", "small.toml", "-o", "one")
    done = mbert_together(2, "run", "small.toml", "-o", "two", cwd=place)
    assert done.stdout == "two\n" and done.stderr.count("accuracy on dev") == 1, "who spoke?"
    for stage in ("pretrain", "finetune", "general-distill", "task-distill"):
        for line, reference in zip(log_of(place / "two" / stage), log_of(place / "one" / stage), strict=True):
            line, reference = ({**record.pop("dev", {}), **record} for record in (line, reference))
            for name in line.keys() - {"phase", "seconds"}:
                # a stage starts from weights that differ by 1e-6, and AdamW makes more of a gradient that is rounding alone
                assert math.isclose(line[name], reference[name], rel_tol=1e-4, abs_tol=1e-8), (stage, line["step"], name)
    assert json.loads((place / "two/finetune/manifest.json").read_text())["processes"] == 2
    assert not list((place / "two").glob("*.partial")) and not list((place / "two").glob(".*"))
    again = mbert_together(2, "run", "small.toml", "-o", "two", cwd=place)
    assert again.stdout == "two\n" and "everything up to date" in again.stderr


@pytest.mark.slow
def test_augmentation_is_the_same_file_for_any_number_of_processes(place, monkeypatch):
    monkeypatch.chdir(place)
    rows = ["text\tlabel"] + [
        f"the lovely boat of the {word} number {i}\t{i % 2}" for i in range(840) for word in ("baker",) * 3
    ]
    (place / "many.tsv").write_text("\n".join(rows) + "\n")
    words = ("augment", "--train-file", "many.tsv", "--text", "text", "--label", "label", "--masked-lm", "base")
    words = (*words, "--set", "augment.copies=2", "--set", "augment.query=alone")
    works(*words, "-o", "augmented-1")
    expected = (place / "augmented-1" / "augmented.parquet").read_bytes()
    for count in (2, 3):
        mbert_together(count, *words, "-o", f"augmented-{count}", cwd=place)
        assert (place / f"augmented-{count}" / "augmented.parquet").read_bytes() == expected
        assert not (place / f"augmented-{count}" / "shards").exists()


@pytest.mark.slow
def test_stopped_together_and_gone_on_bit_by_bit(place):
    mbert_together(2, *finetune(out="whole", steps=1500), cwd=place)
    with subprocess.Popen(**torchrun(2, "-m", "microbert_cli", *finetune(out="parts", steps=1500), cwd=place)) as running:
        log = place / "parts.partial" / "log.jsonl"
        while running.poll() is None and not (log.is_file() and log.stat().st_size > 2000):
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        _, output = running.communicate(timeout=60)
    assert output.count("stopped by SIGTERM; the same command goes on from here") == 1
    state = checkpoint.load_state(place / "parts.partial" / "resume" / "phases" / "finetune")
    assert state is not None
    assert 0 < state["step"] < 1500 and len(log_of(place / "parts.partial")) >= state["step"]
    done = mbert_together(2, *finetune(out="parts", steps=1500), cwd=place)
    assert f"going on after step {state['step']}" in done.stderr
    assert (place / "parts" / "model.safetensors").read_bytes() == (place / "whole" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_an_error_is_said_once_and_ends_all(place):
    missing = mbert_together(2, *finetune(model="nowhere/at/all", out="never"), cwd=place, code=1)
    assert missing.stderr.count("[M203]") == 1 and "exitcode: 4" in missing.stderr
    (place / "taken").mkdir()
    (place / "taken" / "something").touch()
    taken = mbert_together(2, *finetune(out="taken"), cwd=place, code=1)  # the main process alone looks at the output
    assert taken.stderr.count("[M111]") == 1 and "exitcode: 2" in taken.stderr


ONE_FAILS = """
import os, sys
from microbert_cli.training import loop
from microbert_cli.cli.main import main
from microbert_cli.errors import MbertError
before = loop._TrainingRun._accumulate
def fail(self, batches):
    if self.step == 2 and os.environ["RANK"] == "1":
        raise MbertError("M302", "only here", where="one", allowed="two", fix="three")
    return before(self, batches)
loop._TrainingRun._accumulate = fail
main()
"""


@pytest.mark.slow
def test_what_one_process_meets_alone_it_says_itself(place):
    (place / "one_fails.py").write_text(ONE_FAILS)
    done = together(2, place / "one_fails.py", *finetune(out="failing"), cwd=place, code=1)
    assert done.stderr.count("[M302]") == 1 and "exitcode: 5" in done.stderr
    assert "stopped by the end of another process" in done.stderr
