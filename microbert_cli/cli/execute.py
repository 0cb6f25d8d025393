"""How every stage command goes: resolve, show or check if asked, run, print the result."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from microbert_cli.cli.console import show, show_json, show_note, show_table
from microbert_cli.cli.options import CommonOptions, TaskOptions
from microbert_cli.errors import MbertError
from microbert_cli.evaluation.summary import result_line
from microbert_cli.plan.static_checks import check_static
from microbert_cli.recipe.layers import Layer, flatten
from microbert_cli.recipe.multitask import ambiguous_task, task_name
from microbert_cli.recipe.registry import Catalog, stage_names
from microbert_cli.recipe.resolve import Resolved
from microbert_cli.recipe.task import load_task
from microbert_cli.recipe.task_kinds import SEVERAL_LABELS, TOKENS, answers_words, kind_class
from microbert_cli.runs import manifest
from microbert_cli.runs.stage_inputs import RUNS, Step, default_root, step, steps
from microbert_cli.runs.stage_registry import find_stage

if TYPE_CHECKING:
    from microbert_cli.runs.stage_result import StageResult

DEFAULT = "built-in default"


def run_stage(kind: str, common: CommonOptions, resolved: Resolved, **options: Any) -> "StageResult | None":
    """Runs one stage by itself; None where only a look was asked for."""
    if common.explain:
        explain(resolved, [kind], as_json=common.as_json, everything=common.verbose)
        return None
    catalog = common.catalog()
    root = common.out.parent if common.out else default_root(resolved, explicit=common.recipe is not None)
    planned = step(kind, resolved, _root_with_inputs(root, resolved, common), catalog, out=common.out or root / kind)
    if common.dry_run:
        check_static([planned], common.catalog())
        dry_run([planned], common)
        return None
    from microbert_cli.runs.pipeline import run_step

    reporter = common.reporter()
    try:
        return run_step(planned, catalog=catalog, reporter=reporter, force=common.force, resume=common.resume, **options)
    finally:
        reporter.close()


def recipe_steps(common: CommonOptions, resolved: Resolved, *, will_run: bool = False) -> tuple[list[Step], Path] | None:
    """Returns the recipe's steps and their folder; None for --explain-config and --dry-run. Raises M023 for no stages."""
    if common.explain:
        explain(resolved, _kinds_of_stages(resolved), as_json=common.as_json, everything=common.verbose)
        return None
    if not resolved.recipe.stages:
        raise MbertError(
            "M023",
            "this recipe names no stages",
            where="stages",
            allowed='For instance stages = ["finetune", "general-distill", "augment", "task-distill", "evaluate"].',
            fix="""Add the line, or say it here: --set 'stages=["finetune", "evaluate"]'""",
        )
    root = common.out or RUNS / resolved.name
    planned = steps(resolved, root, common.catalog())
    if common.dry_run:
        if will_run:
            check_static(planned, common.catalog())
        dry_run(planned, common)
        return None
    return planned, root


def _root_with_inputs(root: Path, resolved: Resolved, common: CommonOptions) -> Path:
    """Returns the folder whose stages are inputs: the one of -o if any lie there, else the default root."""
    default = default_root(resolved, explicit=common.recipe is not None)
    neighbours = [root / stage for stage in stage_names() if root / stage != common.out]
    return root if any((neighbour / "manifest.json").is_file() for neighbour in neighbours) else default


def show_result(result: "StageResult | None", common: CommonOptions, *, with_line: bool = True) -> None:
    """The output directory on stdout, alone; or with --json what is in its metrics.json, and the directory.

    with_line  says on stderr what the stage came to
    """
    if result is None:
        return
    if common.as_json:
        show_json(with_out(result))
        return
    line = result_line(result.stage, result.metrics) if with_line else ""
    if result.up_to_date:
        common.reporter().note(f"{result.stage}: up to date{', ' if line else ''}{line}")
    elif line:
        common.reporter().note(f"{result.stage}: {line}")
    if with_line and (verdict := result.metrics.get("verdict")):
        common.reporter().note(f"{verdict['student']}: {verdict['sentence']}")
    show(str(result.out))


