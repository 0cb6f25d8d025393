"""What is wrong with labels of a table, or with what a recipe says of them by name."""

import json
from collections.abc import Callable, Mapping, Sequence

from microbert_cli.errors import MbertError, nearest
from microbert_cli.text import first_of_rows

Where = Callable[[Sequence[int]], str]  # where these rows stand: `file, line 12`


def wrong_labels(wrong: Mapping[int, str], allowed: str, where: Where) -> MbertError:
    """Returns the error for the rows whose cells are no labels of the task; of the first one it is said what is wrong."""
    rows = sorted(wrong)
    return MbertError(
        "M351",
        first_of_rows(wrong),
        where=where(rows),
        allowed=allowed,
        fix="""Correct the row, or name the labels: label.names in the task's TOML, or --set 'data.labels=["...", "..."]'""",
    )


def too_few_classes(place: str, present: set[str], what: str) -> MbertError:
    """Returns the error for training rows that lack a class."""
    return MbertError(
        "M358",
        what,
        where=place,
        allowed=f"Rows of at least two classes, and of every class; there are: {', '.join(sorted(present))}.",
        fix=_labels_advice(present),
    )


def _labels_advice(present: set[str]) -> str:
    if len(present) < 2:
        return "Add rows of another class, or name another column: --label COLUMN."
    labels = json.dumps(sorted(present), ensure_ascii=False)
    return f"Add rows of the missing class, or name the labels there are: label.names, or --set 'data.labels={labels}'"


def weights_by_name(names: Sequence[str], wanted: Mapping[str, float]) -> tuple[float, ...]:
    """Returns the weights of a table in the order of `names`, 1 for a name that it leaves out; raises M441 for another name."""
    if unknown := [name for name in wanted if name not in names]:
        raise MbertError(
            "M441",
            f'there is no label "{unknown[0]}" to be weighed',
            where="data.class_weights",
            allowed=f"The labels: {nearest(unknown[0], names)}",
            fix="Correct the name, or let the rows decide: --set data.class_weights=balanced",
        )
    return tuple(float(wanted.get(name, 1.0)) for name in names)
