"""What every key of a recipe is: its type, its default and a line of text, for `mbert list keys` and the key reference."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from microbert_cli.recipe.registry import PACKAGE
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.toml import to_toml
from microbert_cli.recipe.values import Prune, TaskPhase

TEXTS = PACKAGE / "recipe" / "keys.toml"
PHASE = "phases.PHASE."  # of stage two; a method names its phases


@dataclass(frozen=True)
class Key:
    """One key of a recipe.

    name     with its tables, such as data.text; `phases.PHASE.steps` for each phase of stage two
    type     what it may be, in words
    default  as TOML; empty where unset
    text     what it is, one line
    """

    name: str
    type: str
    default: str
    text: str

    @property
    def table(self) -> str:
        """The table or key at the top of the recipe."""
        return self.name.partition(".")[0]


@cache
def recipe_keys() -> tuple[Key, ...]:
    """Returns every key of a recipe, in the order of the schema."""
    return tuple(_keys_of(Recipe, ""))


@cache
def key_texts() -> Mapping[str, Mapping[str, str]]:
    """Returns the lines of keys.toml: by the class that declares the key, by its name."""
    return tomllib.loads(TEXTS.read_text(encoding="utf-8"))


def declaring_class(model: type[BaseModel], name: str) -> str:
    """Returns the name of the class, of a model and those it is made from, that has a line for a key; the model's if none."""
    names = [base.__name__ for base in model.__mro__ if name in getattr(base, "model_fields", {})]
    return next((each for each in names if name in key_texts().get(each, {})), model.__name__)


def _keys_of(model: type[BaseModel], before: str) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys_of(field.annotation, f"{before}{name}.")
        elif model is Recipe and name == "phases":
            yield from _keys_of(TaskPhase, PHASE)
        elif model is TaskPhase and name == "prune":
            yield from _keys_of(Prune, f"{before}prune.")
        else:
            text = key_texts().get(declaring_class(model, name), {}).get(name, "")
            yield Key(before + name, _type(field.annotation, field.metadata), _default(field.default), text)


def _default(value: Any) -> str:
    if value is None or value == "" or (isinstance(value, dict) and not value):
        return ""
    if isinstance(value, dict):
        value = {key: part.model_dump() if isinstance(part, BaseModel) else part for key, part in value.items()}
    return to_toml({"value": value}).removeprefix("value = ").strip() if not isinstance(value, dict) else ", ".join(value)


def _type(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Returns what a key may be, in words, with its bounds."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        constraints = [each for part in arguments[1:] for each in getattr(part, "metadata", [part])]
        return _type(arguments[0], [*metadata, *constraints])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_type(part, metadata) for part in arguments if part is not NoneType))
    if origin is Literal:
        return ", ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    names = {str: "text", float: "number", int: "whole number", bool: "true, false", tuple: "list", dict: "table"}
    return " ".join([names.get(origin or annotation, "table"), *_bounds(metadata)])


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    """Yields the narrowest bounds that constraints set."""
    for strict, loose, signs, narrowest in (("gt", "ge", (">", ">="), max), ("lt", "le", ("<", "<="), min)):
        bounds = {
            sign: [b for c in metadata if (b := getattr(c, name, None)) is not None]
            for sign, name in zip(signs, (strict, loose), strict=True)
        }
        if values := [value for each in bounds.values() for value in each]:
            bound = narrowest(values)
            yield f"{signs[bound not in bounds[signs[0]]]} {int(bound) if bound == int(bound) else bound}"
