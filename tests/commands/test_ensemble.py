"""An ensemble of models for several tasks, trained and asked by one recipe; tasks without a teacher; and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mbert_command import refused, works
from safetensors.torch import load_file
from tiny_models import tiny_bert, tiny_glue

from microbert_cli import api
from microbert_cli.data.corpus.python_tasks import AREAS, ORDERS, _sentences, area_rows, shuffled_rows
from microbert_cli.data.task_data import load_task_data
from microbert_cli.distillation.ensemble import ask_by_task, average_logits, ensemble_ask
from microbert_cli.evaluation.scoring import predict_logits, score
from microbert_cli.models.capture import ModelOutputs, OutputRequest, TeacherFunction
from microbert_cli.models.load import load_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.objective import Objective

CATALOG = Catalog()
LABELS = {"sst2": ["negative", "positive"], "mrpc": ["not_equivalent", "equivalent"]}
RECIPE = """
tasks  = ["sst2", "mrpc", "stsb"]
method = "mt-dnn"
base   = "base"
stages = ["ensemble", "labels", "task-distill", "evaluate", "export", "report"]
data   = { folder = "glue", max_length = 24 }
teacher.allow_weak = true
phases.multi-task = { steps = 9, batch_size = 8, learning_rate = 1e-2 }
export = { onnx = false }

[variant.ensemble]
stage   = "task-distill"
student = "base"
seeds   = [1, 2]
[variant.labels]
stage   = "task-distill"
student = "bert-1x8"
[variant.task-distill]
student       = "bert-1x8"
teachers.sst2 = ["ensemble/seed-1", "ensemble/seed-2"]
teachers.mrpc = ["ensemble/seed-2", "teacher-mrpc"]
"""


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A GLUE folder of three tasks, a pre-trained model, teachers of single tasks, and the recipe."""
    folder = tmp_path_factory.mktemp("ensemble")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MBERT_CACHE", str(folder / "cache"))
        tiny_glue("glue", ("sst2", "mrpc", "stsb"), rows=40)
        tiny_bert("base", kind="masked-lm", dropout=0.0)
        for number, name in enumerate("abc"):
            tiny_bert(f"sst2-{name}", labels=LABELS["sst2"], seed=number)
        tiny_bert("teacher-mrpc", labels=LABELS["mrpc"], seed=5)
        Path("small.toml").write_text(RECIPE, encoding="utf-8")
        yield folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def metrics(directory: str) -> Any:
    return json.loads((Path(directory) / "metrics.json").read_text())


def distil(out: str | Path, **keys: Any) -> api.StageResult:
    common = {"method": "mt-dnn", "student": "bert-1x8", "data__folder": "glue", "data__max_length": 24}
    quick = {"phases__multi-task__steps": 8, "phases__multi-task__batch_size": 8, "phases__multi-task__learning_rate": 1e-2}
    return api.distill(out=out, **{**common, **quick, "teacher__allow_weak": True, **keys})


# --- by hand -----------------------------------------------------------------------------------------------------------------


def of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def test_the_mean_of_probabilities_and_of_scores() -> None:
    first, second, third = of(0.8, 0.2), of(0.6, 0.4) - 5.0, of(0.1, 0.9) + 2.0
    assert average_logits([first, second]).softmax(-1).tolist()[0] == pytest.approx([0.7, 0.3])
    assert average_logits([first, second, third]).softmax(-1).tolist()[0] == pytest.approx([0.5, 0.5])
    assert torch.equal(average_logits([first, second]), average_logits([second, first]))
    orders = [average_logits([first, second, third]), average_logits([third, first, second])]
    assert orders[0].tolist()[0] == pytest.approx(orders[1].tolist()[0], abs=1e-6)
    scores = [torch.tensor([[value]]) for value in (1.0, 2.5, 4.0)]
    assert average_logits(scores).tolist() == [[2.5]]


