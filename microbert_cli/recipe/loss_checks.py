"""Checks what each loss requires of teacher and student, as far as a recipe shows it and without importing torch.

    same token ids   both nets read a text as the same tokens: whatever is compared token by token
    same heads       attention is compared head by head
    same width       vectors are compared as they are; a loss that maps widths does not need it
    heads divide     a parameter of the loss divides the widths of both

A loss says its columns itself, `requires = {"tokens", "heads", "width"}`, and names the parameter, `divides = "heads"`; without
a word they follow from what it needs to see. Models that a recipe only points at are checked where they are loaded, before any
work (`distillation/pair_checks.py`).

Parameters are checked by the annotations of the loss's keyword parameters and by its `bounds`, inclusive, None = none:
`bounds = {"temperature": (1e-3, 1e3)}`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

from microbert_cli.errors import MbertError, combine_errors, key_location, key_of_location, nearest
from microbert_cli.recipe.layers import table_at
from microbert_cli.recipe.phase_data import check_soft_labels, check_transfer
from microbert_cli.recipe.registry import Catalog, TypeOrWords
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.student_shapes import StudentShape, shape_of
from microbert_cli.recipe.toml import read_toml

DEFAULT_TEACHER_WIDTH = 768  # the width of a teacher, where a number is proposed before one is known
COLUMNS = {"tokens", "heads", "width"}
TASK_INPUTS = frozenset({"logits", "labels", "augmented", "exits"})  # what plain text does not have


@dataclass(frozen=True)
class RecipeLoss:
    """A loss in a recipe: its key, the facts in its file, and its parameters."""

    key: str
    origin: str
    facts: Mapping[str, Any]
    parameters: Mapping[str, Any]

    @property
    def where(self) -> str:
        return key_location(self.origin, self.key)


def unknown_columns(requires: Iterable[str]) -> list[str]:
    """Returns the names that are no columns."""
    return sorted(set(requires) - COLUMNS)


def default_columns(needs: Iterable[str], *, projects: bool) -> frozenset[str]:
    """Returns the columns of a loss that does not declare `requires`, by the inputs it needs."""
    columns_of_need = {"scores": {"tokens", "heads"}, "qkv": {"tokens"}, "token_logits": {"tokens"}}
    columns_of_need["hidden"] = columns_of_need["layers"] = {"tokens"} if projects else {"tokens", "width"}
    return frozenset(column for need in needs for column in columns_of_need.get(need, ()))


def check_losses(values: Mapping[str, Any], catalog: Catalog, origins: Mapping[str, str]) -> Iterator[MbertError]:
    """Checks the losses of `general` and of every phase: M008, M013, M069, M092, M094 to M096, M140, M141, M145, M146.

    values  raw, so that all that is wrong with a recipe is said at once
    """
    general_losses, phase_losses = _recipe_losses(values, catalog, origins)
    for loss in general_losses:
        if missing := sorted(TASK_INPUTS & set(loss.facts.get("needs") or ())):
            yield missing_inputs(loss.where, missing, "what models show of plain text")
        if "unrelated" in (loss.facts.get("needs") or ()) and table_at(values, "corpus").get("format", "pairs") != "pairs":
            yield _no_pairs(loss.where)
    if "task-distill" in _stages(values):
        yield from check_transfer(values, catalog, origins)
        yield from check_soft_labels(values, catalog, origins)
        if "method" not in origins:
            yield from _check_phases(values, catalog, origins)
    rule = values.get("layer_map")
    if rule == "top" or type(rule) is int:
        yield from (
            _top_layer_only(loss.where, rule)
            for loss in (*general_losses, *phase_losses)
            if loss.facts.get("over") in ("layers", "inner")
        )
    student = shape_of(values.get("student"), catalog)
    if student is None:
        return
    base = _pretrained_shape(values, catalog)
    teacher_table = table_at(values, "teacher")
    task_teacher = (
        None
        if values.get("teachers") or values.get("tasks") or teacher_table.get("model") or teacher_table.get("models")
        else base
    )
    begins_elsewhere = values.get("init") not in (None, "auto", "random")
    pairs = [(loss, base) for loss in general_losses] + [(loss, task_teacher) for loss in phase_losses if not begins_elsewhere]
    for loss, teacher in pairs:
        yield from _check_shapes(loss, teacher, student)


def _check_phases(values: Mapping[str, Any], catalog: Catalog, origins: Mapping[str, str]) -> Iterator[MbertError]:
    """Checks that every phase has losses: M069. A recipe that names no method may mean another than the default."""
    phases = table_at(values, "phases")
    for name, phase in phases.items():
        if isinstance(phase, Mapping) and not phase.get("losses") and not phase.get("leave_out"):
            origin = next((origins[key] for key in sorted(origins) if key.startswith(f"phases.{name}.")), "recipe")
            yield _no_losses(name, phases, _methods_with_phase(name, catalog), origin)


def _methods_with_phase(phase: str, catalog: Catalog) -> list[str]:
    return [
        name
        for name in catalog.names("methods")
        if phase in read_toml(catalog.path("methods", name, where="method")).get("phases", {})
    ]


def _no_losses(phase: str, phases: Mapping[str, Any], methods: list[str], origin: str) -> MbertError:
    others = [name for name, values in phases.items() if isinstance(values, Mapping) and values.get("losses")]
    method = Recipe.model_fields["method"].default
    return MbertError(
        "M069",
        f'the phase "{phase}" has no losses, and the method {method} has no such phase',
        where=f"{origin}, phases.{phase}",
        allowed=f"Phases of {method}: {', '.join(others) or 'none'}. "
        + (f"A phase of this name is in {', '.join(methods)}." if methods else "A phase of your own names its losses."),
        fix=f"--set method={methods[0]}" if methods else f"--set phases.{phase}.losses.soft_target=1, or leave the phase out",
    )


def check_parameters(name: str, parameters: Mapping[str, Any], catalog: Catalog, *, where: str) -> Iterator[MbertError]:
    """Checks a loss's parameters: M006 for an unknown one, M017, M018 and M019 for a value of another type or out of bounds."""
    types, bounds = catalog.loss_parameters(name), catalog.loss_facts(name).get("bounds") or {}
    for key, value in parameters.items():
        if key not in types:
            yield _unknown_parameter(name, key, list(types), f"{where}.{key}")
        elif error := _type_error(f"losses {name}", key, value, types[key], where) or _bounds_error(
            key, value, bounds.get(key), catalog.loss_defaults(name).get(key), where
        ):
            yield error