def with_out(result: "StageResult") -> dict[str, Any]:
    """What is in the result's metrics.json, and the output directory as the key `out`."""
    return {**result.metrics, "out": str(result.out)}


@contextmanager
def shown_before_checks(result: "StageResult", common: CommonOptions) -> Iterator[None]:
    """Shows the result before a check; with --json after it, so that one object holds both metrics and error."""
    if not common.as_json:
        show_result(result, common, with_line=False)  # a table of its scores follows
        yield
        return
    try:
        yield
    except MbertError as error:
        error.details = with_out(result)
        raise
    show_result(result, common)


def resolve_for_model(model: str | None, about: TaskOptions, common: CommonOptions, **keys: Any) -> Resolved:
    """Resolves the recipe of a command about a trained model; what is not typed comes from that model's manifest.

    Raises M265 where that names several tasks and nobody one of them.
    """
    layer = recipe_of_model(model)
    resolved = common.resolve(beneath=data_folder_layer(layer), **keys, **task_flags(model, about))
    tasks = [task_name(task) for task in layer.values.get("tasks") or []]
    if len(tasks) > 1 and not (resolved.recipe.task or resolved.recipe.data.train_file or common.explain):
        raise ambiguous_task(tasks, f"MODEL {model}")
    return resolved


def task_flags(model: str | None, about: TaskOptions) -> dict[str, Any]:
    """Returns the flags of the task: as typed, else what the model's manifest says it was made for."""
    flags = about.keys()
    path = Path(model or "") / manifest.FILE
    if not model or not path.is_file() or about.task and not any(about.own_data().values()):
        return flags
    recipe = manifest.read(path.parent).get("recipe", {})
    data = {f"data__{key}": value for key, value in recipe.get("data", {}).items() if key not in ("folder", "transfer_file")}
    if not any(about.own_data().values()):
        return {**flags, **data, "task": recipe.get("task")}
    typed = {key: value for key, value in flags.items() if value is not None}
    return _columns_of_model(path.parent, about, {**data, "task": recipe.get("task")}) | typed


def _columns_of_model(model: Path, about: TaskOptions, remembered: dict[str, Any]) -> dict[str, Any]:
    """What a model knows of a file that is typed now: columns and length; where no training file is typed, its labels too.

    The files it was trained on are left out: what is scored is what was typed.
    """
    kept = {key: remembered.get(key) for key in ("data__text", "data__label", "data__label_columns", "data__max_length")}
    if (kind := remembered.get("data__kind")) and kind_class(kind).writes:
        kept["data__kind"] = kind
    task = None if about.task else remembered["task"]
    if task and kept["data__text"] is None:
        with suppress(MbertError):  # a task file of the user's own may be gone: then its columns have to be typed
            task_columns = load_task(Catalog().path("tasks", task, where="task"))
            length = kept["data__max_length"] or task_columns.max_length
            kept = {
                "data__text": list(task_columns.text),
                "data__label": task_columns.label.column,
                "data__label_columns": list(task_columns.label.columns or ()) or None,
                "data__max_length": length,
                **({"data__kind": task_columns.kind.name} if task_columns.kind.writes else {}),
            }
    return kept if about.train_file else kept | _labels_of_model(model)


