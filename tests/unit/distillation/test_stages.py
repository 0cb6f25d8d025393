"""A phase in stages and chunks: what is trained in each, what is kept of the teacher, and that every stop is exact."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stopping import stopped_everywhere
from tiny_models import tiny_bert, tiny_glue, tiny_rows

from microbert_cli import api
from microbert_cli.data.batching import evenly_spaced_chunks
from microbert_cli.data.examples import Examples
from microbert_cli.data.tokenized import tokenize_examples
from microbert_cli.distillation.teacher import Teacher
from microbert_cli.distillation.teacher_cache import CacheSettings, Layout, cached_ask
from microbert_cli.errors import MbertError
from microbert_cli.models.capture import OutputRequest
from microbert_cli.models.load import load_model

ROWS, TEXTS, CHUNK = 24, 25, 10
PARTS = ["head", "layer.2", "layer.1", "embeddings"]
NUMBERS = {"batch_size": 8, "steps": 4, "evaluations": 2, "learning_rate": 1e-2}


def stages(**more: Any) -> dict[str, Any]:
    phases = ("representation", "logits", "labels")
    numbers = {f"phases__{name}__{key}": value for name in phases for key, value in NUMBERS.items()}
    return {
        "method": "xtremedistil", "teacher": "teacher", "student": "bert-2x8", "task": "sst2", "data__folder": "glue",
        "data__max_length": 24, "data__transfer_file": "texts.txt", "teacher__allow_weak": True, "seed": 1, **numbers,
        "phases__representation__chunk_rows": CHUNK, **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MBERT_CACHE", str(folder / "cache"))
        tiny_bert("teacher", labels=["negative", "positive"], dropout=0.0)
        tiny_glue("glue", ["sst2"], rows=ROWS)
        texts = [texts[0] for texts, _ in tiny_rows("sst2", TEXTS)["train"]]
        Path("texts.txt").write_text("\n".join(texts), encoding="utf-8")
        yield folder


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def test_every_stage_trains_its_parts_from_the_best_weights_before(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from microbert_cli.training import phases as module
    from microbert_cli.training.freeze import part_of

    seen: list[tuple[str, dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []
    original = module._PhaseRunner.run

    def run(self: Any, phase: Any, label: str, *rest: Any) -> Any:
        outcome = original(self, phase, label, *rest)
        seen.append((label, dict(rest[1].weights), dict(outcome.weights)))
        return outcome

    monkeypatch.setattr(module._PhaseRunner, "run", run)
    result = api.distill(out=here / "out", **stages())
    phases = json.loads((result.out / "metrics.json").read_text(encoding="utf-8"))["phases"]
    expected = [f"representation.{n}" for n in (1, 2, 3)] + [
        f"{phase}.{n}" for phase in ("logits", "labels") for n in (1, 2, 3, 4)
    ]
    assert list(phases) == [label for label, _, _ in seen] == expected
    for label, before, after in seen:
        trained = PARTS if label.startswith("representation") else PARTS[: int(label[-1])]
        assert phases[label]["trained"] == trained and phases[label]["stage_of"] == label[:-2]
        assert {part_of(name) for name in changed(before, after)} <= set(trained)
        assert phases[label]["steps"] == 4
    for (_, _, after), (_, before, _) in zip(seen, seen[1:], strict=False):
        assert changed(after, before) == set()
    for phase in ("representation", "logits", "labels"):
        losses = [phases[name]["dev_loss"] for name in expected if name.startswith(phase)]
        assert losses == sorted(losses, reverse=True)  # no stage makes it larger
    assert phases["representation.1"]["split"] == phases["logits.1"]["split"] == "transfer"
    assert phases["labels.1"]["split"] == "train"
    lines = [json.loads(line) for line in (result.out / "teacher.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["rows"] for line in lines if line["phase"] == "representation"] == [9, 8, 8]


@pytest.mark.slow
def test_chunks_stages_and_patience_resume_bit_by_bit(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = {f"phases__{name}__patience": 1 for name in ("representation", "logits", "labels")}
    more = {**short, "phases__representation__losses__representation__layers": "all", "phases__labels__unfreeze": ["head"]}

    def make(out: Path, reporter: Any) -> Any:
        return api.distill(out=out, reporter=reporter, **stages(**more))

    assert stopped_everywhere(make, tmp_path / "stages", fresh_cache=monkeypatch, fully=False) >= 8


def test_a_chunk_takes_the_place_of_the_one_before(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget holds one chunk of vectors and no second one."""
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path / "cache"))
    sizes = []

    def files() -> int:
        return sum(path.stat().st_size for path in (tmp_path / "cache").rglob("vectors.bin"))

    from microbert_cli.training import phases as module

    original = module._PhaseRunner.run

    def run(self: Any, phase: Any, *rest: Any) -> Any:
        outcome = original(self, phase, *rest)
        sizes.append(files())
        return outcome

    monkeypatch.setattr(module._PhaseRunner, "run", run)
    one_chunk = (CHUNK - 1) * 16 * 2
    more = {"phases__logits__leave_out": True, "phases__labels__leave_out": True, "phases__representation__best_by": "score"}
    api.distill(out=tmp_path / "out", **stages(cache__budget=f"{one_chunk}B", **more))
    assert len(sizes) == 3 and 0 < max(sizes) <= one_chunk


