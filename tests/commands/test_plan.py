"""A plan before the run: what is counted is what the run then does; what is timed is timed once; what is on paper says so."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from mbert_command import mbert, refused, works
from tiny_folder import tiny_folder

from microbert_cli.data.batching import endless_batches
from microbert_cli.models.capture import OutputRequest
from microbert_cli.models.config import read_config
from microbert_cli.models.factory import config_parameters
from microbert_cli.models.load import count_all_parameters, load_model
from microbert_cli.models.size import batch_flops, forward_flops
from microbert_cli.plan import calibration, stages, work
from microbert_cli.plan.calibration import Calibration
from microbert_cli.plan.expected_inputs import ExpectedInputs
from microbert_cli.plan.hardware import find_hardware
from microbert_cli.plan.stage_cost import evaluations
from microbert_cli.plan.work import Job, Workload, answering_load, training_load
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.recipe.values import Training
from microbert_cli.runs.stage_inputs import steps
from microbert_cli.training.phases import make_plan

RECIPE = """
task    = "sst2"
base    = "base"
student = "bert-1x16"
method  = "tinybert"
corpus  = "text.txt"
data    = "glue"
stages  = ["finetune", "general-distill", "augment", "task-distill", "evaluate"]

[finetune]
steps          = 7
batch_size     = 8
learning_rates = [1e-2, 1e-3]
evaluations    = 2

[general]
steps      = 3
batch_size = 4

[augment]
copies = 2

[teacher]
allow_weak = true

[phases.intermediate]
steps = 4
batch_size = 8

[phases.prediction]
epochs = 1
batch_size = 8

[variant.task-distill]
seeds = [1, 2]
"""
STAGES = ["finetune", "general-distill", "augment", "task-distill", "evaluate"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a recipe and all it needs."""
    place = tmp_path_factory.mktemp("plan")
    with tiny_folder(place, RECIPE, layers=2, hidden=16, dropout=0.0):
        yield place


@pytest.fixture(autouse=True)
def here(home, monkeypatch, tmp_path):
    monkeypatch.chdir(home)
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def quick(monkeypatch):
    """Rehearsals that take no time: every step would last as long as its tokens at a million a second; returns those asked."""
    asked = []

    def rehearse(job, shapes, **_):
        asked.append((job.kind, shapes))
        return {(rows, length): 1e-3 + rows * length * job.accumulate / 1e6 for rows, length in shapes}

    monkeypatch.setattr(calibration, "rehearse", rehearse)
    return asked


def plan(*sets, root="runs/small", **options):
    catalog = Catalog()
    resolved = resolve(catalog=catalog, recipe="small.toml", sets=sets)
    prices = Calibration(device="cpu", catalog=catalog)
    planned = stages.plan_steps(steps(resolved, Path(root), catalog), catalog=catalog, here=prices, **options)
    return {stage.name: stage for stage in planned}


# --- what is counted ------------------------------------------------------------------------------------------------------


def test_a_load_is_what_the_loop_draws():
    lengths = np.random.default_rng(0).integers(3, 40, size=101)
    load = training_load(lengths, batches=40, batch_size=8, seed=3)
    drawn = [lengths[rows] for rows in itertools.islice(endless_batches(lengths, batch_size=8, seed=3), 40)]
    assert load.batches == 40 and load.useful == sum(int(batch.sum()) for batch in drawn)
    assert load.tokens == sum(len(batch) * int(batch.max()) for batch in drawn)
    assert load.squares == sum(len(batch) * int(batch.max()) ** 2 for batch in drawn)
    padded = training_load(lengths, batches=40, batch_size=8, seed=3, drop_last=True, pad_to=64)
    assert padded.shapes == {(8, 64): 40}


