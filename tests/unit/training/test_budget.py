"""A budget shortens all phases alike, is kept for a resumed run, and says what was cut; races of learning rates."""

import json

import pytest
from tiny_models import tiny_bert, tiny_glue

from microbert_cli.errors import MbertError
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.recipe.values import PhaseSpec
from microbert_cli.runs.stage_inputs import step
from microbert_cli.training import budget
from microbert_cli.training.phases import make_plan, shares_of_first_seed

LABELS = ["negative", "positive"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("budget")
    tiny_glue(home / "glue", ["sst2"])
    tiny_bert(home / "teacher", layers=2, labels=LABELS)
    return home


def distil(home, name, *sets):
    common = ["task=sst2", "student=bert-1x16x32", f"data.folder={home / 'glue'}", "teacher.allow_weak=true", "method=kd"]
    resolved = resolve(catalog=Catalog(), sets=[*common, f"teacher.model={home / 'teacher'}", *sets])
    planned = step("task-distill", resolved, home, Catalog(), out=home / name)
    return planned.stage.run(planned.resolved.recipe, planned.out, catalog=Catalog(), **planned.inputs)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("20min", 1200), ("1.5h", 5400), ("2 H", 7200), ("1d", 86400), ("3m", 180)]
)
def test_durations(text, seconds):
    assert budget.seconds_of(text) == seconds


def test_min_steps_rules_over_epochs_and_not_over_steps():
    lengths = [5] * 64
    assert make_plan("p", PhaseSpec(epochs=2, batch_size=8), lengths).steps == 16
    assert make_plan("p", PhaseSpec(epochs=2, batch_size=8, min_steps=100), lengths).steps == 100
    assert make_plan("p", PhaseSpec(epochs=20, batch_size=8, min_steps=100), lengths).steps == 160
    assert make_plan("p", PhaseSpec(steps=7, batch_size=8, min_steps=100), lengths).steps == 7


def test_a_race_costs_a_share_of_each_rate_and_one_whole_run():
    spec = PhaseSpec(learning_rates=[1e-4, 2e-4, 4e-4], race=0.1)
    assert sum(shares_of_first_seed(spec)) == pytest.approx(1.3)
    assert sum(shares_of_first_seed(PhaseSpec(learning_rates=[1e-4, 2e-4]))) == 2
    assert sum(shares_of_first_seed(PhaseSpec(race=0.1))) == 1


def test_a_race_tries_each_rate_briefly_and_trains_the_best_from_the_beginning(home):
    steps = "phases.distillation={steps=20, batch_size=8, learning_rates=[1e-2, 1e-5], race=0.25}"
    metrics = distil(home, "race", steps, "seeds=[1,2]").metrics
    record = metrics["phases"]["distillation"]
    assert record["steps"] == 20 and record["race_steps"] == 5
    assert set(record["tried"]) == {"0.01", "1e-05"}
    best = max(record["tried"], key=record["tried"].get)
    assert record["learning_rate"] == float(best)
    lines = [json.loads(line) for line in (home / "race" / "seed-1" / "log.jsonl").read_text().splitlines()]
    counts = {}
    for line in lines:
        if "lr" in line:
            counts[line["phase"]] = counts.get(line["phase"], 0) + 1
    assert counts == {"distillation-lr0.01": 5, "distillation-lr1e-05": 5, "distillation": 20}
    # Later seeds take the rate that the first one chose, without a race.
    second = [json.loads(line) for line in (home / "race" / "seed-2" / "log.jsonl").read_text().splitlines()]
    assert {line["phase"] for line in second} == {"distillation"}


def test_the_winner_of_a_race_is_as_if_its_rate_had_been_given(home):
    common = "phases.distillation={steps=12, batch_size=8, learning_rates=%s, race=0.25}"
    raced = distil(home, "raced", common % "[1e-2, 1e-5]")
    rate = raced.metrics["phases"]["distillation"]["learning_rate"]
    alone = distil(home, "alone", common % f"[{rate}]")
    files = [(result.out / "model.safetensors").read_bytes() for result in (raced, alone)]
    assert files[0] == files[1]


def test_a_budget_that_suffices_changes_nothing_but_the_record(home):
    steps = "phases.distillation={steps=60, batch_size=8}"
    free, within = distil(home, "free", steps), distil(home, "within", steps, 'budget="1h"')
    assert (free.out / "model.safetensors").read_bytes() == (within.out / "model.safetensors").read_bytes()
    record = within.metrics["budget"]
    assert record["share"] == 1 and record["steps"] == record["planned_steps"] == {"distillation": 60}
    assert "budget" not in free.metrics


def test_a_short_budget_cuts_all_phases_alike_and_every_seed_takes_as_many_steps(home, monkeypatch):
    monkeypatch.setattr(budget, "_seconds", lambda *_: (0.5, 0.0))
    monkeypatch.setattr(budget.time, "monotonic", lambda: 0.0)
    phases = "phases.distillation={steps=400, batch_size=8, evaluations=1}"
    metrics = distil(home, "short", phases, 'budget="100s"', "seeds=[1,2]").metrics
    assert metrics["budget"]["share"] == pytest.approx(0.95 * 100 / 200)
    assert metrics["budget"]["steps"] == {"distillation": 190}
    for seed in (1, 2):
        lines = map(json.loads, (home / "short" / f"seed-{seed}" / "log.jsonl").read_text().splitlines())
        assert sum("lr" in line for line in lines) == 190


def test_no_time_at_all_is_an_error_with_the_time_that_is_needed(home, monkeypatch):
    monkeypatch.setattr(budget, "_seconds", lambda *_: (1.0, 0.0))
    with pytest.raises(MbertError) as error:
        distil(home, "none", "phases.distillation={steps=600, batch_size=8}", 'budget="10s"')
    assert error.value.code == "M402"
    assert error.value.fix in ('--set budget="1min"', '--set budget="2min"')
