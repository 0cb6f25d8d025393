"""Several tasks in one run: whose turn it is, who is asked, what is scored, what is kept; and MT-DNN's numbers by hand."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mbert_command import mbert, refused, works
from safetensors.torch import load_file
from tiny_models import tiny_bert, tiny_glue

from microbert_cli import api
from microbert_cli.data.batching import endless_batches
from microbert_cli.data.multitask_batching import mixed_batches, task_sequence, task_shares
from microbert_cli.distillation.ensemble import ask_by_task, average_logits, ensemble_ask
from microbert_cli.distillation.results import routing_failed
from microbert_cli.errors import ManyErrors, MbertError
from microbert_cli.models.capture import ModelOutputs, OutputRequest
from microbert_cli.models.load import load_model
from microbert_cli.models.save import save_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.training.checkpoint import BestWeights
from microbert_cli.training.loss_terms import make_terms, without_teacher_terms
from microbert_cli.training.objective import Objective

CATALOG = Catalog()
TASKS = ("sst2", "mrpc", "stsb")


# --- whose turn it is -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by", "cap", "expected"),
    [
        ("proportional", 1, [0.2, 0.8]),
        ("square-root", 1, [1 / 3, 2 / 3]),
        ("capped", 100, [0.5, 0.5]),
        ("capped", 300, [0.25, 0.75]),
        ("capped", 1000, [0.2, 0.8]),
    ],
)
def test_shares_by_hand(by: str, cap: int, expected: list[float]) -> None:
    assert task_shares([100, 400], by, cap=cap) == pytest.approx(expected)


def test_turns_come_as_often_as_their_shares() -> None:
    drawn = Counter(islice(task_sequence([0.2, 0.5, 0.3], seed=3), 20_000))
    assert [drawn[task] / 20_000 for task in range(3)] == pytest.approx([0.2, 0.5, 0.3], abs=0.01)
    first, second = (list(islice(task_sequence([0.5, 0.5], seed=seed), 64)) for seed in (1, 2))
    assert first != second and first == list(islice(task_sequence([0.5, 0.5], seed=1), 64))


LENGTHS = np.random.default_rng(0).integers(3, 30, 70)
MIXED: dict[str, Any] = {"sizes": [20, 50], "shares": [0.3, 0.7], "seed": 5, "batch_size": 8}


def test_every_batch_is_of_one_task_in_that_tasks_own_order() -> None:
    batches = list(islice(mixed_batches(LENGTHS, **MIXED), 40))
    of_task = [[batch for batch in batches if (batch[0] >= 20) == second] for second in (False, True)]
    assert all((batch < 20).all() or (batch >= 20).all() for batch in batches) and all(of_task)
    for first, lengths, mixed in ((0, LENGTHS[:20], of_task[0]), (20, LENGTHS[20:], of_task[1])):
        alone = islice(endless_batches(lengths, batch_size=8, seed=5), len(mixed))
        assert all((batch == first + expected).all() for batch, expected in zip(mixed, alone, strict=True))


@pytest.mark.parametrize("skip", [1, 7, 1500])
def test_what_was_seen_is_passed_over(skip: int) -> None:
    whole = list(islice(mixed_batches(LENGTHS, **MIXED), skip, skip + 9))
    assert all((a == b).all() for a, b in zip(whole, islice(mixed_batches(LENGTHS, **MIXED, skip=skip), 9), strict=True))


def test_one_task_alone_goes_its_own_way() -> None:
    mixed = islice(mixed_batches(LENGTHS, sizes=[70], shares=[1.0], seed=5, batch_size=8), 30)
    alone = islice(endless_batches(LENGTHS, seed=5, batch_size=8), 30)
    assert all((actual == expected).all() for actual, expected in zip(mixed, alone, strict=True))


# --- who is asked ------------------------------------------------------------------------------------------------------------


def test_an_ensembles_answer_by_hand() -> None:
    first, second = (torch.tensor([p]).log() for p in ([0.9, 0.1], [0.6, 0.4]))
    assert average_logits([first, second + 3.0]).softmax(-1).tolist()[0] == pytest.approx([0.75, 0.25])
    assert average_logits([torch.tensor([[1.0]]), torch.tensor([[4.0]])]).tolist() == [[2.5]]
    logits = torch.randn(3, 2)
    assert average_logits([logits]) is logits


def answering(value: float) -> Any:
    return lambda batch, want: ModelOutputs(logits=torch.full((1, 2), value))


def test_the_teacher_of_the_batchs_task_is_asked() -> None:
    ask = ask_by_task({0: answering(1.0), 2: ensemble_ask([answering(2.0), answering(2.0)]), 1: None})
    seen = [ask({"task": torch.tensor([task, task])}, OutputRequest(logits=True)) for task in range(3)]
    assert seen[1] is None and seen[0].logits[0, 0] == 1.0
    assert seen[2].logits.softmax(-1).tolist() == [[0.5, 0.5]]


# --- MT-DNN's numbers --------------------------------------------------------------------------------------------------------


class Student(torch.nn.Module):
    """Answers every row with the logs of these probabilities."""

    def __init__(self, *probabilities: float):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor([probabilities]).log())

    def look(self, batch: Any, want: OutputRequest) -> ModelOutputs:
        return ModelOutputs(logits=self.logits.expand(len(batch["labels"]), -1))


def mt_dnn(student: Student, *, taught: bool) -> tuple[float, dict[str, float]]:
    losses = resolve(catalog=CATALOG, flags={"method": "mt-dnn"}, environment={}).recipe.phases["multi-task"].losses
    terms = make_terms({name: (term.weight, term.parameters) for name, term in losses.items()}, CATALOG)
    teacher = ModelOutputs(logits=torch.tensor([[0.75, 0.25]]).log())
    objective = Objective(terms, student, ask_teacher=lambda batch, want: teacher if taught else None)
    _, total, parts = next(objective.losses({"labels": torch.tensor([0])}))
    return total.item(), {name: value.item() for name, value in parts.items()}


@pytest.mark.parametrize(
    ("probabilities", "hard", "soft", "average"),
    [((0.5, 0.5), 0.69315, 0.69315, 0.69315), ((0.8, 0.2), 0.22314, 0.56972, 0.39643)],
)
def test_mt_dnn_by_hand(probabilities: tuple[float, float], hard: float, soft: float, average: float) -> None:
    total, parts = mt_dnn(Student(*probabilities), taught=True)
    assert parts == {"hard_label": pytest.approx(hard, abs=1e-5), "soft_target": pytest.approx(soft, abs=1e-5)}
    assert total == pytest.approx(average, abs=1e-5)
    alone, parts = mt_dnn(Student(*probabilities), taught=False)
    assert parts.keys() == {"hard_label"} and alone == pytest.approx(hard, abs=1e-5)


def test_what_is_left_without_a_teacher() -> None:
    def weights(**losses: float) -> dict[str, float]:
        terms = make_terms({name: (weight, {}) for name, weight in losses.items()}, CATALOG)
        return {term.name: term.weight for term in without_teacher_terms(terms)}

    assert weights(hard_label=0.3, soft_target=0.7, feature_alignment=0.1) == {"hard_label": pytest.approx(1.0)}
    assert weights(hard_label=2.0) == {"hard_label": 2.0}
    assert weights(soft_target=1.0, hidden_states=1.0) == {}


# --- a run -------------------------------------------------------------------------------------------------------------------

COMMON = {"data__folder": "glue", "data__max_length": 24}
QUICK = {"phases__multi-task__learning_rate": 1e-2, "phases__multi-task__batch_size": 8, "teacher__allow_weak": True}


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A GLUE folder of three tasks, a teacher for two of them, and a second one for the first."""
    folder = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MBERT_CACHE", str(folder / "cache"))
        tiny_glue("glue", TASKS, rows=40)
        tiny_bert("base", kind="masked-lm", dropout=0.0)
        names = {"sst2": ["negative", "positive"], "sst2-b": ["positive", "negative"], "mrpc": ["not_equivalent", "equivalent"]}
        for seed, (name, labels) in enumerate(names.items()):
            tiny_bert(f"teacher-{name}", labels=labels, seed=seed)
        tiny_bert("teacher-stsb", num_labels=1, seed=7)
        yield folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def distil(out: str | Path, **keys: Any) -> api.StageResult:
    given = {"method": "mt-dnn", "student": "bert-1x8", **COMMON, **QUICK, "phases__multi-task__steps": 12, **keys}
    return api.distill(out=out, **given)


