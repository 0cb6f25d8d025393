"""Stage one: a small student learns a pre-trained teacher's behaviour on plain text, before it sees any task."""

from typing import Any

from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import PRECISION_KEYS, Recipe
from microbert_cli.runs.stage_inputs import EarlierOutputs, corpus_input, initial_input, new_model_input, required_input
from microbert_cli.runs.stage_registry import Stage


def inputs(recipe: Recipe, earlier: EarlierOutputs, catalog: Catalog) -> dict[str, Any]:
    """Returns teacher, student and corpus, and the model that a new student takes weights from."""
    teacher = earlier.resolve(recipe.base) or earlier.directory("pretrain")
    student = new_model_input(recipe.student, "student", earlier, catalog)
    return {
        "teacher": required_input(
            teacher, "base", "the pre-trained teacher of stage one", "--teacher google-bert/bert-base-uncased"
        ),
        "student": required_input(student, "student", "a student of the catalogue", "--student tinybert-4l-312"),
        "source": corpus_input(recipe),
        **initial_input(recipe, earlier),
    }


STAGE = Stage(
    "general-distill",
    inputs,
    input_keys={"teacher": ("base",), "student": ("student",), "source": ("corpus.source",)},
    keys=("corpus", "general", "normalisation", "layer_map", "initialise", "seed", *PRECISION_KEYS),
    phases=lambda recipe: {"general": recipe.general},
    distributed=True,
    reusable=True,
    makes_model=True,
)
