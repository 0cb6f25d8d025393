"""Resolves a recipe: one pure function merges every source of values and records the origin of every key.

Priority: built-in default < method < method's values for the task < recipe < `MBERT_SET_<key>` environment < `--set` < flag.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from microbert_cli.errors import MAX_ERRORS, MbertError, combine_errors, key_location, nearest
from microbert_cli.recipe.layers import Layer, flatten, merge, nest, normalise, table_at
from microbert_cli.recipe.loss_checks import check_augmenters, check_losses, check_parameters
from microbert_cli.recipe.moe import check_exits, check_experts
from microbert_cli.recipe.multitask import check_tasks
from microbert_cli.recipe.registry import Catalog, stage_names
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.toml import check_values, parse_value, read_toml
from microbert_cli.recipe.values import FOLDER_NAME

ENVIRONMENT = "MBERT_SET_"
METHOD_KEYS = {
    "title", "source", "layer_map", "normalisation", "general", "phases", "corpus", "by_task", "ablations", "init",
    "initialise", "moe", "student", "budget", "early_exit",
}  # fmt: skip


@dataclass(frozen=True)
class Resolved:
    """A valid recipe, the origin of every dotted key, and the layers above the method's that it was made of."""

    recipe: Recipe
    origins: dict[str, str]
    name: str
    layers: tuple[Layer, ...] = ()


def resolve(
    *,
    catalog: Catalog,
    recipe: str | Path | None = None,
    sets: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    called: Mapping[str, str] | None = None,
    beneath: Layer | None = None,
) -> Resolved:
    """Merges every source of values and checks the result; raises all errors at once.

    recipe  a TOML file or a catalogued recipe's name;  sets  `key=value` texts;  flags  dotted key -> value of named options;
    called  dotted key -> the option's own name, where that is not `--key`;
    beneath  values that hold where the recipe says nothing.
    """
    path = catalog.recipe_path(recipe) if recipe is not None else None
    recipe_layer = Layer(str(path), read_toml(path)) if path else Layer("no recipe", {})
    lower = [beneath, recipe_layer] if beneath else [recipe_layer]
    upper = [*lower, *_environment_layers(environment), *_set_layers(sets), *_flag_layers(flags or {}, called or {})]
    for layer in upper:
        check_values(layer.values, layer.origin)
    return _resolved(upper, path.stem if path else "mbert", catalog)


def overlay(resolved: Resolved, values: Mapping[str, Any], origin: str, catalog: Catalog) -> Resolved:
    """Resolves the same recipe again with other values for some keys, as a variant does; its method and task may change."""
    return _resolved([*resolved.layers, Layer(origin, values)], resolved.name, catalog)


def _resolved(upper: Sequence[Layer], name: str, catalog: Catalog) -> Resolved:
    upper = [Layer(layer.origin, normalise(layer.values)) for layer in upper]
    method = _last_value(upper, "method") or Recipe.model_fields["method"].default
    layers = [
        *_method_layers(catalog, str(method), _last_value(upper, "task")),
        *upper,
        *_ablation_layers(catalog, str(method), upper),
    ]
    return Resolved(*_validate(layers, catalog), name=name, layers=tuple(upper))


def _set_layers(sets: Sequence[str]) -> list[Layer]:
    layers = []
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise MbertError(
                "M101",
                f'"{text}" is not of the form key=value',
                where="--set",
                allowed="A dotted recipe key, an equals sign, a TOML value.",
                fix="For instance: --set finetune.epochs=2",
            )
        layers.append(Layer(f"--set {key.strip()}", nest(key.strip(), parse_value(value.strip()))))
    return layers


def _environment_layers(environment: Mapping[str, str] | None) -> list[Layer]:
    environment = os.environ if environment is None else environment
    names = sorted(name for name in environment if name.startswith(ENVIRONMENT))
    return [
        Layer(name, nest(name.removeprefix(ENVIRONMENT).lower().replace("__", "."), parse_value(environment[name])))
        for name in names
    ]


def _flag_layers(flags: Mapping[str, Any], option_names: Mapping[str, str]) -> list[Layer]:
    set_flags = {key: value for key, value in flags.items() if value is not None}
    return [Layer(option_names.get(key, f"--{key.replace('_', '-')}"), nest(key, value)) for key, value in set_flags.items()]


def _method_layers(catalog: Catalog, method: str, task: Any) -> list[Layer]:
    path, values = _read_method(catalog, method)
    values = {key: value for key, value in values.items() if key not in ("title", "source", "ablations")}
    by_task = _table_of_tables(values.pop("by_task", {}), f"{path}, by_task", "Values for single tasks: [by_task.cola]")
    layers = [Layer(f"method {method}", normalise(values))]
    if isinstance(task, str) and (task_values := by_task.get(Path(task).stem)):
        layers.append(Layer(f"method {method}, for {task}", normalise(task_values)))
    return layers


