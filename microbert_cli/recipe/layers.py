"""Layers of recipe values: shorthands written out, dotted keys, and one layer merged over another."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Flat = dict[str, Any]


@dataclass(frozen=True)
class Layer:
    """Values from one source, as nested tables, and the name of the source in errors."""

    origin: str
    values: Mapping[str, Any]


def normalise(values: Mapping[str, Any]) -> dict[str, Any]:
    """Writes shorthands out, so that layers merge key by key: those of SHORTHAND at the top, weights of losses anywhere."""
    expanded = {
        key: {SHORTHAND[key]: value} if key in SHORTHAND and not isinstance(value, Mapping) else value
        for key, value in values.items()
    }
    return _with_weights(expanded)


def _with_weights(tables: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _weights(value) if key == "losses" else _with_weights(value) if isinstance(value, Mapping) else value
        for key, value in tables.items()
    }


def _weights(losses: Any) -> Any:
    if not isinstance(losses, Mapping):
        return losses
    return {name: term if isinstance(term, Mapping) else {"weight": term} for name, term in losses.items()}


def flatten(values: Mapping[str, Any], prefix: str = "") -> Flat:
    """Returns nested tables as dotted keys: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat: Flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def nest(dotted: str, value: Any) -> dict[str, Any]:
    """Returns one dotted key as nested tables."""
    for part in reversed(dotted.split(".")):
        value = {part: value}
    nested: dict[str, Any] = value
    return nested


def table_at(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Returns the table of a key in raw values; empty where there is none, or where the schema will reject the value."""
    table = values.get(key, {})
    return table if isinstance(table, Mapping) else {}


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Merges `upper` over `lower` table by table; lists and values are replaced whole."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


SHORTHAND = {
    "data": "folder", "teacher": "model", "corpus": "source", "vectors": "source", "vocabulary": "size", "sampling": "by",
    "initialise": "by",
}  # fmt: skip
