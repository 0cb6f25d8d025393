"""The parts of a phase in which the student is pruned: some steps at the teacher's size, the others at the student's own.

    steps at the teacher's size = K (start + (end - start) / 4)

K steps of the phase. Between start and end the mean of 1 - s(t) = (1 - t)^3 is 1/4, and a step's time is taken to be linear in
the sizes.
"""

from collections.abc import Iterator

from microbert_cli.distillation.pruning.shape import pruned_config
from microbert_cli.plan.expected_inputs import ExpectedInputs, ModelInfo
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.values import TaskPhase


def pruned_student(name: str, teacher: ModelInfo, seen: ExpectedInputs) -> ModelInfo:
    """Returns the student that comes out: the teacher in the sizes of the description; raises M420 and M421."""
    config = seen.described(name, teacher.tokenizer, like=teacher.config, where="student").config
    return ModelInfo(pruned_config(teacher.config, config, where=f"student {name}"), teacher.tokenizer)


def parts_of(
    recipe: Recipe, name: str, steps: int, teacher: ModelInfo, student: ModelInfo
) -> Iterator[tuple[Recipe, str, TaskPhase, ModelInfo]]:
    """Yields recipe, label, numbers and student of the parts of a phase of `steps` steps: one, and two where it prunes."""
    spec, names = recipe.run_phases[name], list(recipe.run_phases)
    pruning = recipe.pruning_phase
    if not spec.prune:
        began_before = pruning is None or names.index(name) > names.index(pruning)
        yield recipe, name, spec, student if began_before else teacher
        return
    at_first = min(steps - 1, max(1, round(steps * (spec.prune.start + (spec.prune.end - spec.prune.start) / 4))))
    if isinstance(recipe.layer_map, list) or recipe.layer_map in ("uniform", "last"):
        recipe = recipe.model_copy(update={"layer_map": "first"})  # each layer learns from the teacher's of its number
    if at_first:
        yield recipe, f"{name}, at first", spec.model_copy(update={"steps": at_first, "evaluations": 0}), teacher
    yield recipe, name, spec.model_copy(update={"steps": steps - at_first}), student
