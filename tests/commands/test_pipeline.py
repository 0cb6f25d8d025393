"""A small recipe through all stages: what is up to date is skipped, what changed is made anew and says why."""

import json
import os
from pathlib import Path

import pytest
from mbert_command import refused, works
from recording import RecordingReporter
from tiny_models import tiny_bert, tiny_glue

from microbert_cli import api
from microbert_cli.errors import MbertError
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.runs import manifest
from microbert_cli.runs.output_dir import stage_output
from microbert_cli.runs.stage_inputs import step, steps
from microbert_cli.runs.verify import verify_directory

pytestmark = pytest.mark.usefixtures("own_cache")
RECIPE = """
task    = "sst2"
base    = "base"
student = "bert-1x8"
method = "tinybert"
stages  = ["finetune", "general-distill", "augment", "alone", "task-distill", "evaluate"]

[data]
folder     = "glue"
max_length = 24

[finetune]
steps = 12
batch_size = 8
evaluations = 2
learning_rate = 2e-3

[teacher]
allow_weak = true

[corpus]
source     = "text.txt"
max_length = 32
heldout    = 0.2

[general]
steps = 4
batch_size = 8

[augment]
copies = 2

[phases.intermediate]
steps = 4
batch_size = 8

[phases.prediction]
steps = 6
batch_size = 8
learning_rates = [1e-3, 1e-4]
evaluations = 2

[variant.alone]
stage     = "task-distill"
init      = "random"
augmented = false
seeds     = [1, 2]
phases.intermediate.losses = { embedding = 0, hidden_states = 0, attention_scores = 0, hard_label = 1 }
"""
STAGES = ["finetune", "general-distill", "augment", "alone", "task-distill", "evaluate"]


def make_place(path):
    """A working folder: a base model, a GLUE folder, a corpus, a recipe."""
    path.mkdir()
    tiny_bert(path / "base", kind="masked-lm", layers=2, hidden=16)
    tiny_glue(path / "glue", ["sst2"])
    lines = (path / "glue" / "SST-2" / "train.tsv").read_text().splitlines()[1:]
    sentences = [line.split("\t")[0] for line in lines]
    (path / "text.txt").write_text("\n\n".join("\n".join(sentences[i : i + 4]) for i in range(0, 40, 4)))
    (path / "small.toml").write_text(RECIPE)
    return path


class Inside:
    """Runs the recipe in its folder, as a user does."""

    def __init__(self, path):
        self.path = path

    def run(self, **keys):
        before, reporter = os.getcwd(), RecordingReporter()
        os.chdir(self.path)
        try:
            return api.run("small.toml", out="runs/small", reporter=reporter, **keys), reporter.notes
        finally:
            os.chdir(before)

    def ran(self, **keys):
        """Names of the stages that were not up to date, and the reasons given."""
        results, notes = self.run(**keys)
        return [result.out.name for result in results if not result.up_to_date], notes

    def __truediv__(self, name):
        return self.path / "runs" / "small" / name


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """The same command in two folders."""
    places = [Inside(make_place(tmp_path_factory.mktemp("pipeline") / name)) for name in ("one", "two")]
    return [(place, place.run()) for place in places]


@pytest.fixture(scope="module")
def place(twins):
    return twins[0][0]


def files(folder):
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def test_all_stages_run(twins):
    place, (results, _) = twins[0]
    assert [result.out.name for result in results] == STAGES
    assert [result.stage for result in results] == [*STAGES[:3], "task-distill", "task-distill", "evaluate"]
    assert sorted(path.name for path in (place.path / "runs" / "small").iterdir()) == sorted(STAGES)
    for result in results:
        names = files(place / result.out.name)
        assert {"manifest.json", "metrics.json", "recipe.resolved.toml"} <= names.keys()
        assert json.loads(names["metrics.json"].read_text()) == json.loads(json.dumps(result.metrics))


def test_finished_outputs_hold_no_training_state(place):
    for stage in STAGES:
        names = files(place / stage)
        assert not [name for name in names if "state" in name or "phases" in name or name.startswith(".")], stage
    assert "resume/projection.safetensors" in files(place / "general-distill")
    assert not (place / "finetune" / "resume").exists()
    assert "shards" not in {path.name for path in (place / "augment").iterdir()}