def check_augmenters(values: Mapping[str, Any], catalog: Catalog, origins: Mapping[str, str]) -> Iterator[MbertError]:
    """Checks `augment.options`, raw: M005 for no augmenter, M035 for no option of it, values as `check_parameters`."""
    for name, options in table_at(table_at(values, "augment"), "options").items():
        key = f"augment.options.{name}"
        if errors := list(catalog.check("augmenters", name, f"{origins.get(key, 'recipe')}, {key}")):
            yield from errors
            continue
        types, bounds = catalog.augmenter_options(name), catalog.augmenter_facts(name).get("bounds") or {}
        for option, value in options.items() if isinstance(options, Mapping) else ():
            where = f"{origins.get(f'{key}.{option}', 'recipe')}, {key}"
            if option not in types:
                yield _unknown_option(name, option, list(types), f"{where}.{option}")
                continue
            kind, default = types[option]
            if error := _type_error(f"augmenters {name}", option, value, kind, where) or _bounds_error(
                option, value, bounds.get(option), default, where
            ):
                yield error


def check_stage(kind: str, values: Mapping[str, Any], catalog: Catalog, origins: Mapping[str, str]) -> None:
    """Checks the losses of one stage, which may run alone or as a variant; raises all errors at once."""
    before = [stage for stage in _stages(values) if stage == "pretrain"]
    if errors := list(check_losses({**values, "stages": [*before, kind]}, catalog, origins)):
        raise combine_errors(errors)


def check_head_count(key: str, where: str, heads: Any, widths: Mapping[str, int]) -> Iterator[MbertError]:
    """Checks that `heads` divides every width, by model: M095. key: of the parameter, in the recipe."""
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or any(width % heads for width in widths.values()):
        yield _not_dividing(key, where, heads, widths)


