"""Terms of a sum of losses: a loss of the catalogue, its weight, its parameters, and what it needs to see."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, get_args

from torch import Tensor, nn

from microbert_cli.errors import MbertError, nearest
from microbert_cli.models.capture import OutputRequest
from microbert_cli.recipe.loss_checks import COLUMNS, default_columns, missing_inputs, unknown_columns
from microbert_cli.recipe.registry import Catalog

ENCODER_OUTPUTS = frozenset({"hidden", "scores", "qkv", "mask"})
PAIR_INPUTS = frozenset({"unrelated"})  # of a corpus cut into pairs
LAYER_SLICES = {
    "layers": slice(1, None),
    "inner": slice(1, -1),
    "top": slice(-1, None),
    "embedding": slice(0, 1),
}  # of mapped layers
LAYERWISE = LAYER_SLICES.keys() - {"embedding"}  # what a loss is `over` that compares a student's layers with mapped ones
TOKEN_INPUTS = frozenset({"token_logits", "token_labels", "token_head"})  # of a masked-LM
CLASSIFICATION_INPUTS = ENCODER_OUTPUTS | {"logits", "labels", "augmented"}


@dataclass(frozen=True)
class LossTerm:
    """One loss of the catalogue, its weight and its parameters.

    requires  of teacher and student: "tokens", "heads", "width"; divides: a parameter that divides both widths
    """

    name: str
    weight: float
    function: Callable[..., Tensor]
    needs: frozenset[str]
    over: str
    projects: bool
    requires: frozenset[str] = frozenset()
    divides: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    trains: Callable[..., nn.Module | None] | None = None
    against: Callable[..., Tensor] | None = None

    @property
    def by_token(self) -> bool:
        """Whether it compares with the teacher token by token, so that both must read the same tokens."""
        return self.asks_teacher and "tokens" in self.requires

    @property
    def takes(self) -> tuple[str, ...]:
        """The names of the function's parameters, shape suffixes and all."""
        return parameter_names(self.function)

    @property
    def asks_teacher(self) -> bool:
        """Whether it compares with what the teacher shows."""
        return any(name.startswith("teacher") for name in self.takes)

    def parameter(self, name: str) -> Any:
        """The value of a keyword parameter: the recipe's, else the loss's own."""
        return self.parameters.get(name, inspect.signature(self.function).parameters[name].default)

    def own(self, **sizes: int) -> nn.Module | None:
        """What the term trains beside the student, if anything: `sizes` are classes, tasks, student_width and teacher_width."""
        return None if self.trains is None else self.trains(**sizes, **self.parameters)


def make_terms(
    losses: Mapping[str, tuple[float, Mapping[str, Any]]],
    catalog: Catalog,
    *,
    given: frozenset[str] | None = None,
    where: str = "losses",
) -> list[LossTerm]:
    """The catalogue's losses by name, each with (weight, parameters); weight 0 is left out.

    given  what a stage can show a loss: names of `needs`, and "teacher"; None = everything
    Raises M008 for a loss that needs more, M009 for a file that is no loss.
    """
    terms = [_term(name, weight, dict(parameters), catalog) for name, (weight, parameters) in losses.items() if weight]
    for term in terms:
        asks = term.needs | ({"teacher"} if term.asks_teacher else set())
        if given is not None and (missing := sorted(asks - given)):
            raise missing_inputs(f"{where}.{term.name}", missing, ", ".join(sorted(given)))
    return terms


def without_teacher_terms(terms: Sequence[LossTerm]) -> list[LossTerm]:
    """What is left of a sum where nobody teaches: the terms that ask no teacher.

    Terms of answers with labels - soft and hard targets - share one weight: those that are left take over what the others
    had, so that (soft + hard) / 2 becomes hard.
    """
    left = [term for term in terms if not term.asks_teacher]
    answering = [term for term in terms if {"logits", "labels"} <= term.needs]
    whole, own = (sum(term.weight for term in those if term in answering) for those in (terms, left))
    return [replace(term, weight=term.weight * whole / own) if own and term in answering else term for term in left]


