"""A directory to ship: safetensors, ONNX fp32 and int8, also fused, checked for parity and measured, with a model card."""

from typing import Any

from microbert_cli.models.exported.files import export_parts
from microbert_cli.recipe.phase_data import SELECTED_BY
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Export, Recipe
from microbert_cli.runs.stage_inputs import EarlierOutputs, required_input, student_output, teacher_input
from microbert_cli.runs.stage_registry import Stage


def inputs(recipe: Recipe, earlier: EarlierOutputs, catalog: Catalog) -> dict[str, Any]:
    """Returns the model to export, and the teacher it is measured beside."""
    model = earlier.resolve(recipe.export.model) or student_output(earlier)
    return {
        "model": required_input(model, "export.model", "the model to export", "mbert export DIR"),
        "teacher": teacher_input(recipe, earlier),
    }


def extras(export: Export) -> tuple[str, ...]:
    """Returns the optional dependencies of the files that are asked for."""
    parts = export_parts(export)
    return tuple(name for name in ("onnx", "openvino") if parts[name])


STAGE = Stage(
    "export",
    inputs,
    input_keys={"model": ("export.model",), "teacher": ("teacher.model",)},
    cascades=("model",),
    by_task=True,
    heads=lambda recipe: {"model": "classifier", "teacher": "classifier"},
    keys=("task", "data", "export"),
    splits=(SELECTED_BY,),
    no_texts="an encoder, a decoder and one that goes on from earlier keys and values would be three graphs with a "
    "search around them, and what export checks is logits of classes",
    makes_model=True,
    extras=lambda recipe: extras(recipe.export),
)
