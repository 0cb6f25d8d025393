"""The first step of masked-LM training, on a few rows."""

from collections.abc import Iterator

import numpy as np

from microbert_cli.data.corpus.masking import Masking
from microbert_cli.models import factory
from microbert_cli.models.architectures import check_length
from microbert_cli.models.factory import build_model
from microbert_cli.models.load import load_model
from microbert_cli.plan.doctor.context import DoctorContext
from microbert_cli.plan.doctor.first_step import ROWS, StepTrial, on_device, trial_precision
from microbert_cli.recipe.student_shapes import read_student
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.objective import Objective


def trial(case: DoctorContext, step: Step) -> Iterator[StepTrial]:
    """Yields the phase about to take its first step."""
    recipe, name = step.resolved.recipe, step.inputs["model"]
    output = case.output(step)
    check_length(recipe.corpus.max_length, output.config, where="corpus.max_length")
    precision = trial_precision(recipe)
    with case.standing(name, "masked-lm", where="pretrain.model") as source:
        if factory.is_description(name, case.catalog):
            description = read_student(name, case.catalog)
            model = build_model(description, kind="masked-lm", tokenizer=output.tokenizer, seed=recipe.seed, like=output.config)
        else:
            model = load_model(source, "masked-lm", where="pretrain.model", new_head=True, seed=recipe.seed).model
        spec = recipe.pretrain
        with case.blocks(step) as blocks:
            masks = Masking(output.tokenizer, spec.masked, spec.smoothing, recipe.seed, blocks.tokens)
            batch = masks.draw(blocks.batch(np.arange(min(ROWS, len(blocks)))), 0)
        objective = Objective(make_terms({"masked_lm": (1.0, {})}, case.catalog), precision.place(model), numerics=precision)
        yield StepTrial("pretrain", "pretrain", spec, objective, on_device(batch, precision.device))
