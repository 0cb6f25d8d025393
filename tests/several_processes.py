"""What `test_processes.py` compares: the same training in this process, or as one of several that torchrun started.

torchrun --nproc-per-node 2 tests/several_processes.py FOLDER     writes FOLDER/2.pt
compute(FOLDER)                                                   returns the same as one process finds it
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from microbert_cli import distributed
from microbert_cli.data.batching import endless_batches
from microbert_cli.data.corpus.masking import mask_batch, rank_rows
from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.data.windows.examples import WindowedExamples
from microbert_cli.distillation.ensemble import pooled_ask
from microbert_cli.distillation.teacher import Teacher
from microbert_cli.distillation.teacher_cache import CacheSettings, cached_ask
from microbert_cli.evaluation.scoring import logits_of
from microbert_cli.models.capture import TOKENS_AT_ONCE, OutputRequest, TeacherFunction
from microbert_cli.models.device import Precision
from microbert_cli.models.load import load_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.values import Training
from microbert_cli.training.loop import train
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.objective import Objective
from microbert_cli.training.phases import Phase, make_plan, row_batches

LONGEST = 12
LOSSES = ("embedding", "hidden_states", "attention_scores", "soft_target", "hard_label")
CASES: dict[str, dict[str, Any]] = {
    "uneven": {"batch_size": 7, "accumulate": 2},
    "reference": {"batch_size": 5, "normalisation": "reference"},
    "one row a batch": {"batch_size": 1},
    "from the cache": {"batch_size": 7, "cached": True},
    "a budget of tokens": {"batch_size": 7, "batch_tokens": 40},
    "windows": {"batch_size": 3, "windows": True},
    "bfloat16": {"batch_size": 8, "numerics": Precision("bf16")},
}


def ragged_rows(count: int = 23) -> TokenizedExamples:
    """Rows of 3 to 12 tokens, some of them augmented."""
    random = np.random.default_rng(3)
    lengths = random.integers(3, LONGEST + 1, count)
    ids = random.integers(5, 100, lengths.sum()).astype(np.int32)
    offsets = np.cumsum([0, *lengths])
    return TokenizedExamples(
        ids, np.zeros(len(ids), np.int8), offsets, random.integers(0, 2, count), random.random(count) < 0.5
    )


def in_windows(rows: TokenizedExamples) -> WindowedExamples:
    """The same rows by three and two: texts of several windows."""
    first = np.array([*range(0, len(rows), 3), len(rows)])
    texts = {**vars(rows), "offsets": rows.offsets[first], "labels": rows.labels[first[:-1]]}  # type: ignore[index]
    texts["augmented"] = rows.augmented[first[:-1]]  # type: ignore[index]
    return WindowedExamples(**texts, window_offsets=rows.offsets, first=first, pool="mean")


def compute(folder: Path) -> dict[str, Any]:
    """Losses of every step, weights and dev logits of every case; `folder` holds `teacher` and `student`, without dropout."""
    results = {name: distil(folder, name, **case) for name, case in CASES.items()}
    return {**results, "masked-lm": masked_lm(folder)}


def distil(
    folder: Path,
    name: str,
    *,
    normalisation: str = "masked",
    numerics: Precision | None = None,
    cached: bool = False,
    windows: bool = False,
    **numbers: Any,
) -> dict[str, Any]:
    """Six steps of all five losses."""
    taught, pupil = (load_model(folder / role, "classifier", where=role) for role in ("teacher", "student"))
    torch.manual_seed(5)
    objective = Objective(
        make_terms(dict.fromkeys(LOSSES, (1.0, {})), Catalog()),
        pupil.model,
        ask_teacher=Teacher(taught).ask,
        map_layers=[0, 2],
        student_width=8,
        teacher_width=16,
        normalisation=normalisation,
        numerics=numerics or Precision(),
    )
    rows, spec = ragged_rows(), Training(steps=6, learning_rate=1e-3, **numbers)
    if windows:
        rows = in_windows(rows)
        objective.with_teacher(pooled_ask(Teacher(taught).ask))
    if cached:
        objective.with_teacher(from_cache(Teacher(taught), rows, objective.teacher_request))
    phase = Phase("phase", spec, rows, [], lambda model: objective, False, LONGEST if normalisation == "reference" else None)
    source = row_batches(phase, seed=1, pad_id=0, device="cpu")
    place = folder / f"{name} {distributed.world_size()}"
    place.mkdir(exist_ok=True)
    train(objective, source, make_plan("phase", spec, rows.lengths), directory=place, seed=1)
    weights = {**pupil.model.state_dict(), **objective.state_dict()}
    dev = logits_of(pupil.model, rows, pad_id=0, batch_size=4)
    return outcome(place, weights) | {"dev": torch.from_numpy(dev)}


def from_cache(teacher: Teacher, rows: TokenizedExamples, want: OutputRequest) -> TeacherFunction:
    """An entry of its own for every number of processes, which fill it together, a few rows at a time."""
    TOKENS_AT_ONCE["cpu"] = 24
    key = {"processes": distributed.world_size()}
    return cached_ask(teacher, rows, want, identity=key, pad_id=0, settings=CacheSettings(precision="fp32"))


def masked_lm(folder: Path) -> dict[str, Any]:
    """Six steps of masked-LM training, batches of three rows, sometimes fewer masked positions than processes."""
    loaded = load_model(folder / "masked-lm", "masked-lm", where="masked-lm")
    rows, spec = ragged_rows(), Training(steps=6, batch_size=3, learning_rate=1e-3)

    def batches(skip: int) -> Any:
        for number, chosen in enumerate(endless_batches(rows.lengths, batch_size=3, seed=1, skip=skip), skip):
            batch = {name: value for name, value in rows.batch(chosen).items() if name not in ("labels", "augmented")}
            yield rank_rows(mask_batch(batch, loaded.tokenizer, share=0.15, seed=1, number=number))

    objective = Objective(make_terms({"masked_lm": (1.0, {})}, Catalog()), loaded.model)
    place = folder / f"masked-lm {distributed.world_size()}"
    place.mkdir(exist_ok=True)
    train(objective, batches, make_plan("phase", spec, rows.lengths), directory=place, seed=1)
    return outcome(place, loaded.model.state_dict())


def outcome(place: Path, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The log's numbers, the weights, and how far the processes' weights lie apart."""
    distributed.barrier()
    log = [json.loads(line) for line in (place / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    total = torch.stack([value.double().sum() for value in weights.values()]).sum().item()
    totals = distributed.gather([total])
    return {"log": log, "weights": weights, "apart": max(totals) - min(totals)}


if __name__ == "__main__":
    distributed.initialise("cpu")
    computed = compute(Path(sys.argv[1]))
    if distributed.is_main():
        torch.save(computed, Path(sys.argv[1]) / f"{distributed.world_size()}.pt")
    distributed.shutdown()
