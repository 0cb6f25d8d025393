"""The rows of a comparison: methods, recipes and ablations, each a stage with an output directory of its own.

A method is one row: the base recipe's `task-distill` with that method; the base is the recipe given as such, else the first
row's where that is a recipe. A recipe is as many rows as its `stages` hold stages of kind task-distill or finetune that no
other stage reads; what they need is run before them, what comes after is left out. What a recipe says of phases that a row's
method does not have is not about that row.
Directories follow from names alone, so that a row added to a finished comparison changes no other.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from microbert_cli.errors import MbertError, combine_errors, nearest
from microbert_cli.recipe.layers import Layer, merge, nest
from microbert_cli.recipe.multitask import named_inputs
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import Resolved, overlay
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.task import writes_text
from microbert_cli.recipe.toml import read_toml
from microbert_cli.runs.stage_inputs import Step, step, steps
from microbert_cli.runs.stage_registry import all_stages, method_stage

COMPARISON, TRIED = "comparison", "tried"  # folders beside the rows

Resolve = Callable[[str | None], Resolved]


@dataclass(frozen=True)
class Row:
    """One line of the table. `over` lies over the recipe's and the variant's values.

    of, without  the row this one is an ablation of, and what it lacks
    """

    name: str
    stage: str
    resolved: Resolved
    root: Path
    planned: tuple[str, ...]
    out: Path
    over: Mapping[str, Any] = field(default_factory=dict)
    of: str | None = None
    without: str | None = None

    def step(self, catalog: Catalog, more: Mapping[str, Any] | None = None, out: Path | None = None) -> Step:
        """Returns the stage to run, with `more` values, for instance those of a grid."""
        layers = [Layer("the comparison", _nested(self.over)), Layer("--grid", _nested(more or {}))]
        over = [layer for layer in layers if layer.values]
        planned_step = step(self.stage, self.resolved, self.root, catalog, out=out or self.out, planned=self.planned, over=over)
        return replace(planned_step, name=self.name)


@dataclass(frozen=True)
class ComparisonPlan:
    """A comparison on one task: the stages that run first, then the rows in the order of the table."""

    root: Path
    before: list[Step]
    rows: list[Row]

    def steps(self, catalog: Catalog) -> list[Step]:
        """All stages of the comparison, in the order in which they run."""
        return [*self.before, *(row.step(catalog) for row in self.rows)]

    @property
    def task(self) -> str:
        """The name of the rows' task in the table."""
        recipe = self.rows[0].resolved.recipe
        return Path(recipe.task or recipe.data.train_file or "task").stem


def plan_rows(
    names: Sequence[str],
    root: Path,
    catalog: Catalog,
    resolve: Resolve,
    *,
    base: bool = False,
    seeds: Sequence[int] | None = None,
    ablate: Sequence[str] = (),
) -> ComparisonPlan:
    """Plans the rows of `names` and their ablations.

    resolve  a recipe's name -> the recipe with the command's options; None -> the base recipe
    base     whether a base recipe was given beside the rows; else the first row's recipe is it
    Raises M061 (a recipe without rows), M062 (no task), M063 (different tasks), M064 (names that clash), M065 (an ablation that
    no row has), M121 (neither recipe nor method), M122 (both), and whatever is wrong with the recipes, all at once.
    """
    before: dict[Path, Step] = {}
    rows: list[Row] = []
    errors: list[MbertError] = []
    for number, name in enumerate(names):
        try:
            if kind_of(name, catalog) == "methods":
                new_steps, new_rows = _method_row(name, root, catalog, resolve(None))
            else:
                new_steps, new_rows = _recipe_rows(name, root, catalog, resolve(name), is_base=number == 0 and not base)
            before |= {step.out: step for step in new_steps}
            rows += new_rows
        except MbertError as error:
            errors.append(error)
    if errors:
        raise combine_errors(errors)
    rows = [_without_foreign_phases(row, catalog) for row in rows]
    if seeds:
        rows = [replace(row, over={**row.over, "seeds": list(seeds)}) for row in rows]
    rows = _with_ablations(_linked_to_complete(_with_distinct_names(rows), catalog), ablate, catalog)
    _refuse_clashes(rows, list(before.values()), root)
    _refuse_other_tasks(rows, catalog)
    return ComparisonPlan(root, list(before.values()), rows)


