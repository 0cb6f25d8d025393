"""Which keys of a recipe decide what a stage makes: the rest (paths, cadence, unused tables) is not in its identity."""

from typing import Any

MULTITASK_KEYS = ("tasks", "sampling", "teachers")  # without tasks they say nothing
CADENCE = ("checkpoint_seconds", "checkpoint_steps", "gradient_norms")
NEUTRAL_DEFAULTS = {"masked": 0, "smoothing": 0, "dropout": True, "layer_by_layer": False}  # of stage one: as if not said
LOCATION_KEYS = {
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


def identity_values(name: str, value: Any) -> Any:
    """Returns a table of the recipe without the keys that leave what a stage makes as it is."""
    if name == "phases":
        return {phase: {key: inner for key, inner in numbers.items() if key not in CADENCE} for phase, numbers in value.items()}
    if name == "teachers":
        return sorted(value)
    if name not in LOCATION_KEYS:
        return value
    unsaid = NEUTRAL_DEFAULTS if name in ("general", "pretrain") else {}
    return {key: v for key, v in value.items() if key not in LOCATION_KEYS[name] and not (key in unsaid and v == unsaid[key])}
