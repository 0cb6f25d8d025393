"""What can be seen to fail before a run, without torch: files that are not there, models without the head a stage needs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from microbert_cli.data.tables.table import unreadable
from microbert_cli.errors import MbertError, combine_errors
from microbert_cli.hub import is_hub_id
from microbert_cli.models.find import check_head, find_model, is_cascade, missing_head, no_single_model
from microbert_cli.recipe.multitask import transfer_of
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.task import has_several_labels, load_task
from microbert_cli.runs.pipeline import step_state
from microbert_cli.runs.stage_inputs import CASCADE, RUNS, Step

# Inputs that are models, or students of the catalogue.
LOADED = ("model", "teacher", "student", "tokenizer", "masked_lm", "small", "big")
MODELS = (*LOADED, "initial")
CORPUS = "source"
VECTORS = "vectors"
FILE_SUFFIXES = (".txt", ".gz", ".zip", ".parquet", ".vec", ".csv", ".tsv", ".jsonl")


def check_static(steps: Sequence[Step], catalog: Catalog) -> None:
    """Raises everything at once that will certainly fail in these stages; nothing is asked of the network.

    Data files, corpora and vectors must be there, and models must have the head that a stage needs: those that are here, and
    those that an earlier stage will make. A model directory that is not here yet may come from another command.
    """
    errors: dict[str, MbertError] = {}
    to_come: dict[str, Step] = {}
    for step in steps:
        for part in step.stage.split_tasks(step):
            for error in (*_missing_files(part, catalog), *_unfit_inputs(part, to_come, catalog)):
                errors.setdefault(str(error), error)
        if step_state(step) != "done":
            to_come |= dict.fromkeys(step.outputs, step)
    if errors:
        raise combine_errors(list(errors.values()))


def _missing_files(step: Step, catalog: Catalog) -> Iterator[MbertError]:
    """Yields an error for each of a stage's data files that is not there."""
    for path in own_files(step, catalog):
        if not path.exists():
            yield unreadable(path, FileNotFoundError())


def own_files(step: Step, catalog: Catalog) -> list[Path]:
    """Returns the files of the user's own that a stage reads rows from; empty for a task of a benchmark."""
    recipe = step.resolved.recipe
    if not step.stage.splits:
        return []
    data = recipe.data
    named: list[str | Path | None] = [data.train_file, data.dev_file, data.test_file]
    if recipe.task and not any(named):
        files = load_task(catalog.path("tasks", recipe.task, where="task")).files
        named = [files.path(split) for split in ("train", "dev", "test")] if files else []
    return [Path(name) for name in (*named, transfer_of(recipe)) if name]


def _unfit_inputs(step: Step, to_come: Mapping[str, Step], catalog: Catalog) -> Iterator[MbertError]:
    """Yields an error for each input that is not there, or is a model without the head that the stage needs."""
    heads = step.stage.heads(step.resolved.recipe)
    for name, place in step.places.items():
        role, path = name.partition(" ")[0], Path(place)
        where = step.stage.input_keys.get(role, (role,))[0]
        try:
            check_cascade(step, role, path, to_come.get(place), where)
            if maker := to_come.get(place):
                check_head_to_come(heads.get(role), maker, where)
            elif role in (CORPUS, VECTORS) and path.suffix in FILE_SUFFIXES:
                _check_file(role, place, where)
            elif path.is_dir() and role in heads and step_state(step) != "done":
                several = has_several_labels(step.resolved.recipe, catalog) if step.stage.splits else None
                check_head(path, heads[role], where=where, several=several)
            elif role in MODELS and not (path.exists() or is_hub_id(place) or place.startswith(f"{RUNS}/")):
                find_model(place, where=where)
        except MbertError as error:
            yield error


def check_cascade(step: Step, role: str, path: Path, maker: Step | None, where: str) -> None:
    """Raises M280 for a cascade, here or to come, as an input that has to be a single model."""
    if role not in step.stage.cascades and (maker.kind == CASCADE if maker else is_cascade(path)):
        raise no_single_model(path, where)


def check_head_to_come(head: str | None, maker: Step, where: str) -> None:
    """Raises M311 where the stage that will make a model gives it another head."""
    stage = maker.stage
    if head == "masked-lm" and stage.compared:
        raise missing_head(head, where, maker.out)
    if head == "classifier" and stage.makes_model and not stage.splits:
        raise missing_head(head, where, maker.out)


def _check_file(role: str, place: str, where: str) -> None:
    if Path(place).exists() or ".zip/" in place:
        return
    if role == CORPUS:
        from microbert_cli.data.corpus.documents import read_documents

        next(iter(read_documents(place, where=where)), None)
    else:
        from microbert_cli.augmentation.word_vectors import load_word_table

        load_word_table(place)
