"""The first step of fine-tuning, on a few rows."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from microbert_cli.distillation.generation.teacher import untie
from microbert_cli.distillation.generation.trainers import TeacherTrainer
from microbert_cli.models import factory
from microbert_cli.plan.doctor.context import DoctorContext
from microbert_cli.plan.doctor.first_step import StepTrial, first_batch, trial_precision, without_traces
from microbert_cli.plan.phases import losses_of
from microbert_cli.reporter import SILENT
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.stages.finetune.generation import text_trainer
from microbert_cli.training.freeze import frozen_by_stage, parts_of
from microbert_cli.training.heads.bias import start_head_bias
from microbert_cli.training.loss_terms import CLASSIFICATION_INPUTS, make_terms
from microbert_cli.training.objective import Objective


def trial(case: DoctorContext, step: Step) -> Iterator[StepTrial]:
    """Yields the phase about to take its first step."""
    recipe, data, inputs = step.resolved.recipe, case.data(step), step.inputs
    precision = trial_precision(recipe)
    if data.task.kind.writes:
        yield from _trial_of_texts(case, step)
        return
    with ExitStack() as stack:
        source = stack.enter_context(case.standing(inputs["model"], "encoder", where="finetune.model"))
        tokenizer = inputs["tokenizer"] and stack.enter_context(
            case.standing(inputs["tokenizer"], "encoder", where="tokenizer")
        )
        loaded = factory.classifier(
            source, case.catalog, task=data.task, seed=recipe.seed, tokenizer=tokenizer, where="finetune.model"
        )
        start_head_bias(loaded.model, data.head_bias)
        rows = data.encode("train", loaded, where="finetune.model")
        terms = make_terms(
            losses_of(recipe.finetune.losses), case.catalog, available=CLASSIFICATION_INPUTS, where="finetune.losses"
        )
        stages = frozen_by_stage(
            recipe.finetune.unfreeze, recipe.finetune.freeze, parts_of(loaded.model), where="finetune.unfreeze"
        )
        training = recipe.finetune.model_copy(update={"freeze": stages[0]})
        learnt: dict[str, Any] = {"standardise": [data.standardisation], "forms": [data.label_form]}
        objective = Objective(terms, precision.place(loaded.model), numerics=precision, **learnt)
        yield StepTrial(
            "finetune", "finetune", training, objective, first_batch(rows, loaded.tokenizer, recipe, precision.device)
        )


def _trial_of_texts(case: DoctorContext, step: Step) -> Iterator[StepTrial]:
    """Yields the training of a teacher that fills in targets, or of a student that writes them."""
    recipe, data, inputs = without_traces(step.resolved.recipe), case.data(step), step.inputs
    with ExitStack() as stack:
        model = stack.enter_context(case.standing(inputs["model"], "masked-lm", where="finetune.model"))
        tokenizer = inputs["tokenizer"] and stack.enter_context(
            case.standing(inputs["tokenizer"], "encoder", where="tokenizer")
        )
        work = Path(stack.enter_context(TemporaryDirectory()))
        trainer = text_trainer(recipe, case.catalog, data, model, tokenizer, work, SILENT)
        if isinstance(trainer, TeacherTrainer):
            loaded = trainer.begin(recipe.seed)
            untie(loaded.model)
            phase = trainer.phase(*trainer.task_of(loaded), recipe.seed)
        else:
            loaded = trainer.load(recipe.seed)
            phase = trainer.phase("finetune")
        device = trial_precision(recipe).device
        objective = phase.objective(loaded.model.to(device)).to(device)
        batch = first_batch(phase.rows, loaded.tokenizer, recipe, device)
        yield StepTrial("finetune", "finetune", recipe.finetune, objective, batch)