def test_long_training_takes_the_epochs_counted_for_the_others(monkeypatch):
    lengths = np.random.default_rng(0).integers(3, 40, size=1001)
    exact = training_load(lengths, batches=2000, batch_size=8, seed=3)
    monkeypatch.setattr(work, "EXACT", 3000)
    load = training_load(lengths, batches=2000, batch_size=8, seed=3)
    assert load.batches == pytest.approx(2000) and load.tokens == pytest.approx(exact.tokens, rel=0.01)
    assert load != exact, "pools differ from epoch to epoch"


def test_evaluation_goes_through_all_rows_once():
    load = answering_load([50, 90, 70, 20, 20], batch_size=8)  # 128 tokens a batch
    assert load.shapes == {(1, 90): 1, (1, 70): 1, (2, 50): 1, (1, 20): 1} and load.rows == 5 and load.useful == 250
    assert (load + load).tokens == load.times(2).tokens == 2 * (90 + 70 + 100 + 20)


def test_flops_of_batches_are_those_of_their_rows():
    config = read_config("base", where="base")
    load = Workload({(3, 10): 2, (5, 7): 1}, 80)
    rows = 6 * forward_flops(config, 10) + 5 * forward_flops(config, 7)
    logits = batch_flops(config, rows=11, tokens=95, squares=845, first_token=True)
    assert Job("answer", config, 8).flops(load) == logits < rows
    assert Job("train", config, 8).flops(load) == 3 * logits
    assert Job("train", config, 8, layers=(0, 1)).flops(load) == 3 * rows
    d, V = config.hidden_size, config.vocab_size
    body = Job("ask", config, 8, logits=False).flops(load)
    assert Job("ask", config, 8, "masked-lm", predicted=0.25).flops(load) - body == 20 * (2 * d * d + 2 * d * V)
    assert config_parameters(config, "masked-lm") == count_all_parameters(load_model("base", "masked-lm", where="base").model)


def test_a_backward_pass_ends_above_the_lowest_layer_that_is_trained():
    config = read_config("base", where="base")  # two layers
    load = Workload({(3, 10): 2}, 60)
    forward = Job("answer", config, 8).flops(load)
    frozen = {(): 3, ("embeddings",): 3, ("embeddings", "layer.1"): 2, ("embeddings", "layer.1", "layer.2"): 1, ("layer.1",): 3}
    for parts, passes in frozen.items():
        assert Job("train", config, 8, freeze=parts).flops(load) == passes * forward


def test_evaluations_are_counted_as_the_loop_makes_them():
    for number, expected in ((0, 1), (1, 1), (2, 2), (4, 4)):
        assert evaluations(make_plan("x", Training(steps=7, evaluations=number), [5] * 100)) == expected


# --- the plan of a recipe -------------------------------------------------------------------------------------------------