def _ablation_layers(catalog: Catalog, method: str, upper: Sequence[Layer]) -> list[Layer]:
    """Returns the values of the ablated parts; they come last, so that no other source overrides them."""
    parts = _strings(_last_value(upper, "ablate"))
    ablation_values = ablations(catalog, method) if parts else {}
    if unknown := [part for part in parts if part not in ablation_values]:
        raise combine_errors(_unknown_part(part, method, ablation_values) for part in unknown)
    return [Layer(f"method {method} without {part}", normalise(ablation_values[part])) for part in parts]


def ablations(catalog: Catalog, method: str) -> dict[str, Any]:
    """Returns the parts that a method can be run without, and the values that remove each."""
    path, values = _read_method(catalog, method)
    return _table_of_tables(values.get("ablations", {}), f"{path}, ablations", "Values that leave a part out: [ablations.hidn]")


def _read_method(catalog: Catalog, method: str) -> tuple[Path, dict[str, Any]]:
    path = catalog.path("methods", method, where="method")
    values = read_toml(path, "methods")
    if unknown := values.keys() - METHOD_KEYS:
        raise combine_errors(_unknown(key, str(path), METHOD_KEYS) for key in sorted(unknown))
    return path, values


def _table_of_tables(values: Any, where: str, allowed: str) -> dict[str, Any]:
    """Checks that values are a table of tables; raises M053 for anything else."""
    if isinstance(values, Mapping) and all(isinstance(inner, Mapping) for inner in values.values()):
        return dict(values)
    raise MbertError(
        "M053",
        "this is no table of tables",
        where=where,
        allowed=allowed,
        fix="See how it looks: mbert show methods microbert",
    )


def _unknown_part(part: str, method: str, known_parts: Iterable[str]) -> MbertError:
    return MbertError(
        "M060",
        f'the method {method} has no part "{part}" that it could be run without',
        where="ablate",
        allowed=f"Its parts: {nearest(part, known_parts)}" if known_parts else "This method names no such parts.",
        fix=f"See them: mbert show methods {method}",
    )


def _last_value(layers: Iterable[Layer], key: str) -> Any:
    values = [layer.values[key] for layer in layers if key in layer.values]
    return values[-1] if values else None


def _validate(layers: Sequence[Layer], catalog: Catalog) -> tuple[Recipe, dict[str, str]]:
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        merged = merge(merged, layer.values)
        origins |= dict.fromkeys(flatten(layer.values), layer.origin)
    # Names are checked on raw values, so that their errors and those of the schema are raised together.
    errors = list(islice(_check_names(merged, catalog, origins), MAX_ERRORS + 1))
    try:
        recipe = Recipe.model_validate(merged)
    except ValidationError as error:
        # A union of types gives an error for each type; they are joined to one for the key.
        explained: dict[Any, dict[str, Any]] = {}
        for problem in error.errors():
            location = (problem["loc"][: _location_depth(problem["loc"], merged)], problem["type"] == "extra_forbidden")
            before = f"{explained[location]['msg']}. Or: " if location in explained else ""
            explained[location] = {**problem, "msg": before + problem["msg"]}
        raise combine_errors(chain((_explain(e, loc, origins) for (loc, _), e in explained.items()), errors)) from None
    if errors:
        raise combine_errors(errors)
    return recipe, origins


def _location_depth(loc: Sequence[int | str], values: Any) -> int:
    """Returns how much of a validator's location names keys and positions; the rest names types of a union."""
    for depth, part in enumerate(loc):
        if isinstance(values, Mapping) and part in values or isinstance(values, list) and isinstance(part, int):
            values = values[part]  # type: ignore[index]
        else:
            return depth
    return len(loc)


def _explain(error: Mapping[str, Any], loc: Sequence[int | str], origins: Mapping[str, str]) -> MbertError:
    parts = [str(part) for part in loc]
    key = ".".join(parts)
    origin = _origin(key, origins)
    if error["type"] == "extra_forbidden":
        return _unknown(key, origin, _known_keys(parts))
    return MbertError(
        "M003",
        f"{error['input']!r} does not fit",
        where=key_location(origin, key),
        allowed=f"{error['msg']}.",
        fix="Correct it; every key with its default: mbert list keys",
    )


def _origin(key: str, origins: Mapping[str, str]) -> str:
    if key in origins:
        return origins[key]
    near = [origin for dotted, origin in origins.items() if key.startswith(f"{dotted}.") or dotted.startswith(f"{key}.")]
    return near[-1] if near else "recipe"


