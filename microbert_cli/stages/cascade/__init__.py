"""A small and a big model as one: the small one answers where it is sure, as often as a wish allows that is checked on dev."""

from typing import Any

from microbert_cli.recipe.phase_data import SELECTED_BY
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.runs.stage_inputs import EarlierOutputs, required_input, student_output, teacher_input
from microbert_cli.runs.stage_registry import Stage


def inputs(recipe: Recipe, earlier: EarlierOutputs, catalog: Catalog) -> dict[str, Any]:
    """Returns both models: the recipe's, else the student and the teacher of this run."""
    small = earlier.resolve(recipe.cascade.small) or student_output(earlier)
    big = earlier.resolve(recipe.cascade.big) or teacher_input(recipe, earlier)
    return {
        "small": required_input(small, "cascade.small", "the model that is asked first", "mbert cascade SMALL BIG"),
        "big": required_input(big, "cascade.big", "the model that answers the other rows", "mbert cascade SMALL BIG"),
    }


STAGE = Stage(
    "cascade",
    inputs,
    input_keys={"small": ("cascade.small",), "big": ("cascade.big",)},
    heads=lambda recipe: {"small": "classifier", "big": "classifier"},
    keys=("seed", "task", "data", "cascade"),
    splits=(SELECTED_BY,),
    no_words="a small model answers alone where its largest probability is high, and a text has one for every word",
    no_texts="a small model answers alone where its largest probability is high, and a text has one for every word",
    makes_model=True,
    extras=lambda recipe: ("onnx",),
)
