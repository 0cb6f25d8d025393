"""Varies a task's training set by masked-LM and word-vector neighbours (TinyBERT, Algorithm 1), or makes new rows of it."""

from typing import Any

from microbert_cli.recipe.phase_data import SELECTED_BY, TRAIN
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.runs.stage_inputs import EarlierOutputs, masked_lm_input, required_input
from microbert_cli.runs.stage_registry import Stage


def inputs(recipe: Recipe, earlier: EarlierOutputs, catalog: Catalog) -> dict[str, Any]:
    """Returns the masked-LM and the word vectors; without a file of vectors, the masked-LM's input embeddings serve.

    Where no source asks the masked-LM and word vectors are named, there need not be any; sources that make rows ask neither.
    """
    sources = _word_sources(recipe, catalog)
    needs = {need for source in recipe.augment.sources for need in catalog.augmenter_needs(source)}
    if not sources and not needs & {"masked_lm", "vectors"}:
        return {"masked_lm": None, "vectors": None}
    masked_lm = earlier.resolve(recipe.augment.masked_lm) or masked_lm_input(recipe, earlier)
    if "masked_lm" in needs:
        masked_lm = required_input(masked_lm, "augment.masked_lm", "the masked-LM that proposes words", "--masked-lm DIR")
    elif not masked_lm:
        required_input(recipe.vectors.source, "vectors.source", "word vectors, or a BERT that has some", "--vectors FILE")
    vectors = recipe.vectors.source or (masked_lm if "word_vectors" in recipe.augment.sources else None)
    return {"masked_lm": masked_lm, "vectors": vectors}


def splits(recipe: Recipe, catalog: Catalog) -> tuple[str, ...]:
    """Returns the training set; dev too where a source needs its lengths."""
    needs_dev = any("dev_lengths" in catalog.augmenter_needs(source) for source in recipe.augment.sources)
    return (TRAIN, SELECTED_BY) if needs_dev else (TRAIN,)


def _word_sources(recipe: Recipe, catalog: Catalog) -> list[str]:
    """Returns the sources that vary words; the others make whole rows."""
    return [source for source in recipe.augment.sources if catalog.augmenter_facts(source).get("makes") != "rows"]


STAGE = Stage(
    "augment",
    inputs,
    input_keys={"masked_lm": ("augment.masked_lm",), "vectors": ("vectors.source",)},
    keys=("task", "data", "augment", "vectors", "seed"),
    splits=splits,
    heads=lambda recipe: {"masked_lm": "masked-lm"} if "masked_lm" in recipe.augment.sources else {},
    no_texts="it varies the words of a source, whose target would then be another",
    distributed=True,
    reusable=True,
)
