"""What leaving early costs and saves, seed by seed: the score of dev and the operations of a row of models with exits.

    python benchmarks/exit_curves.py runs/exits/sst2/teacher --task sst2 [--data FOLDER] [--speed 0,0.1,0.3,0.5,0.8]

The folder has `seed-1`, `seed-2` ... All exits answer once, and which row leaves where follows from their logits. Prints a line
of JSON for each speed: the primary score and the layers and FLOPs of a row of dev's mean length, means and standard deviations.
"""

import argparse
import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from microbert_cli.data.task_data import load_task_data
from microbert_cli.evaluation.scoring import predict_logits, score
from microbert_cli.models.exits.answers import ExitLogits, uncertainty
from microbert_cli.models.exits.build import exit_ends
from microbert_cli.models.exits.flops import exit_summary
from microbert_cli.models.predictor import open_predictor
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve


def curve(directory: Path, data: Any, speeds: list[float]) -> list[dict[str, float]]:
    """Returns score, layers and FLOPs of one model at each speed."""
    predictor = open_predictor(str(directory), data.task, where="model")
    answers = predict_logits(data, "dev", ExitLogits(predictor.model), predictor)
    ends = np.asarray(exit_ends(predictor.model.config))
    logits_NEC = torch.from_numpy(answers).view(len(answers), len(ends), -1)
    length = round(float(np.mean(data.encode("dev", predictor, where="model").lengths)))
    points = []
    for speed in speeds:
        sure_NE = uncertainty(logits_NEC.flatten(0, 1)).view(logits_NEC.shape[:2]) <= speed
        sure_NE[:, -1] = True
        sure_NE[:, :-1] &= speed > 0
        exits = sure_NE.int().argmax(1)
        chosen = logits_NEC[torch.arange(len(exits)), exits].numpy()
        summary = exit_summary(predictor.model.config, Counter(ends[exits].tolist()), length=length, speed=speed)
        primary = score(data.task, chosen, data.rows["dev"])[data.task.primary]
        points.append({"score": primary, "layers": summary["layers"], "mflops": summary["flops"] / 1e6})
    return points


def main() -> None:
    """Prints a line for each speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--data")
    parser.add_argument("--speed", default="0,0.1,0.3,0.5,0.8")
    options = parser.parse_args()
    speeds = [float(speed) for speed in options.speed.split(",")]
    recipe = resolve(catalog=Catalog(), flags={"task": options.task, "data.folder": options.data}).recipe
    data = load_task_data(recipe, Catalog(), splits=("dev",))
    curves = [curve(seed, data, speeds) for seed in sorted(options.folder.glob("seed-*"))]
    for speed, points in zip(speeds, zip(*curves, strict=True), strict=True):
        line: dict[str, Any] = {"speed": speed}
        for key in ("score", "layers", "mflops"):
            values = [point[key] for point in points]
            line |= {key: statistics.mean(values), f"{key}_spread": statistics.stdev(values) if len(values) > 1 else 0.0}
        print(json.dumps({key: round(value, 4) for key, value in line.items()}))


if __name__ == "__main__":
    main()
