"""The first step of task distillation, on a few rows."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch

from microbert_cli.distillation.distiller import Distiller
from microbert_cli.distillation.generation.text_task import texts_of_training
from microbert_cli.models.generation.vocabulary import FOLDER, vocabulary_of_texts
from microbert_cli.plan.doctor.context import DoctorContext
from microbert_cli.plan.doctor.first_step import StepTrial, first_batch, without_traces
from microbert_cli.reporter import SILENT
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.stages.task_distill.generation import TaughtText


def trial(case: DoctorContext, step: Step) -> Iterator[StepTrial]:
    """Yields the phase about to take its first step."""
    recipe, data, inputs = without_traces(step.resolved.recipe), case.data(step), step.inputs
    if data.task.kind.writes:
        yield from _trial_of_texts(case, step)
        return
    with ExitStack() as stack:
        teacher = None
        if inputs["teacher"] is not None:
            standing = case.standing(inputs["teacher"], "classifier", where="teacher.model", task=data.task)
            teacher = stack.enter_context(standing)
        student = stack.enter_context(case.standing(inputs["student"], "encoder", where="student"))
        initial = inputs.get("initial") if teacher is None else None
        distiller = Distiller(recipe, case.catalog, [data], teacher, student, {}, SILENT, initial)
        loaded = distiller.load(recipe.seed)
        model = distiller.numerics.place(loaded.model)
        for phase in distiller.phases(loaded):
            if phase.continues:  # the first stage of a phase stands for the others
                continue
            torch.manual_seed(recipe.seed)
            objective = phase.objective(model).to(distiller.device)
            batch = first_batch(phase.rows, loaded.tokenizer, recipe, distiller.device, pad_to=phase.pad_to)
            yield StepTrial(phase.name, phase.table, phase.training, objective, batch)


def _trial_of_texts(case: DoctorContext, step: Step) -> Iterator[StepTrial]:
    """Yields the phases of a student that writes; a teacher that is yet to be made gets the vocabulary that it will have."""
    recipe, data, inputs = without_traces(step.resolved.recipe), case.data(step), step.inputs
    with ExitStack() as stack:
        teacher = stack.enter_context(case.standing(inputs["teacher"], "masked-lm", where="teacher.model"))
        student = stack.enter_context(case.standing(inputs["student"], "seq2seq", where="student"))
        if inputs["teacher"] in case.to_come:
            info = case.info(inputs["teacher"], where="teacher.model")
            target = vocabulary_of_texts(info.tokenizer, info.config, texts_of_training(data), where="teacher.model")
            target.save_pretrained(Path(teacher) / FOLDER)
        taught = TaughtText(recipe, case.catalog, data, teacher, student, {}, None, SILENT)
        trainer = taught.trainer()
        loaded = trainer.load(recipe.seed)
        for name in trainer.phases:
            phase = trainer.phase(name)
            objective = phase.objective(loaded.model.to(taught.numerics.device)).to(taught.numerics.device)
            batch = first_batch(phase.rows, loaded.tokenizer, recipe, taught.numerics.device)
            yield StepTrial(phase.name, phase.table, phase.training, objective, batch)
