"""Trackers: numbers of training go to them, one that fails stops nothing, a missing package is told before any work."""

import json
from pathlib import Path

import pytest
from mbert_command import mbert, refused, works
from tiny_folder import tiny_folder

RECIPE = """
task   = "sst2"
data   = "glue"
base   = "base"
stages = ["finetune"]
finetune = { steps = 6, batch_size = 8, evaluations = 2 }
"""
MINE = """\"\"\"A tracker that writes lines to a file.\"\"\"

NEEDS = "{needs}"


class Tracker:
    def __init__(self, name, folder, values):
        print("a tracker that talks")
        self.file = (folder / "tracked.txt").open("a")
        self.file.write(f"begin {{name}} {{values.get('finetune.steps', '')}}".strip() + "\\n")

    def log(self, phase, step, numbers):
        {log}
        self.file.write(f"{{phase}} {{step}} {{' '.join(sorted(numbers))}}\\n")

    def close(self):
        self.file.write("end\\n")
        self.file.close()
"""


@pytest.fixture
def place(tmp_path: Path):
    """A folder with a recipe and trackers of its own: mine, one that fails at step 3, one whose package is not there."""
    with tiny_folder(tmp_path, RECIPE, name="recipe.toml", dropout=0.0) as patch:
        patch.setenv("MBERT_CACHE", str(tmp_path / "cache"))
        folder = Path("own/trackers")
        folder.mkdir(parents=True)
        (folder / "mine.py").write_text(MINE.format(needs="", log="pass"))
        (folder / "failing.py").write_text(MINE.format(needs="", log="assert step < 3, 'the line is dead'"))
        (folder / "absent.py").write_text(MINE.format(needs="no_such_package", log="pass"))
        yield tmp_path


def run(tracker: str, out: str) -> tuple[str, ...]:
    return ("run", "recipe.toml", "--include", "own", "--set", f'trackers=["{tracker}"]', "-o", out)


def test_numbers_of_every_step_go_to_a_tracker(place: Path) -> None:
    done = works(*run("mine", "run"))
    assert done.out == "run\n" and "a tracker that talks" in done.err, "stdout has the result alone"
    lines = Path("run/tracked.txt").read_text().splitlines()
    assert lines[0] == "begin run-finetune 6" and lines[-1] == "end"
    assert lines[1] == "finetune 1 loss" and lines[6] == "finetune 6 best dev loss" and len(lines) == 8


def test_a_tracker_changes_no_output(place: Path) -> None:
    works(*run("mine", "run"))
    works("run", "recipe.toml", "-o", "plain")
    weights = [Path(out, "finetune/model.safetensors").read_bytes() for out in ("run", "plain")]
    assert weights[0] == weights[1]
    assert "up to date" in works("run", "recipe.toml", "-o", "run").err, "it is no part of what a stage is"


def test_a_tracker_that_fails_stops_no_training(place: Path) -> None:
    done = works(*run("failing", "run"))
    assert done.err.count("the line is dead") == 1 and "failing is left out" in done.err
    assert json.loads(Path("run/finetune/metrics.json").read_text())["dev"]


def test_a_missing_package_is_told_before_any_work(place: Path) -> None:
    error = refused(7, "M530", *run("absent", "run"))
    assert "no_such_package" in error["fix"] and not Path("run/finetune.partial").exists() and not Path("run/finetune").exists()
    assert (
        refused(3, "M005", "run", "recipe.toml", "--set", 'trackers=["tensorbord"]')["fix"] == "See them: mbert list trackers"
    )
    assert "tensorboard" in works("list", "trackers").out


def test_a_finished_run_can_be_sent_afterwards(place: Path) -> None:
    works("run", "recipe.toml", "-o", "run")
    works("log", "run", "--to", "mine", "--include", "own")
    lines = Path("run/tracked.txt").read_text().splitlines()
    assert lines[0] == "begin run-finetune" and lines[-1] == "end"
    assert "loss lr norm" in lines[1] and any("dev/accuracy" in line for line in lines)
    assert refused(4, "M228", "log", "glue", "--to", "mine", "--include", "own")["where"] == "glue"
    assert mbert("log", "run", "--to", "nobody").code == 3
