"""`mbert pretrain`, `finetune`, `general-distill` and so on: commands that run one stage, as a table of options and keys.

A command that does more than run its stage, such as `mbert evaluate`, has a file of its own.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from microbert_cli.cli import options
from microbert_cli.cli.execute import resolve_for_model, run_stage, show_result
from microbert_cli.cli.options import CommonOptions, RecipeName, TaskOptions, with_options

MODEL = Annotated[str | None, typer.Option(help="Directory, Hub id, or a student (random weights).")]
MASKED_LM = Annotated[str | None, typer.Option("--masked-lm", help="Proposes words: directory or Hub id.")]
VECTORS = Annotated[str | None, typer.Option(help="GloVe text or zip, or a BERT directory.")]
TASKS = Annotated[str | None, typer.Option("--tasks", help="Several tasks for one student, such as sst2,mrpc,rte.")]
AUGMENTED = Annotated[str | None, typer.Option(help="A directory made by `mbert augment`.")]
TRANSFER = Annotated[str | None, typer.Option("--transfer-file", help="Unlabelled texts the teacher answers: a table or .txt.")]
ANY_MODEL = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="A classifier, masked-LM or encoder: directory or Hub id.")
]
SMALL = Annotated[str | None, typer.Argument(metavar="SMALL", help="The model that is asked first: directory, export, Hub id.")]
BIG = Annotated[str | None, typer.Argument(metavar="BIG", help="The model that answers where the small one is not sure.")]
AGREEMENT = Annotated[float | None, typer.Option(help="Share of rows answered as the big model does; default 0.98.")]
SCORE = Annotated[float | None, typer.Option(help="Accuracy wished for, instead of an agreement.")]
CONFIDENCE = Annotated[float | None, typer.Option(help="With which the wish holds on other rows; default 0.95.")]
THRESHOLD = Annotated[float | None, typer.Option(help="Probability above which the small one answers; default: chosen.")]
CLASSIFIER = Annotated[str | None, typer.Argument(metavar="MODEL", help="A classifier: directory or Hub id.")]


@dataclass(frozen=True)
class StageOption:
    """An option of a command: the recipe key that it sets, its type for typer, and how its text becomes the key's value."""

    key: str
    annotation: Any
    parse: Callable[[Any], Any] = lambda text: text


@dataclass(frozen=True)
class StageCommand:
    """The command of one stage.

    has_task          takes --task, --data and the options that describe a user's own files
    of_trained_model  its argument is MODEL instead of RECIPE: what is not typed comes from that model's manifest
    """

    help: str
    epilog: str
    options: Mapping[str, StageOption]
    has_task: bool = True
    of_trained_model: bool = False


