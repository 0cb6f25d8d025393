"""Fine-tuning on a task of texts: a masked-LM learns to fill in targets, an encoder with a decoder to write them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from microbert_cli import distributed
from microbert_cli.data.generation.rows import Lengths
from microbert_cli.data.task_data import TaskData
from microbert_cli.distillation.generation.text_task import TextTask, filler_of, is_filler, texts_of_training
from microbert_cli.distillation.generation.trainers import TeacherTrainer, WriterTrainer, writer_terms
from microbert_cli.evaluation.generation.text_metrics import check_installed
from microbert_cli.models import factory
from microbert_cli.models.config import read_config
from microbert_cli.models.find import directory_writes, find_model
from microbert_cli.models.generation.vocabulary import FOLDER, load_target_tokenizer, vocabulary_of_texts
from microbert_cli.models.generation.writer import describes_writer
from microbert_cli.models.load import LoadedModel, load_model, load_vocabulary
from microbert_cli.models.tokenizers import load_tokenizer
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import Reporter

WHERE = "finetune.model"
FORESIGHT = "the teacher sees what comes after a hidden token: its accuracy is no upper bound of a student"


def text_trainer(
    recipe: Recipe, catalog: Catalog, data: TaskData, model: str, tokenizer: str | None, work: Path, reporter: Reporter
) -> TeacherTrainer | WriterTrainer:
    """Returns what trains `model` on a task of texts; a teacher's target vocabulary is written into `work`."""
    check_installed()
    if describes_writer(model, catalog) or directory_writes(model):
        return _writer(recipe, catalog, data, model, tokenizer, reporter)
    return _teacher(recipe, catalog, data, model, tokenizer, work, reporter)


def facts_of_texts(trainer: TeacherTrainer | WriterTrainer, data: TaskData) -> dict[str, Any]:
    """Returns what metrics.json says beside the scores: what the trivial answer scores, and how texts were scored.

    The trivial answer is the commonest target, of a teacher the commonest token of all targets.
    """
    if isinstance(trainer, WriterTrainer):
        return trainer.facts()
    assert trainer.target_tokenizer is not None
    task = TextTask(data, trainer.target_tokenizer, Lengths(data.max_length, data.max_length))
    counts = np.bincount(task.pairs("dev").target_ids)
    return {"majority": float(counts.max() / max(1, counts.sum())), "warning": FORESIGHT}


def _writer(
    recipe: Recipe, catalog: Catalog, data: TaskData, model: str, tokenizer: str | None, reporter: Reporter
) -> WriterTrainer:
    if factory.is_description(model, catalog):
        if tokenizer is None:
            raise factory.missing_vocabulary(model, WHERE)
        tokens, config = load_vocabulary(tokenizer, where="tokenizer")
        target = vocabulary_of_texts(tokens, config, texts_of_training(data), where=f"tokenizer {tokenizer}", reporter=reporter)
        lengths = Lengths(data.max_length, data.max_length)
    else:
        path = find_model(model, where=WHERE)
        config = read_config(path, where=WHERE)
        target = load_tokenizer(path, config, where=WHERE)
        lengths = Lengths.of(data, config, both=False, where=WHERE)
    losses = {name: (term.weight, term.parameters) for name, term in recipe.finetune.losses.items()}
    terms = writer_terms(losses, catalog, where="finetune.losses", taught=False)
    phases = {"finetune": (recipe.finetune, terms, "finetune")}
    return WriterTrainer(recipe, catalog, TextTask(data, target, lengths), model, phases, reporter=reporter)


def _teacher(
    recipe: Recipe, catalog: Catalog, data: TaskData, model: str, tokenizer: str | None, work: Path, reporter: Reporter
) -> TeacherTrainer:
    is_new = factory.is_description(model, catalog)
    source = tokenizer if is_new else model
    if source is None:
        raise factory.missing_vocabulary(model, WHERE)
    tokens, config = load_vocabulary(source, where=WHERE)
    if is_filler(source):
        target = load_target_tokenizer(source, where=WHERE)
    else:
        target = vocabulary_of_texts(tokens, config, texts_of_training(data), where=f"{WHERE} {source}", reporter=reporter)
    if distributed.is_main():
        target.save_pretrained(work / FOLDER)

    def begin(seed: int) -> LoadedModel:
        if not is_new:
            return load_model(model, "masked-lm", where=WHERE, new_head=True, seed=seed)
        like = LoadedModel(SimpleNamespace(config=config), tokens, source, [])
        return factory.encoder(model, catalog, seed=seed, teacher=like, where=WHERE, head="masked-lm")

    def task_of(loaded: LoadedModel) -> Any:
        return filler_of(loaded.model, loaded.tokenizer, target, data, where=WHERE)

    reporter.note(FORESIGHT)
    return TeacherTrainer(recipe, catalog, begin, task_of, target, reporter)
