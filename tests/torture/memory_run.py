"""Thousands of steps of THE loop on a toy, and what the process holds meanwhile: `python memory_run.py FOLDER STEPS`.

Prints one JSON object: resident bytes and open files at every hundredth step.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import torch  # noqa: E402
from tiny_models import tiny_bert  # noqa: E402

from microbert_cli.data.batching import endless_batches  # noqa: E402
from microbert_cli.distillation.layer_map import layer_map  # noqa: E402
from microbert_cli.distillation.teacher import Teacher  # noqa: E402
from microbert_cli.models.load import load_model  # noqa: E402
from microbert_cli.recipe.registry import Catalog  # noqa: E402
from microbert_cli.training.loop import train  # noqa: E402
from microbert_cli.training.loss_terms import make_terms  # noqa: E402
from microbert_cli.training.objective import Objective  # noqa: E402
from microbert_cli.training.plan import TrainingPlan  # noqa: E402

ROWS, SIZE = 64, 8
TERMS = {"hidden_states": (1.0, {}), "attention_scores": (1.0, {}), "soft_target": (1.0, {}), "hard_label": (1.0, {})}


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(folder: Path, steps: int) -> None:
    """Distils a toy teacher into a toy student, saves every 0.2 s, scores every hundred steps."""
    for name, hidden in (("teacher", 16), ("student", 8)):
        tiny_bert(folder / name, layers=2 if name == "teacher" else 1, hidden=hidden, seed=hidden)
    taught, pupil = (load_model(folder / name, "classifier", where=name) for name in ("teacher", "student"))
    objective = Objective(
        make_terms(TERMS, Catalog()),
        pupil.model,
        ask_teacher=Teacher(taught).ask,
        map_layers=layer_map("uniform", teacher_layers=2, student_layers=1),
        student_width=8,
        teacher_width=16,
    )
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(6, 24, (ROWS,), generator=draw).tolist()
    ids = torch.randint(5, 100, (ROWS, max(lengths)), generator=draw)
    held: list[tuple[int, int]] = []

    def batches(skip: int) -> Iterator[dict[str, torch.Tensor]]:
        for number, rows in enumerate(endless_batches(lengths, batch_size=SIZE, seed=7, skip=skip), skip):
            if number % 100 == 0:
                held.append((resident(), len(os.listdir("/proc/self/fd"))))
            row_lengths = torch.tensor([lengths[row] for row in rows])
            mask = (torch.arange(int(row_lengths.max()))[None, :] < row_lengths[:, None]).long()
            chosen = ids[rows][:, : mask.shape[1]] * mask
            yield {"input_ids": chosen, "attention_mask": mask, "labels": ids[rows, 1] % 2}

    plan = TrainingPlan("toy", steps=steps, learning_rate=1e-4, evaluate_every=100, checkpoint_seconds=0.2)
    scores = iter(range(10**9))
    train(
        objective,
        batches,
        plan,
        directory=folder,
        seed=1,
        score=lambda: {"accuracy": float(next(scores) % 7)},
        primary="accuracy",
    )
    print(json.dumps({"resident": [each[0] for each in held], "open": [each[1] for each in held]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