def kind_of(name: str, catalog: Catalog) -> str:
    """Returns "recipes" or "methods"; raises M121 for a name that is neither, M122 for one that is both."""
    kinds = [kind for kind in ("recipes", "methods") if name in catalog.names(kind)]
    if Path(name).suffix == ".toml" or Path(name).is_file() or kinds == ["recipes"]:
        return "recipes"
    if not kinds:
        names = [*catalog.names("methods"), *catalog.names("recipes")]
        raise MbertError(
            "M121",
            f'there is no recipe and no method "{name}"',
            where="RECIPE",
            allowed=f"A recipe's file, or a name: {nearest(name, names)}",
            fix="See them: mbert list methods; mbert list recipes",
        )
    if len(kinds) > 1:
        raise MbertError(
            "M122",
            f'"{name}" is the name of a method and of a recipe',
            where="RECIPE",
            allowed="Names that only one of them has, or the recipe's file.",
            fix=f"The recipe: mbert copy recipes {name} -o my-{name}.toml; mbert compare my-{name}.toml",
        )
    return kinds[0]


def _method_row(name: str, root: Path, catalog: Catalog, base: Resolved) -> tuple[list[Step], list[Row]]:
    before = _training_steps(base, root, catalog, rows=False)
    row = Row(name, method_stage().name, base, root, tuple(step.name for step in before), root / name, over={"method": name})
    row.step(catalog)
    return before, [row]


def _recipe_rows(name: str, root: Path, catalog: Catalog, resolved: Resolved, *, is_base: bool) -> tuple[list[Step], list[Row]]:
    root = root if is_base else root / resolved.name
    if not resolved.recipe.stages:
        stage = method_stage().name
        row = Row(resolved.name, stage, resolved, root, (), root / stage)
        row.step(catalog)
        return [], [row]
    trained = _training_steps(resolved, root, catalog)
    last = [step for step in trained if step.stage.compared and not _is_input(step, trained)]
    if not last:
        raise MbertError(
            "M061",
            "this recipe trains nothing that could be compared",
            where=f"{name}, stages",
            allowed="Stages of kind task-distill or finetune that no other stage takes as its teacher or start.",
            fix='For instance stages = ["finetune", "task-distill"], and a table [variant.NAME] for each further row.',
        )
    before = [step for step in trained if step not in last]
    names = [step.name for step in trained]
    rows = [
        Row(step.name, step.name, resolved, root, tuple(names[: names.index(step.name)]), step.out)  # what came before feeds it
        for step in last
    ]
    return before, [replace(rows[0], name=resolved.name)] if len(rows) == 1 else rows


def _training_steps(resolved: Resolved, root: Path, catalog: Catalog, *, rows: bool = True) -> list[Step]:
    """Returns the recipe's stages that train or prepare; without `rows` only those that may come before a distillation."""
    kinds = {name: str(resolved.recipe.variant.get(name, {}).get("stage", name)) for name in resolved.recipe.stages}
    training = {stage.name: stage for stage in all_stages() if stage.reusable}
    kept = [
        name for name, kind in kinds.items() if kind in training and (rows or name == kind and not training[kind].is_method)
    ]
    return steps(overlay(resolved, {"stages": kept}, "the comparison", catalog), root, catalog)


def _is_input(step: Step, others: Sequence[Step]) -> bool:
    inputs = [source for other in others for name, value in other.inputs.items() for _, source in named_inputs(name, value)]
    return str(step.out) in inputs


def _without_foreign_phases(row: Row, catalog: Catalog) -> Row:
    """Returns the row without the phases that have no losses in its method: a recipe may set phases of several methods."""
    step = row.step(catalog)
    phases = step.resolved.recipe.run_phases if step.stage.is_method else {}
    empty = {f"phases.{name}.leave_out": True for name, phase in phases.items() if not phase.losses}
    return replace(row, over={**row.over, **empty})


def _with_distinct_names(rows: list[Row]) -> list[Row]:
    """Returns the rows with the recipe's name before the stage's, where stages of different recipes share a name."""
    names = [row.name for row in rows]
    return [
        replace(row, name=f"{row.resolved.name} {row.name}") if names.count(row.name) > 1 and row.name == row.stage else row
        for row in rows
    ]


def _linked_to_complete(rows: list[Row], catalog: Catalog) -> list[Row]:
    """Returns the rows, those that leave out parts of a method linked to the row that has the whole method."""
    recipes = {row.name: step.resolved.recipe for row in rows if (step := row.step(catalog)).stage.is_method}
    complete = {recipe.method: name for name, recipe in reversed(recipes.items()) if not recipe.ablate}
    return [
        replace(row, of=complete[recipe.method], without=", ".join(recipe.ablate))
        if (recipe := recipes.get(row.name)) and recipe.ablate and recipe.method in complete
        else row
        for row in rows
    ]


