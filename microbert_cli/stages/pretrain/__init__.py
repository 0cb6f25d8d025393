"""Masked-LM training of an encoder on a corpus, from a model or from a student description."""

from typing import Any

from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import PRECISION_KEYS, Recipe
from microbert_cli.runs.stage_inputs import EarlierOutputs, corpus_input, new_model_input, required_input
from microbert_cli.runs.stage_registry import Stage


def inputs(recipe: Recipe, earlier: EarlierOutputs, catalog: Catalog) -> dict[str, Any]:
    """Returns the model to train, its corpus, and the tokenizer of a new model."""
    model = new_model_input(recipe.pretrain.model, "pretrain.model", earlier, catalog) or recipe.base
    return {
        "model": required_input(
            model, "pretrain.model", "a model to go on from, or a student description", "--model bert-4x128"
        ),
        "source": corpus_input(recipe),
        "tokenizer": recipe.base if recipe.base != model else None,
    }


STAGE = Stage(
    "pretrain",
    inputs,
    input_keys={"model": ("pretrain.model",), "source": ("corpus.source",), "tokenizer": ("base",)},
    keys=("corpus", "vocabulary", "pretrain", "seed", *PRECISION_KEYS),
    phases=lambda recipe: {"pretrain": recipe.pretrain},
    distributed=True,
    reusable=True,
    makes_model=True,
)
