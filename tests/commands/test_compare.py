"""`mbert compare`: rows with real runs behind them, kept, added, resumed and tried; what is said of their fairness."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from xml.etree import ElementTree

import pytest
from mbert_command import mbert, refused, works
from tiny_models import tiny_bert, tiny_glue

from microbert_cli.evaluation.compare import fairness, plot, table
from microbert_cli.evaluation.compare.costs import seconds_by_phase
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.runs.stage_inputs import step
from microbert_cli.signals import Interrupted
from microbert_cli.training import phases

RECIPE = """
task = "sst2"
base = "base"
student = "small"
method = "tinybert"
stages = ["finetune", "distilled", "labels", "evaluate"]
data = { folder = "glue", max_length = 24 }
finetune = { learning_rate = 1e-2, epochs = 12, batch_size = 8, evaluations = 1 }
phases.intermediate = { steps = 6, batch_size = 8 }
phases.prediction = { steps = 30, batch_size = 8, learning_rate = 2e-2, evaluations = 1 }

[variant.distilled]
stage = "task-distill"
seeds = [1, 2]

[variant.labels]
stage = "finetune"
seeds = [1, 2]
finetune = { model = "small", epochs = 4, learning_rate = 2e-2 }
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with models, rows without a test file, and a finished comparison in runs/compare-two."""
    place = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("MBERT_CACHE", str(place / ".cache"))
        tiny_glue("glue", ["sst2", "mrpc"])
        for file in place.glob("glue/*/test.tsv"):
            file.unlink()  # who reads it fails
        tiny_bert("base", kind="masked-lm", dropout=0.0)
        tiny_bert("small", kind="encoder", layers=1, hidden=16, seed=3)
        Path("two.toml").write_text(RECIPE, encoding="utf-8")
        works("compare", "two.toml")
        yield place


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("MBERT_CACHE", str(home / ".cache"))


@pytest.fixture
def copied(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder once more, to change things in."""
    shutil.copytree(home, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy" / "runs" / "compare-two"


def read(path: Path | str) -> dict:
    return json.loads((Path(path) / "metrics.json").read_text(encoding="utf-8"))


def section(metrics: dict) -> dict:
    return metrics["tasks"]["sst2"]


def row_of(metrics: dict, name: str) -> dict:
    return next(row for row in section(metrics)["rows"] if row["row"] == name)


# --- the table ------------------------------------------------------------------------------------------------------------


def test_the_table_is_what_the_rows_came_to() -> None:
    metrics = read("runs/compare-two/comparison")
    assert [row["row"] for row in section(metrics)["rows"]] == ["distilled", "labels"]
    teacher = read("runs/compare-two/finetune")["dev"]["accuracy"]
    assert section(metrics)["teacher"]["score"] == teacher > section(metrics)["majority"] == 0.5
    for name in ("distilled", "labels"):
        row, result = row_of(metrics, name), read(f"runs/compare-two/{name}")
        each = [result["seeds"][seed]["accuracy"] for seed in ("1", "2")]
        assert row["by_seed"] == {"1": each[0], "2": each[1]}
        assert row["score"] == pytest.approx(mean(each)) and row["spread"] == pytest.approx(stdev(each))
        assert row["retention"] == pytest.approx(row["score"] / teacher)
        assert row["parameters"] == result["parameters"] and row["latency_ms"] > 0 and row["seconds"] > 0
        assert row["seconds_in_all"] > row["seconds"] and row["steps_in_all"] == 2 * row["steps"]
    assert row_of(metrics, "distilled")["steps"] == 36 and row_of(metrics, "distilled")["rows_seen"] == 36 * 8
    assert row_of(metrics, "labels")["steps"] == 20 and row_of(metrics, "labels")["rows_seen"] == 160
    assert row_of(metrics, "distilled")["teacher_answers"] == "asked first"
    assert row_of(metrics, "distilled")["teacher_asked"] == 2 * 40 and row_of(metrics, "labels")["teacher_answers"] is None
    assert len({row["latency_ms"] for row in section(metrics)["rows"]}) == 1, "one shape, one measurement"


def test_differences_are_those_of_the_seeds() -> None:
    metrics = read("runs/compare-two/comparison")
    (entry,) = section(metrics)["differences"]
    first, second = row_of(metrics, "distilled"), row_of(metrics, "labels")
    each = [second["by_seed"][seed] - first["by_seed"][seed] for seed in ("1", "2")]
    assert entry["row"] == "labels" and entry["against"] == "distilled"
    assert entry["difference"] == pytest.approx(second["score"] - first["score"]) == pytest.approx(entry["paired"]["mean"])
    assert entry["paired"]["spread"] == pytest.approx(stdev(each)) and entry["paired"]["seeds"] == 2


def test_what_is_unequal_is_said_and_what_is_equal_is_not() -> None:
    remarks = "\n".join(section(read("runs/compare-two/comparison"))["remarks"])
    assert "Budgets differ, optimiser steps of a seed: distilled 36; labels 20." in remarks
    assert "Budgets differ, rows seen by a seed: distilled 288; labels 160." in remarks
    assert "Fewer than 3 seeds (distilled, labels)" in remarks and "test rows were not read" in remarks
    assert (
        "Seeds differ" not in remarks
        and "learnt nothing" not in remarks
        and "rows differ" not in remarks
        and "shapes differ" not in remarks
        and "start" not in remarks
    )


def test_markdown_and_plot_show_every_row() -> None:
    text = Path("runs/compare-two/comparison/table.md").read_text(encoding="utf-8")
    for line in ("| distilled | ", "| labels | ", "| teacher | ", "| commonest class | 0.5000 |", "![Score against latency]"):
        assert line in text
    drawn = ElementTree.parse("runs/compare-two/comparison/plot.svg").getroot()
    words = [element.text for element in drawn.iter() if element.tag.endswith("text")]
    assert {"distilled", "labels", "teacher", "accuracy on dev"} <= set(words)


def test_the_plan_is_shown_before_and_alone_with_dry_run(home: Path) -> None:
    before = sorted(home.rglob("*"))
    plan = works("compare", "two.toml", "microbert", "--ablate", "dis,hidn", "--dry-run", "--json").json["tasks"]["sst2"]
    assert [step["stage"] for step in plan["before"]] == ["finetune"]
    rows = {row["row"]: row for row in plan["rows"]}
    assert list(rows) == ["distilled", "labels", "microbert", "microbert without dis", "microbert without hidn"]
    assert rows["labels"]["state"] == "exists" and rows["microbert"]["state"] == "new"
    assert rows["microbert without hidn"]["phases"] == ["all 3 epochs"], "the other phases are TinyBERT's or left out"
    assert rows["microbert"]["inputs"]["teacher"] == "runs/compare-two/finetune" and rows["labels"]["seeds"] == [1, 2]
    shown = works("compare", "two.toml", "--seeds", "5,6,7", "--dry-run").out
    assert "5,6,7" in shown and "intermediate 6 steps; prediction 30 steps" in shown
    assert sorted(home.rglob("*")) == before


# --- kept, added, made anew, gone on ----------------------------------------------------------------------------------------


def manifests_of(place: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in place.glob("*/manifest.json")}


def test_a_finished_comparison_has_nothing_to_do(home: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()}
    done = works("compare", "two.toml")
    assert "distilled: up to date" in done.err and "labels: up to date" in done.err and "everything up to date" in done.err
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()} == before
    assert done.out == "runs/compare-two/comparison\n", "the path alone"
    metrics = works("compare", "two.toml", "--json").json
    assert metrics["out"] == "runs/compare-two/comparison"
    assert [row["directory"] for row in metrics["tasks"]["sst2"]["rows"]] == ["../distilled", "../labels"], "as seen from there"