def test_the_same_command_twice_gives_equal_files(twins):
    (first, _), (second, _) = twins
    compared = 0
    for stage in STAGES:
        actual, expected = files(first / stage), files(second / stage)
        assert actual.keys() == expected.keys()
        for name in actual:
            if name.endswith((".safetensors", ".parquet", "metrics.json", "config.json", "tokenizer.json", ".toml")):
                assert actual[name].read_bytes() == expected[name].read_bytes(), f"{stage}/{name}"
                compared += name.endswith((".safetensors", ".parquet"))
        manifests = [manifest.read(place / stage) for place in (first, second)]
        assert manifests[0]["identity"] == manifests[1]["identity"] and manifests[0]["result"] == manifests[1]["result"]
    assert compared >= 9


def test_another_seed_gives_other_weights(place, tmp_path):
    other = Inside(make_place(tmp_path / "other"))
    other.run(stages=["finetune"], seed=7)
    weights = [p / "finetune" / "model.safetensors" for p in (place, other)]
    assert weights[0].read_bytes() != weights[1].read_bytes()


def test_the_second_run_has_nothing_to_do(place):
    before = {name: path.stat().st_mtime_ns for name, path in files(place.path / "runs").items()}
    ran, _ = place.ran()
    assert ran == []
    assert {name: path.stat().st_mtime_ns for name, path in files(place.path / "runs").items()} == before


def test_variants_and_wires(place):
    metrics = {stage: json.loads((place / stage / "metrics.json").read_text()) for stage in STAGES}
    assert set(metrics["alone"]["seeds"]) == {"1", "2"} and "spread" in metrics["alone"]
    assert metrics["task-distill"]["phases"]["prediction"]["tried"].keys() == {"0.001", "0.0001"}
    manifests = {stage: manifest.read(place / stage) for stage in STAGES}
    assert manifests["task-distill"]["inputs"]["student"] == manifests["general-distill"]["result"]
    assert manifests["task-distill"]["inputs"]["teacher"] == manifests["finetune"]["result"]
    assert manifests["alone"]["inputs"]["augmented"] is None and manifests["task-distill"]["inputs"]["augmented"]
    assert manifests["evaluate"]["inputs"]["model"] == manifests["task-distill"]["result"]
    # The scores that training saw are those that the evaluator finds in the saved model.
    assert metrics["evaluate"]["dev"]["accuracy"] == metrics["task-distill"]["dev"]["accuracy"]
    assert metrics["evaluate"]["splits"]["dev"]["teacher"]["teacher_accuracy"] == metrics["finetune"]["dev"]["accuracy"]


def test_later_seeds_take_the_first_ones_learning_rate(place):
    first, second = (json.loads((place / "alone" / f"seed-{seed}" / "seed.json").read_text())["scores"] for seed in (1, 2))
    assert "tried" in first["phases"]["prediction"] and "tried" not in second["phases"]["prediction"]
    assert first["phases"]["prediction"]["learning_rate"] == second["phases"]["prediction"]["learning_rate"]


CHANGES = [
    ({"evaluate__precision": "torch"}, ["evaluate"], "evaluate: made anew, because recipe.evaluate.precision: auto -> torch"),
    (
        {"augment__copies": 1},
        ["augment", "task-distill", "evaluate"],
        "augment: made anew, because recipe.augment.copies",
    ),
    ({"general__steps": 3}, ["general-distill", "task-distill", "evaluate"], "general-distill: made anew, because"),
    ({"export__int8": False, "device": "cpu"}, [], ""),
]


@pytest.mark.parametrize(("keys", "expected", "reason"), CHANGES)
def test_a_changed_key_runs_just_what_it_concerns(twins, keys, expected, reason):
    place = twins[1][0]
    ran, notes = place.ran(**keys)
    assert ran == expected
    assert any(text.startswith(reason) for text in notes)
    if len(expected) > 1:
        assert any(text.startswith("task-distill: made anew, because") for text in notes)
    assert place.ran(**keys)[0] == []
    place.run()  # back to what the next case starts from


