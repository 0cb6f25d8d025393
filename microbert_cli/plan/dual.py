"""The parts of distillation with two vocabularies: the student's own, a teacher that learns, and weights that are compared."""

import copy
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from microbert_cli.data.corpus.joint_vocabulary import JointVocabulary
from microbert_cli.distillation.dual.pair import vocabulary_settings
from microbert_cli.distillation.dual.weights import WeightPairs
from microbert_cli.models import factory
from microbert_cli.models.architectures import model_shape
from microbert_cli.models.factory import config_parameters, meta_model
from microbert_cli.plan.expected_inputs import ExpectedInputs, ModelInfo
from microbert_cli.plan.rehearsal import random_model
from microbert_cli.plan.stage_cost import Costs, Part
from microbert_cli.plan.work import FLOAT, Job, Workload, activations, shape, training_bytes
from microbert_cli.recipe.schema import Recipe
from microbert_cli.training.loss_terms import DUAL_INPUTS, LossTerm
from microbert_cli.training.plan import TrainingPlan

ROUNDS = 3
PASSES = 3  # forward passes' worth of products: backward has two


def own_vocabulary(seen: ExpectedInputs, recipe: Recipe, source: str, teacher: ModelInfo) -> tuple[Any, float]:
    """Returns the tokenizer that a student gets for itself, and the seconds that training it takes."""
    settings = vocabulary_settings(int(recipe.general.dual.vocabulary), teacher.tokenizer, teacher.config)
    return seen.vocabulary(recipe, source, settings)


def student_of(seen: ExpectedInputs, costs: Costs, recipe: Recipe, inputs: Mapping[str, Any], teacher: ModelInfo) -> ModelInfo:
    """Returns the student of stage one, with its teacher's vocabulary or one of its own, whose cost is added."""
    name, source, teacher_name = inputs["student"], inputs["source"], inputs["teacher"]
    if not recipe.general.dual.vocabulary or not factory.is_description(name, seen.catalog):
        return seen.model(name, where="student", tokenizer=teacher_name, like=teacher.config)
    tokenizer, seconds = own_vocabulary(seen, recipe, source, teacher)
    costs.host("vocabulary", seconds)
    return seen.described(name, tokenizer, like=teacher.config, where="student")


def extended(teacher: ModelInfo, joint: JointVocabulary) -> ModelInfo:
    """Returns the teacher with rows for its student's pieces."""
    config = copy.deepcopy(teacher.config)
    config.vocab_size = len(joint)
    return ModelInfo(config, teacher.tokenizer)


def add_teacher_steps(
    costs: Costs, recipe: Recipe, teacher: ModelInfo, load: Workload, held_out: Workload, plan: TrainingPlan
) -> None:
    """Adds the steps of a teacher that is trained with its student, its held-out text, and what keeping it costs."""
    spec = recipe.general
    job = Job("train", teacher.config, spec.batch_size, "masked-lm", losses={"masked_lm": (1.0, {})}, predicted=spec.masked,
              optimizer=spec.optimizer, accumulate=spec.accumulate)  # fmt: skip
    before = costs.plan.memory  # the student's: both models are in memory at once
    costs.train("teacher, trained too", job, load, plan, scored=True, asked=None)
    costs.plan.memory = before + training_bytes(job, scored=True) + activations(job, *load.widest)
    costs.work("held-out text: teacher", replace(job, kind="judge"), held_out)
    if spec.dual.keep:
        costs.keep(teacher, "masked-lm")


def add_projection(
    costs: Costs, term: LossTerm, teacher: ModelInfo, student: ModelInfo, joint: JointVocabulary, steps: int
) -> None:
    """Adds comparing the weights of both models at every step: products of matrices, whatever the batch."""
    # The mapped weights and their errors stay until the backward pass; a teacher that is not trained is beside them.
    costs.plan.memory += 2 * FLOAT * config_parameters(teacher.config, "masked-lm")
    flops = PASSES * projection_flops(teacher.config, student.config, joint, weights=str(term.parameter("weights"))) * steps

    def measure() -> dict[str, Any]:
        of_teacher, of_student = (random_model(model.config, "masked-lm") for model in (teacher, student))
        pairs = WeightPairs(of_teacher, of_student, torch.from_numpy(joint.student_ids))
        widths = {"student_width": model_shape(student.config).width, "teacher_width": model_shape(teacher.config).width}
        module, seconds = term.make_module(**widths), []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            term.function(pairs, own=module, **term.parameters).backward()
            seconds.append(time.perf_counter() - started)
        return {"seconds": statistics.median(seconds)}

    if costs.machine is not None:
        costs.plan.parts.append(Part("weights", costs.machine.products(flops), flops))
        return
    key = [shape(teacher.config), shape(student.config), term.parameters]
    costs.plan.parts.append(Part("weights", costs.once("projection", key, measure)["seconds"] * steps, flops))


def projection_flops(teacher: Any, student: Any, joint: JointVocabulary, *, weights: str) -> int:
    """Returns the operations that mapping all weights once takes; nothing is allocated."""
    D, d = model_shape(teacher).width, model_shape(student).width
    pairs = WeightPairs(meta_model(teacher, "masked-lm"), meta_model(student, "masked-lm"), torch.from_numpy(joint.student_ids))
    flops = 0
    for side, name, _, small in pairs:
        if weights == "all" or name.endswith("word_embeddings.weight"):
            rows = small.numel() // d
            flops += 2 * rows * d * D + (2 * (rows // d) * d * D * D if side == "both" else 0)
    return flops


def dual_terms(terms: list[LossTerm]) -> dict[str, LossTerm]:
    """Returns the losses of a teacher of two vocabularies, by what they need."""
    return {need: term for term in terms for need in term.needs & DUAL_INPUTS}