def _with_ablations(rows: list[Row], ablate: Sequence[str], catalog: Catalog) -> list[Row]:
    """Returns each row, and after it one for each named ablation of its method; raises M065 for a name that no method has."""
    available = {row.name: _ablations(row, catalog) if ablate else [] for row in rows}
    names = {name for ablations in available.values() for name in ablations}
    for name in ablate:
        if name not in names:
            raise MbertError(
                "M065",
                f'none of these rows has an ablation "{name}"',
                where="--ablate",
                allowed=f"Ablations of their methods: {nearest(name, names)}",
                fix="See them: mbert show methods NAME, its tables [ablations.NAME]",
            )
    result = []
    for row in rows:
        result += [row, *(_ablated(row, name, catalog) for name in ablate if name in available[row.name])]
    return result


def _ablations(row: Row, catalog: Catalog) -> list[str]:
    step = row.step(catalog)
    if not step.stage.is_method:
        return []
    tables = read_toml(catalog.path("methods", step.resolved.recipe.method, where="method"), "methods").get("ablations", {})
    return list(tables) if isinstance(tables, Mapping) else []


def _ablated(row: Row, name: str, catalog: Catalog) -> Row:
    before = row.step(catalog).resolved.recipe.ablate
    return replace(
        row,
        name=f"{row.name} without {name}",
        out=row.out.with_name(f"{row.out.name}-without-{name}"),
        over={**row.over, "ablate": [*before, name]},
        of=row.name,
        without=name,
    )


def _refuse_clashes(rows: Sequence[Row], before: Sequence[Step], root: Path) -> None:
    directories = [root / COMPARISON, root / TRIED, *(step.out for step in before), *(row.out for row in rows)]
    names = [row.name for row in rows]
    for row in rows:
        if names.count(row.name) > 1 or directories.count(row.out) > 1:
            raise MbertError(
                "M064",
                f'two things here are called "{row.name}", or would be written to {row.out}',
                where="RECIPE",
                allowed="Rows of different names, none of them that of a stage which runs before, and none called "
                f'"{COMPARISON}" or "{TRIED}".',
                fix="Leave one out, or rename its table or its file.",
            )


def _refuse_other_tasks(rows: Sequence[Row], catalog: Catalog) -> None:
    recipes = {row.name: row.step(catalog).resolved.recipe for row in rows}
    for row in rows:
        _refuse_what_fills_in(row.step(catalog), catalog)
    sources = {name: _data_source(recipe) for name, recipe in recipes.items()}
    for name, source in sources.items():
        if not any(source):
            raise MbertError(
                "M062",
                f'the row "{name}" is not about one task',
                where="task",
                allowed=f"One for all rows: a task of the catalogue ({', '.join(catalog.names('tasks'))}), a task TOML, or own "
                "files. Students of several tasks at once are not compared here.",
                fix="--task sst2, or the key task in the recipe",
            )
    if len({*sources.values()}) > 1:
        parts = [f"{name}: {_describe_source(source)}" for name, source in sources.items()]
        raise MbertError(
            "M063",
            f"these rows are not about the same data: {'; '.join(parts)}",
            where="task",
            allowed="One task for all rows, from the same files.",
            fix="Name it for all of them: --task sst2",
        )


def _refuse_what_fills_in(step: Step, catalog: Catalog) -> None:
    """Raises M151 for a row that trains a teacher of a task of texts: it writes none that could be scored."""
    if step.stage.is_method or not writes_text(step.resolved.recipe, catalog):
        return
    from microbert_cli.models.find import directory_writes
    from microbert_cli.models.generation.writer import describes_writer

    model = step.inputs["model"]
    if not (describes_writer(model, catalog) or directory_writes(model)):
        raise MbertError(
            "M151",
            f'the row "{step.name}" trains a teacher that fills in words of a target, and the others write targets',
            where="finetune.model",
            allowed="Rows of students that write, from task-distill, or from finetune without a teacher.",
            fix="Leave that row out, or fine-tune a student: --set finetune.model=seq2seq",
        )


def _data_source(recipe: Recipe) -> tuple[str | None, ...]:
    return (recipe.task, recipe.data.train_file, recipe.data.dev_file)


def _describe_source(source: tuple[str | None, ...]) -> str:
    return ", ".join(part for part in source if part)


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns dotted keys as nested tables."""
    tables: dict[str, Any] = {}
    for key, value in values.items():
        tables = merge(tables, nest(key, value))
    return tables


def seeds_of(recipe: Recipe) -> list[int]:
    """Returns the seeds that a stage runs."""
    return list(recipe.seeds) or [recipe.seed]


def lengths(step: Step) -> Iterator[str]:
    """Yields the length of each phase of a row, in the recipe's own unit."""
    for table, phase in step.stage.phases(step.resolved.recipe).items():
        name = table.removeprefix("phases.")
        rates = f" x {len(phase.learning_rates)} rates" if len(phase.learning_rates) > 1 else ""
        length = f"{phase.steps:,} steps" if phase.steps else f"{phase.epochs:g} epochs"
        yield f"{name} {length}{' a stage' if getattr(phase, 'unfreeze', []) else ''}{rates}"
