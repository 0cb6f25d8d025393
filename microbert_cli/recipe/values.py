"""What values of a recipe may be: numbers within bounds, names that can be files, tables whose keys are all known.

And which of them decide what a stage makes: the rest (paths, cadence, unused tables) is not in its identity.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from microbert_cli.text import check_duration


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
RaceShare = Annotated[Number, Field(gt=0, le=1)]
Weight = Annotated[Number, Field(ge=0, le=1e6)]  # a larger one overflows float32 with any loss, and the rate gets the blame
Decay = Annotated[Number, Field(ge=0, le=100)]
Smoothing = Annotated[Number, Field(ge=0, le=10)]  # an exponent of token counts
Count = Annotated[Whole, Field(gt=0)]
NotNegativeCount = Annotated[Whole, Field(ge=0)]
Seed = Annotated[Whole, Field(ge=0, le=2**32 - 1)]  # numpy's generators take no larger one
Seeds = Annotated[list[Seed], AfterValidator(check_distinct)]
Rates = Annotated[list[Positive], AfterValidator(check_distinct)]  # a trial of each has a folder named after it
Part = Annotated[str, Field(pattern=r"^(embeddings|head|backbone|branches|layer\.[1-9]\d{0,3})$")]
Parts = Annotated[list[Part], AfterValidator(check_distinct)]


def _check_order(values: list[Any]) -> list[Any]:
    check_distinct([part for value in values for part in (value if isinstance(value, list) else [value])])
    return values


Unfreezing = (
    Literal["top-down"] | Annotated[list[Part | Annotated[list[Part], Field(min_length=1)]], AfterValidator(_check_order)]
)
LayerRates = Literal[False] | tuple[Positive, NotNegative]  # of the current layer, of the lower ones

Duration = Annotated[str, AfterValidator(check_duration)]

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
    keep_first   how many of the vocabulary's first tokens stay, which are the commonest of the texts that it was made from
    rows         at most so many tokens
    """

    size: Count | None = None
    lowercase: bool = True
    keep: Literal["train", "common", "all"] = "train"
    keep_common: NotNegativeCount = 12_000
    keep_first: NotNegativeCount = 0
    rows: Count | None = None


class Trim(Strict):
    """The model whose vocabulary is made smaller; how, says `vocabulary`."""

    model: Place | None = None


class Cascade(Strict):
    """Two models of one task, of which the small one answers where it is sure, else the big one; see `evaluation/guarantee.py`.

    agreement   share of rows answered as the big model answers them, wished for;  score: instead, the accuracy wished for
    confidence  with which the wish holds on rows that did not choose the threshold
    threshold   the small model answers where its largest probability is above it; None = chosen for the wish
    choosing    share of dev that chooses the threshold; the rest checks it
    precision   of the ONNX files that are written; an export's file that is named is taken as it is
    """

    small: Place | None = None
    big: Place | None = None
    agreement: Annotated[Share, Field(gt=0)] = 0.98
    score: Annotated[Share, Field(gt=0)] | None = None
    confidence: Annotated[Share, Field(gt=0, lt=1)] = 0.95
    threshold: Share | None = None
    choosing: Annotated[Share, Field(gt=0, lt=1)] = 0.4
    precision: Literal["fp32", "int8"] = "fp32"

    @model_validator(mode="after")
    def _check_wish(self) -> "Cascade":
        if self.threshold is not None and self.score is not None:
            raise ValueError("either a threshold, or a score that it is chosen for")
        return self


class Evaluate(Strict):
    """What the evaluator looks at. `speed` of a model with exits; `beams`, `length_penalty` of one that writes."""

    model: Place | None = None
    splits: list[str] | None = None
    batch_size: Count = 64
    precision: Literal["auto", "torch", "fp32", "int8", "q4", "fp32-optimized", "int8-optimized", "openvino"] = "auto"
    speed: Share | None = None
    beams: Count = 5
    length_penalty: Number = 0.6


