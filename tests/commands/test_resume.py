"""Stopped anywhere and gone on is the same as never stopped, bit by bit: every stage, and every method of the catalogue.

A first run notes every step it tells of. Then the same is run again and stopped at the first, a middle and the last step of
everything that has steps (phases, seeds, learning rates, the teacher's pass, shards), going on after every stop. A method that
is added to the catalogue is tested here without another line: quickly, in the middle of everything; fully by `make torture`.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stopping import Make, StopAt, stopped_everywhere
from tiny_models import tiny_bert, tiny_glue, tiny_rows

from microbert_cli import api
from microbert_cli.augmentation.algorithm import DatasetAugmenter
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs.stage_result import StageResult
from microbert_cli.signals import Halted

METHODS = [name for name in Catalog().names("methods") if name != "c-mlm"]  # of texts: test_text_generation.py


def table(name: str, **values: object) -> dict[str, object]:
    return {f"{name}__{key}": value for key, value in {"batch_size": 8, "steps": 4, **values}.items()}


TASK = {"task": "sst2", "data__max_length": 24, "data__folder": "glue"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Models, data and the outputs that later stages read."""
    folder = tmp_path_factory.mktemp("resume")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MBERT_CACHE", str(folder / "cache"))
        tiny_bert("base", kind="masked-lm")
        tiny_glue("glue", ["sst2"], rows=48)
        texts = [texts[0] for texts, _ in tiny_rows("sst2", 60)["train"]]
        Path("text.txt").write_text("\n\n".join("\n".join(texts[i : i + 4]) for i in range(0, 60, 4)), encoding="utf-8")
        api.finetune(model="base", out="teacher", **TASK, **table("finetune", steps=60, learning_rate=1e-2))
        api.augment(masked_lm="base", out="augmented", **TASK, augment__copies=1)
        yield folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