def test_a_changed_input_file_runs_what_reads_it(tmp_path):
    place = Inside(make_place(tmp_path / "changed"))
    stages = ["finetune", "general-distill"]
    place.run(stages=stages)
    (place.path / "text.txt").write_text((place.path / "text.txt").read_text() + "\n\nThe boat is warm.")
    ran, notes = place.ran(stages=stages)
    assert ran == ["general-distill"] and any("corpus: " in text for text in notes)
    # A touched file of the same content is the same input.
    os.utime(place.path / "text.txt")
    assert place.ran(stages=stages)[0] == []


def test_a_seed_that_was_done_is_not_trained_again(place, tmp_path, monkeypatch):
    """Stopped between two seeds: the rest gives the same as if it had not been."""
    import shutil

    from microbert_cli.training import checkpoint, phases

    copy = Inside(shutil.copytree(place.path, tmp_path / "copy"))
    shutil.rmtree(copy / "alone")
    real, calls = phases.train, []

    def stopping(*given, **named):
        calls.append(named["seed"])
        if named["seed"] == 2:
            raise KeyboardInterrupt
        return real(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(phases, "train", stopping)
        with pytest.raises(KeyboardInterrupt):
            copy.run()
    assert (copy / "alone.partial" / "seed-1" / "seed.json").is_file()
    assert not (copy / "alone.partial" / "seed-1" / checkpoint.RESUME / "phases").exists()
    with monkeypatch.context() as patch:
        seen = []
        patch.setattr(phases, "train", lambda *given, **named: seen.append(named["seed"]) or real(*given, **named))
        copy.run()
    assert set(seen) == {2}
    for name in ("model.safetensors", "metrics.json", "seed-2/model.safetensors", "seed-2/seed.json"):
        assert (copy / "alone" / name).read_bytes() == (place / "alone" / name).read_bytes(), name


def planned(text, tmp_path, root, **flags):
    path = tmp_path / "r.toml"
    path.write_text(text)
    resolved = resolve(catalog=Catalog(), recipe=path, environment={}, flags=flags)
    return {step.name: step for step in steps(resolved, root, Catalog())}


def test_wires_are_static_and_all_gaps_are_named_at_once(tmp_path):
    with pytest.raises(MbertError) as caught:
        planned('stages = ["general-distill", "task-distill"]', tmp_path, tmp_path / "runs")
    assert [error.where for error in caught.value.errors] == ["base", "teacher.model"]
    assert not (tmp_path / "runs").exists()


def test_what_feeds_what(tmp_path):
    text = """
        base = "b"
        student = "bert-1x8"
        corpus = "c.txt"
        task = "sst2"
        stages = ["pretrain", "finetune", "general-distill", "augment", "task-distill", "evaluate", "export", "report"]
    """
    root = tmp_path / "runs"
    stages = planned(text.replace("        ", ""), tmp_path, root)
    at = {name: str(root / name) for name in stages}
    assert stages["pretrain"].inputs == {"model": "b", "source": "c.txt", "tokenizer": None}
    assert stages["finetune"].inputs["model"] == at["pretrain"]
    assert stages["general-distill"].inputs == {"teacher": "b", "student": "bert-1x8", "source": "c.txt"}
    assert stages["augment"].inputs == {"masked_lm": at["pretrain"], "vectors": at["pretrain"]}
    assert stages["task-distill"].inputs == {
        "teacher": at["finetune"], "student": at["general-distill"], "augmented": at["augment"],
    }  # fmt: skip
    assert stages["evaluate"].inputs == {"model": at["task-distill"], "teacher": at["finetune"]}
    assert stages["export"].inputs["model"] == at["task-distill"]
    assert set(stages["report"].inputs["models"]) == {"finetune", "task-distill"}


def test_a_named_base_counts_before_an_older_runs_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with stage_output(tmp_path / "runs" / "mbert" / "pretrain", stage="pretrain", identity={}) as work:
        (work.path / "x").write_text("")
    root = tmp_path / "runs" / "r"
    named = planned('base = "b"\ntask = "sst2"\nstages = ["finetune"]', tmp_path, root)
    assert named["finetune"].inputs["model"] == "b"
    left = planned('task = "sst2"\nstages = ["finetune"]', tmp_path, root)
    assert left["finetune"].inputs["model"] == os.path.join("runs", "mbert", "pretrain")


def test_a_variants_name_stands_for_its_output(tmp_path):
    text = """
base = "b"
task = "sst2"
student = "bert-1x8"
stages = ["big", "task-distill"]
teacher = "big"

[variant.big]
stage = "finetune"
finetune.epochs = 1
"""
    stages = planned(text, tmp_path, tmp_path / "runs")
    assert stages["big"].kind == "finetune" and stages["big"].resolved.recipe.finetune.epochs == 1.0
    assert stages["task-distill"].inputs["teacher"] == str(tmp_path / "runs" / "big")
    assert stages["task-distill"].resolved.recipe.finetune.epochs == 3.0


def test_init_random_takes_the_description(tmp_path):
    text = """
base = "b"
task = "sst2"
teacher = "t"
student = "bert-1x8"
corpus = "c"
stages = ["general-distill", "task-distill"]
"""
    root = tmp_path / "runs"
    assert planned(text, tmp_path, root)["task-distill"].inputs["student"] == str(root / "general-distill")
    assert planned(text, tmp_path, root, init="random")["task-distill"].inputs["student"] == "bert-1x8"
    assert planned(text, tmp_path, root, augmented=False)["task-distill"].inputs["augmented"] is None


def test_one_stage_alone_finds_its_neighbours(tmp_path):
    for name in ("finetune", "augment"):
        with stage_output(tmp_path / name, stage=name, identity={}) as work:
            (work.path / "x").write_text("")
    resolved = resolve(catalog=Catalog(), environment={}, flags={"task": "sst2", "student": "bert-1x8"})
    stage = step("task-distill", resolved, tmp_path, Catalog())
    assert stage.inputs == {
        "teacher": str(tmp_path / "finetune"), "student": "bert-1x8", "augmented": str(tmp_path / "augment"),
    }  # fmt: skip
    assert stage.out == tmp_path / "task-distill"


def test_another_run_reuses_what_is_the_same(place, monkeypatch):
    """With another stage one, what does not depend on it is copied, and the rest is trained."""
    monkeypatch.chdir(place.path)
    reporter = RecordingReporter()
    results = api.run("small.toml", out="runs/other", reporter=reporter, general__steps=5, reuse=["runs/small"])
    notes = [note for note in reporter.notes if "copied from" in note]
    assert [note.partition(":")[0] for note in notes] == ["finetune", "augment", "alone"]
    assert [result.out.name for result in results if result.up_to_date] == ["finetune", "augment", "alone"]
    for stage in ("finetune", "augment", "alone"):
        assert manifest.read_verified(place.path / "runs/other" / stage) == manifest.read_verified(place / stage)
    assert all(d.state == "whole" for d in verify_directory(place.path / "runs/other") if "other" in d.place)


def test_word_vectors_alone_need_no_masked_lm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"A Good film {i},{i % 2}\n" for i in range(12)))
    (tmp_path / "v.txt").write_text("good 1 0\ngreat 0.9 0.1\nfilm 0 1\nplot 0.1 0.9\n")
    rows = ("--train-file", "rows.csv", "--text", "text", "--label", "label", "--set", 'augment.sources=["word_vectors"]')
    works("augment", *rows, "--vectors", "v.txt", "-o", "more", "--set", "augment.copies=3", "--set", "augment.format=tsv")
    copies = (tmp_path / "more/augmented.tsv").read_text()
    assert "A great film" in copies or "A Good plot" in copies, "the case of what is not replaced stays"
    assert "vectors" in refused(3, "M022", "augment", *rows, "-o", "none")["fix"]
    works("augment", *rows, "--vectors", "v.txt", "-o", "dry", "--dry-run")
    recipe = 'stages = ["augment"]\nvectors = "v.txt"\naugment.sources = ["word_vectors"]\ndata.train_file = "rows.csv"\n'
    (tmp_path / "r.toml").write_text(recipe)
    works("plan", "r.toml")
    works("doctor", "r.toml")