class Training(Strict):
    """How long and how fast anything is trained: `steps`, where given, else `epochs`, and `min_steps` at least.

    A batch is `batch_size` rows, or with `batch_tokens` as many as fit into that many tokens, padding included. The state is
    saved every `checkpoint_seconds`, and every `checkpoint_steps` where these are given. Every `gradient_norms` steps the norm
    of each weighted loss's own gradient in the student is logged, one more backward pass for each; 0 = never.
    `freeze` names parts of the model that stay as they are (`training/freeze.py`).
    """

    epochs: Positive = 3.0
    steps: Count | None = None
    min_steps: Count | None = None
    batch_size: Count = 32
    batch_tokens: Count | None = None
    learning_rate: Positive = 5e-5
    optimizer: Literal["adamw", "adamw-distilbert", "bertadam", "adamax", "lamb", "adadelta"] = "adamw"
    schedule: Literal["constant", "linear", "sqrt", "noam"] = "linear"
    warmup: Share = 0.1
    weight_decay: Decay = 0.01
    max_grad_norm: Positive = 1.0
    accumulate: Count = 1
    evaluations: NotNegativeCount = 4
    checkpoint_seconds: Positive = 120.0
    checkpoint_steps: Count | None = None
    gradient_norms: NotNegativeCount = 0
    freeze: Parts = []


class Staged(Strict):
    """How a phase is split into stages, when a stage ends, and which of its weights are kept.

    unfreeze   parts in the order in which they are set free, one stage each (`training/freeze.py`); "top-down": the head, then
               layer by layer down to the embeddings. Every number of the table is that of one stage
    best_by    the best weights on dev: by the task's "score", or by the "loss" of the phase, which needs no logits
    patience   a stage ends after so many evaluations in a row that bring nothing better; 0 = never before its last step
    """

    unfreeze: Unfreezing = []
    best_by: Literal["score", "loss"] = "score"
    patience: NotNegativeCount = 0


class PhaseSpec(Training):
    """A phase of a method: which losses with which weights, on which rows (`phase_data.py`). `leave_out` skips it.

    Of several `learning_rates` the best on dev is kept. Each is tried for all steps, or with `race` below 1 for that share of
    them, with a schedule of its own; the best is then trained from the beginning.
    """

    losses: dict[str, Term] = {}
    data: Literal["auto", "original", "augmented", "transfer"] = "auto"
    learning_rates: Rates = []
    race: RaceShare = 1.0
    leave_out: bool = False


class Dual(Strict):
    """A student with a vocabulary of its own, and a teacher that learns with it; see `distillation/dual/`.

    vocabulary       pieces of the student's, a WordPiece vocabulary that is trained on the corpus; false = the teacher's tokens
    share            of the words that the teacher reads in the student's pieces, the others in its own
    teacher_rate, projection_rate   learning rates of a teacher that is trained, and of what maps weights; None = learning_rate
    keep             whether such a teacher is saved too, in the folder `teacher` of the output
    """

    vocabulary: Literal[False] | Annotated[Whole, Field(ge=8)] = False
    share: Share = 0.5
    teacher_rate: Positive | None = None
    projection_rate: Positive | None = None
    keep: bool = False


class Prune(Strict):
    """Cuts a student, which begins as its teacher, to its own shape in the course of a phase (`distillation/pruning/`).

    start, end  shares of the phase's steps between which it is cut, every `every` steps
    decay       of the running means of importance, a step
    """

    start: Annotated[Share, Field(lt=1)] = 0.0
    end: Annotated[Share, Field(gt=0)] = 0.7
    every: Count = 10
    decay: Annotated[Share, Field(lt=1)] = 0.98

    @model_validator(mode="after")
    def _check_order(self) -> "Prune":
        if self.start >= self.end:
            raise ValueError("start before end")
        return self


class TaskPhase(Staged, PhaseSpec):
    """A phase of stage two; `prune`: a table, also an empty one, or false.

    chunk_rows  at most so many rows are taken at a time, each chunk in a stage of its own, so that a teacher's answers to one
                chunk alone need room; None = all at once
    """

    chunk_rows: Count | None = None
    prune: Annotated[Prune | None, BeforeValidator(lambda value: None if value is False else value)] = None


