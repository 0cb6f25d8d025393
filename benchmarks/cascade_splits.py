"""How often the bound of a cascade holds: 200 random halves of a task's dev rows, each split into rows that choose and check.

    python benchmarks/cascade_splits.py CASCADE --task sst2 [--data FOLDER] [--splits 200]

The truth is the agreement on all of dev, from which each half is drawn without replacement. Prints a line for each wish.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from microbert_cli.data.task_data import load_task_data
from microbert_cli.evaluation.calibration import fit_temperature
from microbert_cli.evaluation.guarantee import NEVER, Answered, choose_threshold, split_rows
from microbert_cli.evaluation.scoring import predict_logits
from microbert_cli.models.cascade.answers import PARTS, sureness
from microbert_cli.models.predictor import open_predictor
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve

CONFIDENCE, CHOOSING = 0.95, 0.4
WISHES = (0.95, 0.98, 0.99)


def dev_logits(directory: Path, task: str, folder: str | None) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns both models' logits on dev, in the order of the task's labels, and the labels."""
    recipe = resolve(catalog=Catalog(), flags={"task": task, "data.folder": folder}).recipe
    data = load_task_data(recipe, Catalog(), splits=("dev",))
    logits = {}
    for part in PARTS:
        predictor = open_predictor(str(directory / part), data.task, where=part)
        logits[part] = predict_logits(data, "dev", predictor.answers, predictor)
    return logits, np.asarray(data.rows["dev"].labels)


def hold(logits: dict[str, np.ndarray], labels: np.ndarray, wish: float, splits: int) -> dict[str, Any]:
    """Returns how often the bound held and the wish was confirmed, and the mean share of rows sent on.

    held           by the share of all rows;  held_on_others  by that of the half that neither chose nor checked, whose own
                   chance is on top: it may be below a bound that is right
    """
    held, on_others, confirmed, sent = 0, 0, 0, []
    rows = len(labels)
    differs = logits["small"].argmax(-1) != logits["big"].argmax(-1)
    for number in range(splits):
        order = np.random.default_rng(number).permutation(rows)
        half, others = order[: rows // 2], order[rows // 2 :]
        first, second = split_rows(len(half), CHOOSING, seed=number)
        choosing, checking = half[first], half[second]
        temperature = fit_temperature(logits["small"][choosing], labels[choosing])
        everybody = Answered(sureness(logits["small"] / temperature), differs, np.zeros(rows, dtype=bool))
        threshold = choose_threshold(everybody.take(choosing), wish=wish, confidence=CONFIDENCE, rows=len(checking))
        bound = everybody.take(checking).bound(threshold, CONFIDENCE)
        held += everybody.right(threshold) / rows >= bound
        on_others += everybody.take(others).right(threshold) / len(others) >= bound
        if bound < wish:
            threshold = NEVER
        confirmed += threshold < NEVER
        sent.append(everybody.sent(threshold))
    counts = {"held": int(held), "held_on_others": int(on_others), "with_a_threshold": confirmed}
    return {"wish": wish, "splits": splits, **counts, "sent": float(np.mean(sent))}


def main() -> None:
    """Prints a line of JSON for each wish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cascade", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--data")
    parser.add_argument("--splits", type=int, default=200)
    options = parser.parse_args()
    logits, labels = dev_logits(options.cascade, options.task, options.data)
    for wish in WISHES:
        print(json.dumps(hold(logits, labels, wish, options.splits)))


if __name__ == "__main__":
    main()
