"""Keeps parts of a student as they are while the others are trained.

A frozen part has no gradient, no optimiser state and no weight decay. With frozen embeddings the backward pass ends at the
first layer, and the optimiser does not touch the word vectors, which are most of a small student's weights.

    "embeddings"   word, position and segment tables and their LayerNorm
    "layer.N"      layer N of the encoder, counted from 1
    "head"         all the rest: pooler and classifier
    "backbone"     all of a model with exits but their branches, which are the part "branches"
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from microbert_cli.errors import MbertError, nearest
from microbert_cli.models.architectures import layer_index

EMBEDDINGS, HEAD, BRANCHES, BACKBONE = "embeddings", "head", "branches", "backbone"


@contextmanager
def frozen(model: Any, parts: Sequence[str], *, where: str = "freeze") -> Iterator[None]:
    """Freezes parts of a model for a while; raises M068 for a part that it does not have, or where nothing would be trained."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    by_name = {name: part_of(name) for name in parameters}
    existing = set(by_name.values())
    parts = _written_out(parts, existing)
    check_parts(parts, existing, where=where)
    chosen = [parameters[name] for name, part in by_name.items() if part in parts]
    for parameter in chosen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in chosen:
            parameter.requires_grad_(True)


def part_of(name: str) -> str:
    """Returns the part that a parameter belongs to by its name."""
    if name.startswith(f"{BRANCHES}."):
        return BRANCHES
    if (layer := layer_index(name)) is not None:
        return f"layer.{layer + 1}"
    return EMBEDDINGS if any(word.startswith(EMBEDDINGS) for word in name.split(".")) else HEAD


def _written_out(parts: Sequence[str], existing: set[str]) -> list[str]:
    """Returns the parts with the backbone's one by one; without branches there is no backbone."""
    whole = BACKBONE in parts and BRANCHES in existing
    return sorted({*parts} - {BACKBONE} | existing - {BRANCHES}) if whole else list(parts)


def check_parts(parts: Sequence[str], existing: set[str], *, where: str) -> None:
    """Checks that all parts exist and that one of the model's is left to train; raises M068."""
    unknown = [part for part in parts if part not in existing]
    if not unknown and existing - set(parts):
        return
    what = (
        f'this student has no part "{unknown[0]}"'
        if unknown
        else "every part of the student is frozen, so that nothing is trained"
    )
    raise MbertError(
        "M068",
        what,
        where=where,
        allowed=f"Its parts: {nearest(unknown[0] if unknown else EMBEDDINGS, sorted(existing))}",
        fix=f"--set '{where}=[\"embeddings\"]', or []",
    )