class EarlyExit(Strict):
    """Exits of the student, at which easy rows leave; see `models/exits/`.

    branch  what answers there: "attention" as published, "linear" one product with the first token's vector; "none" = no exits
    layers  behind which: all but the last, where the classifier itself answers, or numbers from 1
    width, heads   of the attention branch
    """

    branch: Literal["none", "attention", "linear"] = "none"
    layers: Literal["all"] | Annotated[list[Count], AfterValidator(check_distinct)] = "all"
    width: Count = 128
    heads: Count = 2

    @model_validator(mode="after")
    def _check_heads(self) -> "EarlyExit":
        if self.width % self.heads:
            raise ValueError(f"heads that divide the width: {self.heads} do not divide {self.width}")
        return self


TRIM_KEYS = ("keep", "keep_common", "keep_first", "rows")  # of `vocabulary`
MULTITASK_KEYS = ("tasks", "sampling", "teachers")  # without tasks they say nothing
CADENCE = ("checkpoint_seconds", "checkpoint_steps", "gradient_norms")
# Defaults of keys that came later than the table they stand in: as if not said, so that older outputs keep their identity.
NEUTRAL_DEFAULTS: dict[str, dict[str, Any]] = {
    "general": {
        "masked": 0,
        "smoothing": 0,
        "dropout": True,
        "layer_by_layer": False,
        "dual": {"vocabulary": False, "share": 0.5, "teacher_rate": None, "projection_rate": None, "keep": False},
    },
    "pretrain": {"masked": 0, "smoothing": 0, "dropout": True, "layer_by_layer": False},
    "data": {
        **dict.fromkeys(("encoding", "delimiter", "quoting", "label_probabilities", "label_score")),
        **dict.fromkeys(("label_columns", "class_weights", "primary")),
        "header": True,
        **dict.fromkeys(("skip_empty", "repair_tags"), False),
        **dict.fromkeys(("windows", "stride", "transfer_windows")),
    },
    "finetune": {"masked": 0.15},
    "evaluate": {"speed": None, "beams": 5, "length_penalty": 0.6},
    "export": {"embeddings": "int8", "speed": None, "formats": None},
    "initialise": {"neurons": "weights", "rows": 1024},
    "augment": {"options": {}, "precision": "fp32"},
}
TRAINING_DEFAULTS: dict[str, Any] = {
    "freeze": [],
    "min_steps": None,
    "race": 1.0,
    "prune": None,
    "unfreeze": [],
    "best_by": "score",
    "patience": 0,
    "chunk_rows": None,
}  # likewise, of training tables
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
    "cascade": ("small", "big"),
    "export": ("model",),
}


def identity_values(name: str, value: Any) -> Any:
    """Returns a table of the recipe without the keys that leave what a stage makes as it is."""
    if name == "teachers":
        return sorted(value)
    value = _without_defaults(value, TRAINING_DEFAULTS)
    if name == "phases":
        return {phase: {key: inner for key, inner in numbers.items() if key not in CADENCE} for phase, numbers in value.items()}
    if not isinstance(value, dict):
        return value
    unsaid, silent = NEUTRAL_DEFAULTS.get(name, {}), LOCATION_KEYS.get(name, ())
    return {key: v for key, v in value.items() if key not in silent and not (key in unsaid and v == unsaid[key])}


def _without_defaults(value: Any, defaults: dict[str, Any]) -> Any:
    """Returns a table, and those within it, without the keys that have these default values."""
    if not isinstance(value, dict):
        return value
    kept = {key: inner for key, inner in value.items() if not (key in defaults and inner == defaults[key])}
    return {key: _without_defaults(inner, defaults) for key, inner in kept.items()}


def identity_of_vocabulary(value: dict[str, Any], *, trims: bool) -> dict[str, Any]:
    """Returns the vocabulary's keys that count: those of training one, or for the stage `trim` those of cutting one."""
    return {key: inner for key, inner in value.items() if (key in TRIM_KEYS) == trims}
