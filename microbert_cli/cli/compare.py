"""`mbert compare`: several methods, ablations or recipes on the same data, and one table."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from microbert_cli import distributed
from microbert_cli.cli import options
from microbert_cli.cli.console import show, show_json, show_note, show_table
from microbert_cli.cli.execute import explain, output_state
from microbert_cli.cli.options import CommonOptions, TaskOptions, with_options
from microbert_cli.errors import MbertError
from microbert_cli.evaluation.compare.grid_search import check_grid, describe_values, parse_grid, trials_of
from microbert_cli.evaluation.compare.rows import COMPARISON, ComparisonPlan, Row, kind_of, lengths, plan_rows, seeds_of
from microbert_cli.plan.static_checks import check_static
from microbert_cli.recipe.resolve import Resolved
from microbert_cli.runs.stage_inputs import RUNS

EPILOG = """Examples:

mbert compare tinybert tinybert-reference --teacher DIR --student runs/sst2/general-distill --task sst2 --dry-run

mbert compare quickstart --grid phases.prediction.learning_rate=5e-4,1e-3 -o runs/compare-quickstart --dry-run"""
PLAN = ["row", "stage", "phases", "seeds", "state", "tried first"]
Grid = Mapping[str, Sequence[Any]]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("compare", epilog=EPILOG)(compare)


@with_options
def compare(
    names: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Methods of the catalogue, and recipes.")],
    teacher: options.Teacher = None,
    student: options.Student = None,
    seeds: options.Seeds = None,
    tasks: Annotated[str | None, typer.Option("--tasks", help="The comparison on each of these: sst2,mrpc,rte.")] = None,
    ablate: Annotated[str | None, typer.Option("--ablate", help="A row more for each of these ablations: dis,hidn.")] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="KEY=A,B", help="Values to try in every row, chosen on dev; repeatable."),
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option("--baselines/--no-baselines", help="Rows of a linear model, and of int8 files of teacher and students."),
    ] = True,
    *,
    about: TaskOptions,
    common: CommonOptions,
) -> None:
    """Trains several students on the same data, teacher and seeds, and tells them apart in one table.

    A method gives one row. A recipe gives a row for each stage of kind task-distill or finetune among its `stages` that no
    other stage reads; what they need is run before, what comes after is left out. Rows that are done are kept; those whose
    recipe changed are made anew, the old ones moved aside. With --tasks the whole comparison is made on each task, in OUT/TASK,
    and a mean over them is told; `{task}` in the name of a teacher or a start is then the task's. A grid is tried on the first
    seed of each row; what is best on dev is run with all seeds. The table ends with what a user could take instead: a linear
    model on the same rows, the teacher's int8 file, the commonest class; it says whether the best row is worth more.
    """
    values = {"teacher__model": teacher, "student": student, **about.keys()}
    if common.explain:
        explain(_resolved(common, names[0], values, common.catalog()), as_json=common.as_json)
        return
    grid_values = parse_grid(grid or [])
    root = common.out or _default_root(names, common, values)
    plans = _plans(
        names, common, values, root, _name_list(tasks, "--tasks"), options.seed_list(seeds), _name_list(ablate, "--ablate")
    )
    for plan in plans:
        check_grid(grid_values, plan, common.catalog())
    if common.dry_run:
        for plan in plans:
            check_static(plan.steps(common.catalog()), common.catalog())
        _show_plans(plans, grid_values, common, root)
        return
    distributed.require_single_process("mbert compare")
    from microbert_cli.plan.doctor.preflight import check_before_start

    for plan in plans:
        check_before_start(plan.steps(common.catalog()), plan.root, common.catalog())
    if not (common.quiet or common.as_json):
        _table_of_plans(plans, grid_values, common, err=True)
    _show(_run(plans, grid_values, common, root, baselines=baselines), common, root)


def _plans(
    names: list[str], common: CommonOptions, values: dict[str, Any], root: Path, tasks: list[str], seeds: list[int] | None,
    ablate: list[str],
) -> list[ComparisonPlan]:  # fmt: skip
    catalog = common.catalog()

    def plan(directory: Path, task: dict[str, Any]) -> ComparisonPlan:
        def resolve(recipe: str | None) -> Resolved:
            return _resolved(common, recipe or common.recipe or names[0], {**values, **task}, catalog)

        return plan_rows(names, directory, catalog, resolve, base=common.recipe is not None, seeds=seeds, ablate=ablate)

    return [plan(root / Path(task).stem, {"task": task}) for task in tasks] if tasks else [plan(root, {})]


def _resolved(common: CommonOptions, name: str | None, values: dict[str, Any], catalog: Any) -> Resolved:
    """Returns a recipe with this command's options; the name of a method stands for no recipe, or for mbert.toml."""
    recipe = common.recipe if name is None or kind_of(name, catalog) == "methods" else name
    return replace(common, recipe=recipe).resolve(**values)


