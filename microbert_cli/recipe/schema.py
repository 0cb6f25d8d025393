"""What a recipe may say: strict, frozen models. How its layers are merged is `resolve.py`'s matter.

A table that has one main key may be written as that key's value: `corpus = "python-docs"` means `corpus.source`,
`losses.hidden_states = 1.0` means `losses.hidden_states.weight`. SHORTHAND lists them.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from microbert_cli.recipe.task_kinds import KindName
from microbert_cli.recipe.values import (
    MULTITASK_KEYS,
    Cascade,
    Count,
    Decay,
    Dual,
    Duration,
    EarlyExit,
    Evaluate,
    LayerRates,
    NotNegativeCount,
    PhaseSpec,
    Place,
    Positive,
    RaceShare,
    Rates,
    Seed,
    Seeds,
    Share,
    Smoothing,
    Staged,
    Strict,
    TaskPhase,
    Term,
    Training,
    Trim,
    Vocabulary,
    Weight,
    Whole,
    check_distinct,
    identity_of_vocabulary,
    identity_values,
)
from microbert_cli.table_format import Delimiter, Encoding

Normalisation = Literal["masked", "reference"]
LayerMap = Literal["uniform", "first", "last", "top"] | Annotated[int, Field(gt=0, strict=True)] | list[int]


PRECISION_KEYS = ("precision", "tf32", "compile")


class Data(Strict):
    """Where task data lies: a GLUE `folder`, files of the user's own; of any task the unlabelled texts of a `transfer_file`.

    `label_probabilities`, `label_score`: columns of what a teacher said of each row, which then teach (`data/soft_labels.py`).
    """

    folder: Place | None = None
    train_file: Place | None = None
    dev_file: Place | None = None
    test_file: Place | None = None
    transfer_file: Place | None = None
    text: list[str] | str | None = None
    label: str | None = None
    labels: list[str] | None = None
    kind: KindName | None = None
    label_probabilities: list[str] | str | None = None
    label_score: str | None = None
    encoding: Encoding = None
    delimiter: Delimiter = None
    header: bool = True
    quoting: bool | None = None
    skip_empty: bool = False
    repair_tags: bool = False
    max_length: Count | None = None
    limit: Count | None = None


class Sampling(Strict):
    """How often each of several tasks has its turn; see `data/multitask_batching.py`."""

    by: Literal["proportional", "square-root", "capped"] = "proportional"
    cap: Count = 100_000


class TeacherSpec(Strict):
    """The model that is asked, or an ensemble of `models`. `label_order` names outputs where the checkpoint does not.

    `precision` int8: where a phase reads logits alone, and on a CPU, they come from an int8 copy, faster and a little off.
    """

    model: Place | None = None
    models: list[Place] = []
    margin: Share = 0.02
    allow_weak: bool = False
    label_order: list[str] | None = None
    dropout: bool = False
    precision: Literal["fp32", "int8"] = "fp32"


class Repair(PhaseSpec):
    """How a teacher cut into experts learns to answer as before: MoEBERT's terms, lambda = 5 with a weight of 1 in all."""

    losses: dict[str, Term] = {
        "embedding": Term(),
        "hidden_states": Term(),
        "soft_target": Term.model_validate({"weight": 1.0, "divergence": "symmetric-kl"}),
        "hard_label": Term(weight=0.2),
    }
    epochs: Positive = 5.0
    warmup: Share = 0.0
    weight_decay: Decay = 0.0


class Moe(Strict):
    """Which side is a mixture of experts, and how it is made; see `models/moe/`.

    layers, experts, expert_width, shared   of the student; `shared` and a narrower width go with init = "importance"
    teacher_*, repair                       of the expert teacher: as MoEBERT makes it, then trained to answer as before
    norm    whose residual and LayerNorm: the layer's, or each expert's own;  gate  of one chosen expert: 1 ("share"), or p
    """

    side: Literal["none", "student", "teacher", "both"] = "none"
    layers: Literal["every-second", "all"] | list[Count] = "every-second"
    experts: Count = 4
    expert_width: Count | None = None
    routing: Literal["task", "token", "sentence", "hash"] = "task"
    norm: Literal["layer", "expert"] = "layer"
    gate: Literal["share", "probability"] = "share"
    top_k: Count = 1
    balance: Weight = 0.01
    init: Literal["copy", "importance"] = "copy"
    shared: NotNegativeCount | None = None
    importance_rows: Count = 4096
    teacher_layers: Literal["every-second", "all"] | list[Count] = "all"
    teacher_experts: Count = 8
    teacher_width: Count | None = None
    teacher_shared: NotNegativeCount | None = None
    repair: Repair = Repair()


