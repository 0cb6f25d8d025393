"""Options that several commands share, and what they come to: a resolved recipe, a catalogue, a voice.

`@with_options` gives a function the common options: its own parameters stay in its signature, the common ones arrive as one
`CommonOptions`. The flags are frozen; everything else is a recipe key, reached with --set.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microbert_cli import distributed
from microbert_cli.cli.console import ConsoleReporter
from microbert_cli.errors import MbertError
from microbert_cli.recipe.registry import Catalog

if TYPE_CHECKING:  # the schema of recipes takes a tenth of a second, and some commands have none
    from microbert_cli.recipe.layers import Layer
    from microbert_cli.recipe.resolve import Resolved

DEFAULT_RECIPE = Path("mbert.toml")
OPTION_OF_KEY = {
    "base": "--teacher", "teacher.model": "--teacher", "pretrain.model": "--model", "finetune.model": "--model",
    "evaluate.speed": "--speed", "export.speed": "--speed",
    "evaluate.model": "MODEL", "export.model": "MODEL", "trim.model": "MODEL",
    "cascade.small": "SMALL", "cascade.big": "BIG", "cascade.agreement": "--agreement", "cascade.score": "--score",
    "cascade.confidence": "--confidence", "cascade.threshold": "--threshold",
    "augment.masked_lm": "--masked-lm", "vectors.source": "--vectors",
    "corpus.source": "--corpus", "data.folder": "--data", "data.train_file": "--train-file", "data.dev_file": "--dev-file",
    "data.test_file": "--test-file", "data.transfer_file": "--transfer-file", "data.text": "--text", "data.label": "--label",
}  # fmt: skip
STAGE_TABLES = {
    "pretrain": ("pretrain",), "finetune": ("finetune",), "general-distill": ("general",), "augment": ("augment",),
    "trim": ("vocabulary",), "cascade": ("cascade",), "evaluate": ("evaluate",), "export": ("export",),
    "run": ("finetune", "general"),
}  # fmt: skip


@dataclass
class CommonOptions:
    """The common options as typed."""

    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="A recipe: TOML file or a name from `mbert list recipes`.")] = None  # fmt: skip  # noqa: E501
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Output directory; default runs/<recipe or task>/<stage>.")] = None  # fmt: skip  # noqa: E501
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Sets any recipe key; may be repeated.")] = None  # fmt: skip  # noqa: E501
    include: Annotated[list[Path] | None, typer.Option("--include", help="A folder with losses/, methods/, tasks/ ... of your own.")] = None  # fmt: skip  # noqa: E501
    seed: Annotated[int | None, typer.Option(help="Decides everything that is random.")] = None
    device: Annotated[str | None, typer.Option(envvar="MBERT_DEVICE", help="auto, cpu, cuda, cuda:1 ...")] = None
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Go on with work that was begun.")] = True
    force: Annotated[bool, typer.Option("--force", help="Move an old output aside and begin anew.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and show what would happen; touch nothing.")] = False
    explain: Annotated[
        bool,
        typer.Option(
            "--explain-config",
            help="Show the keys that are read here, their values and where these come from; with -v all keys.",
        ),
    ] = False
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only results, warnings and errors.")] = False
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tracebacks, too.")] = False

    def catalog(self) -> Catalog:
        """Returns the catalogue of built-in names and those of --include."""
        return Catalog(self.include or ())

    def reporter(self) -> ConsoleReporter:
        """Returns the reporter that writes to stderr."""
        return ConsoleReporter(quiet=self.quiet or not distributed.is_main())

    def resolve(self, *, beneath: "Layer | None" = None, **flags: Any) -> "Resolved":
        """Resolves the recipe with all its layers; `mbert.toml` here is the one if none is named. Flags: `teacher__model="x"`.

        beneath  values where the recipe says nothing
        """
        from microbert_cli.recipe.resolve import resolve

        recipe = self.recipe or (str(DEFAULT_RECIPE) if DEFAULT_RECIPE.is_file() else None)
        named = {key.replace("__", "."): value for key, value in flags.items() if value not in (None, [])}
        named |= {"seed": self.seed, "device": self.device}
        return resolve(
            catalog=self.catalog(), recipe=recipe, sets=self.sets or [], flags=named, called=OPTION_OF_KEY, beneath=beneath
        )


RecipeName = Annotated[str | None, typer.Argument(metavar="RECIPE", help="A recipe; default: mbert.toml.")]
TaskName = Annotated[str | None, typer.Option("--task", help="A task of the catalogue, or a task TOML.")]
DataDir = Annotated[str | None, typer.Option("--data", help="A GLUE folder, or one task's; default: MBERT_DATA.")]
Seeds = Annotated[str | None, typer.Option("--seeds", help="Several seeds, such as 1,2,3.")]
Teacher = Annotated[str | None, typer.Option("--teacher", help="The teacher: directory or Hub id.")]
Student = Annotated[str | None, typer.Option("--student", help="A student of the catalogue, or a checkpoint.")]
Speed = Annotated[float | None, typer.Option("--speed", help="Of a model with exits: 0 = all layers, 1 = the first exit.")]
CorpusName = Annotated[str | None, typer.Option("--corpus", help="python-docs, a file, a folder, or a Hub data set.")]


@dataclass
class TaskOptions:
    """What a command is about: a task and its folder, or a table of the user's own."""

    task: TaskName = None
    data: DataDir = None
    train_file: Annotated[str | None, typer.Option("--train-file", help="Own data: CSV, TSV, JSON, Parquet or Arrow.")] = None
    dev_file: Annotated[str | None, typer.Option("--dev-file", help="Own data to select on.")] = None
    test_file: Annotated[str | None, typer.Option("--test-file", help="Own data to test on.")] = None
    text: Annotated[list[str] | None, typer.Option("--text", help="Text column; twice for pairs.")] = None
    label: Annotated[str | None, typer.Option("--label", help="Label column.")] = None

    def keys(self) -> dict[str, Any]:
        """Returns the flags as recipe keys."""
        return {"task": self.task, "data__folder": self.data, **self.own_data()}

    def own_data(self) -> dict[str, Any]:
        """Returns the flags that describe a user's own table."""
        return {
            "data__train_file": self.train_file,
            "data__dev_file": self.dev_file,
            "data__test_file": self.test_file,
            "data__text": self.text or None,
            "data__label": self.label,
        }


