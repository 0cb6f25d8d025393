"""Recipe keys of what is put into a student, experts and exits: their checks, and the run that makes an expert teacher.

An expert teacher is a student of the fine-tuned teacher that begins as that teacher itself, its feed-forward networks cut into
experts by importance: so the run that makes one is a `task-distill` with other values, as a variant of a recipe is.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from microbert_cli.errors import MbertError
from microbert_cli.recipe.layers import table_at
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Moe, Recipe


def check_experts(values: Mapping[str, Any], origins: Mapping[str, str]) -> Iterable[MbertError]:
    """Checks the table `moe`: M073 more experts per token than there are, M074 a student with as many experts as its teacher,
    M048 keys that exclude each other."""
    moe = values.get("moe", {})
    if not isinstance(moe, Mapping):
        return
    settings = {name: moe.get(name, field.default) for name, field in Moe.model_fields.items()}
    if not all(type(settings[name]) is int for name in ("experts", "top_k", "teacher_experts")):
        return
    if settings["top_k"] > settings["experts"] > 0:
        yield _too_many(settings["top_k"], settings["experts"], f"{_origin('top_k', origins)}, moe.top_k")
    yield from _check_exclusive_keys(settings, origins)
    if settings["side"] == "both" and settings["experts"] >= settings["teacher_experts"]:
        yield too_many_student_experts(
            settings["experts"], settings["teacher_experts"], f"{_origin('experts', origins)}, moe.experts"
        )


def check_exits(values: Mapping[str, Any], catalog: Catalog, origins: Mapping[str, str]) -> Iterable[MbertError]:
    """Checks the table `early_exit`: M038 a loss that reads exits of a student without any, M039 what they do not go with."""
    branch = table_at(values, "early_exit").get("branch", "none")
    if branch not in ("attention", "linear"):
        for name, phase in table_at(values, "phases").items():
            losses = table_at(phase, "losses") if isinstance(phase, Mapping) and not phase.get("leave_out") else {}
            for loss, term in losses.items():
                weight = term.get("weight", 1.0) if isinstance(term, Mapping) else term
                if weight and not list(catalog.check("losses", loss, "")) and "exits" in (_needs(loss, catalog)):
                    yield _no_exits(f"phases.{name}.losses.{loss}", origins)
        return
    others = {
        "experts": (table_at(values, "moe").get("side", "none") != "none", "--set moe.side=none"),
        "several tasks": (bool(values.get("tasks")), "--task TASK, a run for each"),
        "pruning": (
            any(isinstance(phase, Mapping) and phase.get("prune") for phase in table_at(values, "phases").values()),
            "a stage of its own before: the pruned student is then the teacher",
        ),
    }
    for what, (is_there, fix) in others.items():
        if is_there:
            yield MbertError(
                "M039",
                f"{what}: not together with exits",
                where=f"{origins.get('early_exit.branch', 'recipe')}, early_exit.branch",
                allowed="A student of one task without experts, which keeps its layers; any trained model can get exits.",
                fix=f"--set early_exit.branch=none, or {fix}",
            )


def _needs(loss: str, catalog: Catalog) -> Collection[str]:
    return catalog.loss_facts(loss).get("needs") or ()


def _no_exits(key: str, origins: Mapping[str, str]) -> MbertError:
    return MbertError(
        "M038",
        "this loss is about exits, and the student has none",
        where=f"{origins.get(f'{key}.weight', origins.get(key, 'recipe'))}, {key}",
        allowed="A student with exits: early_exit.branch is attention or linear.",
        fix=f"--set early_exit.branch=attention, or leave the loss out: --set {key}=0",
    )


def expert_teacher_values(recipe: Recipe) -> dict[str, Any]:
    """Returns the recipe values by which task-distill, whose student starts as the teacher, makes an expert teacher."""
    moe = recipe.moe
    student = {
        "side": "student", "layers": moe.teacher_layers, "experts": moe.teacher_experts, "expert_width": moe.teacher_width,
        "shared": moe.teacher_shared, "init": "importance", "routing": "task", "top_k": 1, "balance": 0.0,
        "norm": "layer", "gate": "share",
    }  # fmt: skip
    repair = moe.repair.model_dump()
    phases = {name: {"leave_out": True} for name in recipe.phases} | {"repair": repair}
    return {"moe": student, "phases": phases, "layer_map": "uniform"}


def too_many_student_experts(student: int, teacher: int, where: str) -> MbertError:
    """Makes the error for a student with as many experts as its expert teacher."""
    return MbertError(
        "M074",
        f"the student has {student} experts and its teacher {teacher}: with both sides routed the student has fewer, "
        "which is what makes it cheaper to keep",
        where=where,
        allowed=f"moe.experts from 1 to {teacher - 1}." if teacher > 1 else "An expert teacher of two experts or more.",
        fix=f"--set moe.experts={max(1, teacher // 2)}, or --set moe.teacher_experts={2 * student}",
    )


def _check_exclusive_keys(settings: Mapping[str, Any], origins: Mapping[str, str]) -> Iterable[MbertError]:
    """Checks keys that exclude each other, such as a gate that the extraction of a plain BERT cannot keep."""
    by_task = settings["routing"] == "task"
    clashes = {
        "norm": (settings["norm"] == "expert" and by_task, "routing by task keeps the layer's LayerNorm"),
        "gate": (settings["gate"] == "probability" and by_task, "routing by task has gates of 1"),
        "top_k": (
            settings["top_k"] > 1 and (settings["routing"] == "hash" or settings["norm"] == "expert"),
            "a table of tokens, and experts with a LayerNorm each, know one expert for each token",
        ),
    }
    for key, (wrong, why) in clashes.items():
        if wrong:
            yield _clash(key, settings, why, f"{_origin(key, origins)}, moe.{key}")


def _clash(key: str, settings: Mapping[str, Any], why: str, where: str) -> MbertError:
    default = Moe.model_fields[key].default
    return MbertError(
        "M048",
        f"moe.{key} = {settings[key]!r} does not go with routing = {settings['routing']!r}, norm = {settings['norm']!r}: {why}",
        where=where,
        allowed="norm = expert and gate = probability with routing by token or sentence (norm also by hash), top_k = 1 there.",
        fix=f"--set moe.{key}={default}",
    )


def _too_many(top_k: int, experts: int, where: str) -> MbertError:
    return MbertError(
        "M073",
        f"{top_k} experts for each, and there are {experts}",
        where=where,
        allowed=f"1 to {experts}.",
        fix=f"--set moe.top_k=1, or --set moe.experts={top_k}",
    )


def _origin(key: str, origins: Mapping[str, str]) -> str:
    return origins.get(f"moe.{key}", "recipe")
