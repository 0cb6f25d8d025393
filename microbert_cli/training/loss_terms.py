"""Terms of the training objective: a loss of the catalogue, its weight, its parameters, and the inputs it needs."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from microbert_cli.errors import MbertError, combine_errors, nearest
from microbert_cli.models.capture import OutputRequest
from microbert_cli.recipe.loss_checks import COLUMNS, check_parameters, default_columns, missing_inputs, unknown_columns
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.task_kinds import LabelForm

ENCODER_OUTPUTS = frozenset({"hidden", "layers", "scores", "qkv", "mask"})
PAIR_INPUTS = frozenset({"unrelated"})  # of a corpus cut into pairs
LAYER_SLICES = {
    "layers": slice(1, None),
    "inner": slice(1, -1),
    "top": slice(-1, None),
    "embedding": slice(0, 1),
}  # of mapped layers
LAYERWISE = LAYER_SLICES.keys() - {"embedding"}  # what a loss is `over` that compares a student's layers with mapped ones
TOKEN_INPUTS = frozenset({"token_logits", "token_labels", "token_head"})  # of a masked-LM
DUAL_INPUTS = frozenset({"weights", "teacher_token_logits", "teacher_token_labels"})  # of a teacher of two vocabularies
CLASSIFICATION_INPUTS = ENCODER_OUTPUTS | {"logits", "labels", "augmented"}
GENERATION_INPUTS = frozenset({"logits", "labels", "augmented", "top_k"})  # of a text that is written


WeightPair = tuple[str, str, Tensor, Tensor]  # the side of a projection, a name, the teacher's tensor, the student's


@dataclass(frozen=True)
class DualModels:
    """A teacher of two vocabularies beside its student: what an objective trains and compares of the two.

    teacher  the model, where it is trained too;  weights  returns the tensors of both, pair by pair, for losses that need them
    rates    learning rates of parameters of the objective, by the beginning of their names; the others have the phase's
    """

    teacher: nn.Module | None
    weights: Callable[[], Iterable[WeightPair]]
    rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LossTerm:
    """One loss of the catalogue, its weight and its parameters.

    needs     inputs, such as "hidden", "layers" (hidden states of all) or "logits"
    over      the layers it is called for, a key of LAYER_SLICES, or "batch"
    projects  whether student vectors are mapped to the teacher's width
    requires  what teacher and student must share: "tokens", "heads", "width";  divides  a parameter that divides both widths
    first_token  whether it reads the first token alone of the teacher's hidden states
    trains    builds a module that is trained with the student;  against  the loss of that module, where it is an adversary
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
    first_token: bool = False

    @property
    def by_token(self) -> bool:
        """Whether it compares student and teacher token by token, so that both need the same token ids."""
        return self.asks_teacher and "tokens" in self.requires

    @property
    def reads_layers(self) -> bool:
        """Whether it reads layers of the student beside its embeddings, of which a layer map must know."""
        return self.over in LAYERWISE or "layers" in self.needs

    @property
    def argument_names(self) -> tuple[str, ...]:
        """Returns the names of the function's parameters, with their shape suffixes."""
        return parameter_names(self.function)

    @property
    def asks_teacher(self) -> bool:
        """Whether it takes any output of the teacher."""
        return any(name.startswith("teacher") for name in self.argument_names)

    def parameter(self, name: str) -> Any:
        """Returns the value of a keyword parameter: the recipe's, else the function's default."""
        return self.parameters.get(name, inspect.signature(self.function).parameters[name].default)

    def make_module(self, **sizes: int) -> nn.Module | None:
        """Builds the module that the term trains with the student, or returns None.

        sizes  classes, tasks, student_width, teacher_width, and depth, the student's layers
        """
        if self.trains is None:
            return None
        parameters = inspect.signature(self.trains).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        taken = {name: size for name, size in sizes.items() if takes_all or name in parameters}
        return self.trains(**taken, **self.parameters)


def make_terms(
    losses: Mapping[str, tuple[float, Mapping[str, Any]]],
    catalog: Catalog,
    *,
    available: frozenset[str] | None = None,
    where: str = "losses",
) -> list[LossTerm]:
    """Builds the terms of an objective from (weight, parameters) by loss name; losses of weight 0 are left out.

    available  the inputs that the stage has: names of `needs`, and "teacher"; None = all
    Raises M008 for a loss that needs others, M009 for a file that is no loss.
    """
    terms = [_term(name, weight, dict(parameters), catalog) for name, (weight, parameters) in losses.items() if weight]
    for term in terms:
        asks = term.needs | ({"teacher"} if term.asks_teacher else set())
        if available is not None and (missing := sorted(asks - available)):
            raise missing_inputs(f"{where}.{term.name}", missing, ", ".join(sorted(available)))
    return terms


def without_teacher_terms(terms: Sequence[LossTerm]) -> list[LossTerm]:
    """Returns the terms that need no teacher, for batches of a task that has none.

    Terms of logits and labels (soft and hard targets) share one total weight: the terms that stay are scaled up to it, so that
    (soft + hard) / 2 becomes hard.
    """
    kept_terms = [term for term in terms if not term.asks_teacher]
    answering = [term for term in terms if {"logits", "labels"} <= term.needs]
    full_weight, left_weight = (sum(term.weight for term in group if term in answering) for group in (terms, kept_terms))
    return [
        replace(term, weight=term.weight * full_weight / left_weight) if left_weight and term in answering else term
        for term in kept_terms
    ]