def test_three_tasks_through_the_command() -> None:
    done = works(
        "task-distill", "--tasks", "sst2,mrpc,stsb", "--student", "bert-1x8", "--data", "glue", "--seeds", "1,2", "-o", "three",
        "--set", "method=mt-dnn", "--set", "data.max_length=24", "--set", "sampling=square-root",
        "--set", 'teachers={ sst2 = ["teacher-sst2", "teacher-sst2-b"], mrpc = "teacher-mrpc" }',
        "--set", "teacher.allow_weak=true", "--set", "phases.multi-task.steps=12", "--set", "phases.multi-task.batch_size=8",
        "--set", "phases.multi-task.learning_rate=1e-2", "--json",
    )  # fmt: skip
    metrics = done.json
    assert metrics["primary"] == "mean" and list(metrics["tasks"]) == list(TASKS)
    primaries = {task: result["primary"] for task, result in metrics["tasks"].items()}
    assert metrics["dev"]["mean"] == pytest.approx(np.mean([metrics["dev"][f"{t}.{m}"] for t, m in primaries.items()]))
    assert set(metrics["seeds"]) == {"1", "2"} and {"mean", "sst2.accuracy", "stsb.pearson"} <= metrics["spread"].keys()
    assert metrics["tasks"]["stsb"]["teacher"] is None and metrics["tasks"]["stsb"]["retention"] is None
    sst2 = metrics["tasks"]["sst2"]
    assert sst2["retention"] == pytest.approx(metrics["mean"]["sst2.accuracy"] / sst2["teacher"]["accuracy"])
    for task, result in metrics["tasks"].items():
        history = [
            json.loads(line) for seed in (1, 2) for line in Path(f"three/seed-{seed}/log.jsonl").read_text().splitlines()
        ]
        every = [line["dev"][f"{task}.{primaries[task]}"] for line in history if "dev" in line]
        assert result["best"]["dev"][primaries[task]] == max(every), task
        assert (Path("three") / result["best"]["directory"] / "model.safetensors").is_file()
    logged = [set(line) for line in history if "hard_label" in line]
    assert any("soft_target" in line for line in logged) and any("soft_target" not in line for line in logged)
    manifest = json.loads(Path("three/manifest.json").read_text())
    assert {"teacher sst2 1", "teacher sst2 2", "teacher mrpc", "student"} <= manifest["inputs"].keys()
    assert manifest["data"]["mrpc train"]["rows"] == 40 and "best/sst2/model.safetensors" in str(manifest["outputs"])
    assert works("verify", "three").code == 0


