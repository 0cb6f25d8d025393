"""Model, tokenizer and data set by their Hub ids through the commands: fetched once, found in the cache ever after."""

import json
from pathlib import Path

import pytest
from hub_stand_in import HubStandIn
from mbert_command import child
from tiny_models import tiny_bert, tiny_glue_hub

pytest_plugins = ["hub_stand_in"]  # for the fixture `hub`

SHORT = ("--set", "finetune.steps=2", "--set", "finetune.batch_size=8")
TRAIN = ("finetune", "--model", "tiny/teacher", "--task", "sst2", "--json", *SHORT)


@pytest.mark.slow
def test_hub_ids_work_wherever_a_directory_does(tmp_path: Path, hub: HubStandIn) -> None:
    hub.add_model("tiny/teacher", tiny_bert(tmp_path / "teacher", kind="masked-lm"))
    hub.add_dataset("nyu-mll/glue", tiny_glue_hub(["sst2", "rte"], rows=24))
    hub.add_dataset("tiny/corpus", {"text.txt": "\n".join(f"The baker sold boat {i}." for i in range(40)).encode()})
    env = hub.env(MBERT_CACHE=str(tmp_path / "cache"))
    general = ("general-distill", "--teacher", "tiny/teacher", "--student", "bert-1x16", "--set", "general.steps=1")

    online = [
        (*TRAIN, "-o", "online"),
        (*general, "--corpus", "tiny/corpus", "-o", "general"),
        ("evaluate", "online", "--task", "sst2", "-o", "scores", "--json"),
        ("finetune", "--model", "tiny/nobody", "--task", "sst2", "-o", "nobody"),
        (*general, "--corpus", "tiny/nothing", "-o", "nothing"),
    ]
    trained, distilled, scored, nobody, nothing = child(online, env, tmp_path)
    assert [trained[0], distilled[0], scored[0]] == [0, 0, 0], [trained[2], distilled[2], scored[2]]
    assert "nyu-mll/glue sst2: train comes from the Hugging Face Hub" in trained[2], "the network is named aloud"
    assert "tiny/corpus" in distilled[2]
    assert nobody[0] == 4 and "[M204]" in nobody[2] and '"tiny/nobody"' in nobody[2]
    assert nothing[0] == 4 and "[M230]" in nothing[2] and '"tiny/nothing"' in nothing[2]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(("nobody", "nothing"))) == []
    fetched = hub.downloads()
    assert "tiny/teacher/model.safetensors" in fetched and "nyu-mll/glue/sst2/train-00000-of-00001.parquet" in fetched
    assert not [file for file in fetched if "/rte/" in file]

    hub.requests.clear()
    offline = [(*TRAIN, "-o", "offline"), ("finetune", "--model", "tiny/teacher", "--task", "rte", "-o", "missing")]
    again, missing = child(offline, env | {"HF_HUB_OFFLINE": "1"}, tmp_path)
    results = [json.loads(out) for _, out, _ in (trained, again)]
    assert again[0] == 0 and [result.pop("out") for result in results] == ["online", "offline"]
    assert results[0] == results[1]
    weights = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("online", "offline")]
    assert weights[0] == weights[1], "from the cache comes what came from the Hub"
    assert missing[0] == 4 and "[M250]" in missing[2] and "HF_HUB_OFFLINE" in missing[2]
    assert hub.requests == [] and hub.outside() == []


RECIPES = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "recipes").glob("*sst2*.toml"))
HUB_TEACHER = "google-bert/bert-base-uncased"


def test_a_dry_run_of_every_recipe_for_the_hub_asks_it_for_nothing(tmp_path: Path, hub: HubStandIn) -> None:
    """Each finds its inputs, names the teacher by its Hub id, and neither the stand-in nor anyone else hears of it."""
    assert {f"{name}-sst2" for name in ("kd", "pkd", "minilm", "mobilebert", "moebert")} <= {*RECIPES}
    (tmp_path / "glove.6B.300d.txt").touch()
    commands = [("run", name, "--dry-run", "--json") for name in RECIPES]
    env = hub.env(MBERT_CACHE=str(tmp_path / "cache"))
    for name, (code, out, err) in zip(RECIPES, child(commands, env, tmp_path), strict=True):
        assert code == 0, (name, err)
        stages = json.loads(out)["stages"]
        assert {"finetune", "task-distill", "evaluate"} <= {stage["kind"] for stage in stages}, name
        assert any(HUB_TEACHER in json.dumps(stage) for stage in stages), name
    assert hub.requests == [] and hub.outside() == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_recipe_for_the_hub_runs_with_what_the_stand_in_serves(tmp_path: Path, hub: HubStandIn) -> None:
    """kd-sst2 as it stands but for its sizes: teacher and rows by their Hub ids."""
    hub.add_model(HUB_TEACHER, tiny_bert(tmp_path / "teacher", kind="masked-lm"))
    hub.add_dataset("nyu-mll/glue", tiny_glue_hub(["sst2"], rows=24))
    sizes = ("student=bert-1x16", "seeds=[1]", "finetune.steps=2", "phases.distillation.steps=2", "teacher.allow_weak=true")
    words = [word for size in sizes for word in ("--set", size)]
    ((code, out, err),) = child(
        [("run", "kd-sst2", "-o", "run", *words)], hub.env(MBERT_CACHE=str(tmp_path / "cache")), tmp_path
    )
    assert code == 0 and out.strip().splitlines()[0] == "run", err
    fetched = hub.downloads()
    assert f"{HUB_TEACHER}/model.safetensors" in fetched and "nyu-mll/glue/sst2/train-00000-of-00001.parquet" in fetched
    assert (tmp_path / "run/task-distill/model.safetensors").is_file() and hub.outside() == []
