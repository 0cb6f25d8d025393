"""The first step of distillation on plain text, on a few rows."""

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np

from microbert_cli.distillation.dual.pair import join_vocabularies
from microbert_cli.distillation.general import batch_maker, make_objective, make_student, make_teacher, required_heads
from microbert_cli.models import factory
from microbert_cli.models.architectures import check_length
from microbert_cli.models.load import load_model
from microbert_cli.plan.doctor.context import DoctorContext, trains_vocabulary
from microbert_cli.plan.doctor.first_step import ROWS, StepTrial, on_device, without_traces
from microbert_cli.runs.stage_inputs import Step


def trial(case: DoctorContext, step: Step) -> Iterator[StepTrial]:
    """Yields the phase about to take its first step."""
    recipe = without_traces(step.resolved.recipe)
    head, head_of_teacher = required_heads(recipe, case.catalog)
    with ExitStack() as stack:
        teacher_directory, student = (
            stack.enter_context(case.standing(step.inputs[role], kind, where=where))
            for role, kind, where in (("teacher", head_of_teacher, "base"), ("student", head, "student"))
        )
        teacher_model = load_model(teacher_directory, head_of_teacher, where="base", new_head=head_of_teacher == "encoder")
        new_vocabulary = trains_vocabulary(step) and factory.is_description(student, case.catalog)
        tokenizer = case.output(step).tokenizer if new_vocabulary else None
        student_model = make_student(recipe, case.catalog, teacher_model, student, tokenizer=tokenizer)
        joint = join_vocabularies(recipe, teacher_model, student_model)
        asked = make_teacher(recipe, case.catalog, teacher_model, joint)
        objective = make_objective(recipe, case.catalog, asked, teacher_model, student_model)
        for model in (student_model.model, teacher_model.model):
            check_length(recipe.corpus.max_length, model.config, where="corpus.max_length")
        with case.blocks(step, joint) as blocks:
            batch = batch_maker(recipe, student_model.tokenizer, blocks)(blocks, np.arange(min(ROWS, len(blocks))), 0)
        yield StepTrial("general-distill", "general", recipe.general, objective, on_device(batch, objective.numerics.device))