class Initialise(Strict):
    """What the weights of a new student begin as; see `distillation/start/initialise.py`. A checkpoint stays what it is.

    layers  which of the teacher's: a rule of `layer_map` for all layers, or one number for each of the student's, from 0 as in
            published lists
    model   whose weights: a model, or "base" for the pre-trained one where there is one; else the stage's teacher
    neurons what a slice keeps of a feed-forward network: by its weights alone, or by sensitivity, |w dL/dw| on `rows` rows
    """

    by: Literal["auto", "random", "teacher-layers", "teacher-slice", "teacher-ends", "svd-embed", "word-vectors"] = "auto"
    layers: Literal["uniform", "first", "last"] | list[int] = "uniform"
    model: Place | None = None
    neurons: Literal["weights", "sensitivity"] = "weights"
    rows: Count = 1024


class Cache(Strict):
    """What of the teacher's answers is kept on disk. `budget` such as "8GB"; without one a quarter of the free disk.

    Logits always are (a few bytes a row); hidden states and attention scores where they fit.
    """

    teacher: Literal["auto", "off"] = "auto"
    budget: Annotated[str, Field(pattern=r"(?i)^\s*\d+(\.\d+)?\s*[kmgt]?b?\s*$")] | None = None
    precision: Literal["fp16", "fp32"] = "fp16"


class Corpus(Strict):
    """Plain text, and how it is cut into blocks of at most `max_length` tokens."""

    source: Place | None = None
    format: Literal["pairs", "packed"] = "pairs"
    max_length: Annotated[Whole, Field(ge=8)] = 128
    heldout: Annotated[Share, Field(lt=1)] = 0.02
    documents: Count | None = None
    random_next: Share = 0.5
    short: Share = 0.1


class Vectors(Strict):
    """Word vectors: GloVe text or zip, or the input embeddings of a BERT directory."""

    source: Place | None = None
    limit: Count = 100_000


class Pretrain(Training):
    """Masked-LM training."""

    model: Place | None = None
    masked: Annotated[Share, Field(gt=0)] = 0.15
    smoothing: Smoothing = 0.0
    learning_rate: Positive = 1e-4
    epochs: Positive = 1.0


class General(PhaseSpec):
    """Stage one.

    masked, smoothing  words hidden from both models (`data/corpus/masking.py`)
    layer_by_layer     rate factors of the current layer and of those below it, trained in turn (`training/progressive.py`)
    """

    masked: Share = 0.0
    smoothing: Smoothing = 0.0
    dropout: bool = True
    layer_by_layer: LayerRates = False
    dual: Dual = Dual()


class Finetune(Staged, Training):
    """Training on a task's labels alone; `masked`: the share of a target that a teacher of C-MLM learns to fill in."""

    model: Place | None = None
    learning_rate: Positive = 5e-5
    learning_rates: Rates = []
    race: RaceShare = 1.0
    evaluations: NotNegativeCount = 4
    losses: dict[str, Term] = {"hard_label": Term()}
    masked: Annotated[Share, Field(gt=0)] = 0.15


class Augment(Strict):
    """Algorithm 1 of TinyBERT, and new rows beside it; see `augmentation/algorithm.py`. `options`: of augmenters, by name."""

    masked_lm: Place | None = None
    sources: Annotated[list[str], AfterValidator(check_distinct)] = ["masked_lm", "word_vectors"]
    copies: Count = 20
    replace_probability: Annotated[Share, Field(gt=0)] = 0.4
    candidates_per_word: Count = 15
    query: Literal["with-original", "alone"] = "with-original"
    candidates: Literal["once", "sequential"] = "once"
    stop_words: Place = "builtin"
    batch_size: Count = 64
    format: Literal["parquet", "tsv"] = "parquet"
    options: dict[str, dict[str, Any]] = {}