def _labels_of_model(model: Path) -> dict[str, Any]:
    """The classes of a classifier in the order of its outputs, or that it answers with a score."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8")) if (model / "config.json").is_file() else {}
    if config.get("problem_type") == "regression":
        return {"data__kind": "score"}
    kind = "labels" if config.get("problem_type") == SEVERAL_LABELS else "classes"
    kind = TOKENS if answers_words(SimpleNamespace(architectures=config.get("architectures"))) else kind
    names = [str(name) for _, name in sorted(config.get("id2label", {}).items(), key=lambda item: int(item[0]))]
    is_named = names and not all(re.fullmatch(r"LABEL_\d+", name) for name in names)
    return {"data__labels": names, "data__kind": kind} if is_named else {}


def data_folder_layer(layer: Layer) -> Layer | None:
    """Returns the data folder that a model was trained on, as a layer below the recipe; None where `MBERT_DATA` is set."""
    folder = layer.values.get("data", {}).get("folder")
    is_usable = isinstance(folder, str) and not os.environ.get("MBERT_DATA") and Path(folder).is_dir()
    return Layer(layer.origin, {"data": {"folder": folder}}) if is_usable else None


def recipe_of_model(model: str | None) -> Layer:
    """Returns the recipe keys that made a model, or the output whose best/TASK it is; empty for any other model."""
    path = Path(model or "")
    output = manifest.output_of(manifest.model_home(path)) if model else None
    return Layer(str(output / manifest.FILE), manifest.read(output).get("recipe", {})) if output else Layer("no manifest", {})


def explain(resolved: Resolved, kinds: Iterable[str] = (), *, as_json: bool = False, everything: bool = False) -> None:
    """Shows keys, their values and their origins: those that stages of these kinds read, and all that anybody has set.

    kinds  none = every key;  everything  every key, too. As JSON it is always every key
    """
    from microbert_cli.recipe.toml import to_toml

    values = flatten(resolved.recipe.model_dump(mode="json"))
    origins = {key: resolved.origins.get(key, DEFAULT) for key in values}
    if as_json:
        show_json({key: {"value": value, "from": origins[key]} for key, value in values.items()})
        return
    tables = {table for kind in kinds for table in find_stage(kind).tables}
    rows = []
    for key, value in values.items():
        if not tables or everything or origins[key] != DEFAULT or key.partition(".")[0] in tables:
            text = to_toml({"value": value}).removeprefix("value = ").strip() or "(none)"
            rows.append([key, text, origins[key]])
    show_table("", ["key", "value", "from"], rows, texts=["value", "from"])
    if len(rows) < len(values):
        show_note(f"{len(values) - len(rows)} keys that are not read here have their defaults; -v shows them too")


def _kinds_of_stages(resolved: Resolved) -> list[str]:
    """Returns the kinds of a recipe's stages, as far as there are such stages."""
    variants = resolved.recipe.variant
    kinds = [str(variants.get(name, {}).get("stage", name)) for name in resolved.recipe.stages]
    return [kind for kind in dict.fromkeys(kinds) if kind in stage_names()]


def dry_run(planned: list[Step], common: CommonOptions) -> None:
    """Shows what would run, on what, and where it would go; no data is opened."""
    rows = [
        {"stage": row.name, "kind": row.kind, "out": str(row.out), "state": output_state(row), **_shown_inputs(row)}
        for row in planned
    ]
    if common.as_json:
        show_json({"stages": rows})
        return
    for row in rows:
        inputs = {key: value for key, value in row.items() if key not in ("stage", "kind", "out", "state")}
        text = ", ".join(f"{key}={value}" for key, value in inputs.items() if value is not None)
        show(f"{row['stage']:<16} {row['state']:<9} -> {row['out']}   {text}")


def _shown_inputs(step: Step) -> dict[str, Any]:
    """Returns the inputs, lists and tables one by one, and the runs whose output may be copied instead."""
    inputs = {key: value for key, value in step.inputs.items() if not isinstance(value, list | dict)}
    reuse = " ".join(step.resolved.recipe.reuse) if step.stage.reusable else ""
    return {**inputs, **step.places, **({"reuse": reuse} if reuse else {})}


def output_state(step: Step) -> str:
    """Returns exists, begun or new, without a look at the output's content."""
    if (step.out / "manifest.json").is_file():
        return "exists"
    return "begun" if step.out.with_name(step.out.name + ".partial").is_dir() else "new"
