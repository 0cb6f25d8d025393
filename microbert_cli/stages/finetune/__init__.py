"""Fine-tunes any encoder on a task's labels: the teacher, or a student without a teacher."""

from typing import Any

from microbert_cli.recipe.phase_data import SELECTED_BY, TRAIN
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import PRECISION_KEYS, Recipe
from microbert_cli.recipe.task import writes_text
from microbert_cli.runs.stage_inputs import EarlierOutputs, masked_lm_input, new_model_input, required_input
from microbert_cli.runs.stage_registry import Stage


def inputs(recipe: Recipe, earlier: EarlierOutputs, catalog: Catalog) -> dict[str, Any]:
    """Returns the model to train, and the tokenizer of a new model."""
    model = new_model_input(recipe.finetune.model, "finetune.model", earlier, catalog) or masked_lm_input(recipe, earlier)
    tokenizer = recipe.base or earlier.directory("pretrain") or earlier.resolve(recipe.teacher.model)
    return {
        "model": required_input(model, "finetune.model", "an encoder: a directory, a Hub id or a student", "--model DIR"),
        "tokenizer": tokenizer if tokenizer != model else None,
    }


STAGE = Stage(
    "finetune",
    inputs,
    input_keys={"model": ("finetune.model",), "tokenizer": ("base",)},
    keys=("task", "data", "finetune", "seed", "seeds", *PRECISION_KEYS),
    splits=(TRAIN, SELECTED_BY),
    phases=lambda recipe: {"finetune": recipe.finetune},
    extras=lambda recipe: ("text",) if writes_text(recipe) else (),
    distributed=True,
    reusable=True,
    compared=True,
    makes_model=True,
)
