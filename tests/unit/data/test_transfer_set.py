"""A transfer set: texts without labels. Which phase takes it, how it is read, and that a run does what its plan says."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mbert_command import refused, works
from recording import RecordingReporter
from tiny_models import WORDS, tiny_bert, tiny_glue, tiny_rows

from microbert_cli import api
from microbert_cli.data.transfer_set import load_transfer
from microbert_cli.errors import ManyErrors, MbertError
from microbert_cli.evaluation.compare.costs import costs
from microbert_cli.exporting.card_facts import _lineage
from microbert_cli.plan import stages
from microbert_cli.plan.calibration import Calibration
from microbert_cli.plan.doctor import data_checks, model_checks
from microbert_cli.plan.doctor.context import DoctorContext
from microbert_cli.plan.doctor.first_step import first_step
from microbert_cli.recipe.phase_data import choose_split, phase_split, trained_splits, unused_transfer_note
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import Resolved, resolve
from microbert_cli.recipe.task import Task, load_task
from microbert_cli.runs import manifest
from microbert_cli.runs.run_record import _data_paths
from microbert_cli.runs.stage_inputs import steps
from microbert_cli.training.objective import Objective

CATALOG = Catalog()
LINES = [texts[0] for texts, _ in tiny_rows("sst2", 21)["train"]]
PAIRS = [texts for texts, _ in tiny_rows("mrpc", 19)["train"]]
SHORT = {"steps": 5, "batch_size": 8, "learning_rates": [], "evaluations": 1}
RECIPE = """
task    = "sst2"
student = "bert-1x16"
method  = "pd"
stages  = ["task-distill"]
data    = { folder = "glue", transfer_file = "texts.txt" }
teacher = { model = "taught", allow_weak = true }
seeds   = [1, 2]

[phases.transfer]
batch_size     = 8
learning_rates = [1e-2, 1e-3]

[phases.labels]
leave_out  = false
epochs     = 1
batch_size = 8
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with rows, teachers and transfer sets."""
    place = tmp_path_factory.mktemp("transfer")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        tiny_glue("glue", ["sst2", "mrpc"], rows=32)
        tiny_bert("taught", labels=["negative", "positive"], dropout=0.0)
        tiny_bert("taught-mrpc", labels=["not_equivalent", "equivalent"], dropout=0.0)
        Path("texts.txt").write_text("\n".join(LINES), encoding="utf-8")
        Path("small.toml").write_text(RECIPE, encoding="utf-8")
        write_pairs(Path("pairs.jsonl"))
        yield place


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path / "cache"))


def write_pairs(path: Path, **more: Any) -> None:
    rows = [{"sentence1": first, "sentence2": second, **more} for first, second in PAIRS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def recipe_of(**flags: Any) -> Resolved:
    return resolve(catalog=CATALOG, flags={key.replace("__", "."): value for key, value in flags.items()}, environment={})


def distil(out: Path, *, phase: str = "transfer", **keys: Any) -> Any:
    short = {f"phases__{phase}__{key}": value for key, value in SHORT.items()}
    data = {"task": "sst2", "data__folder": "glue", "teacher__allow_weak": True, "student": "bert-1x16"}
    return api.distill(**{"out": out, "teacher": "taught", "method": "pd", **short, **data, **keys})


def planned(resolved: Resolved) -> Any:
    """The plan of a recipe of one stage, without prices."""
    here = Calibration(device="cpu", catalog=CATALOG, counts_only=True)
    (plan,) = stages.plan_steps(steps(resolved, Path("runs"), CATALOG), catalog=CATALOG, here=here)
    return plan


def look(check: Any, *sets: str) -> dict[str, Any]:
    """What one of the doctor's checks finds, as {about: finding}."""
    return {finding.about: finding for finding in check(_case(*sets))}


def _case(*sets: str) -> DoctorContext:
    resolved = resolve(catalog=CATALOG, recipe="small.toml", sets=sets, environment={})
    return DoctorContext(steps(resolved, Path("elsewhere"), CATALOG), Path("elsewhere"), CATALOG, offline=True)


def task(name: str) -> Task:
    return load_task(CATALOG.path("tasks", name, where="task"))


# --- the rule -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "needs_labels", "there", "expected"),
    [
        ("auto", False, "train transfer", "transfer"),
        ("auto", False, "train augmented transfer", "transfer"),
        ("auto", True, "train augmented transfer", "augmented"),
        ("auto", True, "train transfer", "train"),
        ("auto", False, "train augmented", "augmented"),
        ("auto", False, "train", "train"),
        ("transfer", False, "train augmented transfer", "transfer"),
        ("augmented", False, "train augmented transfer", "augmented"),
        ("augmented", False, "train transfer", "train"),
        ("original", False, "train augmented transfer", "train"),
    ],
)
def test_which_rows_a_phase_trains_on(setting: str, needs_labels: bool, there: str, expected: str) -> None:
    assert choose_split(setting, needs_labels=needs_labels, available=there.split()) == expected