STAGES: dict[str, Make] = {
    "pretrain": lambda out, reporter: api.pretrain(
        out=out, reporter=reporter, model="base", corpus="text.txt", corpus__max_length=24, **table("pretrain")
    ),
    "finetune": lambda out, reporter: api.finetune(
        out=out, reporter=reporter, model="base", seeds=[1, 2], **TASK, **table("finetune", evaluations=2, accumulate=2)
    ),
    "augment": lambda out, reporter: api.augment(out=out, reporter=reporter, masked_lm="base", **TASK, augment__copies=2),
    "evaluate": lambda out, reporter: api.evaluate(out=out, reporter=reporter, model="teacher", **TASK, evaluate__batch_size=8),
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if stage == "augment":
        monkeypatch.setattr(DatasetAugmenter.shards, "__defaults__", (8,))
        monkeypatch.setattr(DatasetAugmenter.rows_of, "__defaults__", (8,))
    stops = stopped_everywhere(STAGES[stage], tmp_path / stage, fresh_cache=monkeypatch)
    assert stops >= 3


def test_augmentation_that_is_stopped_loses_seconds_not_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are saved by the clock, and where a run was stopped leaves no trace in the bytes of the result."""

    whole = STAGES["augment"](tmp_path / "whole", SILENT)
    with monkeypatch.context() as patch, pytest.raises(Halted):
        patch.setattr("microbert_cli.stages.augment.run.SAVE_SECONDS", 0.0)
        STAGES["augment"](tmp_path / "stopped", StopAt(("augment", 24)))
    saved = sorted(path.name[:19] for path in tmp_path.glob("stopped.partial/shards/*.parquet"))
    assert saved[0] == "000000000-000000008" and len(saved) == 2
    done = STAGES["augment"](tmp_path / "stopped", SILENT)
    results = [(place.out / "augmented.parquet").read_bytes() for place in (whole, done)]
    assert results[0] == results[1]


NARROW = {"minilmv2": {"general__losses__relations__heads": 4}}  # numbers of a method that are too large for so small a student


def of_method(method: str) -> Recipe:
    return resolve(catalog=Catalog(), flags={"method": method}).recipe


def student_of(method: str) -> str:
    """A small one; of the teacher's width where the method takes what is the teacher's, recurrent where the method's is."""
    if (of_method(method).student or "").startswith("bilstm"):
        return "bilstm-8"
    if of_method(method).general.dual.vocabulary:  # a feed-forward network as many times its width as the teacher's
        return "bert-2x8x16"
    return "bert-2x16x32" if of_method(method).initialise.by in ("teacher-layers", "teacher-ends") else "bert-2x8"


QUICKLY = {"tinybert"}  # the others are slow because they are many
FULLY = [pytest.param(False, id="middle"), pytest.param(True, id="fully", marks=pytest.mark.torture)]


def each(methods: Iterable[str]) -> list[Any]:
    return [pytest.param(method, marks=[] if method in QUICKLY else pytest.mark.slow) for method in methods]


@pytest.mark.parametrize("fully", FULLY)
@pytest.mark.parametrize("method", each(method for method in METHODS if of_method(method).general.losses))
def test_stage_one_of_every_method(method: str, fully: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(out: Path, reporter: Reporter) -> StageResult:
        return api.general_distill(
            out=out, reporter=reporter, method=method, teacher="base", student=student_of(method), corpus="text.txt",
            corpus__max_length=24, **table("general", steps=5, evaluations=2), **NARROW.get(method, {}),
        )  # fmt: skip

    stopped_everywhere(make, tmp_path / method, fresh_cache=monkeypatch, fully=fully)


@pytest.mark.parametrize("fully", FULLY)
@pytest.mark.parametrize("method", each(METHODS))
def test_stage_two_of_every_method(method: str, fully: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All phases, two seeds, a grid of learning rates where there is one, dropout, the cache of the teacher's answers."""
    phases = of_method(method).run_phases
    shorter = {key: value for name in phases for key, value in table(f"phases__{name}", evaluations=2).items()}

    def make(out: Path, reporter: Reporter) -> StageResult:
        return api.distill(
            out=out, reporter=reporter, method=method, teacher="teacher", student=student_of(method), augmented="augmented",
            seeds=[1, 2] if fully else [1], teacher__allow_weak=True, **TASK, **shorter, **NARROW.get(method, {}),
        )  # fmt: skip

    stops = stopped_everywhere(make, tmp_path / method, fresh_cache=monkeypatch, fully=fully)
    assert stops >= (2 * 3 if fully else 1) * len(phases)


@pytest.mark.slow
def test_a_transfer_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers come from the cache; a phase with labels follows."""
    texts = "\n".join(texts[0] for texts, _ in tiny_rows("sst2", 29)["train"])
    (tmp_path / "texts.txt").write_text(texts, encoding="utf-8")

    def make(out: Path, reporter: Reporter) -> StageResult:
        return api.distill(
            out=out, reporter=reporter, method="pd", teacher="teacher", student="bert-2x8", teacher__allow_weak=True,
            **TASK,
            data__transfer_file=tmp_path / "texts.txt", **table("phases__transfer", steps=6),
            **table("phases__labels", leave_out=False),
        )  # fmt: skip

    assert stopped_everywhere(make, tmp_path / "out", fresh_cache=monkeypatch, fully=False) >= 2


@pytest.mark.parametrize("routing", ["task", pytest.param("token", marks=pytest.mark.slow)])
def test_a_student_with_experts(routing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise and counts of the routers go on as well, and the table is frozen at the same step."""

    def make(out: Path, reporter: Reporter) -> StageResult:
        return api.distill(
            out=out, reporter=reporter, method="soft-targets", teacher="teacher", student="bert-2x8", teacher__allow_weak=True,
            **TASK,
            **{f"moe__{key}": value for key, value in {"side": "student", "routing": routing, "top_k": 2}.items()},
            **table("phases__prediction", steps=6, evaluations=3, accumulate=2),
        )  # fmt: skip

    assert stopped_everywhere(make, tmp_path / routing, fresh_cache=monkeypatch) >= 3


@pytest.mark.slow
def test_long_texts_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine-tuning, then a student with its teacher's cached answers to windows."""
    windows = {**TASK, "data__max_length": 8, "data__windows": "mean", "data__stride": 2}

    def taught(out: Path, reporter: Reporter) -> StageResult:
        return api.finetune(out=out, reporter=reporter, model="base", **windows, **table("finetune", evaluations=2))

    def make(out: Path, reporter: Reporter) -> StageResult:
        return api.distill(
            out=out, reporter=reporter, method="kd", teacher="teacher", student="bert-2x8", teacher__allow_weak=True, **windows,
            **table("phases__distillation", steps=6, evaluations=3, accumulate=2),
        )  # fmt: skip

    assert stopped_everywhere(taught, tmp_path / "taught", fresh_cache=monkeypatch) >= 3
    assert stopped_everywhere(make, tmp_path / "out", fresh_cache=monkeypatch) >= 3
