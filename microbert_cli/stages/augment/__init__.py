"""Varies a task's training set by masked-LM and word-vector neighbours (TinyBERT, Algorithm 1)."""

from typing import Any

from microbert_cli.recipe.phase_data import TRAIN
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.runs.stage_inputs import EarlierOutputs, masked_lm_input, required_input
from microbert_cli.runs.stage_registry import Stage


def inputs(recipe: Recipe, earlier: EarlierOutputs, catalog: Catalog) -> dict[str, Any]:
    """Returns the masked-LM and the word vectors; without a file of vectors, the masked-LM's input embeddings serve.

    Where no source asks the masked-LM and word vectors are named, there need not be any.
    """
    masked_lm = earlier.resolve(recipe.augment.masked_lm) or masked_lm_input(recipe, earlier)
    asks_model = any("masked_lm" in catalog.augmenter_needs(source) for source in recipe.augment.sources)
    if asks_model:
        masked_lm = required_input(masked_lm, "augment.masked_lm", "the masked-LM that proposes words", "--masked-lm DIR")
    elif not masked_lm:
        required_input(recipe.vectors.source, "vectors.source", "word vectors, or a BERT that has some", "--vectors FILE")
    vectors = recipe.vectors.source or (masked_lm if "word_vectors" in recipe.augment.sources else None)
    return {"masked_lm": masked_lm, "vectors": vectors}


STAGE = Stage(
    "augment",
    inputs,
    input_keys={"masked_lm": ("augment.masked_lm",), "vectors": ("vectors.source",)},
    keys=("task", "data", "augment", "vectors", "seed"),
    splits=(TRAIN,),
    heads=lambda recipe: {"masked_lm": "masked-lm"} if "masked_lm" in recipe.augment.sources else {},
    distributed=True,
    reusable=True,
)