def test_which_losses_need_labels(tmp_path: Path) -> None:
    """One that looks at labels where there are any does not; one whose adversary needs them does."""
    assert [name for name in CATALOG.names("losses") if CATALOG.loss_needs_labels(name)] == [
        "bidirectional_target",
        "hard_label",
    ]
    (tmp_path / "losses").mkdir()
    head = 'needs = {"logits", "labels"}\nover = "batch"\ndef mine(student_BC, teacher_BC): ...\n'
    (tmp_path / "losses" / "mine.py").write_text(head + "def against(student_BC, labels_B): ...\n", encoding="utf-8")
    assert Catalog([tmp_path]).loss_needs_labels("mine")


def test_phases_of_methods() -> None:
    """PD's first phase takes it and its second does not; nothing of soft and hard labels together does."""
    taken = {"data__transfer_file": "texts.txt", "task": "sst2"}
    recipe = recipe_of(method="pd", phases__labels__leave_out=False, **taken).recipe
    splits = [phase_split(phase, CATALOG, trained_splits(recipe, CATALOG)) for phase in recipe.run_phases.values()]
    assert splits == ["transfer", "train"] and unused_transfer_note(recipe, CATALOG) is None
    kd = recipe_of(method="kd", **taken).recipe
    assert trained_splits(kd, CATALOG) == ("train", "dev") and "texts.txt" in str(unused_transfer_note(kd, CATALOG))
    without = [name for name in kd.phases["distillation"].losses if name == "hard_label"]
    bare = recipe_of(method="kd", **taken, **{f"phases__distillation__losses__{name}__weight": 0 for name in without}).recipe
    assert trained_splits(bare, CATALOG) == ("train", "dev", "transfer"), "a weight of 0 does not count"


def test_what_a_phase_cannot_have_is_said_as_the_recipe_is_read() -> None:
    keys = {"stages": ["task-distill"], "task": "sst2", "method": "pd", "phases__labels__leave_out": False}
    with pytest.raises(ManyErrors) as errors:
        recipe_of(**keys, phases__transfer__data="transfer", phases__labels__data="transfer")
    assert [error.code for error in errors.value.errors] == ["M140", "M140", "M141"]
    with pytest.raises(MbertError) as error:
        recipe_of(**keys, phases__labels__data="transfer", data__transfer_file="texts.txt")
    assert error.value.code == "M141" and "hard_label" in error.value.what
    recipe_of(**{**keys, "phases__labels__leave_out": True}, phases__labels__data="transfer")


def test_one_stage_alone_is_refused_with_the_command_that_mends_it() -> None:
    words = ("task-distill", "--task", "sst2", "--teacher", "taught", "--student", "bert-1x16", "--set", "method=pd")
    error = refused(2, "M140", *words, "--set", "phases.transfer.data=transfer", "--dry-run")
    assert "--transfer-file" in error["fix"]
    works(*words, "--set", "phases.transfer.data=transfer", "--transfer-file", "texts.txt", "--dry-run")


# --- reading --------------------------------------------------------------------------------------------------------------


def test_lines_of_text(tmp_path: Path) -> None:
    plain = '\ufeffone text\r\n\n  \nwith\ta tab and "quotes\nlast,\u2028line'
    (tmp_path / "a.txt").write_bytes(plain.encode())
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(plain.encode()))
    for name in ("a.txt", "a.txt.gz"):
        rows = load_transfer(tmp_path / name, task("sst2"))
        assert rows.texts == [("one text",), ('with\ta tab and "quotes',), ("last,\u2028line",)] and rows.labels is None


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_tables_whose_labels_nobody_reads(suffix: str, tmp_path: Path) -> None:
    import pandas

    frame = pandas.DataFrame({"label": ["none of them", "", "7"], "sentence2": ["a", "b", "c"], "sentence1": ["x", "y", "z"]})
    path = tmp_path / f"t{suffix}"
    {
        ".csv": lambda: frame.to_csv(path, index=False),
        ".tsv": lambda: frame.to_csv(path, index=False, sep="\t"),
        ".jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        ".parquet": lambda: frame.to_parquet(path),
    }[suffix]()
    rows = load_transfer(path, task("mrpc"))
    assert rows.texts == [("x", "a"), ("y", "b"), ("z", "c")] and rows.labels is None