def _default_root(names: list[str], common: CommonOptions, values: dict[str, Any]) -> Path:
    """Returns runs/compare with the names of the base recipe and of the task: it stays the same when a row is added."""
    recipe = common.recipe or (names[0] if kind_of(names[0], common.catalog()) == "recipes" else None)
    about = values["task"] or values["data__train_file"]
    parts = ["compare", Path(recipe).stem if recipe else None, Path(about).stem if about else None]
    return RUNS / "-".join(part for part in parts if part)


def _name_list(text: str | None, option: str) -> list[str]:
    """Splits `a,b,c` into names; raises M125."""
    names = [name.strip() for name in (text or "").split(",")] if text is not None else []
    if all(names) and len({Path(name).stem for name in names}) == len(names):
        return names
    raise MbertError(
        "M125",
        f'"{text}" is no list of different names',
        where=option,
        allowed="Names with commas between, each of them once.",
        fix="For instance: --tasks sst2,mrpc,rte, or --ablate dis,hidn",
    )


def _run(plans: Sequence[ComparisonPlan], grid: Grid, common: CommonOptions, root: Path, *, baselines: bool) -> dict[str, Any]:
    from microbert_cli.evaluation.compare.run import run_plans
    from microbert_cli.stages import compare as stage

    catalog, reporter = common.catalog(), common.reporter()
    options: dict[str, Any] = {"catalog": catalog, "reporter": reporter, "force": common.force, "resume": common.resume}
    try:
        result = stage.run(run_plans(plans, grid, **options), root / COMPARISON, baselines=baselines, **options)
    finally:
        reporter.close()
    if result.up_to_date:
        reporter.note("everything up to date")
    return result.metrics


def _show_plans(plans: Sequence[ComparisonPlan], grid: Grid, common: CommonOptions, root: Path) -> None:
    if common.as_json:
        show_json({"out": str(root), "tasks": {plan.task: _plan_as_dict(plan, grid, common) for plan in plans}})
        return
    _table_of_plans(plans, grid, common)


def _plan_as_dict(plan: ComparisonPlan, grid: Grid, common: CommonOptions) -> dict[str, Any]:
    catalog = common.catalog()
    before = [
        {"stage": step.name, "kind": step.kind, "out": str(step.out), "state": output_state(step)} for step in plan.before
    ]
    return {"before": before, "rows": [_row_as_dict(row, plan, grid, catalog) for row in plan.rows]}


def _row_as_dict(row: Row, plan: ComparisonPlan, grid: Grid, catalog: Any) -> dict[str, Any]:
    step = row.step(catalog)
    trials = trials_of(row, grid, plan, catalog)
    return {
        "row": row.name, "stage": step.kind, "phases": list(lengths(step)), "seeds": seeds_of(step.resolved.recipe),
        "state": output_state(step), "out": str(step.out), "inputs": step.inputs,
        "trials": [{"values": trial.values, "state": output_state(trial.step)} for trial in trials],
    }  # fmt: skip


def _table_of_plans(plans: Sequence[ComparisonPlan], grid: Grid, common: CommonOptions, *, err: bool = False) -> None:
    for plan in plans:
        description = _plan_as_dict(plan, grid, common)
        rows = [[f"({step['stage']})", step["kind"], "", "", step["state"], ""] for step in description["before"]]
        for row in description["rows"]:
            done = sum(trial["state"] == "exists" for trial in row["trials"])
            tried = f"{len(row['trials'])} choices ({done} done)" if row["trials"] else ""
            seeds = ",".join(map(str, row["seeds"]))
            rows.append([row["row"], row["stage"], "; ".join(row["phases"]), seeds, row["state"], tried])
        plural = "s" if len(plan.rows) > 1 else ""
        show_table(f"{plan.task}: {len(plan.rows)} row{plural} in {plan.root}", PLAN, rows, err=err, texts=PLAN[1:])


def _show(metrics: dict[str, Any], common: CommonOptions, root: Path) -> None:
    out = str(root / COMPARISON)
    if common.as_json:
        show_json({**metrics, "out": out})
        return
    if not common.quiet:
        _show_tables(metrics)
    show(out)


def _show_tables(metrics: dict[str, Any]) -> None:
    """The tables of a comparison, on stderr: stdout has the path alone."""
    from microbert_cli.evaluation.compare import table

    for task, section in metrics["tasks"].items():
        show_table(table.title(task, section), table.COLUMNS, table.lines(section), err=True)
        show_note("\n".join(table.remarks(section)))
        if section["differences"]:
            show_table("", table.DIFFERENCES, table.differences_lines(section), err=True, texts=("against", "which is"))
        for row in section["rows"]:
            for trial in row["tried"]:
                show_note(f"tried: {row['row']}, {describe_values(trial['values'])}: {trial['dev']}")
    if metrics["average"]:
        show_table("mean over the tasks", table.AVERAGED, table.average_lines(metrics), err=True)
