"""The record of each stage, found by the name of its folder under stages/: everything else derives its lists from here.

A stage `word-count` is the folder `stages/word_count/`:
    __init__.py   STAGE, its record: light, no torch, since `mbert --help` and `--dry-run` read it
    run.py        run(recipe, out, *, catalog, ..., reporter) -> StageResult: the work
    plan.py       plan(step, seen, costs): what that work will cost, for `mbert plan`
    trial.py      trial(case, step): its first training step, for `mbert doctor`; a stage without one does not train
Records are imported when they are asked for: no folder below stages/ imports one of its files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microbert_cli.recipe.registry import Catalog, stage_names
from microbert_cli.recipe.schema import Recipe

if TYPE_CHECKING:
    from microbert_cli.runs.stage_inputs import EarlierOutputs, Step
    from microbert_cli.runs.stage_result import StageResult


PACKAGE = "microbert_cli.stages"
Splits = Callable[[Recipe, Catalog], tuple[str, ...]]


@dataclass(frozen=True)
class Stage:
    """What is known of a stage before it runs.

    inputs        the keyword arguments of its run: directories by the recipe's keys, else by what earlier stages made
    input_keys    the recipe keys that name each input, the one for error messages first
    keys          the recipe keys that decide its output: its identity
    splits        the splits of a task's rows that it reads; empty for a stage without a task
    phases        the phases it trains, by their table in the recipe
    distributed   several processes run it together; else the main one runs it alone
    reusable      a training or preparation whose output may be copied from another run of the same identity
    compared      makes a classifier of the task: a row of `mbert compare` and of the report
    makes_model   its output can be loaded as a model
    is_method     its phases and losses are those of `recipe.method`
    extras        the optional dependencies that it needs
    heads         the heads that models among its inputs must have, by their role: "classifier" or "masked-lm"
    cascades      the inputs, by their role, that may be a cascade of two models
    remark        what a person should know of a recipe's data before it runs
    split_tasks   a step of several tasks or teachers as steps of one each, to plan or try them one by one
    by_task       is about one task: in a recipe of several it is run for each of them, into `NAME-TASK`
    no_words      why it is not for a task whose words have labels; empty where it is
    no_texts      why it is not for a task whose answers are texts that a model writes; empty where it is
    runs_as       the stage whose run, plan and trial it takes, with `overrides` laid over the recipe
    """

    name: str
    inputs: Callable[[Recipe, "EarlierOutputs", Catalog], dict[str, Any]]
    input_keys: Mapping[str, tuple[str, ...]]
    keys: tuple[str, ...] = ()
    splits: tuple[str, ...] | Splits = ()
    phases: Callable[[Recipe], Mapping[str, Any]] = lambda recipe: {}
    distributed: bool = False
    reusable: bool = False
    compared: bool = False
    makes_model: bool = False
    is_method: bool = False
    extras: Callable[[Recipe], tuple[str, ...]] = lambda recipe: ()
    heads: Callable[[Recipe], Mapping[str, str]] = lambda recipe: {}
    cascades: tuple[str, ...] = ()
    remark: Callable[[Recipe, Catalog], str | None] = lambda recipe, catalog: None
    split_tasks: Callable[["Step"], "list[Step]"] = lambda step: [step]
    by_task: bool = False
    no_words: str = ""
    no_texts: str = ""
    runs_as: str | None = None
    overrides: Callable[[Recipe], dict[str, Any]] = lambda recipe: {}

    @property
    def trains(self) -> bool:
        """Whether it takes training steps: it then has a trial of one."""
        return (Path(__file__).parents[1] / "stages" / _folder(self.name) / "trial.py").is_file()

    @property
    def learns_task(self) -> bool:
        """Whether it trains on the rows of a task."""
        return self.trains and bool(self.splits)

    @property
    def tables(self) -> set[str]:
        """Returns the recipe's tables and keys that it reads, those that name its inputs among them."""
        return {*self.keys, *(key.partition(".")[0] for keys in self.input_keys.values() for key in keys)}

    def splits_of(self, recipe: Recipe, catalog: Catalog) -> tuple[str, ...]:
        """Returns the splits that it reads with this recipe."""
        return self.splits(recipe, catalog) if callable(self.splits) else self.splits

    def run(self, recipe: Recipe, out: Path, **options: Any) -> "StageResult":
        """Runs it: loads torch."""
        result: StageResult = self._load("run")(recipe, out, **options)
        return result

    def plan(self, step: "Step", seen: Any, costs: Any) -> None:
        """Adds what it will cost to `costs`; `seen` are the inputs expected so far, to which it adds its output."""
        self._load("plan")(step, seen, costs)

    def trial(self, case: Any, step: "Step") -> Any:
        """Yields its phases about to take their first step."""
        return self._load("trial")(case, step)

    def _load(self, part: str) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(import_module(f"{PACKAGE}.{_folder(self.name)}.{part}"), part)
        return function


@cache
def find_stage(name: str) -> Stage:
    """Returns the record of a stage; raises LookupError where there is none of the name."""
    if name not in stage_names():
        raise LookupError(name)
    record: Stage = import_module(f"{PACKAGE}.{_folder(name)}").STAGE
    return record


def all_stages() -> list[Stage]:
    """Returns the records of all stages, sorted by name."""
    return [find_stage(name) for name in stage_names()]


def method_stage() -> Stage:
    """Returns the stage that runs the phases of a method."""
    return next(stage for stage in all_stages() if stage.is_method)


def _folder(name: str) -> str:
    return name.replace("-", "_")