def _unknown(key: str, origin: str, options: Iterable[str]) -> MbertError:
    return MbertError(
        "M002",
        f'there is no key "{key}"',
        where=key_location(origin, key),
        allowed=f"Known here: {nearest(key.split('.')[-1], options)}",
        fix="See all of them: mbert list keys",
    )


def _known_keys(parts: Sequence[str]) -> list[str]:
    model: Any = Recipe
    for part in parts[:-1]:
        inner = model.model_fields.get(part)
        model = _table(inner.annotation) if inner else model
    return list(model.model_fields)


def _table(annotation: Any) -> type[BaseModel]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = [a for a in getattr(annotation, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
    return inner[0] if inner else Recipe


def _check_names(values: Mapping[str, Any], catalog: Catalog, origins: Mapping[str, str]) -> Iterable[MbertError]:
    """Checks names of losses, stages, students, tasks and augmenters, on raw values, so that all errors are raised at once."""
    for key, name, parameters in _losses(values):
        yield from _check_loss(key, name, parameters, catalog, origins)
    for key in ("variant", "phases"):
        yield from (
            _invalid_folder_name(key, name, origins) for name in table_at(values, key) if not FOLDER_NAME.fullmatch(name)
        )
    for stage in _strings(values.get("stages")):
        yield from _check_stage(stage, values, origins)
    yield from check_tasks(values, catalog, origins)
    yield from check_experts(values, origins)
    yield from check_exits(values, catalog, origins)
    yield from check_losses(values, catalog, origins)
    yield from check_augmenters(values, catalog, origins)
    references = [("students", "student", values.get("student")), ("tasks", "task", values.get("task"))]
    references += [
        ("augmenters", "augment.sources", augmenter) for augmenter in _strings(table_at(values, "augment").get("sources"))
    ]
    references += [("trackers", "trackers", tracker) for tracker in _strings(values.get("trackers"))]
    for kind, key, reference in references:
        exists_elsewhere = _is_checkpoint(reference) or reference in _strings(values.get("stages"))
        unchecked = (kind == "students" and exists_elsewhere) or (kind == "tasks" and _has_own_files(values))
        if isinstance(reference, str) and not unchecked:
            yield from catalog.check(kind, reference, f"{_origin(key, origins)}, {key}")


def _losses(values: Mapping[str, Any]) -> Iterable[tuple[str, str, dict[str, Any]]]:
    """Yields (key, loss, parameters) of every term of every phase."""
    tables = {name: table_at(values, name) for name in ("finetune", "general")}
    tables["moe.repair"] = table_at(table_at(values, "moe"), "repair")
    phases = table_at(values, "phases")
    tables |= {f"phases.{name}": table_at(phases, name) for name in phases}
    for table, phase in tables.items():
        for name, term in table_at(phase, "losses").items():
            parameters = term if isinstance(term, Mapping) else {}
            yield f"{table}.losses.{name}", name, {key: value for key, value in parameters.items() if key != "weight"}


def _is_checkpoint(name: Any) -> bool:
    """Whether a student is a directory or a Hub id, not a name of the catalogue or of a stage."""
    return isinstance(name, str) and ("/" in name or os.path.exists(name))


def _has_own_files(values: Mapping[str, Any]) -> bool:
    """Whether data files are named; `task` then is a free name."""
    data = table_at(values, "data")
    return any(data.get(key) for key in ("train_file", "dev_file", "test_file"))


def _strings(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _check_stage(stage: str, values: Mapping[str, Any], origins: Mapping[str, str]) -> Iterable[MbertError]:
    variants = table_at(values, "variant")
    if stage not in stage_names() and stage not in variants:
        yield MbertError(
            "M004",
            f'there is no stage "{stage}"',
            where=f"{_origin('stages', origins)}, stages",
            allowed=f"Stages and this recipe's variants: {nearest(stage, [*stage_names(), *variants])}",
            fix="Name a stage, or define it: [variant.NAME]",
        )


def _invalid_folder_name(key: str, name: str, origins: Mapping[str, str]) -> MbertError:
    return MbertError(
        "M041",
        f'"{name}" cannot be a name here: a folder of the output is called so',
        where=f"{_origin(f'{key}.{name}', origins)}, {key}",
        allowed="Up to 100 letters, digits, spaces and _ - + . of which the first is a letter, digit or _.",
        fix=f"Rename the table: [{key}.NAME]",
    )


def _check_loss(
    key: str, name: str, parameters: Mapping[str, Any], catalog: Catalog, origins: Mapping[str, str]
) -> Iterable[MbertError]:
    where = f"{_origin(key, origins)}, {key}"
    if errors := list(catalog.check("losses", name, where)):
        yield from errors
        return
    for parameter, value in sorted(parameters.items()):
        place = f"{_origin(f'{key}.{parameter}', origins)}, {key}"
        yield from check_parameters(name, {parameter: value}, catalog, where=place)
