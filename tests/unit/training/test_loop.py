"""The loop: stopped and resumed is the same as never stopped, bit by bit; and what else a training run promises."""

import json
import os
import pickle
import signal
from functools import partial

import pytest
import torch
from recording import RecordingReporter
from safetensors.torch import load_file
from tiny_models import tiny_bert

from microbert_cli.data.batching import endless_batches
from microbert_cli.data.corpus.masking import split_batch
from microbert_cli.distillation.layer_map import layer_map
from microbert_cli.distillation.teacher import Teacher
from microbert_cli.errors import MbertError
from microbert_cli.models.device import PLAIN, Precision
from microbert_cli.models.load import load_model
from microbert_cli.plan.stage_cost import evaluations as evaluations_planned
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Finetune
from microbert_cli.signals import Halted
from microbert_cli.training import checkpoint, loop
from microbert_cli.training.loop import Interrupted, train
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.objective import Objective
from microbert_cli.training.phases import make_plan
from microbert_cli.training.plan import TrainingPlan

CATALOG = Catalog()
ROWS, LENGTH = 64, 10
IDS = torch.randint(5, 100, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
LABELS = (IDS[:, 1] % 2).long()
TERMS = {"hidden_states": (1.0, {}), "attention_scores": (1.0, {}), "soft_target": (1.0, {}), "hard_label": (1.0, {})}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny_bert(folder / "teacher", layers=2, hidden=16, seed=1)
    for name, dropout in (("student", 0.1), ("calm", 0.0)):
        tiny_bert(folder / name, layers=1, hidden=8, seed=2, dropout=dropout)
    return folder


def batches(skip, *, size=8, touch=None):
    for number, rows in enumerate(endless_batches([LENGTH] * ROWS, batch_size=size, seed=7, skip=skip), skip):
        if touch:
            touch(number)
        ids = IDS[rows]
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": LABELS[rows]}


def objective_of(places, student="student", terms=TERMS, numerics=PLAIN):
    taught, pupil = (load_model(places / name, "classifier", where=name) for name in ("teacher", student))
    torch.manual_seed(5)
    return Objective(
        make_terms(terms, CATALOG),
        pupil.model,
        ask_teacher=Teacher(taught).ask,
        map_layers=layer_map("uniform", teacher_layers=2, student_layers=1),
        student_width=8,
        teacher_width=16,
        numerics=numerics,
    )


class Scores:
    """Dev scores that rise and fall, and that draw random numbers as a careless score would."""

    def __init__(self, *values):
        self.values, self.calls = values, 0

    def __call__(self):
        torch.rand(100)
        self.calls += 1
        return {"accuracy": self.values[(self.calls - 1) % len(self.values)]}


def plan_of(**changed):
    return TrainingPlan(**{"name": "phase", "steps": 12, "learning_rate": 1e-3, "evaluate_every": 4, **changed})


def run(places, directory, *, plan=None, score=None, source=batches, student="student", terms=TERMS, numerics=PLAIN):
    directory.mkdir(exist_ok=True)
    objective = objective_of(places, student, terms, numerics)
    trained = train(objective, source, plan or plan_of(), directory=directory, seed=11, score=score, primary="accuracy")
    return trained, weights_of(objective)


def weights_of(objective):
    return {**objective.student.state_dict(), **objective.state_dict()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def stop_at(step, number=signal.SIGTERM):
    """A source of batches that sends a signal while the batch of a step is fetched."""
    return partial(batches, touch=lambda n: os.kill(os.getpid(), number) if n == step else None)


@pytest.mark.parametrize("optimizer", ["adamw", "bertadam"])
@pytest.mark.parametrize("stopped", [0, 5, 7, 11])
def test_resumed_is_uninterrupted_bit_by_bit(places, tmp_path, stopped, optimizer):
    plan = plan_of(optimizer=optimizer)
    whole, expected = run(places, tmp_path / "whole", plan=plan, score=Scores(0.5, 0.7, 0.6))
    with pytest.raises(Interrupted):
        run(places, tmp_path / "parts", plan=plan, score=Scores(0.5, 0.7, 0.6), source=stop_at(stopped))
    done = stopped // 4  # a stop comes before the score of its step, which the resumed run makes up for
    rest = Scores(*[0.5, 0.7, 0.6][done:], 0.0)
    resumed, weights = run(places, tmp_path / "parts", plan=plan, score=rest)
    assert equal(weights, expected)
    assert resumed == whole
    assert whole.best == {"accuracy": 0.7} and whole.best_step == 8


def test_resumed_is_uninterrupted_in_bfloat16_too(places, tmp_path):
    options = {"numerics": Precision("bf16")}
    _, expected = run(places, tmp_path / "whole", **options)
    with pytest.raises(Interrupted):
        run(places, tmp_path / "parts", source=stop_at(5), **options)
    assert equal(run(places, tmp_path / "parts", **options)[1], expected)
    assert not equal(run(places, tmp_path / "float32")[1], expected)


def test_stopped_twice(places, tmp_path):
    _, expected = run(places, tmp_path / "whole")
    for step in (2, 9):
        with pytest.raises(Interrupted):
            run(places, tmp_path / "parts", source=stop_at(step))
    assert equal(run(places, tmp_path / "parts")[1], expected)


def test_a_finished_phase_is_not_run_again(places, tmp_path):
    first, expected = run(places, tmp_path / "a", score=Scores(0.5, 0.7, 0.6))

    def fail(skip):
        raise AssertionError("nothing is left to be trained")
        yield

    again, weights = run(places, tmp_path / "a", source=lambda skip: iter(fail(skip)), score=fail)
    assert again == first and equal(weights, expected)


def test_the_seed_decides(places, tmp_path):
    first, second = (run(places, tmp_path / name)[1] for name in "ab")
    assert equal(first, second)


def test_dropout_is_at_work(places, tmp_path):
    """Otherwise the tests above would not see a random state that is not restored."""
    objective = objective_of(places)
    batch = next(batches(0))
    objective.student.train()
    assert objective(batch).item() != objective(batch).item()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_so(places, tmp_path, number, code):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught:
        run(places, tmp_path / "a", source=stop_at(3, number))
    assert int(caught.value.exit_code) == code
    state = checkpoint.load_state(tmp_path / "a" / "resume" / "phases" / "phase")
    assert state["step"] == 4  # the step was finished
    assert signal.getsignal(number) is before


def test_a_second_signal_leaves_at_once(places, tmp_path):
    def twice(number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Halted):
        run(places, tmp_path / "a", source=partial(batches, touch=twice))


def test_accumulated_batches_are_one_batch(places, tmp_path):
    """8 x 1 == 4 x 2 where every row has the same number of tokens and nothing is drawn by chance."""
    state = {}

    def halves(skip):
        for batch in batches(skip // 2):
            for part in (slice(0, 4), slice(4, 8)):
                yield {name: value[part] for name, value in batch.items()}

    plan = plan_of(steps=6, evaluate_every=0)
    state["8x1"], whole = run(places, tmp_path / "a", plan=plan, student="calm")
    plan = plan_of(steps=6, evaluate_every=0, accumulate=2)
    state["4x2"], parts = run(places, tmp_path / "b", plan=plan, student="calm", source=halves)
    assert state["4x2"].losses == pytest.approx(state["8x1"].losses, rel=1e-5)
    for name, value in whole.items():
        assert torch.allclose(value, parts[name], atol=2e-6), name


def test_accumulation_resumes_at_the_right_batch(places, tmp_path):
    plan = plan_of(steps=6, accumulate=2, evaluate_every=0)
    _, expected = run(places, tmp_path / "whole", plan=plan)
    with pytest.raises(Interrupted):
        run(places, tmp_path / "parts", plan=plan, source=stop_at(5))
    seen = []
    _, weights = run(places, tmp_path / "parts", plan=plan, source=lambda skip: seen.append(skip) or batches(skip))
    assert seen == [6] and equal(weights, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_before_it_does_harm(places, tmp_path, bad):
    def poisoned(skip):
        for number, batch in enumerate(batches(skip), skip):
            yield {**batch, "labels": batch["labels"].float() * bad if number == 3 else batch["labels"].float()}

    folder = tmp_path / "models"
    tiny_bert(folder / "teacher", num_labels=1, hidden=16)
    tiny_bert(folder / "student", num_labels=1, layers=1, hidden=8)
    with pytest.raises(MbertError) as caught:
        run(folder, tmp_path / "a", source=poisoned, terms={"hard_label": (1.0, {})})
    assert caught.value.code == "M401" and int(caught.value.exit_code) == 6
    assert "step 4" in caught.value.what
    assert len((tmp_path / "a" / "log.jsonl").read_text().splitlines()) == 3


def test_the_best_weights_are_kept(places, tmp_path):
    kept = []

    class Watching(Scores):
        def __call__(self):
            kept.append({name: value.clone() for name, value in self.objective.student.state_dict().items()})
            return super().__call__()

    objective, score = objective_of(places), Watching(0.5, 0.7, 0.7)
    score.objective = objective
    trained = train(objective, batches, plan_of(), directory=tmp_path, seed=1, score=score, primary="accuracy")
    assert [entry["step"] for entry in trained.history] == [4, 8, 12]
    assert trained.best_step == 8  # the first of equals
    assert equal(objective.student.state_dict(), kept[1]) and not equal(kept[1], kept[2])


def test_evaluation_disturbs_nothing(places, tmp_path):
    never, without = run(places, tmp_path / "a", plan=plan_of(evaluate_every=0))
    often, expected = run(places, tmp_path / "b", plan=plan_of(evaluate_every=1, keep_best=False), score=Scores(0.1))
    assert never.losses == often.losses and len(often.history) == 12
    assert equal(without, expected)


def test_the_model_trains_again_after_a_score_in_eval_mode(places, tmp_path):
    objective = objective_of(places)

    def score():
        objective.student.eval()
        return {"accuracy": 0.0}

    modes = []
    objective.student.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    objective.student.base_model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    train(objective, batches, plan_of(steps=4, evaluate_every=1), directory=tmp_path, seed=1, score=score, primary="accuracy")
    assert modes and all(modes)


def test_learning_rates_follow_the_schedule(places, tmp_path):
    run(places, tmp_path / "a", plan=plan_of(steps=10, warmup=0.2, learning_rate=1.0e-3))
    rates = [json.loads(line)["lr"] for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([0.0, 0.5e-3, *(1e-3 * (1 - x / 10) / 0.8 for x in range(2, 10))], abs=1e-9)


def test_state_is_saved_by_the_clock(places, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(checkpoint, "save_state", lambda state, directory, keep=2: saved.append(state["step"]))
    run(places, tmp_path / "a", plan=plan_of(steps=3, checkpoint_seconds=1e-9))
    assert saved == [1, 2, 3]
    saved.clear()
    run(places, tmp_path / "b", plan=plan_of(steps=3))
    assert saved == [3]


def test_a_state_is_written_whole_or_not_at_all(tmp_path):
    checkpoint.save_state({"step": 1}, tmp_path)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        checkpoint.save_state({"step": lambda: 1}, tmp_path)
    assert checkpoint.load_state(tmp_path) == {"step": 1}


def test_the_last_two_states_are_kept_and_a_damaged_one_is_passed_over(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save_state({"step": step, "weights": torch.arange(500.0)}, tmp_path)
    kept = sorted(tmp_path.glob("step-*.pt"))
    assert [path.name[:13] for path in kept] == ["step-00000002", "step-00000003"]
    reporter = RecordingReporter()
    for path, left in ((kept[1], 2), (kept[0], None)):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        state = checkpoint.load_state(tmp_path, reporter)
        assert (state and state["step"]) == left
        assert path.with_suffix(".damaged").is_file() and str(path) in reporter.warnings[-1]


def test_a_run_whose_last_state_is_damaged_ends_as_an_uninterrupted_one(places, tmp_path):
    _, expected = run(places, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(places, tmp_path / "parts", plan=plan_of(checkpoint_steps=3), source=stop_at(7))
    last = max((tmp_path / "parts").rglob("step-*.pt"))
    last.write_bytes(last.read_bytes()[:-100])
    assert equal(run(places, tmp_path / "parts")[1], expected)


class Scarce:
    """An allocator that fails for more rows than `most` from the batch of a step on, as often as told."""

    def __init__(self, objective, most, times=10**9):
        self.losses, self.most, self.times, self.rows = objective.losses, most, times, []

    def __call__(self, batch):
        rows = len(batch["input_ids"])
        if rows > self.most and len(self.rows) >= 3 and self.times:
            self.times -= 1
            torch.rand(7)
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes")
        self.rows.append(rows)
        return self.losses(batch)


def scarce_run(places, directory, most, plan=None, source=batches):
    directory.mkdir(exist_ok=True)
    objective, reporter = objective_of(places, "student", TERMS), RecordingReporter()
    objective.losses = scarce = Scarce(objective, most)
    trained = train(objective, source, plan or plan_of(), directory=directory, seed=11, reporter=reporter)
    return trained, weights_of(objective), scarce.rows, reporter.warnings


def test_where_memory_runs_out_batches_are_halved_and_a_resume_does_the_same(places, tmp_path):
    rows = len(next(batches(0))["input_ids"])
    trained, expected, seen, warnings = scarce_run(places, tmp_path / "whole", most=rows - 1)
    assert trained.halved_after == 3 and "memory ran out at step 4" in warnings[0]
    assert seen == [rows] * 3 + [(rows + 1) // 2, rows // 2] * 9
    with pytest.raises(Interrupted):
        scarce_run(places, tmp_path / "parts", most=rows - 1, source=stop_at(6))
    resumed, weights, seen, _ = scarce_run(places, tmp_path / "parts", most=rows)
    assert equal(weights, expected) and resumed.halved_after == 3 and max(seen) < rows


def test_memory_that_runs_out_again_is_an_error_that_helps(places, tmp_path):
    with pytest.raises(MbertError) as caught:
        scarce_run(places, tmp_path / "a", most=1)
    assert caught.value.code == "M222" and "batch_size" in caught.value.fix


def test_halves_share_out_masked_positions():
    batch = {
        "input_ids": torch.arange(12).view(3, 4),
        "token_positions": torch.tensor([1, 6, 7, 9]),
        "token_labels": torch.tensor([10, 60, 70, 90]),
    }
    first, second = split_batch(batch)
    assert first["input_ids"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]] and second["input_ids"].tolist() == [[8, 9, 10, 11]]
    assert first["token_positions"].tolist() == [1, 6, 7] and first["token_labels"].tolist() == [10, 60, 70]
    assert second["token_positions"].tolist() == [1] and second["token_labels"].tolist() == [90]
    assert len(split_batch({"input_ids": torch.zeros(1, 4)})) == 1


def test_a_batch_that_diverges_is_kept_and_so_is_the_last_good_state(places, tmp_path):
    tmp_path.joinpath("a").mkdir()
    objective = objective_of(places, "student", TERMS)
    good, count = objective.losses, iter(range(100))

    def losses(batch):
        for group, loss, parts in good(batch):
            yield group, loss * (float("nan") if next(count) == 5 else 1.0), parts

    objective.losses = losses
    with pytest.raises(MbertError) as caught:
        train(objective, batches, plan_of(), directory=tmp_path / "a", seed=11)
    assert caught.value.code == "M401"
    kept = load_file(tmp_path / "a" / "diverged-phase-6.safetensors")
    assert torch.equal(kept["0.input_ids"], next(batches(5))["input_ids"])
    _, expected = run(places, tmp_path / "whole")
    assert equal(run(places, tmp_path / "a")[1], expected), "gone on from before the step"


def test_training_runs_outside_the_main_thread(places, tmp_path):
    """Where no signal handler can be set; Python users do so."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        trained, _ = pool.submit(run, places, tmp_path / "a", plan=plan_of(steps=2)).result()
    assert trained.steps == 2


def test_only_the_loop_trains():
    """`backward()` is called in one file of the package."""
    package = os.path.dirname(loop.__file__)
    callers = {
        os.path.relpath(os.path.join(folder, file), package)
        for folder, _, files in os.walk(package)
        for file in files
        if file.endswith(".py") and ".backward(" in open(os.path.join(folder, file), encoding="utf-8").read()
    }
    assert callers == {"loop.py"}


@pytest.mark.parametrize(
    ("steps", "evaluations", "at"),
    [(113, 4, [29, 57, 85, 113]), (12, 4, [3, 6, 9, 12]), (3, 4, [1, 2, 3]), (7, 1, [7]), (5, 0, [5])],
)
def test_evaluations_are_spread_evenly_up_to_the_last_step(places, tmp_path, steps, evaluations, at):
    spec = Finetune(steps=steps, evaluations=evaluations, batch_size=4)
    every = make_plan("phase", spec, [4] * 32).evaluate_every
    trained, _ = run(places, tmp_path, plan=plan_of(steps=steps, evaluate_every=every), score=Scores(*([0.1] * 9)))
    assert [int(line["step"]) for line in trained.history] == at
    assert evaluations_planned(plan_of(steps=steps, evaluate_every=every)) == len(at)


class Losses(Scores):
    """Losses on dev."""

    def __call__(self):
        return {"loss": super().__call__()["accuracy"]}


def test_patience_ends_a_phase_and_the_best_weights_are_kept(places, tmp_path):
    plan = plan_of(evaluate_every=1, patience=2)
    trained, weights = run(places, tmp_path / "ended", plan=plan, score=Scores(0.5, 0.7, 0.6, 0.7, 0.9))
    assert (trained.steps, trained.best_step) == (4, 2)  # as good as the best is not better
    whole, _ = run(places, tmp_path / "whole", plan=plan_of(evaluate_every=1, steps=2), score=Scores(0.5, 0.7))
    assert whole.best == trained.best == {"accuracy": 0.7}
    again, same = run(places, tmp_path / "ended", plan=plan, score=Scores(0.9))
    assert again == trained and equal(same, weights)  # a phase that ended early is not taken up again


@pytest.mark.parametrize("stopped", [1, 3])
def test_a_phase_with_patience_resumes_bit_by_bit(places, tmp_path, stopped):
    values = [0.5, 0.7, 0.6, 0.6, 0.9]
    plan = plan_of(evaluate_every=1, patience=2)
    whole, expected = run(places, tmp_path / "whole", plan=plan, score=Scores(*values))
    with pytest.raises(Interrupted):
        run(places, tmp_path / "parts", plan=plan, score=Scores(*values), source=stop_at(stopped))
    resumed, weights = run(places, tmp_path / "parts", plan=plan, score=Scores(*values[stopped:]))
    assert equal(weights, expected) and resumed == whole


def test_the_smallest_loss_on_dev_is_the_best(places, tmp_path):
    trained, _ = run(places, tmp_path / "out", plan=plan_of(best_by="loss"), score=Losses(0.5, 0.3, 0.4))
    assert trained.best == {"loss": 0.3} and trained.best_step == 8


def test_the_weights_that_a_stage_begins_with_may_stay_the_best(places, tmp_path):
    before = weights_of(objective_of(places))
    trained, after = run(
        places, tmp_path / "out", plan=plan_of(best_by="loss", from_start=True), score=Losses(0.1, 0.3, 0.2, 0.2)
    )
    assert trained.best_step == 0 and trained.history[0] == {"step": 0, "loss": 0.1}
    assert equal(before, after)


def test_the_mean_loss_is_that_of_all_rows_without_dropout(places):
    objective = objective_of(places)
    first, second = ({"input_ids": IDS[rows], "attention_mask": torch.ones_like(IDS[rows]), "labels": LABELS[rows]}
                     for rows in (slice(0, 6), slice(6, 8)))  # fmt: skip
    ask = objective._ask_teacher
    mean = objective.mean_loss([first, second], ask)
    assert mean == objective.mean_loss([first, second], ask)
    with torch.no_grad():
        by_hand = (6 * objective(first) + 2 * objective(second)) / 8
    assert mean == pytest.approx(by_hand.item(), rel=1e-6)
    with pytest.raises(MbertError) as error:
        objective.mean_loss([{**first, "labels": torch.full((6,), 1)}, second], lambda batch, want: broken(ask(batch, want)))
    assert error.value.code == "M401"


def broken(outputs):
    outputs.logits = outputs.logits * float("nan")
    return outputs
