"""Which keys of a recipe decide what a stage makes: the rest (paths, cadence, unused tables) is not in its identity."""

from typing import Any

OF_SEVERAL = ("tasks", "sampling", "teachers")  # without tasks they say nothing
CADENCE = ("checkpoint_seconds", "checkpoint_steps", "gradient_norms")
SILENT = {"masked": 0, "smoothing": 0, "dropout": True, "layer_by_layer": False}  # of stage one: as if not said
PLACES = {
    "data": ("folder", "train_file", "dev_file", "test_file", "transfer_file"),
    "corpus": ("source",),
    "vectors": ("source",),
    "teacher": ("model", "models"),
    "initialise": ("model",),
    "pretrain": ("model", *CADENCE),
    "finetune": ("model", *CADENCE),
    "general": CADENCE,
    "augment": ("masked_lm", "batch_size"),
    "evaluate": ("model", "batch_size"),
    "export": ("model",),
}


def _without_places(name: str, value: Any) -> Any:
    if name == "phases":
        return {phase: {key: inner for key, inner in numbers.items() if key not in CADENCE} for phase, numbers in value.items()}
    if name == "teachers":
        return sorted(value)
    if name not in PLACES:
        return value
    unsaid = SILENT if name in ("general", "pretrain") else {}
    return {key: v for key, v in value.items() if key not in PLACES[name] and not (key in unsaid and v == unsaid[key])}
