"""What values of a recipe may be: numbers within bounds, names that can be files, tables whose keys are all known.

And which of them decide what a stage makes: the rest (paths, cadence, unused tables) is not in its identity.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _check_no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number, not a truth value")
    return value


def check_distinct(values: list[Any]) -> list[Any]:
    """Checks that no value comes twice."""
    if repeated := sorted({value for value in values if values.count(value) > 1}):
        raise ValueError(f"each only once, and {', '.join(map(str, repeated))} comes twice or more")
    return values


Number = Annotated[float, BeforeValidator(_check_no_truth_value)]
Whole = Annotated[int, BeforeValidator(_check_no_truth_value)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Weight = Annotated[Number, Field(ge=0, le=1e6)]  # a larger one overflows float32 with any loss, and the rate gets the blame
Decay = Annotated[Number, Field(ge=0, le=100)]
Smoothing = Annotated[Number, Field(ge=0, le=10)]  # an exponent of token counts
Count = Annotated[Whole, Field(gt=0)]
NotNegativeCount = Annotated[Whole, Field(ge=0)]
Seed = Annotated[Whole, Field(ge=0, le=2**32 - 1)]  # numpy's generators take no larger one
Seeds = Annotated[list[Seed], AfterValidator(check_distinct)]
Rates = Annotated[list[Positive], AfterValidator(check_distinct)]  # a trial of each has a folder named after it
LayerRates = Literal[False] | tuple[Positive, NotNegative]  # of the current layer, of the lower ones

FOLDER_NAME = re.compile(r"\w[\w .+-]{0,99}")  # what names a folder of the output: stages, variants, phases
MAX_NAME_BYTES, MAX_PATH_BYTES = 240, 4000  # bytes; systems take 255 and 4095, and NAME.partial lies beside NAME


def _check_path_length(path: str) -> str:
    if len(path.encode()) > MAX_PATH_BYTES or max(len(name.encode()) for name in path.split("/")) > MAX_NAME_BYTES:
        raise ValueError(f"a name of a file has at most {MAX_NAME_BYTES} bytes, a path {MAX_PATH_BYTES}")
    return path


Place = Annotated[str, AfterValidator(_check_path_length)]  # what is looked for among files, and perhaps elsewhere


class Strict(BaseModel):
    """A table that rejects unknown keys and is frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Term(BaseModel):
    """One loss of a sum: its weight, and the loss's own keyword parameters."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    weight: Weight = 1.0

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Vocabulary(Strict):
    """A vocabulary trained on the corpus, and how `trim` makes that of a model smaller; see `models/vocabulary/`.

    size, lowercase  of a WordPiece vocabulary that `pretrain` trains; without a size the base model's is taken
    keep         "train": every token of training rows, transfer set and augmented rows, then the commonest of the corpus;
                 "common": the commonest of them all, `rows` in all; "all": no token is left out
    keep_common  how many of the corpus's commonest tokens stay
    rows         at most so many tokens
    """

    size: Count | None = None
    lowercase: bool = True
    keep: Literal["train", "common", "all"] = "train"
    keep_common: NotNegativeCount = 12_000
    rows: Count | None = None


class Trim(Strict):
    """The model whose vocabulary is made smaller; how, says `vocabulary`."""

    model: Place | None = None


TRIM_KEYS = ("keep", "keep_common", "rows")  # of `vocabulary`
MULTITASK_KEYS = ("tasks", "sampling", "teachers")  # without tasks they say nothing
CADENCE = ("checkpoint_seconds", "checkpoint_steps", "gradient_norms")
NEUTRAL_DEFAULTS = {"masked": 0, "smoothing": 0, "dropout": True, "layer_by_layer": False}  # of stage one: as if not said
EXPORT_DEFAULTS = {"embeddings": "int8"}  # likewise
DATA_DEFAULTS = {"encoding": None, "delimiter": None, "header": True, "quoting": None, "skip_empty": False}  # likewise
UNSAID: dict[str, dict[str, Any]] = {
    "general": NEUTRAL_DEFAULTS,
    "pretrain": NEUTRAL_DEFAULTS,
    "data": DATA_DEFAULTS,
    "export": EXPORT_DEFAULTS,
}
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
    "trim": ("model",),
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
    unsaid = UNSAID.get(name, {})
    return {key: v for key, v in value.items() if key not in LOCATION_KEYS[name] and not (key in unsaid and v == unsaid[key])}


def identity_of_vocabulary(value: dict[str, Any], *, trims: bool) -> dict[str, Any]:
    """Returns the vocabulary's keys that count: those of training one, or for the stage `trim` those of cutting one."""
    return {key: inner for key, inner in value.items() if (key in TRIM_KEYS) == trims}