def make_projection(student_width: int, teacher_width: int) -> nn.Linear:
    """Makes TinyBERT's `fit_dense`: one biased linear map for all layers, initialised as BERT's layers are."""
    linear = nn.Linear(student_width, teacher_width)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear


@cache
def parameter_names(function: Callable[..., Any]) -> tuple[str, ...]:
    """Returns the names of a function's parameters; cached, since `inspect` is slow and every step asks for every term."""
    return tuple(inspect.signature(function).parameters)


def form_of_batch(forms: Sequence[LabelForm], batch: Mapping[str, Tensor]) -> tuple[LabelForm, Tensor | None]:
    """Returns the form of the labels of a batch's task, and the weights [C] of its classes, None = all alike.

    A batch of no rows counts as the first task's.
    """
    if not forms:
        return LabelForm(), None
    form = forms[int(batch["task"][0]) if "task" in batch and len(batch["task"]) else 0]
    if form.weights is None:
        return form, None
    return form, torch.tensor(form.weights, device=batch["attention_mask"].device)


def output_request(
    terms: Sequence[LossTerm], layers: Sequence[int], every: Sequence[int] | None = None, *, of_teacher: bool = False
) -> OutputRequest:
    """Returns the model outputs that the terms need.

    layers  the model's mapped layers, its embedding output first
    every   what losses read that choose among all layers; None = the mapped ones
    of_teacher  whether the model is the teacher, of which some losses read the first token alone
    """
    free = layers[1:] if every is None else every

    def of(kind: str, *, first_token: bool = False) -> frozenset[int]:
        over = {term.over for term in terms if kind in term.needs and (of_teacher and term.first_token) == first_token}
        return frozenset(layer for name, part in LAYER_SLICES.items() if name in over for layer in layers[part])

    return OutputRequest(
        logits=any("logits" in term.needs for term in terms),
        token_logits=any(("teacher_token_logits" if of_teacher else "token_logits") in term.needs for term in terms),
        token_head=any("token_head" in term.needs for term in terms),
        hidden=of("hidden") | frozenset(free if any("layers" in term.needs for term in terms) else ()),
        scores=of("scores"),
        qkv=of("qkv"),
        routing=any("routing" in term.needs for term in terms),
        exits=any("exits" in term.needs for term in terms),
        vectors=of("hidden", first_token=True) - of("hidden"),
        top_k=max((term.parameter("k") for term in terms if "top_k" in term.needs), default=0),
        copies=max((term.parameter("copies") for term in terms if "top_k" in term.needs), default=0),
    )


def _term(name: str, weight: float, parameters: dict[str, Any], catalog: Catalog) -> LossTerm:
    module = catalog.module("losses", name)
    if missing := [attribute for attribute in (name, "needs", "over") if not hasattr(module, attribute)]:
        raise _not_a_loss(str(module.__file__), missing[0], name)
    function = getattr(module, name)
    if errors := list(check_parameters(name, parameters, catalog, where=f"losses.{name}")):
        raise combine_errors(errors)
    if unknown := unknown_columns(getattr(module, "requires", ())):
        raise _unknown_requirement(str(module.__file__), unknown)
    needs = frozenset(module.needs(**parameters) if callable(module.needs) else module.needs)
    projects = getattr(module, "projects", "") == "hidden"
    return LossTerm(
        name=name,
        weight=weight,
        function=function,
        needs=needs,
        over=module.over(**parameters) if callable(module.over) else module.over,
        projects=projects,
        requires=frozenset(getattr(module, "requires", default_columns(needs, projects=projects))),
        divides=getattr(module, "divides", None),
        parameters=parameters,
        trains=getattr(module, "trains", None),
        against=getattr(module, "against", None),
        first_token=getattr(module, "teacher_reads", "") == "first token",
    )


def check_windows(losses: Mapping[str, LossTerm]) -> None:
    """Checks the losses, by their keys, where a row may have several windows; raises M485 for labels beside layers.

    Labels are those of rows, layers those of windows.
    """
    for key, term in losses.items():
        if term.needs & (ENCODER_OUTPUTS - {"mask"}) and term.needs & {"labels", "augmented", "logits"}:
            raise MbertError(
                "M485",
                "this loss reads layers beside labels or logits; in windows a row has layers of each window, and logits of all",
                where=key,
                allowed="Losses on logits and labels, and losses on layers, each by itself; or no windows: data.windows=none.",
                fix=f"Leave it out: --set {key}=0; a discriminator may look at one of them: --set {key}.input=cls",
            )


def check_depth(terms: Mapping[str, LossTerm], student_layers: int) -> None:
    """Checks that losses over inner layers have some: raises M090.

    terms  by their keys in the recipe
    """
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


def nothing_to_learn() -> MbertError:
    """Returns the error for losses without any weight."""
    return MbertError(
        "M007",
        "no loss has a weight above 0, so there is nothing to learn",
        where="losses",
        allowed="At least one loss; leave out the phase or the stage instead.",
        fix="See the weights: --explain-config",
    )
