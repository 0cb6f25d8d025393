"""What each loss needs of a pair of teacher and student, by columns; what a recipe tells of that is checked without torch.

    same token ids   both nets read a text as the same tokens: whatever is compared token by token
    same heads       attention is compared head by head
    same width       vectors are compared as they are; a loss that maps widths does not need it
    heads divide     a parameter of the loss divides the widths of both

A loss says its columns itself, `requires = {"tokens", "heads", "width"}`, and names the parameter, `divides = "heads"`; without
a word they follow from what it needs to see. Models that a recipe only points at are checked where they are loaded, before any
work (`matching.py`).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

from microbert_cli.errors import MbertError, combine_errors, key_location, key_of_location
from microbert_cli.recipe.layers import table_at
from microbert_cli.recipe.phase_data import check_transfer
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.student_shapes import StudentShape, shape_of

DEFAULT_TEACHER_WIDTH = 768  # the width of a teacher, where a number is proposed before one is known
COLUMNS = {"tokens", "heads", "width"}
TASK_INPUTS = frozenset({"logits", "labels", "augmented"})  # what plain text does not have


@dataclass(frozen=True)
class RecipeLoss:
    """A loss in a recipe: its key, what its file says, and the parameters it gets."""

    key: str
    origin: str
    facts: Mapping[str, Any]
    parameters: Mapping[str, Any]

    @property
    def where(self) -> str:
        return key_location(self.origin, self.key)


def unknown_columns(requires: Iterable[str]) -> list[str]:
    """Those that are none."""
    return sorted(set(requires) - COLUMNS)


def default_columns(needs: Iterable[str], *, projects: bool) -> frozenset[str]:
    """What a loss that does not say it requires: "tokens", "heads", "width", by what it has to see."""
    found = {"scores": {"tokens", "heads"}, "qkv": {"tokens"}, "token_logits": {"tokens"}}
    found["hidden"] = {"tokens"} if projects else {"tokens", "width"}
    return frozenset(column for need in needs for column in found.get(need, ()))


def check_losses(values: Mapping[str, Any], catalog: Catalog, origins: Mapping[str, str]) -> Iterator[MbertError]:
    """What is wrong with the losses of `general` and of every phase, as far as the recipe tells: M008, M013, M092,
    M094 to M096, M140, M141.

    values  raw, so that all that is wrong with a recipe is said at once
    """
    of_text, of_rows = _recipe_losses(values, catalog, origins)
    for said in of_text:
        if missing := sorted(TASK_INPUTS & set(said.facts.get("needs") or ())):
            yield missing_inputs(said.where, missing, "what models show of plain text")
        if "unrelated" in (said.facts.get("needs") or ()) and table_at(values, "corpus").get("format", "pairs") != "pairs":
            yield _no_pairs(said.where)
    if "task-distill" in _stages(values):
        yield from check_transfer(values, catalog, origins)
    rule = values.get("layer_map")
    if rule == "top" or type(rule) is int:
        yield from (
            _top_layer_only(said.where, rule) for said in (*of_text, *of_rows) if said.facts.get("over") in ("layers", "inner")
        )
    student = shape_of(values.get("student"), catalog)
    if student is None:
        return
    base = _pretrained_shape(values, catalog)
    named = table_at(values, "teacher")
    taught = None if values.get("teachers") or values.get("tasks") or named.get("model") or named.get("models") else base
    begins_elsewhere = values.get("init") not in (None, "auto", "random")
    pairs = [(said, base) for said in of_text] + [(said, taught) for said in of_rows if not begins_elsewhere]
    for said, teacher in pairs:
        yield from _check_shapes(said, teacher, student)


def check_stage(kind: str, values: Mapping[str, Any], catalog: Catalog, origins: Mapping[str, str]) -> None:
    """The same of one stage, which may run alone or as a variant, so that no list of stages names it: raises all there is."""
    before = [stage for stage in _stages(values) if stage == "pretrain"]
    if errors := list(check_losses({**values, "stages": [*before, kind]}, catalog, origins)):
        raise combine_errors(errors)


def check_head_count(key: str, where: str, heads: Any, widths: Mapping[str, int]) -> Iterator[MbertError]:
    """M095 unless `heads` divides every width; `widths` by whose they are. key: of the parameter, in the recipe."""
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


def missing_inputs(where: str, missing: list[str], given: str) -> MbertError:
    """The error for a loss that needs to see what a stage does not have."""
    return MbertError(
        "M008",
        f"this loss needs {', '.join(missing)}, and there is none in this stage",
        where=where,
        allowed=f"Losses that need no more than {given}.",
        fix=f"Leave it out: --set {key_of_location(where)}=0",
    )


def _recipe_losses(
    values: Mapping[str, Any], catalog: Catalog, origins: Mapping[str, str]
) -> tuple[list[RecipeLoss], list[RecipeLoss]]:
    """The losses of `general` and those of all phases, each where the run has the stage."""
    stages = _stages(values)
    general = {"general": values.get("general")} if "general-distill" in stages else {}
    phases = table_at(values, "phases") if "task-distill" in stages else {}
    named = {f"phases.{name}": phase for name, phase in phases.items()}
    return [*_losses(general, catalog, origins)], [*_losses(named, catalog, origins)]


def _losses(tables: Mapping[str, Any], catalog: Catalog, origins: Mapping[str, str]) -> Iterator[RecipeLoss]:
    """Every loss with a weight that is known to the catalogue; what is not is said elsewhere."""
    for table, phase in tables.items():
        if not isinstance(phase, Mapping) or phase.get("leave_out"):
            continue
        for name, term in table_at(phase, "losses").items():
            if not isinstance(term, Mapping) or term.get("weight", 1.0) == 0 or list(catalog.check("losses", name, "")):
                continue
            key = f"{table}.losses.{name}"
            origin = next((origins[one] for one in (f"{key}.weight", key) if one in origins), "recipe")
            yield RecipeLoss(key, origin, catalog.loss_facts(name), {**catalog.loss_defaults(name), **term})


def _check_shapes(said: RecipeLoss, teacher: StudentShape | None, student: StudentShape) -> Iterator[MbertError]:
    facts = said.facts
    said_so = facts.get("requires")
    asked = default_columns(facts.get("needs") or (), projects="projects" in facts) if said_so is None else said_so
    if teacher is not None and "heads" in asked and teacher.heads and student.heads not in (None, teacher.heads):
        yield heads_mismatch(teacher.heads, student.heads or 0, said.key, said.where)
    if teacher is not None and "width" in asked and teacher.width != student.width:
        yield width_mismatch(teacher.width, student.width, said.key, said.where)
    if parameter := facts.get("divides"):
        widths = {"student": student.width} | ({"teacher": teacher.width} if teacher else {})
        yield from check_head_count(f"{said.key}.{parameter}", said.where, said.parameters.get(parameter), widths)


def _pretrained_shape(values: Mapping[str, Any], catalog: Catalog) -> StudentShape | None:
    """The shape of the model that this run pre-trains, where it is what teaches."""
    trains = "pretrain" in _stages(values) and not values.get("base")
    return shape_of(table_at(values, "pretrain").get("model"), catalog) if trains else None


def _stages(values: Mapping[str, Any]) -> list[Any]:
    found = values.get("stages")
    return found if isinstance(found, list) else []


def _not_dividing(key: str, where: str, heads: Any, widths: Mapping[str, int]) -> MbertError:
    common = gcd(*widths.values(), *(() if "teacher" in widths else (DEFAULT_TEACHER_WIDTH,)))
    fitting = [number for number in range(common, 0, -1) if common % number == 0]
    best = next((number for number in fitting if isinstance(heads, int) and number <= heads), fitting[-1])
    told = " and ".join(f"{width} of the {whose}" for whose, width in sorted(widths.items()))
    return MbertError(
        "M095",
        f"{heads!r} relation heads do not divide the width {told}",
        where=where,
        allowed=f"{', '.join(map(str, fitting[:12]))}{' ...' if len(fitting) > 12 else ''}, which divide "
        + ("both." if "teacher" in widths else f"it and a teacher's {DEFAULT_TEACHER_WIDTH}."),
        fix=f"--set {key}={best}",
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