class Student(torch.nn.Module):
    """Answers every row with the logs of these probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(of(0.8, 0.2))

    def look(self, batch: Any, want: OutputRequest) -> ModelOutputs:
        return ModelOutputs(logits=self.logits.expand(len(batch["labels"]), -1))


def answering(*probabilities: float) -> TeacherFunction:
    return lambda batch, request: ModelOutputs(logits=of(*probabilities))


@pytest.mark.parametrize(
    ("task", "soft", "total"),
    [
        (0, 0.63903, 0.43109),  # Q = (.7, .3): -.7 ln .8 - .3 ln .2, averaged with -ln .8
        (1, 1.05492, 0.63903),  # Q = (.4, .6)
        (2, None, 0.22314),  # no teacher: -ln .8 alone, whole
    ],
)
def test_each_task_learns_from_its_own_ensemble(task: int, soft: float | None, total: float) -> None:
    losses = resolve(catalog=CATALOG, flags={"method": "mt-dnn"}, environment={}).recipe.phases["multi-task"].losses
    terms = make_terms({name: (term.weight, term.parameters) for name, term in losses.items()}, CATALOG)
    ensembles = {0: [answering(0.8, 0.2), answering(0.6, 0.4)], 1: [answering(0.5, 0.5), answering(0.3, 0.7)]}
    ask = ask_by_task({**{number: ensemble_ask(asks) for number, asks in ensembles.items()}, 2: None})
    objective = Objective(terms, Student(), ask_teacher=ask)
    _, scalar, parts = next(objective.losses({"labels": torch.tensor([0]), "task": torch.tensor([task])}))
    assert parts["hard_label"].item() == pytest.approx(0.22314, abs=1e-5)
    assert (parts["soft_target"].item() if "soft_target" in parts else None) == (soft and pytest.approx(soft, abs=1e-5))
    assert scalar.item() == pytest.approx(total, abs=1e-5)


# --- a recipe ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_recipe_trains_the_ensemble_and_what_it_teaches() -> None:
    done = works("run", "small.toml", "-o", "run", "--json")
    tasks, results = ("sst2", "mrpc", "stsb"), done.json
    expected = ["ensemble", "labels", "task-distill", *(f"{kind}-{task}" for kind in ("evaluate", "export") for task in tasks)]
    assert list(results) == [*expected, "report", "summary"]
    assert "stsb has no teacher and is learnt from labels alone (hard_label)" in done.err

    # The two members of sst2 are the two seeds; the mean of their probabilities has the score that is recorded.
    seeds = [load_file(f"run/ensemble/seed-{seed}/model.safetensors") for seed in (1, 2)]
    assert seeds[0].keys() == seeds[1].keys() and any(not torch.equal(seeds[0][name], seeds[1][name]) for name in seeds[0])
    recipe = resolve(
        catalog=CATALOG, flags={"task": "sst2", "data": {"folder": "glue", "max_length": 24}}, environment={}
    ).recipe
    data = load_task_data(recipe, CATALOG, splits=("dev",))
    answers = []
    for seed in (1, 2):
        loaded = load_model(f"run/ensemble/seed-{seed}", "classifier", where="test", task="sst2")
        answers.append(torch.as_tensor(predict_logits(data, "dev", loaded.model, loaded)).softmax(-1))
    mean = torch.stack(answers).mean(0)
    by_task = results["task-distill"]["tasks"]
    assert by_task["sst2"]["teacher"] == pytest.approx(score(data.task, mean.log().numpy(), data.rows["dev"]))
    assert by_task["stsb"]["teacher"] is None and by_task["mrpc"]["teacher"]

    for task in tasks:
        assert results[f"evaluate-{task}"]["dev"] == pytest.approx(by_task[task]["dev"], abs=1e-3 if task == "stsb" else 1e-6)
        assert (Path("run") / f"export-{task}" / "model.safetensors").is_file()
        rows = {row["model"]: row for row in results["report"]["tasks"][task]["table"]}
        assert {"ensemble", "labels", "task-distill"} <= rows.keys()
        assert rows["ensemble"]["score"] == pytest.approx(np.mean([results["ensemble"]["seeds"][seed][
            f"{task}.{by_task[task]['primary']}"] for seed in ("1", "2")]))  # fmt: skip
    inputs = json.loads(Path("run/task-distill/manifest.json").read_text())["inputs"]
    assert {"teacher sst2 1", "teacher sst2 2", "teacher mrpc 1", "teacher mrpc 2"} <= inputs.keys()
    assert inputs["teacher sst2 2"] == inputs["teacher mrpc 1"] != inputs["teacher sst2 1"]
    again = works("run", "small.toml", "-o", "run")
    assert "everything up to date (10 stages)" in again.err


@pytest.mark.slow
def test_stopped_and_resumed_is_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from stopping import stopped_everywhere

    def make(out: Path, reporter: Any) -> api.StageResult:
        teachers = {"sst2": ["sst2-a", "sst2-b"], "mrpc": ["teacher-mrpc"]}
        keys = {"phases__multi-task__evaluations": 2, "tasks": ["sst2", "mrpc", "stsb"], "teachers": teachers}
        return distil(out, reporter=reporter, **keys)

    assert stopped_everywhere(make, tmp_path / "runs", fresh_cache=monkeypatch, fully=False) >= 2


@pytest.mark.slow
def test_plan_and_doctor_know_each_seed_and_each_task() -> None:
    planned = works("plan", "small.toml", "--json").json["stages"]
    assert [stage["name"] for stage in planned][-7:-1] == [
        f"{kind}-{task}" for kind in ("evaluate", "export") for task in ("sst2", "mrpc", "stsb")
    ]
    assert all(stage["seconds"] is not None for stage in planned), planned
    by_name = {stage["name"]: stage for stage in planned}
    assert (by_name["ensemble"]["steps"], by_name["labels"]["steps"], by_name["task-distill"]["steps"]) == (18, 9, 9)
    assert any("stsb has no teacher" in note for note in by_name["task-distill"]["notes"])
    done = works("doctor", "small.toml")
    for expected in ("task-distill sst2 2: finite losses", "task-distill stsb: finite losses", "ensemble mrpc: finite losses"):
        assert expected in done.out, done.out


def test_the_order_of_members_does_not_matter() -> None:
    teachers = [["sst2-a", "sst2-b"], ["sst2-b", "sst2-a"], ["sst2-a", "sst2-c"]]
    # A new student begins as its first teacher's layers, which are another model's here.
    results = [
        distil(f"order-{number}", task="sst2", teacher__models=members, initialise__by="random")
        for number, members in enumerate(teachers)
    ]
    weights = [load_file(result.out / "model.safetensors") for result in results]
    same = [all(torch.equal(weights[0][name], other[name]) for name in weights[0]) for other in weights]
    assert same == [True, True, False]


def test_an_ensemble_of_two_vocabularies() -> None:
    tiny_bert("sst2-words", labels=LABELS["sst2"], vocab=("lovely", "gloomy", "boat"), seed=8)
    result = distil("two-vocabularies", task="sst2", teacher__models=["sst2-a", "sst2-words"])
    assert 0 <= result.metrics["teacher"]["accuracy"] <= 1


def test_seeds_of_a_fine_tuned_teacher_are_an_ensemble_too() -> None:
    words = ("--set", "finetune.steps=2", "--set", 'teacher.models=["finetune/seed-3", "finetune/seed-4"]')
    text = (
        'task = "sst2"\nbase = "base"\nmethod = "kd"\nstudent = "bert-1x8"\nstages = ["finetune", "task-distill"]\n'
        'seeds = [3, 4]\ndata = { folder = "glue", max_length = 24 }\nteacher.allow_weak = true\n'
        'phases.distillation.steps = 2\nvariant.task-distill.seeds = []\n'
    )  # fmt: skip
    Path("one-task.toml").write_text(text, encoding="utf-8")
    results = works("run", "one-task.toml", "-o", "one-task", *words, "--json").json
    assert results["task-distill"]["teacher"] and set(results["finetune"]["seeds"]) == {"3", "4"}


def test_augmented_rows_are_for_tasks_with_a_teacher() -> None:
    words = (
        "--tasks",
        "sst2,stsb",
        "--student",
        "bert-1x8",
        "--data",
        "glue",
        "--set",
        "method=mt-dnn",
        "--augmented",
        "more-{task}",
    )
    shown = works("task-distill", *words, "--set", "teachers.sst2=sst2-a", "--dry-run", "--json").json["stages"][0]
    assert shown["augmented sst2"] == "more-sst2" and "augmented stsb" not in shown


# --- the embedded tasks ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "labels", "least"), [(shuffled_rows, ORDERS, 0.45), (area_rows, tuple(AREAS), 0.08)])
def test_the_embedded_tasks_have_all_labels_and_splits_apart(rows: Any, labels: tuple[str, ...], least: float) -> None:
    texts, given = {}, {}
    for split in ("train", "dev", "test"):
        texts[split], given[split] = rows(split)
        assert len(texts[split]) == len(given[split]) > 500 and rows(split) == (texts[split], given[split])
        assert {label: given[split].count(label) / len(texts[split]) >= least for label in labels} == dict.fromkeys(
            labels, True
        )
        assert set(given[split]) == set(labels)
    assert not set(texts["train"]) & {*texts["dev"], *texts["test"]}


def test_shuffled_rows_have_the_words_of_a_sentence() -> None:
    plain = {tuple(sorted(words)): words for _, words in _sentences("dev")}
    for text, label in zip(*shuffled_rows("dev"), strict=True):
        words = plain[tuple(sorted(text.split()))]
        assert text.split() == words or label == "shuffled"


# --- what is refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("M029", 'teachers.mrpc = ["ensemble/seed-2", "ensemble/seed-7"]'),
        ("M054", 'teachers.mrpc = ["pair/seed-1", "pair/seed-2"]'),
        ("M075", 'teachers.mrpc = ["ensemble/seed-2", "ensemble/seed-2"]'),
        ("M082", 'teachers.rte = "ensemble/seed-2"'),
    ],
)
def test_what_a_run_will_not_make_is_said_before_it_starts(code: str, line: str) -> None:
    pair = '[variant.pair]\nstage = "task-distill"\nstudent = "base"\nseeds = [1, 2]\ntasks = ["sst2", "stsb"]\n'
    text = RECIPE.replace('"labels", ', '"labels", "pair", ') + pair
    text = text.replace('teachers.mrpc = ["ensemble/seed-2", "teacher-mrpc"]', line)
    Path("wrong.toml").write_text(text, encoding="utf-8")
    refused(3, code, "run", "wrong.toml", "-o", "wrong", "--dry-run")
    assert not Path("wrong").exists()


@pytest.mark.parametrize(
    ("exit_code", "code", "member"),
    [(4, "M203", "runs/nowhere"), (5, "M321", "foreign"), (5, "M320", "three")],
)
def test_a_member_that_does_not_fit(exit_code: int, code: str, member: str) -> None:
    tiny_bert("foreign", labels=["schlecht", "gut"])
    tiny_bert("three", num_labels=3)
    words = ("--task", "sst2", "--data", "glue", "--student", "bert-1x8", "--set", "method=mt-dnn", "-o", "no")
    error = refused(exit_code, code, "task-distill", *words, "--set", f'teacher.models=["sst2-a", "{member}"]')
    assert member in error["where"] + error["what"]


def test_a_member_of_other_tasks() -> None:
    other = distil("other", tasks=["sst2", "stsb"], teachers={"sst2": "sst2-a"})
    words = ("--tasks", "mrpc,stsb", "--data", "glue", "--student", "bert-1x8", "--set", "method=mt-dnn", "-o", "no")
    refused(4, "M266", "task-distill", *words, "--set", f'teachers.mrpc=["teacher-mrpc", "{other.out}"]')
