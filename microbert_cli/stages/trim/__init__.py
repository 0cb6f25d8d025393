"""A smaller vocabulary for a model: the tokens that its texts use, with what any other text can be written with."""

from typing import Any

from microbert_cli.errors import MbertError
from microbert_cli.recipe.multitask import task_name
from microbert_cli.recipe.phase_data import SELECTED_BY, TRAIN, TRANSFER
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.runs.stage_inputs import DISTIL, EarlierOutputs, required_input, teacher_input
from microbert_cli.runs.stage_registry import Stage


def inputs(recipe: Recipe, earlier: EarlierOutputs, catalog: Catalog) -> dict[str, Any]:
    """Returns the model: the recipe's, else this run's student, else its teacher; augmented rows and corpus if any.

    Raises M134 for several tasks, M098 where the keys of the vocabulary do not say what stays.
    """
    if recipe.tasks:
        raise _several_tasks(recipe.tasks)
    vocabulary, corpus = recipe.vocabulary, recipe.corpus.source if recipe.vocabulary.keep != "all" else None
    if vocabulary.keep == "common" and vocabulary.rows is None:
        raise _no_rows()
    if vocabulary.keep != "all" and not splits(recipe, catalog):
        corpus = required_input(corpus, "corpus.source", "texts whose tokens stay", "--task TASK, or --corpus text.txt.gz")
    model = earlier.resolve(recipe.trim.model) or earlier.directory_of_this_run(DISTIL) or teacher_input(recipe, earlier)
    # What an earlier run left under that name does not count: trimmed again, the vocabulary would be another.
    augmented = (
        earlier.directory_of_this_run("augment") if recipe.augmented is None else earlier.resolve(recipe.augmented or None)
    )
    return {
        "model": required_input(model, "trim.model", "the model to trim", "mbert trim DIR"),
        "augmented": augmented,
        **({"source": corpus} if corpus else {}),
    }


def splits(recipe: Recipe, catalog: Catalog) -> tuple[str, ...]:
    """Returns the splits to read: none without a task, where a corpus alone says what stays."""
    data = recipe.data
    if not (recipe.task or data.train_file or data.dev_file or data.test_file):
        return ()
    return (TRAIN, SELECTED_BY, TRANSFER) if data.transfer_file else (TRAIN, SELECTED_BY)


def _several_tasks(tasks: list[str]) -> MbertError:
    return MbertError(
        "M134",
        f"a vocabulary is cut for one task's texts, and this run is of {len(tasks)} tasks",
        where="tasks",
        allowed="One task at a time, or a corpus of all their texts without a task.",
        fix=f"mbert trim DIR --task {tasks[0]} -o runs/trim-{task_name(tasks[0])}",
    )


def _no_rows() -> MbertError:
    return MbertError(
        "M098",
        'vocabulary.keep is "common", and it is not said how many tokens stay',
        where="vocabulary.rows",
        allowed="A whole number, such as 8000.",
        fix="--set vocabulary.rows=8000, or --set vocabulary.keep=train",
    )


STAGE = Stage(
    "trim",
    inputs,
    input_keys={"model": ("trim.model",), "augmented": ("augmented",), "source": ("corpus.source",)},
    keys=("task", "data", "corpus", "vocabulary", "trim"),
    splits=splits,
    no_texts="a student that writes takes the tokens of its rows when it begins, and no others",
    makes_model=True,
)
