"""Keeps parts of a student as they are while the others are trained, and sets them free one after the other.

A frozen part has no gradient, no optimiser state and no weight decay. The backward pass ends above the lowest part that is
trained: with frozen embeddings at the first layer, with all layers frozen at the head.

    "embeddings"   word, position and segment tables and their LayerNorm
    "layer.N"      layer N of the encoder, counted from 1
    "head"         all the rest: pooler and classifier
    "backbone"     all of a model with exits but their branches, which are the part "branches"

`freeze` names parts that stay as they are for a whole phase. `unfreeze` splits a phase into stages: of n parts in an order,
stage i trains the first i, and all others are frozen. "top-down" is the head, layer M .. layer 1, the embeddings: M + 2 stages.
A stage is a phase like any other, with a schedule, evaluations and best weights of its own; it begins with the best weights of
the stage before, and with what the losses had learnt beside the student. `chunk_rows` splits each stage once more, by rows.

Source: gradual unfreezing, Howard and Ruder 2018 (ULMFiT, arXiv 1801.06146); as stages of a distillation XtremeDistil.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from microbert_cli.errors import MbertError, nearest
from microbert_cli.models.architectures import layer_index

if TYPE_CHECKING:
    from microbert_cli.training.phases import Phase

EMBEDDINGS, HEAD, BRANCHES, BACKBONE = "embeddings", "head", "branches", "backbone"
TOP_DOWN = "top-down"
Order = str | Sequence[str | Sequence[str]]
Chunk = TypeVar("Chunk")


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


def parts_of(model: Any) -> list[str]:
    """Returns the parts of a model that can be trained, from the top down."""
    parts = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = sorted(parts - {BRANCHES, HEAD, EMBEDDINGS}, key=lambda part: -int(part.partition(".")[2]))
    return [part for part in (BRANCHES, HEAD, *layers, EMBEDDINGS) if part in parts]


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


def frozen_by_stage(
    unfreeze: Order, freeze: Sequence[str], parts: Sequence[str], *, where: str = "unfreeze"
) -> list[list[str]]:
    """Returns the parts that are frozen in each stage of a phase; of a phase without `unfreeze` that is one stage.

    unfreeze  parts, or groups of them, in the order in which they are set free; "top-down" = every part of `parts`
    freeze    what stays frozen throughout;  parts  of the model, from the top down
    Raises M068 for a part that the model does not have, M460 for one that is to be set free and stays frozen.
    """
    if not unfreeze:
        return [list(freeze)]
    groups = [part for part in parts if part not in freeze] if isinstance(unfreeze, str) else unfreeze
    if not groups:
        check_parts(freeze, set(parts), where=where.replace("unfreeze", "freeze"))
    order = [[group] if isinstance(group, str) else list(group) for group in groups]
    named = [part for group in order for part in group]
    if unknown := [part for part in named if part not in parts]:
        check_parts(unknown, set(parts), where=where)
    if kept := [part for part in named if part in freeze]:
        raise _frozen_throughout(kept[0], where)
    trained = [{part for group in order[:count] for part in group} for count in range(1, len(order) + 1)]
    return [[part for part in parts if part not in stage] for stage in trained]


def staged(
    name: str, training: Any, chunks: Sequence[Chunk], parts: Sequence[str], *, where: str
) -> list[tuple[str, list[str], Chunk]]:
    """Returns name, frozen parts and chunk of every stage of a phase, all chunks in each; one that has no stages is its own.

    training  numbers of the phase;  chunks  of its rows;  parts  of the model, from the top down
    """
    unfreeze = getattr(training, "unfreeze", [])
    stages = frozen_by_stage(unfreeze, training.freeze, parts, where=where)
    if len(stages) == len(chunks) == 1 and not unfreeze:
        return [(name, stages[0], chunks[0])]
    pairs = ((stage, chunk) for stage in stages for chunk in chunks)
    return [(f"{name}.{number}", stage, chunk) for number, (stage, chunk) in enumerate(pairs, 1)]


def in_stages(chunks: Sequence["Phase"], parts: Sequence[str]) -> Iterator["Phase"]:
    """Yields the stages of a phase as phases of their own, named PHASE.1, PHASE.2 ..; every stage goes through all chunks.

    chunks  the phase, once for each chunk of its rows;  parts  of the model, from the top down
    """
    first = chunks[0]
    for number, (name, stage, chunk) in enumerate(
        staged(first.name, first.training, chunks, parts, where=f"{first.table}.unfreeze")
    ):
        if name == first.name:
            yield first
            return
        training = chunk.training.model_copy(update={"freeze": stage, "unfreeze": []})
        trained = tuple(part for part in parts if part not in stage)
        yield replace(chunk, name=name, training=training, stage_of=first.name, trained=trained, continues=number > 0)


def _frozen_throughout(part: str, where: str) -> MbertError:
    return MbertError(
        "M460",
        f'"{part}" is to be set free in this phase, and `freeze` keeps it as it is',
        where=where,
        allowed='Parts that `freeze` does not name; or "top-down", which leaves those out.',
        fix=f"--set {where}=top-down, or --set '{where.removesuffix('unfreeze')}freeze=[]'",
    )