@pytest.mark.parametrize(
    ("name", "content", "about", "code", "words"),
    [
        ("a.csv", "text,label\na,1\n", "sst2", "M253", "sentence"),
        ("a.csv", "sentence\n", "sst2", "M357", "no rows"),
        ("a.txt", "\n \n", "sst2", "M357", "no rows"),
        ("a.txt", "label\tsentence\n1\ta\n", "sst2", "M367", "names columns"),
        ("a.txt", "one\n", "mrpc", "M367", "asks 2"),
        ("a.xlsx", "[]", "sst2", "M367", ".xlsx"),
        ("a.csv", "sentence\na\n' '\n", "sst2", "M352", "empty"),
        ("a.txt", None, "sst2", "M252", "no such file"),
    ],
)
def test_what_is_no_transfer_set(name: str, content: str | None, about: str, code: str, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content.replace("' '", '" "'), encoding="utf-8")
    with pytest.raises(MbertError) as error:
        load_transfer(tmp_path / name, task(about))
    assert error.value.code == code and words in error.value.what
    assert code != "M253" or "--text" not in error.value.fix, "columns of a catalogued task are not named by options"


# --- a run ----------------------------------------------------------------------------------------------------------------


def test_the_run_does_what_the_plan_says_and_records_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds, two learning rates, then a phase with labels: steps and tokens as planned, labels seen in that one alone."""
    plan = planned(resolve(catalog=CATALOG, recipe="small.toml", environment={}))
    seen: list[tuple[int, bool]] = []
    losses = Objective.losses

    def counted(self: Objective, batch: Any) -> Any:
        seen.append((batch["input_ids"].numel(), "labels" in batch))
        return losses(self, batch)

    monkeypatch.setattr(Objective, "losses", counted)
    (result,) = api.run("small.toml", out="runs")
    transfer, labels = 4 * -(-len(LINES) // 8), 32 // 8
    assert (len(seen), sum(tokens for tokens, _ in seen)) == (plan.steps, plan.tokens)
    assert len(seen) == 3 * transfer + 2 * labels and sum(labelled for _, labelled in seen) == 2 * labels
    phases, record = result.metrics["phases"], manifest.read(result.out)
    assert {name: phase["split"] for name, phase in phases.items()} == {"transfer": "transfer", "labels": "train"}
    assert record["data"]["transfer"]["rows"] == len(LINES)
    asked = [json.loads(line) for line in (result.out / "teacher.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["phase"], line["rows"]) for line in asked] == [("transfer", len(LINES))] and asked[0]["kept"]
    assert costs(result.out, record, phases, [1, 2])["rows_seen"] == 4 * len(LINES) + 32


def test_labels_of_a_transfer_set_change_nothing(tmp_path: Path) -> None:
    pairs = {"task": "mrpc", "teacher": "taught-mrpc", "data__transfer_file": "pairs.jsonl"}
    plain = distil(tmp_path / "plain", **pairs)
    write_pairs(tmp_path / "labelled.jsonl", label="of another task", Quality=1)
    labelled = distil(tmp_path / "labelled", **{**pairs, "data__transfer_file": str(tmp_path / "labelled.jsonl")})
    without = distil(tmp_path / "without", **{**pairs, "data__transfer_file": None})
    weights = [(result.out / "model.safetensors").read_bytes() for result in (plain, labelled, without)]
    assert weights[0] == weights[1] != weights[2]
    record = json.loads((labelled.out / "teacher.jsonl").read_text(encoding="utf-8"))
    assert (record["rows"], record["asked"]) == (len(PAIRS), 0), "the same texts: the teacher was asked before"
    assert f"transfer set: {len(PAIRS)} texts without labels" in _lineage(manifest.read(plain.out), None)


def test_a_teacher_of_other_words_reads_it_in_its_own(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "small", kind="encoder", layers=1, vocab=WORDS[:20])
    result = distil(tmp_path / "out", student=str(tmp_path / "small"), data__transfer_file="texts.txt")
    record = json.loads((result.out / "teacher.jsonl").read_text(encoding="utf-8"))
    assert (record["rows"], record["asked"]) == (len(LINES), len(LINES))


def test_a_changed_transfer_set_is_another_run_and_limit_does_not_cut_it(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(LINES), encoding="utf-8")
    keys = {"data__transfer_file": str(path), "data__limit": 16}
    record = manifest.read(distil(tmp_path / "out", **keys).out)
    assert {split: record["data"][split]["rows"] for split in ("train", "transfer")} == {"train": 16, "transfer": len(LINES)}
    moved = path.rename(tmp_path / "moved.txt")
    assert distil(tmp_path / "out", **{**keys, "data__transfer_file": str(moved)}).up_to_date, "the same texts elsewhere"
    moved.write_text("\n".join(LINES[1:]), encoding="utf-8")
    with pytest.raises(MbertError) as error:
        distil(tmp_path / "out", **{**keys, "data__transfer_file": str(moved)})
    assert error.value.code == "M110" and "transfer" in str(error.value)
    assert works("evaluate", tmp_path / "out", "--data", "glue", "--set", "evaluate.splits=['dev']", "-o", tmp_path / "score")


def test_a_transfer_set_that_no_phase_takes_is_said_aloud_and_not_read(tmp_path: Path) -> None:
    reporter = RecordingReporter()
    result = distil(tmp_path / "out", method="kd", phase="distillation", data__transfer_file="gone.txt", reporter=reporter)
    assert "gone.txt" in reporter.warnings[0] and "transfer" not in manifest.read(result.out)["data"]


def test_each_of_several_tasks_has_its_own(tmp_path: Path) -> None:
    """And the plan of several tasks shares the steps by these rows."""
    write_pairs(tmp_path / "mrpc.jsonl")
    lines = "".join(json.dumps({"sentence": line}) + "\n" for line in LINES)
    (tmp_path / "sst2.jsonl").write_text(lines, encoding="utf-8")
    several: dict[str, Any] = {"tasks": ["sst2", "mrpc"], "teachers": {"sst2": "taught", "mrpc": "taught-mrpc"}}
    keys = {"stages": ["task-distill"], "data__transfer_file": str(tmp_path / "{task}.jsonl"), **several}
    epochs = {"phases__transfer__steps": None, "phases__transfer__epochs": 2, "phases__transfer__batch_size": 8}
    result = distil(tmp_path / "out", task=None, teacher=None, **keys, **epochs)
    plan = planned(recipe_of(method="pd", student="bert-1x16", data__folder="glue", **keys, **epochs))
    data = manifest.read(result.out)["data"]
    assert (data["sst2 transfer"]["rows"], data["mrpc transfer"]["rows"]) == (len(LINES), len(PAIRS))
    assert result.metrics["phases"]["transfer"]["split"] == "transfer"
    assert result.metrics["phases"]["transfer"]["steps"] == plan.steps == 2 * 5, "40 rows by 8"
    named = {str(tmp_path / f"{task}.jsonl") for task in several["tasks"]}
    assert named <= {*_data_paths(recipe_of(**keys).recipe)}, "they count for whether a run is up to date"


@pytest.mark.slow
def test_a_comparison_says_which_rows_had_one(tmp_path: Path) -> None:
    words = ("compare", "pd", "kd", "--teacher", "taught", "--student", "bert-1x16", "--task", "sst2", "--data", "glue")
    sets = ["data.transfer_file=texts.txt", "teacher.allow_weak=true", "phases.transfer.learning_rates=[]"]
    sets += [f"phases.{phase}.{key}" for phase in ("transfer", "distillation") for key in ("steps=3", "batch_size=8")]
    (section,) = works(*words, *(f"--set={word}" for word in sets), "--json", "-o", tmp_path / "out").json["tasks"].values()
    assert f"Transfer sets differ: pd ({len(LINES)} texts); kd (none)." in section["remarks"]
    assert [row["rows_seen"] for row in section["rows"]] == [3 * len(LINES) / 3, 3 * 8]


# --- the doctor -----------------------------------------------------------------------------------------------------------


def test_the_doctor_looks_at_it() -> None:
    assert look(model_checks.inputs)["rows of sst2"].what == f"train 32; dev 16; transfer {len(LINES)}"
    assert {finding.state for finding in look(first_step).values()} == {"pass"}
    (warning,) = [each for each in data_checks.truncation(_case("data.max_length=4")) if "transfer set" in each.what]
    assert warning.state == "warn" and f"{len(LINES)} of {len(LINES)}" in warning.what


def test_the_doctor_sees_dev_in_it_and_one_that_is_not_used(tmp_path: Path) -> None:
    dev = [texts[0] for texts, _ in tiny_rows("sst2", 32)["dev"]]
    (tmp_path / "dev.txt").write_text("\n".join(text.upper() for text in dev), encoding="utf-8")
    assert look(data_checks.duplicates)["task-distill"].state == "pass"
    finding = look(data_checks.duplicates, f"data.transfer_file={tmp_path}/dev.txt")["task-distill"]
    assert finding.state == "warn" and f"{len(dev)} of {len(dev)} dev rows" in finding.what
    assert look(model_checks.inputs, "phases.transfer.data=original")["task-distill"].state == "warn"
    gone = look(model_checks.inputs, "data.transfer_file=gone.txt")["rows of sst2"]
    assert gone.state == "fail" and gone.error.code == "M252"