def test_every_stage_is_planned_and_nothing_is_touched(home, quick):
    before = sorted(path for path in home.rglob("*"))
    stages = plan()
    assert list(stages) == STAGES and sorted(home.rglob("*")) == before
    assert all(each.state == "new" and each.seconds > 0 and each.memory > 0 and not each.unknown for each in stages.values())
    assert stages["finetune"].steps == 2 * 7, "both learning rates"
    assert stages["general-distill"].steps == 3
    assert stages["task-distill"].steps == 2 * (4 + stages["task-distill"].steps // 2 - 4)
    assert all(each.flops > 0 for each in stages.values())
    assert all(0 < each.useful <= each.tokens for each in stages.values() if each.steps)


def test_stages_of_a_phase_are_planned_one_by_one(quick):
    sets = ["method=xtremedistil", 'stages=["finetune", "augment", "task-distill"]'] + [
        f"phases.{name}.{key}={value}"
        for name in ("representation", "logits", "labels")
        for key, value in {"steps": 4, "batch_size": 8, "learning_rate": 1e-3}.items()
    ]
    drop = ["phases.intermediate.leave_out=true", "phases.prediction.leave_out=true", "phases.representation.chunk_rows=20"]
    planned = plan(*sets, *drop)["task-distill"]
    parts = {part.what: part for part in planned.parts}
    chunks, stages_of_one = 2, 3  # 40 rows, or the augmented ones; a student of one layer: head, layer.1, embeddings
    steps_of = [name for name in parts if name.endswith(": steps")]
    assert [name for name in steps_of if name.startswith("l")] == [
        f"{phase}.{number}: steps" for phase in ("logits", "labels") for number in range(1, stages_of_one + 1)
    ]
    assert len([name for name in steps_of if name.startswith("representation")]) >= chunks
    assert planned.steps == 2 * 4 * len(steps_of)  # seeds
    assert parts["logits.1: steps"].flops < parts["logits.3: steps"].flops
    assert parts["logits.1: loss on dev"].flops > 0
    assert any("patience" in note for note in planned.notes)


def test_seconds_add_up(quick):
    """finetune: 2 x 7 steps and its dev evaluations, each with a fixed part and one that grows with tokens."""
    part = {part.what: part for part in plan()["finetune"].parts}
    lengths, dev = _lengths("train"), _lengths("dev")
    load = training_load(lengths, batches=7, batch_size=8, seed=42)
    assert part["labels: steps"].seconds == pytest.approx(7e-3 + load.tokens / 1e6, rel=1e-3)
    scored = answering_load(dev, batch_size=64)
    assert part["labels: dev"].seconds == pytest.approx(4 * (1e-3 * scored.batches + scored.tokens / 1e6), rel=1e-3)


def _lengths(split):
    catalog = Catalog()
    resolved = resolve(catalog=catalog, recipe="small.toml")
    seen = ExpectedInputs(catalog, Calibration(device="cpu", catalog=catalog))
    data, _ = seen.task(resolved.recipe, ("train", "dev"))
    return seen.lengths(data, split, seen.model("base", where="base"))[0]


def test_the_run_does_what_the_plan_says(quick, monkeypatch):
    """Steps and padded tokens of training, counted as the loop sees them; then the plan knows what is done."""
    from microbert_cli import api
    from microbert_cli.training.objective import Objective

    stages = plan()
    seen = {"steps": 0, "tokens": 0}
    losses = Objective.losses

    def counted(self, batch):
        if self.student.training:
            seen["steps"] += 1
            seen["tokens"] += batch["input_ids"].numel()
        return losses(self, batch)

    monkeypatch.setattr(Objective, "losses", counted)
    done = {}
    for result in api.run("small.toml", out="runs/small"):
        done[result.stage] = result
    trained = [stages[name] for name in STAGES if stages[name].steps]
    again = plan()
    assert [stage.state for stage in again.values()] == ["done"] * 5
    counted_rows = done["augment"].metrics["rows_out"]
    assert f"{counted_rows:,} rows out" in again["augment"].notes[0]
    exact = [again[stage.name] for stage in trained]
    assert seen["steps"] == sum(stage.steps for stage in exact)
    before = stages["finetune"].tokens + stages["general-distill"].tokens
    assert before == again["finetune"].tokens + again["general-distill"].tokens, "their inputs were there before"
    assert seen["tokens"] == pytest.approx(sum(stage.tokens for stage in exact), rel=0.05), "augmented rows differ in length"
    assert plan("finetune.steps=8")["finetune"].state == "changed"
    other = plan('reuse=["runs/small"]', "general.steps=4", root="runs/other")
    assert {name: stage.state for name, stage in other.items()} == dict.fromkeys(STAGES, "copied") | {
        "general-distill": "new", "task-distill": "new", "evaluate": "new"}  # fmt: skip
    assert "copied from runs/small/augment" in other["augment"].notes[0]
    assert plan('reuse=["runs/small"]', root="runs/third")["task-distill"].state == "copied"


def test_the_run_of_one_stage_has_exactly_the_tokens_planned(quick, monkeypatch):
    from microbert_cli import api
    from microbert_cli.training.objective import Objective

    tokens, losses = [], Objective.losses
    monkeypatch.setattr(
        Objective, "losses", lambda self, batch: tokens.append(batch["input_ids"].numel()) or losses(self, batch)
    )
    planned = plan()["finetune"]
    api.finetune(recipe="small.toml", out="runs/alone/finetune", task="sst2")
    assert (len(tokens), sum(tokens)) == (planned.steps, planned.tokens)


def test_a_stage_without_its_input_is_listed_with_the_reason(quick):
    stages = plan("corpus.source=gone.txt")
    assert stages["general-distill"].seconds is None and "gone.txt" in stages["general-distill"].unknown
    assert stages["finetune"].seconds > 0 and stages["augment"].seconds > 0
    report = works("plan", "small.toml", "--set", "corpus.source=gone.txt", "--json").json
    assert "general-distill" in report["totals"]["unknown"] and report["totals"]["seconds"] > 0
    refused(4, "M203", "plan", "small.toml", "--set", "base=runs/gone", "--set", 'stages=["finetune"]')


# --- timing ---------------------------------------------------------------------------------------------------------------


def test_the_fit_finds_what_made_the_times():
    shapes = [(32, 16), (32, 32), (32, 128)]
    seconds = {(rows, T): 0.01 + 2e-6 * rows * T + 1e-8 * rows * T * T for rows, T in shapes}
    assert calibration.fit(seconds) == pytest.approx((0.01, 2e-6, 1e-8), rel=1e-3)
    noisy = {(rows, T): 0.01 + 2e-6 * rows * T - 1e-9 * rows * T * T for rows, T in shapes}
    assert min(calibration.fit(noisy)) >= 0, "longer is never faster"


def test_what_is_rehearsed_stands_for_what_comes():
    config = read_config("base", where="base")
    load = Workload({(8, 5): 100, (8, 30): 80, (8, 60): 20, (3, 9): 1}, 1)
    shapes = calibration.representative(Job("train", config, 8), load)
    assert {rows for rows, _ in shapes} == {8} and shapes[0][1] < 30 <= shapes[-1][1]
    assert len(calibration.representative(Job("train", config, 8), Workload({(8, 32): 5}, 1))) == 2
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = 6, 384, 1536
    heavy = Job("train", config, 256)
    shapes = calibration.representative(heavy, Workload({(256, 128): 5}, 1))
    assert shapes[1][0] < 256 and shapes == [(shapes[1][0], 64), (shapes[1][0], 128), (shapes[1][0] // 2, 128)]
    assert heavy.flops(Workload({shapes[1]: 1})) <= calibration.HEAVY


def test_steps_are_really_taken_and_remembered(monkeypatch):
    """Every kind of job on a tiny model; the second time nothing is measured, but anew with `renew`."""
    monkeypatch.setattr("microbert_cli.plan.rehearsal.MOST", 2)
    config = read_config("base", where="base")
    config.num_labels = 2
    losses = {"hidden_states": (1.0, {}), "attention_scores": (1.0, {}), "relations": (1.0, {"heads": 4})}
    train = Job("train", config, 4, losses=losses, layers=(0, 2), teacher=config, logits=False, accumulate=2)
    masked = Job("train", config, 4, "masked-lm", losses={"masked_lm": (1.0, {})}, predicted=0.15)
    kinds = [train, masked, dataclasses.replace(masked, kind="judge"), Job("answer", config, 4)]
    kinds.append(Job("ask", config, 4, want=OutputRequest(logits=True, hidden=frozenset({1}))))
    load = Workload({(4, 8): 10, (4, 24): 10}, 1)
    here = Calibration(device="cpu", catalog=Catalog())
    first = [here.seconds(job, load) for job in kinds]
    assert min(first) > 0 and here.measured >= 5
    again = Calibration(device="cpu", catalog=Catalog())
    assert [again.seconds(job, load) for job in kinds] == first and again.measured == 0
    counts = [again.measured for job in (train, kinds[-1], kinds[3]) if again.seconds(job, load, precision="bf16") > 0]
    assert 0 < counts[0] < counts[1] == counts[2], "scores are those of float32"
    anew = Calibration(device="cpu", catalog=Catalog(), renew=True)
    anew.seconds(train, load)
    assert anew.measured > 0


def test_a_measurement_of_a_busy_machine_is_made_again_when_it_is_quiet(monkeypatch):
    loads_now = iter([99.0, 99.0, 0.0])
    monkeypatch.setattr("microbert_cli.plan.calibration.load_average", lambda: next(loads_now))
    busy, still_busy, quiet = (Calibration(device="cpu", catalog=Catalog()) for _ in range(3))
    assert busy.once("x", 1, lambda: {"seconds": 5.0})["seconds"] == 5.0
    assert still_busy.once("x", 1, lambda: {"seconds": 1.0})["seconds"] == 5.0
    assert quiet.once("x", 1, lambda: {"seconds": 1.0})["seconds"] == 1.0


# --- the command ----------------------------------------------------------------------------------------------------------


def test_a_machine_on_paper(quick):
    report = works("plan", "small.toml", "--on", "h200:8", "--json").json
    assert "8 x NVIDIA H200" in report["basis"] and "assumed" in report["basis"] and not quick, "nothing is rehearsed"
    assert [stage["name"] for stage in report["stages"]] == STAGES
    config = read_config("base", where="base")
    single, eight = (find_hardware(name, Catalog()) for name in ("h200", "h200:8"))
    job, large = Job("train", config, 32), Workload({(1_000_000, 512): 1}, 1)
    expected = job.flops(large) / (67e12 * 0.4)
    assert single.seconds(job, large) == pytest.approx(expected) and eight.seconds(job, large) == pytest.approx(expected / 8)
    assert eight.seconds(job, large, precision="bf16") == pytest.approx(job.flops(large) / (989e12 * 0.4 * 8))
    assert eight.seconds(job, Workload({(1, 8): 1}, 1)) == pytest.approx((25 * 3 * 2 + 10) * 1e-5), "kernels bound small steps"


def test_wrong_machines():
    assert 'Did you mean "h200"?' in refused(3, "M005", "plan", "small.toml", "--on", "h20")["allowed"]
    refused(2, "M116", "plan", "small.toml", "--on", "h200:none")


def test_a_machine_of_ones_own(tmp_path, quick):
    (tmp_path / "machines").mkdir()
    path = tmp_path / "machines" / "mine.toml"
    path.write_text(Catalog().path("machines", "l4", where="").read_text(encoding="utf-8"), encoding="utf-8")
    words = ("plan", "small.toml", "--include", str(tmp_path), "--on", "mine")
    assert "NVIDIA L4" in works(*words).out
    path.write_text('title = "x"\n', encoding="utf-8")
    assert "utilisation" in refused(3, "M034", *words)["what"]


def test_the_table_and_its_numbers(quick):
    done = works("plan", "small.toml")
    lines = done.out.splitlines()
    assert lines[0].split() == ["stage", "state", "steps", "tokens", "useful", "FLOPs", "memory", "disk", "time"]
    assert [line.split()[0] for line in lines[1:6]] == STAGES
    report = works("plan", "small.toml", "--json").json
    assert report["totals"]["steps"] == sum(stage["steps"] for stage in report["stages"])
    assert report["totals"]["seconds"] == pytest.approx(sum(stage["seconds"] for stage in report["stages"]))
    assert mbert("plan", "small.toml", "--set", "stages=[]").code == 3


def test_how_numbers_are_said():
    from microbert_cli.cli.plan import _with_unit, clock

    assert [clock(s) for s in (4.23, 65, 7300, 200_000)] == ["4.2 s", "1:05 min", "2:01 h", "2.3 days"]
    assert [_with_unit(n) for n in (7, 1234, 5.55e6, 999_600, 2e21)] == ["7", "1.23 k", "5.55 M", "1 M", "2e+03 E"]