class Export(Strict):
    """What an export directory holds beside the safetensors model.

    optimize    also graphs for ONNX Runtime alone
    embeddings  how the int8 files store word vectors: int8 = a scale per row, int4 = a scale per block of 32 (ONNX Runtime
                alone reads it), fp32 = as they are
    speed       of a model with exits: what it answers with where nobody says another
    """

    model: Place | None = None
    onnx: bool = True
    int8: bool = True
    optimize: bool = True
    embeddings: Literal["int8", "int4", "fp32"] = "int8"
    tolerance: Annotated[Positive, Field(le=1)] = 1e-4
    speed: Share | None = None


class Recipe(Strict):
    """The whole run. Method files are recipes too: they fill `layer_map`, `general` and `phases`.

    budget  the longest that the phases of stage two may take for one student, such as "1h" (`training/budget.py`)
    precision, tf32, compile   how training computes its forward passes; see `models/device.py`
    reuse  folders of other runs: what they made of the same keys and inputs is copied, not made again (`runs/reuse.py`)
    init   the student of stage two: a checkpoint; auto = the general one of this run, else a new one; new = as `initialise`
           says; random = new, whatever that says; teacher = begins as the fine-tuned teacher itself
    """

    title: str = ""
    source: str = ""
    task: Place | None = None
    tasks: list[Place] = []
    method: str = "compact"
    ablate: list[str] = []
    student: Place | None = None
    base: Place | None = None
    seed: Seed = 42
    seeds: Seeds = []
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    tf32: bool = False
    compile: bool = False
    stages: list[str] = []
    trackers: Annotated[list[str], AfterValidator(check_distinct)] = []
    budget: Duration | None = None
    init: Place = "auto"
    initialise: Initialise = Initialise()
    augmented: Place | Literal[False] | None = None
    reuse: list[Place] = []
    normalisation: Normalisation = "masked"
    layer_map: LayerMap = "uniform"
    data: Data = Data()
    sampling: Sampling = Sampling()
    teacher: TeacherSpec = TeacherSpec()
    teachers: dict[str, Place | list[Place]] = {}
    moe: Moe = Moe()
    early_exit: EarlyExit = EarlyExit()
    cache: Cache = Cache()
    corpus: Corpus = Corpus()
    vocabulary: Vocabulary = Vocabulary()
    vectors: Vectors = Vectors()
    pretrain: Pretrain = Pretrain()
    finetune: Finetune = Finetune()
    general: General = General()
    phases: dict[str, TaskPhase] = {}
    augment: Augment = Augment()
    trim: Trim = Trim()
    cascade: Cascade = Cascade()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    variant: dict[str, dict[str, Any]] = {}
    by_task: dict[str, dict[str, Any]] = {}

    def keys(self, *names: str) -> dict[str, Any]:
        """The named parts as plain values: what a stage records."""
        values = self.model_dump(mode="json")
        return {name: values[name] for name in names}

    @property
    def run_phases(self) -> dict[str, TaskPhase]:
        """The phases of stage two that are not left out."""
        return {name: phase for name, phase in self.phases.items() if not phase.leave_out}

    @property
    def pruning_phase(self) -> str | None:
        """The phase of stage two in which the student is cut from its teacher's shape to its own; the first of several."""
        return next((name for name, phase in self.run_phases.items() if phase.prune), None)

    def numerics(self) -> dict[str, Any]:
        """Returns the precision settings for `choose_precision`."""
        return self.keys(*PRECISION_KEYS)

    def identity(self, *names: str) -> dict[str, Any]:
        """The named parts without where things lie: data and models enter an identity by their content."""
        silent = {*(() if self.tasks else MULTITASK_KEYS), *(("moe",) if self.moe.side == "none" else ())}
        silent |= {"budget"} if self.budget is None else set()
        silent |= {"early_exit"} if self.early_exit.branch == "none" else set()
        silent |= {"initialise"} if self.initialise.by == "random" else set()
        counting = (name for name in names if name not in silent)
        identity = {name: identity_values(name, value) for name, value in self.keys(*counting).items()}
        if "vocabulary" in identity:
            identity["vocabulary"] = identity_of_vocabulary(identity["vocabulary"], trims="trim" in names)
        return identity
