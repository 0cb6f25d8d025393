"""How every stage command goes: resolve, show or check if asked, run, print the result."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microbert_cli.cli.console import show, show_json, show_table
from microbert_cli.cli.options import CommonOptions, TaskOptions
from microbert_cli.errors import MbertError
from microbert_cli.recipe.layers import Layer, flatten
from microbert_cli.recipe.multitask import ambiguous_task, task_name
from microbert_cli.recipe.registry import stage_names
from microbert_cli.recipe.resolve import Resolved
from microbert_cli.runs import manifest
from microbert_cli.runs.stage_inputs import RUNS, Step, default_root, step, steps

if TYPE_CHECKING:
    from microbert_cli.runs.stage_result import StageResult


def run_stage(kind: str, common: CommonOptions, resolved: Resolved, **options: Any) -> "StageResult | None":
    """Runs one stage by itself; None where only a look was asked for."""
    if common.explain:
        explain(resolved, as_json=common.as_json)
        return None
    catalog = common.catalog()
    root = common.out.parent if common.out else default_root(resolved, explicit=common.recipe is not None)
    planned = step(kind, resolved, _root_with_inputs(root, resolved, common), catalog, out=common.out or root / kind)
    if common.dry_run:
        dry_run([planned], common)
        return None
    from microbert_cli.runs.pipeline import run_step

    reporter = common.reporter()
    try:
        return run_step(planned, catalog=catalog, reporter=reporter, force=common.force, resume=common.resume, **options)
    finally:
        reporter.close()


def recipe_steps(common: CommonOptions, resolved: Resolved) -> tuple[list[Step], Path] | None:
    """The recipe's stages and the folder they write to; None where only a look was asked for. Raises M023 where it has none."""
    if common.explain:
        explain(resolved, as_json=common.as_json)
        return None
    if not resolved.recipe.stages:
        raise MbertError(
            "M023",
            "this recipe names no stages",
            where="stages",
            allowed='For instance stages = ["finetune", "general-distill", "augment", "task-distill", "evaluate"].',
            fix="Add the line, or run a single stage: mbert task-distill",
        )
    root = common.out or RUNS / resolved.name
    planned = steps(resolved, root, common.catalog())
    if common.dry_run:
        dry_run(planned, common)
        return None
    return planned, root


def _root_with_inputs(root: Path, resolved: Resolved, common: CommonOptions) -> Path:
    """Outputs named with -o have the stages beside them as inputs, else those of the default root."""
    default = default_root(resolved, explicit=common.recipe is not None)
    neighbours = [root / stage for stage in stage_names() if root / stage != common.out]
    return root if any((neighbour / "manifest.json").is_file() for neighbour in neighbours) else default


def show_result(result: "StageResult | None", common: CommonOptions) -> None:
    """The output directory on stdout, or with --json what is in its metrics.json."""
    if result is None:
        return
    if common.as_json:
        show_json(result.metrics)
        return
    if result.up_to_date:
        common.reporter().note(f"{result.stage}: up to date")
    show(str(result.out))


@contextmanager
def shown_before_checks(result: "StageResult", common: CommonOptions) -> Iterator[None]:
    """Tells the result before a check of it; with --json after it, so that one object holds both metrics and error."""
    if not common.as_json:
        show_result(result, common)
        yield
        return
    try:
        yield
    except MbertError as error:
        error.told = result.metrics
        raise
    show_result(result, common)


def resolve_for_model(model: str | None, about: TaskOptions, common: CommonOptions, **keys: Any) -> Resolved:
    """The recipe of a command about a trained model: what is not said, the model's own manifest says.

    Raises M265 where that names several tasks and nobody one of them.
    """
    made = recipe_of_model(model)
    resolved = common.resolve(beneath=data_folder_layer(made), **keys, **task_flags(model, about))
    tasks = [task_name(task) for task in made.values.get("tasks") or []]
    if len(tasks) > 1 and not (resolved.recipe.task or resolved.recipe.data.train_file or common.explain):
        raise ambiguous_task(tasks, f"MODEL {model}")
    return resolved


def task_flags(model: str | None, about: TaskOptions) -> dict[str, Any]:
    """Flags for the task: as typed, else what the model's own manifest says it was made for."""
    flags = about.keys()
    path = Path(model or "") / "manifest.json"
    if about.task or any(about.own_data().values()) or not model or not path.is_file():
        return flags
    made = manifest.read(path.parent).get("recipe", {})
    data = {f"data__{key}": value for key, value in made.get("data", {}).items() if key not in ("folder", "transfer_file")}
    return {**flags, **data, "task": made.get("task")}


def data_folder_layer(made: Layer) -> Layer | None:
    """The folder that a model was trained on, for where the recipe names none; None where `MBERT_DATA` does."""
    folder = made.values.get("data", {}).get("folder")
    known = isinstance(folder, str) and not os.environ.get("MBERT_DATA") and Path(folder).is_dir()
    return Layer(made.origin, {"data": {"folder": folder}}) if known else None


def recipe_of_model(model: str | None) -> Layer:
    """The recipe keys that made the output which a model is, or whose best/TASK it is; empty for any other model."""
    path = Path(model or "")
    files = (place / manifest.FILE for place in (path, *path.parents[1:2]))
    made = next((file for file in files if model and file.is_file()), None)
    return Layer(str(made), manifest.read(made.parent).get("recipe", {})) if made else Layer("no manifest", {})


def explain(resolved: Resolved, *, as_json: bool = False) -> None:
    """Every key, its value and its origin."""
    from microbert_cli.recipe.toml import to_toml

    values = flatten(resolved.recipe.model_dump(mode="json"))
    origins = {key: resolved.origins.get(key, "built-in default") for key in values}
    if as_json:
        show_json({key: {"value": value, "from": origins[key]} for key, value in values.items()})
        return
    rows = []
    for key, value in values.items():
        text = to_toml({"value": value}).removeprefix("value = ").strip() or "(none)"
        rows.append([key, text, origins[key]])
    show_table("", ["key", "value", "from"], rows)


def dry_run(planned: list[Step], common: CommonOptions) -> None:
    """What would run, on what, and where it would go; nothing is opened."""
    told = [
        {"stage": one.name, "kind": one.kind, "out": str(one.out), "state": output_state(one), **_shown_inputs(one)}
        for one in planned
    ]
    if common.as_json:
        show_json({"stages": told})
        return
    for one in told:
        inputs = {key: value for key, value in one.items() if key not in ("stage", "kind", "out", "state")}
        named = ", ".join(f"{key}={value}" for key, value in inputs.items() if value is not None)
        show(f"{one['stage']:<16} {one['state']:<9} -> {one['out']}   {named}")


def _shown_inputs(one: Step) -> dict[str, Any]:
    """The inputs, those that are lists or tables one by one; and the runs whose output may be copied instead."""
    inputs = {key: value for key, value in one.inputs.items() if not isinstance(value, list | dict)}
    reuse = " ".join(one.resolved.recipe.reuse) if one.stage.reusable else ""
    return {**inputs, **one.places, **({"reuse": reuse} if reuse else {})}


def output_state(one: Step) -> str:
    """What is there of a stage's output, its content not looked at."""
    if (one.out / "manifest.json").is_file():
        return "exists"
    return "begun" if one.out.with_name(one.out.name + ".partial").is_dir() else "new"
