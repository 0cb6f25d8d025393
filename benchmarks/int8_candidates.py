"""How many of a masked language model's candidates stay the same in int8.

    python benchmarks/int8_candidates.py MODEL --data FOLDER [--task sst2] [--sentences 400]

Both precisions are asked for the K likeliest candidates of the same words, each masked in its sentence alone (`augment.query =
"alone"`), for K of 1, 5 and 15. Printed are the share of words whose candidates are the same set, the mean share of candidates
that both have, and words a CPU second. Sentences are drawn evenly from the training rows.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from microbert_cli.augmentation.algorithm import AugmentSettings, DatasetAugmenter
from microbert_cli.augmentation.int8_masked_lm import Int8MaskedLm
from microbert_cli.augmentation.interface import Slot
from microbert_cli.data.examples import Examples
from microbert_cli.data.task_data import load_task_data
from microbert_cli.models.load import load_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.runs import manifest


def slots_of(driver: DatasetAugmenter) -> list[Slot]:
    """Returns the words that the masked language model is asked about."""
    sentences = [driver._sentence(row, 0) for row in range(len(driver.rows))]
    return [Slot(sentence.words, position, sentence.words) for sentence in sentences for position in sentence.sources]


def candidates(rows: Examples, tokenizer: Any, model: Any, count: int) -> tuple[list[set[str]], float]:
    """Returns the `count` candidates of every word, and the CPU seconds that they took."""
    settings = AugmentSettings(sources=("masked_lm",), query="alone", candidates_per_word=count)
    driver = DatasetAugmenter(rows, tokenizer=tokenizer, masked_lm_model=model, settings=settings)
    slots = slots_of(driver)
    (augmenter,) = driver._choosers
    begun = time.process_time()
    answers = augmenter.candidates(slots)
    return [set(answer) for answer in answers], time.process_time() - begun


def shares(float32: Sequence[set[str]], int8: Sequence[set[str]]) -> tuple[float, float]:
    """Returns the share of words with equal candidates, and the mean share of float32's candidates that int8 has."""
    equal = statistics.mean(a == b for a, b in zip(float32, int8, strict=True))
    return equal, statistics.mean(len(a & b) / len(a) if a else 1.0 for a, b in zip(float32, int8, strict=True))


def main() -> None:
    """Prints a line for each number of candidates."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--data")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--sentences", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    flags = {"task": arguments.task, "data.folder": arguments.data}
    train = load_task_data(resolve(catalog=Catalog(), flags=flags).recipe, Catalog(), splits=("train",)).rows["train"]
    loaded = load_model(arguments.model, "masked-lm", where="model")
    loaded.model.eval()
    step = max(1, len(train) // arguments.sentences)
    rows = train.take(range(0, step * arguments.sentences, step))
    int8 = Int8MaskedLm(loaded.model, loaded.tokenizer, weights=str(manifest.identify(arguments.model)), rows=train)
    for count in (1, 5, 15):
        plain, plain_seconds = candidates(rows, loaded.tokenizer, loaded.model, count)
        rounded, int8_seconds = candidates(rows, loaded.tokenizer, int8, count)
        equal, common = shares(plain, rounded)
        rates = f"{len(plain) / plain_seconds:.0f} and {len(plain) / int8_seconds:.0f} words a CPU second"
        print(f"K = {count}: {len(plain):,} words, {equal:.1%} with equal candidates, {common:.1%} of the candidates; {rates}")


if __name__ == "__main__":
    main()
