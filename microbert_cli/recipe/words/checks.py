"""What a recipe asks that is not there for labels of words, refused before any work."""

from collections.abc import Iterator
from typing import Any

from microbert_cli.errors import MbertError, combine_errors
from microbert_cli.recipe.phase_data import taught_by_table
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.task import load_task
from microbert_cli.recipe.task_kinds import kind_class
from microbert_cli.table_format import is_column_file

VARY_WORDS = {"masked_lm", "word_vectors"}  # a word by a word, in its place
CHOSEN = '["masked_lm"]'
ALLOWED = (
    "One task with labels of words: finetune, task-distill from one teacher or several by losses on answers, hidden states and "
    "attention, augment by masked_lm and word_vectors, evaluate, export, predict."
)


def labels_words(recipe: Recipe, catalog: Catalog) -> bool:
    """Whether the task of a recipe, or any of its tasks, has labels of words, as far as its keys and the task's TOML say."""
    data = recipe.data
    if named := data.train_file or data.dev_file or data.test_file:
        return kind_class(data.kind).of_words if data.kind else is_column_file(named)
    names = [recipe.task] if recipe.task else recipe.tasks
    paths = [catalog.path("tasks", name, where="task") for name in names if not list(catalog.check("tasks", name, "task"))]
    return any(load_task(path).kind.of_words for path in paths)


def check_words(stage: str, recipe: Recipe, why_not: str) -> None:
    """Raises M438 with all that a stage is asked for and does not do where words have labels.

    why_not  why the stage is not for them; empty where it is
    """
    if errors := [_refused(what, fix) for what, fix in _conflicts(stage, recipe, why_not)]:
        raise combine_errors(errors)


def _conflicts(stage: str, recipe: Recipe, why_not: str) -> Iterator[tuple[str, str]]:
    if why_not:
        yield f"{stage}: {why_not}", f"Leave {stage} out of the stages."
    if recipe.tasks:
        yield "several tasks at once", "Name one task: --task TASK"
    if taught_by_table(recipe):
        yield "columns of a table that teach", "Leave out data.label_probabilities and data.label_score."
    if stage == "augment" and (others := sorted({*recipe.augment.sources} - VARY_WORDS)):
        yield (
            f"augmentation by {', '.join(others)}, which does not keep the number of words",
            f"--set 'augment.sources={CHOSEN}'",
        )
    if stage != "task-distill":
        return
    if recipe.moe.side != "none":
        yield "a student of experts", "--set moe.side=none"
    if recipe.early_exit.branch != "none":
        yield "early exits", "--set early_exit.branch=none"
    if (pruned := recipe.pruning_phase) is not None:
        yield "pruning", f"--set phases.{pruned}.prune=false --set init=auto"
    for name, phase in recipe.run_phases.items():
        term: Any = phase.losses.get("discriminator")
        if term is not None and term.weight and term.parameters.get("input", "both") == "both":
            yield (
                "a discriminator of words' answers beside the vector of their text",
                f"--set phases.{name}.losses.discriminator.input=logits",
            )


def _refused(what: str, fix: str) -> MbertError:
    return MbertError("M438", f"{what}: not where words have labels", where="task", allowed=ALLOWED, fix=fix)
