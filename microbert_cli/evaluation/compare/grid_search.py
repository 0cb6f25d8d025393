"""Grids: every row is tried with every value, on its first seed; the best on dev is then run with all seeds.

So a grid is searched as the `learning_rates` of a phase are: later seeds take the first one's choice. A key is tried in the
rows that have it: those whose stage reads its table, and whose phases have the loss or phase that it names.
"""

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from microbert_cli.errors import MbertError
from microbert_cli.evaluation.compare.rows import TRIED, ComparisonPlan, Row, seeds_of
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.toml import parse_value
from microbert_cli.recipe.values import MULTITASK_KEYS
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.runs.stage_registry import all_stages

Values = dict[str, Any]
SHARED_KEYS = ("task", "data", "seed", "seeds", "stages", "variant", "teacher", "base", "method", "ablate")


@dataclass(frozen=True)
class GridTrial:
    """One choice of values for a row, and the stage that is trained with them."""

    values: Values
    step: Step


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Parses `key=a,b,c` texts into values to try; raises M123 (not of that form), M124 (a key that all rows must share)."""
    grid: dict[str, list[Any]] = {}
    for text in texts:
        key, _, listed = (part.strip() for part in text.partition("="))
        values = _values(listed)
        if not key or not values or len({repr(value) for value in values}) < len(values) or key in grid:
            raise MbertError(
                "M123",
                f'"{text}" names no key with values to try',
                where="--grid",
                allowed="A dotted recipe key, an equals sign, different values with commas between; each key once.",
                fix="For instance: --grid phases.prediction.learning_rate=1e-4,3e-4",
            )
        if key.split(".")[0] in SHARED_KEYS:
            raise MbertError(
                "M124",
                f'"{key}" is the same for all rows, or is what the rows differ in',
                where="--grid",
                allowed=f"Keys of training; not those of {', '.join(SHARED_KEYS)}.",
                fix="Compare rows instead: mbert compare METHOD METHOD, or a table [variant.NAME] for each.",
            )
        grid[key] = values
    return grid


def _values(text: str) -> list[Any]:
    listed = parse_value(f"[{text}]")
    if isinstance(listed, list):
        return listed
    return [parse_value(part.strip()) for part in text.split(",") if part.strip()]


def trials_of(row: Row, grid: Mapping[str, Sequence[Any]], plan: ComparisonPlan, catalog: Catalog) -> list[GridTrial]:
    """Returns a trial for every combination of values, with the first seed alone; none where the row has no key of the grid."""
    keys = [key for key, values in grid.items() if _makes_difference(row, key, values, catalog)]
    first = seeds_of(row.step(catalog).resolved.recipe)[:1]
    trials = []
    for chosen in itertools.product(*(grid[key] for key in keys)) if keys else ():
        values = dict(zip(keys, chosen, strict=True))
        directory = plan.root / TRIED / row.out.relative_to(plan.root) / _folder(values)
        trials.append(GridTrial(values, row.step(catalog, {**values, "seeds": first}, directory)))
    return trials


def check_grid(grid: Mapping[str, Sequence[Any]], plan: ComparisonPlan, catalog: Catalog) -> None:
    """Checks the keys and values of a grid; raises M002 or M003 for what no recipe takes, M066 for a key that no row has."""
    for key, values in grid.items():
        rows = [row for row in plan.rows if _makes_difference(row, key, values, catalog)]
        if not rows:
            plan.rows[0].step(catalog, {key: values[0]})  # raises M002 where no recipe has such a key
            raise MbertError(
                "M066",
                f'no row has the key "{key}"',
                where="--grid",
                allowed="Keys of what the rows' stages read, of phases and losses that they have.",
                fix="See them: mbert compare ... --explain-config",
            )


def _makes_difference(row: Row, key: str, values: Sequence[Any], catalog: Catalog) -> bool:
    """Whether the row has the key, and its values make a difference: an ablation may set the same key."""
    if not _has_key(row.step(catalog), key):
        return False
    recipes = [row.step(catalog, {key: value}).resolved.recipe.model_dump_json() for value in values]
    return len(values) == 1 or len({*recipes}) > 1


def _has_key(step: Step, key: str) -> bool:
    parts = key.split(".")
    # a table that other stages read and this one does not; a grid may still name what all stages share
    if parts[0] in {table for stage in all_stages() for table in stage.tables} - step.stage.tables - {*MULTITASK_KEYS}:
        return False
    recipe = step.resolved.recipe
    table: Any = recipe.model_dump(mode="json") | {
        "phases": {name: recipe.phases[name].model_dump() for name in recipe.run_phases}
    }
    for depth, part in enumerate(parts[:-1]):
        if not isinstance(table, Mapping) or part not in table:
            return False
        table = table[part]
        if "losses" in parts[:depth] and parts[-1] != "weight" and not table.get("weight", 1.0):
            return False  # a loss of weight 0 is not computed, so its parameters change nothing
    return parts[-1] in table if len(parts) == 1 or parts[-2] == "losses" else True


def _folder(values: Values) -> str:
    """Returns the name of a trial's folder: readable, and different for different values."""
    text = ",".join(f"{key.split('.')[-1]}={value}" for key, value in values.items())
    fingerprint = hashlib.sha256(repr(values).encode()).hexdigest()[:6]
    return f"{re.sub(r'[^A-Za-z0-9.+=,-]', '_', text)[:80]}-{fingerprint}"


def describe_values(values: Mapping[str, Any]) -> str:
    """Returns the values of a trial as `key = value, ...`."""
    return ", ".join(f"{key} = {value}" for key, value in values.items())