@cache
def parameter_names(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a function's parameters; asked for every term of every step."""
    return tuple(inspect.signature(function).parameters)


def output_request(terms: Sequence[LossTerm], layers: Sequence[int]) -> OutputRequest:
    """What the terms ask of a model: `layers` are its mapped ones, its embedding output first."""

    def of(kind: str) -> frozenset[int]:
        over = {term.over for term in terms if kind in term.needs}
        return frozenset(layer for name, part in LAYER_SLICES.items() if name in over for layer in layers[part])

    return OutputRequest(
        logits=any("logits" in term.needs for term in terms),
        token_logits=any("token_logits" in term.needs for term in terms),
        token_head=any("token_head" in term.needs for term in terms),
        hidden=of("hidden"),
        scores=of("scores"),
        qkv=of("qkv"),
        routing=any("routing" in term.needs for term in terms),
    )


def _term(name: str, weight: float, parameters: dict[str, Any], catalog: Catalog) -> LossTerm:
    module = catalog.module("losses", name)
    if missing := [one for one in (name, "needs", "over") if not hasattr(module, one)]:
        raise _not_a_loss(str(module.__file__), missing[0], name)
    function = getattr(module, name)
    for key, value in parameters.items():
        _check_parameter(function, name, key, value)
    if unknown := unknown_columns(getattr(module, "requires", ())):
        raise _unknown_requirement(str(module.__file__), unknown)
    needs = frozenset(module.needs(**parameters) if callable(module.needs) else module.needs)
    projects = getattr(module, "projects", "") == "hidden"
    return LossTerm(
        name=name,
        weight=weight,
        function=function,
        needs=needs,
        over=module.over,
        projects=projects,
        requires=frozenset(getattr(module, "requires", default_columns(needs, projects=projects))),
        divides=getattr(module, "divides", None),
        parameters=parameters,
        trains=getattr(module, "trains", None),
        against=getattr(module, "against", None),
    )


def _check_parameter(function: Callable[..., Tensor], name: str, key: str, value: Any) -> None:
    """A parameter that the loss declares as a number, or as one of some words, must be that."""
    declared = inspect.signature(function).parameters.get(key)
    if declared is not None and (words := get_args(declared.annotation)) and value not in words:
        raise MbertError(
            "M018",
            f"{value!r} is none of them",
            where=f"losses.{name}.{key}",
            allowed=nearest(str(value), [str(word) for word in words]),
            fix=f"Read what they mean: mbert show losses {name}",
        )
    if declared is None or declared.annotation not in (float, int) or (isinstance(value, int | float) and value is not True):
        return
    raise MbertError(
        "M017",
        f"{value!r} is no number",
        where=f"losses.{name}.{key}",
        allowed=f"A number; left out it is {declared.default}.",
        fix=f"Read what it means: mbert show losses {name}",
    )


def check_depth(terms: Mapping[str, LossTerm], student_layers: int) -> None:
    """Raises M090 where a loss over inner layers meets a student that has none; `terms` by their keys in the recipe."""
    inner = [key for key, term in terms.items() if term.over == "inner"]
    if inner and student_layers < 2:
        raise MbertError(
            "M090",
            f"this loss is about the layers below the last, and the student has {student_layers} in all",
            where=inner[0],
            allowed="A student of at least 2 layers.",
            fix=f"Choose a deeper student (mbert list students), or leave it out: --set {inner[0]}=0",
        )


def _not_a_loss(file: str, missing: str, name: str) -> MbertError:
    return MbertError(
        "M009",
        f'this file is no loss: it has no "{missing}"',
        where=file,
        allowed=f"A function {name}(...) -> Tensor, needs = {{...}}, and over = one of embedding, layers, inner, top, batch.",
        fix="Start from one: mbert copy losses soft_target",
    )


def _unknown_requirement(file: str, unknown: Sequence[str]) -> MbertError:
    return MbertError(
        "M097",
        f"what this loss requires is unknown: {', '.join(unknown)}",
        where=f"{file}, requires",
        allowed=f"Columns: {nearest(unknown[0], COLUMNS)}",
        fix='Say what teacher and student must have in common: requires = {"tokens", "heads"}, or leave it out.',
    )