def heads_mismatch(teacher: int, student: int, key: str, where: str) -> MbertError:
    """The error for attention that cannot be compared head by head."""
    return MbertError(
        "M013",
        f"the teacher has {teacher} attention heads, the student {student}, and {key} needs the same heads",
        where=where,
        allowed=f"A student of {teacher} heads: attention is matched head by head. The loss relations has heads of its own.",
        fix=f"Take such a student, or leave attention out: --set {key}=0",
    )


def width_mismatch(teacher: int, student: int, key: str, where: str) -> MbertError:
    """The error for vectors that cannot be compared as they are."""
    return MbertError(
        "M094",
        f"the teacher is {teacher} wide, the student {student}, and {key} needs the same width: it maps none to the other",
        where=where,
        allowed=f"A student of width {teacher}, or losses that map widths, such as hidden_states.",
        fix=f"Take such a student, or leave the loss out: --set {key}=0",
    )


def missing_inputs(where: str, missing: list[str], available: str) -> MbertError:
    """The error for a loss that needs to see what a stage does not have."""
    return MbertError(
        "M008",
        f"this loss needs {', '.join(missing)}, and there is none in this stage",
        where=where,
        allowed=f"Losses that need no more than {available}.",
        fix=f"Leave it out: --set {key_of_location(where)}=0",
    )


def _recipe_losses(
    values: Mapping[str, Any], catalog: Catalog, origins: Mapping[str, str]
) -> tuple[list[RecipeLoss], list[RecipeLoss]]:
    """Returns the losses of `general` and those of all phases, where the run has their stage."""
    stages = _stages(values)
    general = {"general": values.get("general")} if "general-distill" in stages else {}
    phases = table_at(values, "phases") if "task-distill" in stages else {}
    phase_tables = {f"phases.{name}": phase for name, phase in phases.items()}
    return [*_losses(general, catalog, origins)], [*_losses(phase_tables, catalog, origins)]


def _losses(tables: Mapping[str, Any], catalog: Catalog, origins: Mapping[str, str]) -> Iterator[RecipeLoss]:
    """Yields every loss with a weight; unknown losses are reported elsewhere."""
    for table, phase in tables.items():
        if not isinstance(phase, Mapping) or phase.get("leave_out"):
            continue
        for name, term in table_at(phase, "losses").items():
            if not isinstance(term, Mapping) or term.get("weight", 1.0) == 0 or list(catalog.check("losses", name, "")):
                continue
            key = f"{table}.losses.{name}"
            origin = next((origins[candidate] for candidate in (f"{key}.weight", key) if candidate in origins), "recipe")
            yield RecipeLoss(key, origin, catalog.loss_facts(name), {**catalog.loss_defaults(name), **term})


def _check_shapes(loss: RecipeLoss, teacher: StudentShape | None, student: StudentShape) -> Iterator[MbertError]:
    facts = loss.facts
    stated = facts.get("requires")
    required = default_columns(facts.get("needs") or (), projects="projects" in facts) if stated is None else stated
    if teacher is not None and "heads" in required and teacher.heads and student.heads not in (None, teacher.heads):
        yield heads_mismatch(teacher.heads, student.heads or 0, loss.key, loss.where)
    if teacher is not None and "width" in required and teacher.width != student.width:
        yield width_mismatch(teacher.width, student.width, loss.key, loss.where)
    if parameter := facts.get("divides"):
        widths = {"student": student.width} | ({"teacher": teacher.width} if teacher else {})
        yield from check_head_count(f"{loss.key}.{parameter}", loss.where, loss.parameters.get(parameter), widths)


def _pretrained_shape(values: Mapping[str, Any], catalog: Catalog) -> StudentShape | None:
    """Returns the shape of the model that this run pre-trains and distils from."""
    trains = "pretrain" in _stages(values) and not values.get("base")
    return shape_of(table_at(values, "pretrain").get("model"), catalog) if trains else None


def _stages(values: Mapping[str, Any]) -> list[Any]:
    stages = values.get("stages")
    return stages if isinstance(stages, list) else []