EXPERTS = {"moe__side": "student", "moe__layers": "all", "moe__experts": 2}


@pytest.mark.parametrize("experts", [{}, EXPERTS], ids=["shared", "routed"])
def test_each_task_alone_scores_as_inside(experts: dict[str, Any]) -> None:
    """The kept model and the best weights of each task, taken out as plain models and scored by the evaluator."""
    keys = {"teacher__model": "teacher-{task}", "phases__multi-task__evaluations": 6, **experts}
    result = distil(f"best-{len(experts)}", tasks=["sst2", "stsb"], **keys)
    assert ("experts" in result.metrics) is ("routing_failed" in result.metrics) is bool(experts)
    for command in ("evaluate", "export", "bench"):
        assert "mbert extract" in refused(4, "M265", command, result.out)["fix"]
    for task, metrics in result.metrics["tasks"].items():
        for source, dev in ((result.out, metrics["dev"]), (result.out / metrics["best"]["directory"], metrics["best"]["dev"])):
            out = f"{task}-of-{source.name}-{len(experts)}"
            works("extract", source, "--task", task, "-o", out)
            scored = api.evaluate(model=out, out=f"{out}-scores", task=task, **COMMON).metrics
            # The correlation of answers that hardly differ hangs on their last digits, which follow the batches.
            assert scored["dev"] == pytest.approx(dev, abs=1e-3 if task == "stsb" else 1e-6), source


@pytest.mark.slow
def test_stopped_and_resumed_is_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from stopping import stopped_everywhere

    def make(out: Path, reporter: Any) -> api.StageResult:
        more = {"phases__multi-task__evaluations": 3, "tasks": ["sst2", "stsb"], "teacher__model": "teacher-{task}"}
        return distil(out, reporter=reporter, sampling__by="square-root", **more, **EXPERTS)

    assert stopped_everywhere(make, tmp_path / "runs", fresh_cache=monkeypatch, fully=False) >= 3


def test_hidden_states_of_a_teacher_per_task() -> None:
    steps = {"phases__intermediate__steps": 4, "phases__prediction__steps": 4}
    about = {"tasks": ["mrpc", "sst2"], "teacher__model": "teacher-{task}", "teacher__allow_weak": True}
    result = api.distill(out="inner", method="tinybert", student="bert-1x16", **about, **steps, **COMMON)
    assert result.metrics["phases"]["intermediate"]["losses"].keys() >= {"embedding", "hidden_states", "attention_scores"}