def seed_list(text: str | None) -> list[int] | None:
    """Parses `1,2,3` as numbers; raises M102."""
    if text is None:
        return None
    from microbert_cli.recipe.toml import parse_value

    values = parse_value(f"[{text}]")
    if isinstance(values, list) and values and all(type(value) is int for value in values) and len({*values}) == len(values):
        return values
    raise MbertError(
        "M102",
        f'"{text}" is no list of different whole numbers',
        where="--seeds",
        allowed="Whole numbers with commas between, each of them once.",
        fix="For instance: --seeds 1,2,3",
    )


def name_list(text: str | None) -> list[str] | None:
    """Parses `sst2,mrpc` as names; raises M131."""
    names = None if text is None else [name.strip() for name in text.split(",")]
    if names is None or all(names):
        return names
    raise MbertError(
        "M131",
        f'"{text}" is no list of names',
        where="--tasks",
        allowed="Names of tasks, or task files, with commas between.",
        fix="For instance: --tasks sst2,mrpc,rte",
    )


OPTION_GROUPS: dict[str, type] = {"about": TaskOptions, "common": CommonOptions}


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """Writes out a command's option groups: `f(own..., about, common)` becomes `f(own..., every option of both)`."""
    parameters = inspect.signature(function).parameters
    groups = {name: OPTION_GROUPS[name] for name in parameters if name in OPTION_GROUPS}
    own_parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, p in parameters.items() if name not in groups]
    written = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for group in groups.values()
        for f in fields(group)
    ]

    @functools.wraps(function)
    def command(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{f.name: values.pop(f.name) for f in fields(group)})
        function(**values)

    command.__signature__ = inspect.Signature([*own_parameters, *written])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in [*own_parameters, *written]}
    return command


def keys_of_option(option: str, command: str, phases: Sequence[str]) -> list[str]:
    """Returns the dotted keys that an unknown option such as `--epochs` may mean for a command, at most three.

    phases  of the method
    """
    from microbert_cli.recipe.layers import SHORTHAND
    from microbert_cli.recipe.schema import Recipe
    from microbert_cli.recipe.values import PhaseSpec, Strict

    name = option.lstrip("-").partition("=")[0].replace("-", "_")
    if command in ("task-distill", "expert-teacher") and name in PhaseSpec.model_fields:
        return [f"phases.{phase}.{name}" for phase in phases][:3]
    annotations = {key: field.annotation for key, field in Recipe.model_fields.items()}
    tables = {key: table for key, table in annotations.items() if isinstance(table, type) and issubclass(table, Strict)}
    holding = [key for key, table in tables.items() if name in table.model_fields]
    of_command = [key for key in STAGE_TABLES.get(command, ()) if key in holding]
    if name in SHORTHAND:  # a table that may be written as one value: teacher = "DIR"
        return [name]
    return [name] * (name in annotations and name not in tables) + [f"{key}.{name}" for key in of_command or holding][:3]


def phases_of_method(words: Sequence[str]) -> list[str]:
    """Returns the phases of the method that `--set method=NAME` names, else of the default one; words: of the command."""
    from microbert_cli.recipe.schema import Recipe
    from microbert_cli.recipe.toml import read_toml

    typed = [word.partition("=")[2].strip("\"'") for word in words if word.startswith("method=")]
    catalog = Catalog()
    with suppress(MbertError):
        path = catalog.path("methods", (typed or [Recipe.model_fields["method"].default])[-1], where="method")
        return list(read_toml(path, "methods").get("phases", {}))
    return []
