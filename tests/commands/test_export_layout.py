"""An export of an earlier version, its ONNX files at the top: every command reads it and answers the same."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from earlier_layout import to_earlier_layout
from huggingface_hub import ModelCard
from mbert_command import mbert, refused, works
from tiny_folder import tiny_folder

RECIPE = """
base = "base"
init = "new"
student = "bert-1x8"
method = "soft-targets"
task = "sst2"
stages = ["finetune", "task-distill", "export", "report"]
seeds = [1]
data = { folder = "glue", max_length = 16 }
teacher = { allow_weak = true }
finetune = { steps = 4, batch_size = 8, evaluations = 1 }
phases.prediction = { steps = 2, batch_size = 8, evaluations = 1 }
"""
TEXTS = ("it is lovely", "the baker sold an awful boat", "kettle")
ROWS = ("--task", "sst2", "--data", "glue")
INT8 = {"earlier": "model.int8.onnx", "now": "onnx/model_quantized.onnx"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run with an export as it is made now, `run/now`, and one as it was made before, `run/export`."""
    folder = tmp_path_factory.mktemp("layout")
    with tiny_folder(folder, RECIPE) as patch:
        patch.setenv("MBERT_CACHE", str(folder / "cache"))
        works("run", "small.toml", "-o", "run")
        shutil.copytree("run/export", "now")
        assert to_earlier_layout(Path("run/export")) == [
            "model.onnx", "model.int8.onnx", "model.optimized.onnx", "model.int8.optimized.onnx",
        ]  # fmt: skip
        yield folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def answers(model: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in works("predict", model, *TEXTS, "--json").out.splitlines()]


@pytest.mark.slow
def test_predict_answers_the_same_by_the_directory_and_by_each_file() -> None:
    assert answers("run/export") == answers("now") == answers("run/export/model.onnx") == answers("now/onnx/model.onnx")
    for name in INT8["earlier"], "model.int8.optimized.onnx":
        assert answers(f"run/export/{name}") == answers(
            f"now/onnx/{name.replace('.int8', '_quantized').replace('_quantized.optimized', '_optimized_quantized')}"
        )


@pytest.mark.slow
def test_a_file_is_named_from_within_its_folder(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    expected = answers("now/onnx/model.onnx")
    monkeypatch.chdir(place / "now" / "onnx")
    assert answers("model.onnx") == answers("../onnx/model.onnx") == expected


@pytest.mark.slow
def test_evaluate_and_bench_read_it() -> None:
    for precision in ("auto", "fp32", "int8", "fp32-optimized", "int8-optimized"):
        scores = [
            works(
                "evaluate", model, *ROWS, "--set", f"evaluate.precision={precision}", "-o", f"e-{name}-{precision}", "--json"
            ).json
            for name, model in (("earlier", "run/export"), ("now", "now"))
        ]
        first, second = (json.loads((Path(score["out"]) / "metrics.json").read_text())["splits"] for score in scores)
        assert first == second
    by_file = works("evaluate", f"run/export/{INT8['earlier']}", *ROWS, "-o", "e-file", "--json").json
    assert by_file["out"].endswith("e-file")
    measured = works("bench", "run/export", "now", *ROWS, "--no-baselines", "--rounds", "2", "--passes", "1", "--json").json
    sizes = {name: model["bytes"] for name, model in measured["models"].items()}
    assert len(sizes) == 8
    assert all(sizes[f"run/export ({form})"] == sizes[f"now ({form})"] > 0 for form in ("fp32", "int8", "int8-optimized"))


@pytest.mark.slow
def test_the_card_is_what_the_hub_reads() -> None:
    card = ModelCard.load("now/README.md")
    assert card.data.model_name == "BERT 1x8 for SST-2" and card.data.library_name == "transformers"
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.dataset_type, result.dataset_split) == ("SST-2", "nyu-mll/glue", "validation")
    assert result.metric_value == json.loads(Path("now/metrics.json").read_text())["dev"]["accuracy"]
    prose = re.sub(r"```.*?```|`[^`]*`", "", card.text, flags=re.DOTALL)
    assert "# BERT 1x8 for SST-2" in prose and "distilled for the task" in prose and "soft target" in prose
    assert not re.findall(r"[a-z]+_[a-z]+", prose), "keys are for machines"
    assert 'dtype: "q8"' in card.text and "onnx/model_quantized.onnx" in card.text