def test_chunks_are_evenly_spaced_and_hold_every_row_once() -> None:
    chunks = evenly_spaced_chunks(10, 4)
    assert [chunk.tolist() for chunk in chunks] == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert [chunk.tolist() for chunk in evenly_spaced_chunks(3, None)] == [[0, 1, 2]]


def test_rows_that_are_taken_are_those_rows(here: Path) -> None:
    loaded = load_model("teacher", "classifier", where="teacher")
    texts = [texts[0] for texts, _ in tiny_rows("sst2", 6)["train"]]
    encoded = tokenize_examples(Examples([(text,) for text in texts]), loaded.tokenizer, 24)
    taken = encoded.take(np.array([4, 1]))
    assert [taken.row(0), taken.row(1)] == [encoded.row(4), encoded.row(1)]
    rows = [row for batch in encoded.all_batches(batch_size=1) for row in batch["rows"].tolist()]
    assert sorted(rows) == list(range(6))


def test_first_tokens_are_kept_as_the_teacher_gives_them(here: Path) -> None:
    loaded = load_model("teacher", "classifier", where="teacher")
    teacher, want = Teacher(loaded), OutputRequest(logits=True, vectors=frozenset({1, 2}))
    texts = [texts[0] for texts, _ in tiny_rows("sst2", 6)["train"]]
    encoded = tokenize_examples(Examples([(text,) for text in texts]), loaded.tokenizer, 24)
    settings = CacheSettings(precision="fp32")
    ask = cached_ask(teacher, encoded, want, identity={"weights": "w"}, pad_id=0, settings=settings)
    assert ask != teacher.ask
    batch = encoded.batch([3, 0, 5], pad_id=0)
    kept, asked, whole = ask(batch, want), teacher.ask(batch, want), teacher.ask(batch, OutputRequest(hidden=frozenset({1, 2})))
    for layer in (1, 2):
        assert kept.hidden[layer].shape == (3, 1, 16)
        assert torch.allclose(kept.hidden[layer], asked.hidden[layer], atol=1e-6)
        assert torch.equal(asked.hidden[layer], whole.hidden[layer][:, :1])
    layout = Layout.of(encoded, want, teacher, "fp16")
    assert layout.bytes == layout.rows * (2 * 4 + 2 * 16 * 2)  # two logits, two layers of 16


@pytest.mark.parametrize(
    ("code", "more"),
    [
        ("M068", {"phases__logits__unfreeze": ["layer.3"]}),
        ("M460", {"phases__logits__unfreeze": ["head", "layer.2"], "phases__logits__freeze": ["layer.2"]}),
        ("M003", {"phases__logits__unfreeze": "bottom-up"}),
        ("M003", {"phases__logits__unfreeze": ["head", ["head", "layer.1"]]}),
        ("M003", {"phases__logits__patience": -1}),
        ("M426", {"init": "teacher", "student": "bert-1x16", "phases__representation__prune": {}}),
    ],
)
def test_stages_that_cannot_be_are_refused(here: Path, tmp_path: Path, code: str, more: dict[str, Any]) -> None:
    with pytest.raises(MbertError) as error:
        api.distill(out=tmp_path / "out", **stages(**more))
    assert error.value.code == code


def test_fine_tuning_in_stages(here: Path, tmp_path: Path) -> None:
    numbers = {f"finetune__{key}": value for key, value in NUMBERS.items()}
    result = api.finetune(
        out=tmp_path / "out", model="teacher", task="sst2", data__folder="glue", data__max_length=24, seed=1,
        finetune__unfreeze="top-down", finetune__best_by="loss", **numbers,
    )  # fmt: skip
    metrics = json.loads((result.out / "metrics.json").read_text(encoding="utf-8"))
    assert list(metrics["phases"]) == [f"finetune.{number}" for number in (1, 2, 3, 4)]
    losses = [phase["dev_loss"] for phase in metrics["phases"].values()]
    assert losses == sorted(losses, reverse=True)
    assert set(metrics["dev"]) == {"accuracy"}