def test_an_ensemble_for_one_task() -> None:
    ensemble = distil("ensemble", task="sst2", teacher__models=["teacher-sst2", "teacher-sst2-b"])
    alone = distil("alone", task="sst2", teacher__model="teacher-sst2")
    again = distil("again", task="sst2", teacher__models=["teacher-{task}"])
    weights = [load_file(result.out / "model.safetensors") for result in (ensemble, alone, again)]
    same = [all(torch.equal(weights[1][name], other[name]) for name in weights[1]) for other in weights]
    assert same == [False, True, True]


def test_tasks_of_ones_own_files() -> None:
    Path("mine.csv").write_text("text,kind\n" + "\n".join(f"the boat is {w},{w}" for w in ("warm", "broken")) + "\n")
    Path("mine.toml").write_text(
        'text = ["text"]\nmetrics = ["accuracy"]\nlabel.column = "kind"\nfiles = { train = "mine.csv", dev = "mine.csv" }\n'
    )
    result = distil("mine", tasks=["mine.toml", "sst2"], teachers={"sst2": "teacher-sst2"})
    assert list(result.metrics["tasks"]) == ["mine", "sst2"] and result.metrics["tasks"]["mine"]["rows"] == 2


@pytest.mark.parametrize("name", ["glue-mt-dnn", "microbert-tasks"])
def test_recipes_of_several_tasks(name: str, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stages = works("run", repo / "recipes" / f"{name}.toml", "--dry-run", "--json").json["stages"]
    last = [stage for stage in stages if any(key.startswith("teacher ") for key in stage)][-1]
    taught = {key.split()[1] for key in last if key.startswith("teacher ")}
    assert taught == {"glue-mt-dnn": {"mnli", "qqp", "qnli", "rte"}, "microbert-tasks": {"sst2", "mrpc", "rte", "stsb"}}[name]
    outs = {stage["out"] for stage in stages[: stages.index(last)]}
    assert all(value in outs or str(Path(value).parent) in outs for key, value in last.items() if key.startswith("teacher "))


LOOKED_AT = """
tasks = ["sst2", "stsb"]
method = "mt-dnn"
student = "bert-1x8"
stages = ["task-distill"]
data = { folder = "glue", max_length = 24 }
teacher.allow_weak = true
teachers.sst2 = ["teacher-sst2", "teacher-sst2-b"]
phases.multi-task.steps = 20
"""


@pytest.mark.slow
def test_plan_and_doctor_look_at_every_task() -> None:
    Path("looked-at.toml").write_text(LOOKED_AT)
    (planned,) = works("plan", "looked-at.toml", "--json").json["stages"]
    assert 18 <= planned["steps"] <= 22 and planned["seconds"] > 0
    done = mbert("doctor", "looked-at.toml")
    assert done.code == 0, done.out + done.err
    for line in ("task-distill sst2 2: finite losses", "task-distill stsb: finite losses", "task-distill stsb: 40 scores"):
        assert line in done.out, done.out


# --- what is kept ------------------------------------------------------------------------------------------------------------


def test_bests_keep_the_first_of_equals_and_one_copy() -> None:
    model, bests = torch.nn.Linear(1, 1), BestWeights(["a", "b"])
    for step, scores in enumerate(({"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 2.0}, {"a": 0.5, "b": 1.0}), 1):
        torch.nn.init.constant_(model.weight, step)
        bests.update(step, scores, model)
    assert {name: kept["step"] for name, kept in bests.records.items()} == {"a": 1, "b": 2}
    assert [bests.records[name]["weights"]["weight"].item() for name in "ab"] == [1.0, 2.0]


def test_routing_that_routes_nothing_has_failed() -> None:
    assert routing_failed({"a": {"1": [0], "2": [3]}, "b": {"1": [0], "2": [3]}})
    assert not routing_failed({"a": {"1": [0], "2": [3]}, "b": {"1": [0], "2": [1]}})
    assert not routing_failed({"a": {"1": [0]}})


@pytest.mark.parametrize("alike", [True, False])
def test_the_experts_of_every_task_are_told(alike: bool) -> None:
    from microbert_cli.models.moe.bert import RoutedBertForSequenceClassification

    loaded = load_model("teacher-sst2", "classifier", where="student")
    tasks = {"mrpc": {"labels": ["not_equivalent", "equivalent"], "num_labels": 2}}
    tasks["sst2"] = {"labels": ["negative", "positive"], "num_labels": 2}
    routed = RoutedBertForSequenceClassification.from_dense(loaded.model, tasks=tasks, moe_layers=[2], experts=2, seed=1)
    with torch.no_grad():
        router = routed.bert.expert_layers[2].router
        router.gate.weight.copy_(torch.stack([torch.ones(64), -torch.ones(64)]))
        routed.bert.task_embedding.weight.copy_(torch.ones(2, 64) * torch.tensor([[1.0], [1.0 if alike else -1.0]]))
    save_model(routed, loaded.tokenizer, Path(f"routed-{alike}"))
    keys = {"teacher__model": "teacher-{task}", "phases__multi-task__learning_rate": 1e-9}
    result = distil(f"experts-{alike}", student=f"routed-{alike}", tasks=["sst2", "mrpc"], **keys)
    assert result.metrics["experts"] == {"mrpc": {"2": [0]}, "sst2": {"2": [0 if alike else 1]}}
    assert result.metrics["routing_failed"] is alike


# --- what is wrong -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("M080", ["--tasks", "sst2,mrpc,sst2"]),
        ("M081", ["--tasks", "sst2,mrpc", "--task", "rte"]),
        ("M081", ["--tasks", "sst2,mrpc", "--train-file", "mine.csv"]),
        ("M082", ["--tasks", "sst2,mrpc", "--set", "teachers.rte=teacher-sst2"]),
        ("M082", ["--task", "sst2", "--set", "teachers.sst2=teacher-sst2"]),
        ("M085", ["--tasks", "sst2,mrpc", "--set", "teachers.sst2=teacher-sst2", "--set", "method=tinybert"]),
        ("M086", ["--task", "sst2", "--set", 'teacher.models=["teacher-sst2", "teacher-sst2-b"]', "--set", "method=tinybert"]),
        ("M083", ["--tasks", "sst2,stsb", "--teacher", "teacher-{task}", "--set", "method=microbert"]),
        ("M005", ["--tasks", "sst2,mrcp"]),
        ("M003", ["--tasks", "sst2,mrpc", "--set", "sampling=cubic"]),
    ],
)  # fmt: skip
def test_wrong_recipes(code: str, words: list[str]) -> None:
    refused(
        3,
        code,
        "task-distill",
        *words,
        "--student",
        "bert-1x16",
        "--data",
        "glue",
        "--set",
        "teacher.allow_weak=true",
        "-o",
        "no",
    )


def test_wrong_words_and_models() -> None:
    refused(2, "M131", "task-distill", "--tasks", "sst2,,mrpc", "--student", "bert-1x8")
    refused(
        4, "M203", "task-distill", "--tasks", "sst2,mrpc", "--teacher", "runs/{task}", "--student", "bert-1x8", "--data", "glue"
    )
    tiny_bert("teacher-wide", labels=["negative", "positive"], hidden=24)
    words = [
        "--tasks",
        "sst2,mrpc",
        "--student",
        "bert-1x16",
        "--data",
        "glue",
        "--set",
        "teacher.allow_weak=true",
        "--set",
        "method=tinybert",
    ]
    error = refused(3, "M087", "task-distill", *words, "--set", 'teachers={ sst2 = "teacher-wide", mrpc = "teacher-mrpc" }')
    assert "2 x 24" in error["what"] and "2 x 16" in error["what"]


def test_two_files_of_one_name() -> None:
    for folder in ("one", "two"):
        Path(folder).mkdir()
        Path(folder, "mine.toml").write_text('text = ["a"]\nlabel = { kind = "score" }\nfiles = { train = "a.csv" }\n')
    with pytest.raises(MbertError) as caught:
        resolve(catalog=CATALOG, flags={"tasks": ["one/mine.toml", "two/mine.toml", "sst 2"]}, environment={})
    raised = caught.value
    assert isinstance(raised, ManyErrors) and {error.code for error in raised.errors} == {"M080", "M084", "M005"}


def test_a_model_of_other_tasks() -> None:
    distil("pair", tasks=["sst2", "mrpc"], teacher__model="teacher-{task}")
    again = distil("again-pair", student="pair", tasks=["mrpc", "sst2"], teacher__model="teacher-{task}")
    assert list(again.metrics["tasks"]) == ["mrpc", "sst2"]
    with pytest.raises(MbertError) as caught:
        distil("no", student="pair", tasks=["sst2", "stsb"], teacher__model="teacher-{task}")
    assert caught.value.code == "M089"
