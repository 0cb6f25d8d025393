"""Student descriptions of the catalogue: numbers of a pattern filled in, and the width and heads that follow."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from microbert_cli.errors import MbertError
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.toml import read_toml


@dataclass(frozen=True)
class StudentShape:
    """The size in a student description; `heads` is None where the teacher's are taken."""

    width: int
    heads: int | None


def read_student(name: str, catalog: Catalog) -> dict[str, Any]:
    """Reads a student's TOML with its pattern's numbers filled in: `4 * H` becomes 1248 for `bert-4x312`."""
    path = catalog.path("students", name, where="student")
    if path.suffix == ".py":
        raise _not_a_shape(name)
    fields = read_toml(path, "students")
    numbers = catalog.numbers("students", name)
    return {key: _evaluate(value, numbers) for key, value in fields.items()}


def shape_of(name: Any, catalog: Catalog) -> StudentShape | None:
    """Returns the shape of a student of the catalogue; None for anything else, such as a checkpoint."""
    if not isinstance(name, str) or list(catalog.check("students", name, "")):
        return None
    try:
        fields = read_student(name, catalog)
    except MbertError:
        return None
    width, heads = (_number(fields, names) for names in (("hidden_size", "dim"), ("num_attention_heads", "n_heads")))
    return StudentShape(width, heads) if width else None


def _number(fields: Mapping[str, Any], names: tuple[str, str]) -> int | None:
    return next((fields[name] for name in names if type(fields.get(name)) is int), None)


def _evaluate(value: Any, numbers: dict[str, int]) -> Any:
    """Evaluates a number, or a product of numbers and the pattern's letters."""
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split("*")]
    if not all(part.isdigit() or part in numbers for part in parts):
        return value
    product = 1
    for part in parts:
        product *= numbers[part] if part in numbers else int(part)
    return product


def _not_a_shape(name: str) -> MbertError:
    return MbertError(
        "M070",
        f'"{name}" is an architecture, not a shape: it says nothing of layers and widths',
        where="student",
        allowed="A shape, such as tinybert-4l-312 or bert-4x312, or a checkpoint; it becomes a mixture of experts by moe.side.",
        fix="--student tinybert-4l-312 --set moe.side=student",
    )