@pytest.mark.slow
def test_the_folder_of_the_files_is_not_the_export() -> None:
    error = refused(4, "M211", "predict", "now/onnx", *TEXTS)
    assert error["fix"] == "Name the export itself: now"


@pytest.mark.slow
def test_a_cascade_takes_it_and_writes_the_layout_of_now() -> None:
    for name in ("earlier", "now"):
        home = {"earlier": "run/export", "now": "now"}[name]
        works(
            "cascade",
            home,
            f"{home}/{INT8[name]}",
            *ROWS,
            "--threshold",
            "0.5",
            "--set",
            "cascade.choosing=0.5",
            "-o",
            f"both-{name}",
        )
        files = json.loads(Path(f"both-{name}/metrics.json").read_text())["files"]
        assert files == {"small": "onnx/model.onnx", "big": "onnx/model_quantized.onnx"}
    assert answers("both-earlier") == answers("both-now")
    to_flat = Path("both-flat")
    shutil.copytree("both-now", to_flat)
    for part, name, earlier in (("small", "model.onnx", "model.onnx"), ("big", "model_quantized.onnx", "model.int8.onnx")):
        (to_flat / part / "onnx" / name).rename(to_flat / part / earlier)
        (to_flat / part / "onnx").rmdir()
    for name in ("manifest.json", "recipe.resolved.toml", "log.jsonl"):
        (to_flat / name).unlink(missing_ok=True)
    assert answers("both-flat") == answers("both-now")
    works("export", "both-flat", *ROWS, "-o", "shipped-flat")
    assert answers("shipped-flat") == answers("both-now")


@pytest.mark.slow
def test_verify_plan_doctor_report_and_a_run_that_goes_on() -> None:
    assert "nothing wrong" in works("verify", "run/export").out
    works("plan", "small.toml", "-o", "run")
    works("doctor", "small.toml", "-o", "run")
    shutil.rmtree("run/report")
    done = works("run", "small.toml", "-o", "run")
    assert "export: up to date" in done.err + done.out
    rows = json.loads(Path("run/report/metrics.json").read_text())
    assert "export, int8" in json.dumps(rows)
    page = Path(works("report", "run", "--rows", "0").out.strip()).read_text()
    assert "model.int8.onnx" in page
    assert (Path("run/export") / "model.onnx").is_file() and not (Path("run/export") / "onnx").exists()


@pytest.mark.slow
def test_exported_again_it_is_up_to_date_and_forced_it_is_moved_aside() -> None:
    shutil.copytree("run", "again")
    for words in ((), ("--force",)):
        done = works("export", "again/task-distill", *ROWS, "--recipe", "small.toml", "-o", "again/export", *words)
        assert ("up to date" in done.err) == (not words)
        assert (Path("again/export/model.onnx").is_file()) == (not words)
    assert Path("again/export/onnx/model_quantized.onnx").is_file() and Path("again/export.old-1/model.int8.onnx").is_file()


@pytest.mark.slow
def test_what_is_damaged_or_added_is_refused_in_both_layouts(tmp_path: Path) -> None:
    for source, file in (("run/export", "model.int8.onnx"), ("now", "onnx/model_quantized.onnx")):
        copy = tmp_path / source.replace("/", "-")
        shutil.copytree(source, copy)
        for other in INT8.values():
            if not (copy / other).exists():
                (copy / other).parent.mkdir(exist_ok=True)
                shutil.copy(copy / file, copy / other)
                error = refused(5, "M306", "predict", copy, *TEXTS)
                assert f"{other} was added" in error["what"]
                assert error["fix"].endswith(f"rm {copy / other}")
                (copy / other).unlink()
                works("predict", copy, *TEXTS)
        content = bytearray((copy / file).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / file).write_bytes(bytes(content))
        assert f"{file} is damaged" in refused(5, "M306", "predict", copy / file, *TEXTS)["what"]
    assert mbert("predict", "now", *TEXTS).code == 0