def _not_dividing(key: str, where: str, heads: Any, widths: Mapping[str, int]) -> MbertError:
    common = gcd(*widths.values(), *(() if "teacher" in widths else (DEFAULT_TEACHER_WIDTH,)))
    fitting = [number for number in range(common, 0, -1) if common % number == 0]
    nearest_heads = next((number for number in fitting if isinstance(heads, int) and number <= heads), fitting[-1])
    width_text = " and ".join(f"{width} of the {whose}" for whose, width in sorted(widths.items()))
    return MbertError(
        "M095",
        f"{heads!r} relation heads do not divide the width {width_text}",
        where=where,
        allowed=f"{', '.join(map(str, fitting[:12]))}{' ...' if len(fitting) > 12 else ''}, which divide "
        + ("both." if "teacher" in widths else f"it and a teacher's {DEFAULT_TEACHER_WIDTH}."),
        fix=f"--set {key}={nearest_heads}",
    )


def _no_pairs(where: str) -> MbertError:
    return MbertError(
        "M092",
        "this loss is about pairs of segments, and the corpus is cut into single ones",
        where=where,
        allowed='corpus.format = "pairs": second segments, a share corpus.random_next of them from another document.',
        fix=f"--set corpus.format=pairs, or leave the loss out: --set {key_of_location(where)}=0",
    )


def _top_layer_only(where: str, rule: str | int) -> MbertError:
    return MbertError(
        "M096",
        f"this loss compares every layer of the student, and layer_map = {rule!r} gives a teacher to its top layer alone",
        where=where,
        allowed="Losses of the top layer, such as relations; or a map of all layers: uniform, first, last or a list.",
        fix=f"--set layer_map=uniform, or leave the loss out: --set {key_of_location(where)}=0",
    )


def _type_error(entry: str, key: str, value: Any, kind: Any, where: str) -> MbertError | None:
    place, fix = f"{where}.{key}", f"Read what it means: mbert show {entry}"
    kind, words = (kind.type, kind.words) if isinstance(kind, TypeOrWords) else (kind, ())
    if isinstance(kind, tuple):
        if value in kind and type(value) in {type(word) for word in kind}:
            return None
        allowed = nearest(str(value), map(str, kind))
        return MbertError("M018", f"{value!r} is none of them", where=place, allowed=allowed, fix=fix)
    # True and False are whole numbers to Python.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    whole = is_number and int(value) == value if _finite(value) else False
    if {"float": is_number, "int": whole, "bool": isinstance(value, bool)}.get(kind, True) or value in words:
        return None
    noun = {"float": "number", "int": "whole number", "bool": "truth value"}[kind]
    allowed = ", or ".join(["true or false" if kind == "bool" else f"A {noun}", *words])
    return MbertError("M017", f"{value!r} is no {noun}", where=place, allowed=f"{allowed}.", fix=fix)


def _bounds_error(key: str, value: Any, bounds: Any, default: Any, where: str) -> MbertError | None:
    if not isinstance(value, int | float):
        return None
    low, high = bounds or (None, None)
    if _finite(value) and (low is None or value >= low) and (high is None or value <= high):
        return None
    ends = [f"at least {low:g}"] if low is not None else []
    ends += [f"at most {high:g}"] if high is not None else []
    place = f"{where}.{key}"
    return MbertError(
        "M019",
        f"{value!r} is out of bounds: no sensible value of {key}",
        where=place,
        allowed=f"A number, {' and '.join(ends)}." if ends else "A finite number.",
        fix=f"Leave it out, or --set {key_of_location(place)}={default if default is not None else low}",
    )


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _unknown_parameter(name: str, key: str, options: list[str], where: str) -> MbertError:
    return MbertError(
        "M006",
        f'the loss "{name}" has no parameter "{key}"',
        where=where,
        allowed=f"Its parameters: {nearest(key, [*options, 'weight'])}",
        fix=f"Read what they mean: mbert show losses {name}",
    )


def _unknown_option(name: str, key: str, options: list[str], where: str) -> MbertError:
    return MbertError(
        "M035",
        f'the augmenter "{name}" has no option "{key}"',
        where=where,
        allowed=f"Its options: {nearest(key, options)}" if options else "It has none.",
        fix=f"Read what they mean: mbert show augmenters {name}",
    )