COMMANDS = {
    "pretrain": StageCommand(
        "Trains a masked-LM on a corpus, from a model or from a student description.",
        """Examples:

mbert pretrain --model bert-4x128 --corpus python-docs --set vocabulary.size=8000 --dry-run""",
        {"model": StageOption("pretrain.model", MODEL), "corpus": StageOption("corpus.source", options.CorpusName)},
        has_task=False,
    ),
    "finetune": StageCommand(
        "Fine-tunes an encoder on a task; the best checkpoint on dev is kept.",
        """Examples:

mbert finetune --model google-bert/bert-base-uncased --task sst2 --dry-run

mbert finetune --model DIR --train-file reviews.csv --text text --label stars --seeds 1,2,3 --dry-run""",
        {"model": StageOption("finetune.model", MODEL), "seeds": StageOption("seeds", options.Seeds, options.seed_list)},
    ),
    "general-distill": StageCommand(
        "Stage one: distils a pre-trained teacher into a small student on plain text.",
        """Examples:

mbert general-distill --teacher google-bert/bert-base-uncased --student tinybert-4l-312 --corpus text.txt.gz --dry-run""",
        {
            "teacher": StageOption("base", options.Teacher),
            "student": StageOption("student", options.Student),
            "corpus": StageOption("corpus.source", options.CorpusName),
        },
        has_task=False,
    ),
    "augment": StageCommand(
        "Varies the training set of a task: masked-LM and word-vector neighbours (TinyBERT, Algorithm 1).",
        """Examples:

mbert augment --task sst2 --masked-lm google-bert/bert-base-uncased --vectors glove.6B.300d.txt --dry-run""",
        {"masked_lm": StageOption("augment.masked_lm", MASKED_LM), "vectors": StageOption("vectors.source", VECTORS)},
    ),
    "expert-teacher": StageCommand(
        'Makes a fine-tuned teacher one of experts, dealt by importance and repaired: what moe.side = "teacher" is taught by.',
        """Example:

mbert expert-teacher --teacher runs/sst2/finetune --task sst2 --set moe.teacher_experts=8 -o runs/experts --dry-run""",
        {"teacher": StageOption("teacher.model", options.Teacher)},
    ),
    "trim": StageCommand(
        "Cuts a model's vocabulary to the tokens that its texts use: tokenizer and embedding rows, the answers unchanged.",
        """Examples:

mbert trim runs/sst2/finetune --task sst2 -o runs/sst2/trim --dry-run

mbert trim runs/sst2/task-distill --corpus text.txt.gz --set vocabulary.keep_common=8000 -o small --dry-run""",
        {
            "model": StageOption("trim.model", ANY_MODEL),
            "corpus": StageOption("corpus.source", options.CorpusName),
            "augmented": StageOption("augmented", AUGMENTED),
            "transfer_file": StageOption("data.transfer_file", TRANSFER),
        },
        of_trained_model=True,
    ),
    "cascade": StageCommand(
        "Makes one model of two: the small one answers where it is sure, else the big one; checked on rows of dev.",
        """Examples:

mbert cascade runs/sst2/task-distill runs/sst2/finetune --agreement 0.98 --confidence 0.95 -o cascade --dry-run

mbert cascade SMALL BIG --score 0.90 --task sst2 -o cascade --dry-run""",
        {
            "model": StageOption("cascade.small", SMALL),
            "big": StageOption("cascade.big", BIG),
            "agreement": StageOption("cascade.agreement", AGREEMENT),
            "score": StageOption("cascade.score", SCORE),
            "confidence": StageOption("cascade.confidence", CONFIDENCE),
            "threshold": StageOption("cascade.threshold", THRESHOLD),
        },
        of_trained_model=True,
    ),
    "task-distill": StageCommand(
        "Stage two: distils a fine-tuned teacher into a student, through all phases of the method.",
        """Examples:

mbert task-distill --teacher DIR --student runs/sst2/general-distill --task sst2 --seeds 1,2,3 --dry-run

mbert task-distill --teacher DIR --student bert-4x256 --task sst2 --set method=pd --transfer-file texts.txt --dry-run

mbert task-distill --teacher 'runs/{task}/finetune' --student bert-3x312 --tasks sst2,mrpc,rte --dry-run""",
        {
            "teacher": StageOption("teacher.model", options.Teacher),
            "student": StageOption("student", options.Student),
            "tasks": StageOption("tasks", TASKS, options.name_list),
            "augmented": StageOption("augmented", AUGMENTED),
            "transfer_file": StageOption("data.transfer_file", TRANSFER),
            "seeds": StageOption("seeds", options.Seeds, options.seed_list),
        },
    ),
    "export": StageCommand(
        "Safetensors, ONNX fp32 and int8, the same with fused operators, parity checked on real rows, a model card.",
        """Example:

mbert export runs/sst2/task-distill -o shipped --task sst2 --dry-run""",
        {
            "model": StageOption("export.model", CLASSIFIER),
            "teacher": StageOption("teacher.model", options.Teacher),
            "speed": StageOption("export.speed", options.Speed),
        },
        of_trained_model=True,
    ),
}


def register(app: typer.Typer, name: str) -> None:
    """Adds the command of a stage."""
    app.command(name, epilog=COMMANDS[name].epilog)(_function(name, COMMANDS[name]))


def _function(name: str, command: StageCommand) -> Callable[..., None]:
    """Writes the function whose signature typer turns into options."""

    def run(*, common: CommonOptions, about: TaskOptions | None = None, recipe_name: str | None = None, **texts: Any) -> None:
        flags = {option.key.replace(".", "__"): option.parse(texts[word]) for word, option in command.options.items()}
        if command.of_trained_model and about is not None:
            resolved = resolve_for_model(texts["model"], about, common, **flags)
        else:
            common.recipe = recipe_name or common.recipe
            resolved = common.resolve(**flags, **(about.keys() if about else {}))
        show_result(run_stage(name, common, resolved), common)

    typed = {word: option.annotation for word, option in command.options.items()}
    arguments = typed if command.of_trained_model else {"recipe_name": RecipeName, **typed}
    groups = {**({"about": TaskOptions} if command.has_task else {}), "common": CommonOptions}
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [_keyword(word, annotation, None) for word, annotation in arguments.items()]
        + [_keyword(word, group, inspect.Parameter.empty) for word, group in groups.items()]
    )
    run.__name__, run.__doc__ = name.replace("-", "_"), command.help
    return with_options(run)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