@pytest.mark.slow
def test_an_added_row_runs_alone_and_a_changed_one_is_made_anew(copied: Path) -> None:
    before = manifests_of(copied)
    steps = ("--set", "phases.prediction.steps=31")
    done = works("compare", "two.toml", "soft-targets", *steps)
    after = manifests_of(copied)
    assert {name for name in before if before[name] != after[name]} == {"distilled", "comparison"}
    assert "distilled: made anew, because recipe.phases.prediction.steps: 30 -> 31" in done.err
    assert before["distilled"] == after["distilled.old-1"] and before["comparison"] == after["comparison.old-1"]
    metrics = read(copied / "comparison")
    assert [row["row"] for row in section(metrics)["rows"]] == ["distilled", "labels", "soft-targets"]
    assert row_of(metrics, "soft-targets")["steps"] == 31 and "intermediate" not in read(copied / "soft-targets")["phases"]
    remarks = "\n".join(section(metrics)["remarks"])
    assert "Seeds differ: distilled 1, 2; labels 1, 2; soft-targets 42." in remarks
    assert "Fewer than 3 seeds (distilled, labels, soft-targets)" in remarks
    assert "soft-targets: from the cache" in remarks


@pytest.mark.slow
def test_stopped_in_a_row_it_goes_on_there(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at the second seed of the second row: the rest is trained, and equals what was never stopped."""
    before = manifests_of(copied)
    kept = copied.with_name("kept")
    shutil.move(copied / "labels", kept)
    shutil.rmtree(copied / "comparison")
    real, seen = phases.train, []

    def stopping(*given: object, **named: object) -> object:
        if named["seed"] == 2:
            raise Interrupted(signal.SIGTERM)
        return real(*given, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(phases, "train", stopping)
        assert mbert("compare", "two.toml").code == 143
    assert not (copied / "labels").exists() and not (copied / "comparison").exists()
    with monkeypatch.context() as patch:
        patch.setattr(phases, "train", lambda *given, **named: seen.append(named["seed"]) or real(*given, **named))
        works("compare", "two.toml")
    assert seen == [2], "neither the first row nor the first seed is trained again"
    assert manifests_of(copied)["distilled"] == before["distilled"]
    for name in ("model.safetensors", "metrics.json", "seed-2/model.safetensors"):
        assert (copied / "labels" / name).read_bytes() == (kept / name).read_bytes()
    assert row_of(read(copied / "comparison"), "labels")["seconds"] > 0


# --- grids, ablations, tasks --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_grid_is_chosen_on_dev_with_the_first_seed(copied: Path) -> None:
    key = "phases.prediction.learning_rate"
    works("compare", "two.toml", "--grid", f"{key}=1e-9,2e-2,1e30", "--grid", "phases.prediction.warmup=0.1", "-q")
    metrics = read(copied / "comparison")
    row = row_of(metrics, "distilled")
    tried = {trial["values"][key]: trial for trial in row["tried"]}
    assert tried.keys() == {1e-9, 2e-2, 1e30} and tried[1e30]["dev"] is None
    for rate in (1e-9, 2e-2):
        result = read(copied / "comparison" / tried[rate]["directory"])
        assert tried[rate]["dev"] == result["dev"]["accuracy"] and "seeds" not in result and result["seed"] == 1
    assert tried[2e-2]["dev"] > tried[1e-9]["dev"]
    assert row["chosen"] == {key: 2e-2, "phases.prediction.warmup": 0.1} and set(row["by_seed"]) == {"1", "2"}
    assert read(copied / "distilled")["phases"]["prediction"]["learning_rate"] == 2e-2
    assert row_of(metrics, "labels")["tried"] == [] and row["grid_seconds"] > 0
    assert "Values of the grid tried differ: distilled 3; labels 0." in section(metrics)["remarks"]
    text = (copied / "comparison" / "table.md").read_text(encoding="utf-8")
    assert "| diverged |" in text and "| chosen |" in text and "What the grid tried" in text


def test_a_row_that_fails_does_not_keep_the_others_from_running(copied: Path) -> None:
    shutil.move(copied / "labels", copied / "labels.old-1")
    words = ("--grid", "phases.prediction.learning_rate=1e30,2e30")
    assert "diverged" in refused(3, "M067", "compare", "two.toml", *words)["what"]
    assert (copied / "labels" / "manifest.json").is_file(), "the row after it is done"
    assert manifests_of(copied)["comparison"], "and the table of before is as it was"


@pytest.mark.slow
def test_an_ablation_is_a_row_of_its_method(copied: Path) -> None:
    steps = [f"--set=phases.{name}.steps=2" for name in ("alignment", "all")]
    words = ("compare", "microbert", "-r", "two.toml", "--ablate", "dis", "--seeds", "1,2,3", "-o", copied, *steps)
    metrics = works(*words, "--json").json
    full, part = section(metrics)["rows"]
    assert (full["row"], part["row"], part["of"], part["without"]) == ("microbert", "microbert without dis", "microbert", "dis")
    losses = [read(copied / name)["phases"]["all"]["losses"] for name in ("microbert", "microbert-without-dis")]
    assert "discriminator" in losses[0] and "discriminator" not in losses[1]
    remarks = "\n".join(section(metrics)["remarks"])
    assert "Budgets differ" not in remarks and "Fewer than 3 seeds" not in remarks
    assert metrics.pop("out") == str(copied / "comparison")
    assert read(copied / "comparison") == metrics


@pytest.mark.slow
def test_several_tasks_each_with_its_teacher(copied: Path) -> None:
    shutil.copytree(copied / "finetune", "teachers/sst2")
    works("finetune", "two.toml", "--task", "mrpc", "-o", "teachers/mrpc", "-q")
    words = ("compare", "soft-targets", "labels-alone", "--teacher", "teachers/{task}", "--student", "small", "--seeds", "1,2")
    steps = ("--set", "phases.prediction.steps=4", "--set", "phases.labels.steps=4", "--data", "glue")
    metrics = works(*words, *steps, "--tasks", "sst2,mrpc", "-o", "both", "--set=teacher.allow_weak=true", "--json").json
    assert list(metrics["tasks"]) == ["sst2", "mrpc"]
    for task, result in metrics["tasks"].items():
        assert result["teacher"]["directory"] == f"../../teachers/{task}"
        assert result["teacher"]["score"] == read(f"teachers/{task}")["dev"][result["primary"]]
    for average in metrics["average"]:
        rows = [next(r for r in result["rows"] if r["row"] == average["row"]) for result in metrics["tasks"].values()]
        assert average["score"] == pytest.approx(mean(row["score"] for row in rows))
        each = [mean(row["by_seed"][seed] for row in rows) for seed in ("1", "2")]
        assert average["spread"] == pytest.approx(stdev(each)) and average["tasks"] == 2
    assert "## Mean over the tasks" in Path("both/comparison/table.md").read_text(encoding="utf-8")


def test_the_task_of_a_place_is_the_recipes(tmp_path: Path) -> None:
    flags = {"teacher.model": "runs/teacher-{task}", "init": "runs/general-{task}", "task": "mrpc"}
    planned = step("task-distill", resolve(catalog=Catalog(), environment={}, flags=flags), tmp_path, Catalog())
    assert (planned.inputs["teacher"], planned.inputs["student"]) == ("runs/teacher-mrpc", "runs/general-mrpc")


def test_without_matplotlib_the_table_is_whole(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microbert_cli.stages.compare.find_spec", lambda name: None)
    done = works("compare", "two.toml")
    assert 'pip install "microbert-cli[plot]"' in done.err
    metrics = read(copied / "comparison")
    assert metrics["plot"] is None and not (copied / "comparison" / "plot.svg").exists()
    assert len(section(metrics)["rows"]) == 2


# --- parts --------------------------------------------------------------------------------------------------------------------


def test_a_step_that_was_lost_and_done_again_counts_once(tmp_path: Path) -> None:
    lines = [
        {"phase": "a", "step": 1, "seconds": 1.0}, {"phase": "a", "step": 2, "seconds": 1.5},
        {"phase": "a", "step": 2, "dev": {}, "seconds": 1.75}, {"phase": "a", "step": 3, "seconds": 9.0},  # lost
        {"phase": "a", "step": 3, "seconds": 0.5}, {"phase": "a", "step": 4, "seconds": 0.75},  # gone on after step 2
        {"phase": "b", "step": 1, "seconds": 2.0},
    ]  # fmt: skip
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert seconds_by_phase(tmp_path / "log.jsonl") == {"a": 1.0 + 0.5 + 0.25 + 0.5 + 0.25, "b": 2.0}


def compared(name: str, scores: list[float], of: str | None = None) -> dict:
    by_seed = {str(seed): score for seed, score in enumerate(scores)}
    spread = stdev(scores) if len(scores) > 1 else None
    return {"row": name, "of": of, "score": mean(scores), "spread": spread, "by_seed": by_seed}


def test_a_difference_smaller_than_the_spread_is_told_as_none() -> None:
    rows = [compared("a", [0.5, 0.6, 0.7]), compared("b", [0.55, 0.65, 0.75]), compared("c", [0.9, 0.91, 0.92])]
    rows += [compared("b without x", [0.6, 0.7, 0.5], of="b"), compared("d", [0.9])]
    differences = {(difference["row"], difference["against"]): difference for difference in fairness.differences(rows)}
    assert list(differences) == [("b", "a"), ("c", "a"), ("b without x", "a"), ("d", "a"), ("b without x", "b")]
    assert differences["b", "a"]["paired"]["mean"] == pytest.approx(0.05) and differences["b", "a"]["paired"]["spread"] < 1e-9
    assert [differences[pair]["beyond_spread"] for pair in differences] == [False, True, False, None, False]
    assert list(fairness._below_majority(rows, 0.6)) == [
        "No better than the commonest class: a, b without x. They learnt nothing; differences from them show nothing."
    ]
    words = [line[-1] for line in table.differences_lines({"differences": list(differences.values())})]
    assert words[0] == "within the spread: no difference is shown" and words[1] == "larger than the spread"
    assert words[3] == "one seed: cannot be told from chance"


@pytest.mark.parametrize("wanted", [[0.1] * 6, [0.95] * 6, [0.0, 0.5, 0.5, 0.5, 0.51, 1.0], [0.5]])
def test_names_in_the_plot_do_not_overlap(wanted: list[float]) -> None:
    heights = plot._spread_out(wanted, 0.1, 0.05, 0.95)
    assert all(right - left >= 0.0999 for left, right in zip(heights[:-1], heights[1:], strict=True))
    assert all(0.0499 <= height <= 0.9501 for height in heights)


# --- wrong input --------------------------------------------------------------------------------------------------------------

RATE = "phases.prediction.learning_rate"
WRONG = [
    (2, "M121", ("two.toml", "tinybret"), "tinybert"),
    (2, "M121", ("nowhere",), "recipe"),
    (4, "M201", ("nowhere.toml",), "nowhere.toml"),
    (3, "M064", ("two.toml", "tinybert", "tinybert"), "tinybert"),
    (3, "M064", ("two.toml", "two.toml"), "distilled"),
    (3, "M062", ("tinybert", "--teacher", "base", "--student", "small"), "tinybert"),
    (3, "M022", ("tinybert", "--student", "small", "--task", "sst2"), "nothing is named"),
    (3, "M063", ("two.toml", "other.toml"), "mrpc"),
    (3, "M061", ("nothing.toml",), "compared"),
    (3, "M065", ("two.toml", "--ablate", "dis"), "dis"),
    (3, "M065", ("two.toml", "microbert", "--ablate", "dsi"), "dsi"),
    (2, "M125", ("two.toml", "--ablate", "dis,,pred"), "dis,,pred"),
    (2, "M125", ("two.toml", "--tasks", "sst2,sst2"), "sst2,sst2"),
    (3, "M005", ("two.toml", "--tasks", "sst2,sst3"), "sst3"),
    (2, "M102", ("two.toml", "--seeds", "1,1"), "1,1"),
    (2, "M123", ("two.toml", "--grid", f"{RATE}="), RATE),
    (2, "M123", ("two.toml", "--grid", RATE), RATE),
    (2, "M123", ("two.toml", "--grid", f"{RATE}=1e-3,1e-3"), RATE),
    (2, "M123", ("two.toml", "--grid", f"{RATE}=1e-3", "--grid", f"{RATE}=1e-4"), RATE),
    (2, "M124", ("two.toml", "--grid", "data.limit=10,20"), "data.limit"),
    (2, "M124", ("two.toml", "--grid", "seed=1,2"), "seed"),
    (3, "M002", ("two.toml", "--grid", "phases.prediction.learning_rat=1e-3"), "learning_rat"),
    (3, "M002", ("two.toml", "--grid", "nonsense=1"), "--grid, nonsense"),
    (3, "M003", ("two.toml", "--grid", f"{RATE}=fast,slow"), "fast"),
    (3, "M066", ("two.toml", "--grid", "general.learning_rate=1e-3,1e-4"), "general.learning_rate"),
    (3, "M066", ("two.toml", "--grid", "phases.prediction.losses.hard_label.weight=1,2"), "hard_label"),
]


@pytest.mark.parametrize(("exit_code", "code", "words", "named"), WRONG)
def test_what_is_wrong_is_named_before_anything_runs(
    exit_code: int, code: str, words: tuple[str, ...], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in ("base", "small", "glue"):
        (tmp_path / model).symlink_to(Path(model).absolute())
    (tmp_path / "two.toml").write_text(RECIPE)
    (tmp_path / "other.toml").write_text(RECIPE.replace('"sst2"', '"mrpc"'))
    (tmp_path / "nothing.toml").write_text('task = "sst2"\nbase = "base"\ncorpus = "c.txt"\nstages = ["pretrain", "evaluate"]')
    monkeypatch.chdir(tmp_path)
    error = refused(exit_code, code, "compare", *words)
    assert named in " ".join(str(part) for part in error.values())
    assert not Path("runs").exists()


def test_a_name_of_both_kinds_is_refused(tmp_path: Path) -> None:
    for kind in ("methods", "recipes"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "mine.toml").write_text("")
    refused(2, "M122", "compare", "mine", "--include", tmp_path)
