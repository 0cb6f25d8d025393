"""One step of every training phase: the recipe's own losses on a few of its rows, through the training loop itself.

Weights are those that are there; random ones stand for models that are yet to be made.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from microbert_cli.data.corpus.masking import Masking
from microbert_cli.data.multitask_batching import MultitaskExamples, batches_of
from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.distillation.distiller import Distiller
from microbert_cli.distillation.general import batch_maker, make_objective, make_student, required_heads
from microbert_cli.distillation.teacher import Teacher
from microbert_cli.errors import MbertError
from microbert_cli.models import factory
from microbert_cli.models.architectures import check_length
from microbert_cli.models.device import Precision, choose_precision, pick_device
from microbert_cli.models.factory import build_model
from microbert_cli.models.load import load_model
from microbert_cli.plan.doctor.context import DoctorContext
from microbert_cli.plan.doctor.findings import Finding, attempt, passed
from microbert_cli.plan.phases import losses_of
from microbert_cli.recipe.schema import Recipe, Training
from microbert_cli.recipe.student_shapes import read_student
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.training.loop import TrainingPlan, train
from microbert_cli.training.loss_terms import CLASSIFICATION_INPUTS, make_terms
from microbert_cli.training.objective import Batch, Objective

ROWS = 8  # of a batch, at most: losses are means, so a few rows show whether they are numbers
NEVER = 1e9  # seconds


@dataclass(frozen=True)
class StepTrial:
    """A phase about to take its first step."""

    name: str
    training: Training
    objective: Objective
    batch: Batch


class _Enough(Exception):
    """One step was made."""


class _Heard(Reporter):
    """Remembers the loss that the loop tells."""

    loss = float("nan")

    def progress(self, stage: str, step: int, total: int, **numbers: float) -> None:
        self.loss = numbers["loss"]


def first_step(case: DoctorContext) -> Iterator[Finding]:
    """Every training stage makes a step with finite losses, gradients and weights."""
    found = case.steps_of(tuple(TRIALS))
    for step in found:
        yield attempt(step.name, _first_step, case, step)
    if not found:
        yield passed("no stage trains")


def _first_step(case: DoctorContext, step: Step) -> Finding:
    told = [f"{trial.name} {take_step(trial):.4g}" for trial in TRIALS[step.kind](case, step)]
    return passed(f"finite losses: {', '.join(told)}")


def take_step(trial: StepTrial) -> float:
    """The loss of one step. Raises M401 where loss or gradients are no numbers, M636 where weights are none after it."""
    spec, heard = trial.training, _Heard()

    def batches(skip: int) -> Iterator[Batch]:
        yield trial.batch
        raise _Enough

    plan = TrainingPlan(
        trial.name, 2, spec.learning_rate, optimizer=spec.optimizer, schedule="constant", warmup=0.0,
        weight_decay=spec.weight_decay, max_grad_norm=spec.max_grad_norm, checkpoint_seconds=NEVER,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(trial.objective, batches, plan, directory=Path(folder), seed=0, reporter=heard)
        except _Enough:
            pass
    weights = [*trial.objective.student.named_parameters(), *trial.objective.named_parameters()]
    if broken := [name for name, weight in weights if not torch.isfinite(weight).all()]:
        raise MbertError(
            "M636",
            f"after one step {len(broken)} tensors hold what is no number, {broken[0]} for one; the loss was {heard.loss:.4g}",
            where=trial.name,
            allowed="Weights that stay finite.",
            fix="Look at the losses and their parameters: --explain-config; and at the weights that the model begins with.",
        )
    return heard.loss


def _pretrain(case: DoctorContext, step: Step) -> Iterator[StepTrial]:
    recipe, name = step.resolved.recipe, step.inputs["model"]
    known = case.output(step)
    check_length(recipe.corpus.max_length, known.config, where="corpus.max_length")
    how = _numerics(recipe)
    with case.standing(name, "masked-lm", where="pretrain.model") as source:
        if factory.is_description(name, case.catalog):
            described = read_student(name, case.catalog)
            model = build_model(described, kind="masked-lm", tokenizer=known.tokenizer, seed=recipe.seed, like=known.config)
        else:
            model = load_model(source, "masked-lm", where="pretrain.model", new_head=True, seed=recipe.seed).model
        spec = recipe.pretrain
        with case.blocks(step) as blocks:
            masks = Masking(known.tokenizer, spec.masked, spec.smoothing, recipe.seed, blocks.tokens)
            batch = masks.draw(blocks.batch(np.arange(min(ROWS, len(blocks)))), 0)
        objective = Objective(make_terms({"masked_lm": (1.0, {})}, case.catalog), how.place(model), numerics=how)
        yield StepTrial("pretrain", spec, objective, _on(batch, how.device))


def _general(case: DoctorContext, step: Step) -> Iterator[StepTrial]:
    recipe = _plain(step.resolved.recipe)
    head, head_of_teacher = required_heads(recipe, case.catalog)
    with ExitStack() as stack:
        taught_by, student = (
            stack.enter_context(case.standing(step.inputs[role], kind, where=where))
            for role, kind, where in (("teacher", head_of_teacher, "base"), ("student", head, "student"))
        )
        taught = load_model(taught_by, head_of_teacher, where="base", new_head=head_of_teacher == "encoder")
        pupil = make_student(recipe, case.catalog, taught, student)
        objective = make_objective(recipe, case.catalog, Teacher(taught), taught, pupil)
        for model in (pupil.model, taught.model):
            check_length(recipe.corpus.max_length, model.config, where="corpus.max_length")
        with case.blocks(step) as blocks:
            batch = batch_maker(recipe, pupil.tokenizer, blocks)(blocks, np.arange(min(ROWS, len(blocks))), 0)
        yield StepTrial("general-distill", recipe.general, objective, _on(batch, objective.numerics.device))


def _finetune(case: DoctorContext, step: Step) -> Iterator[StepTrial]:
    recipe, data, given = step.resolved.recipe, case.data(step), step.inputs
    how = _numerics(recipe)
    with ExitStack() as stack:
        source = stack.enter_context(case.standing(given["model"], "encoder", where="finetune.model"))
        words = given["tokenizer"] and stack.enter_context(case.standing(given["tokenizer"], "encoder", where="tokenizer"))
        loaded = factory.classifier(
            source, case.catalog, task=data.task, seed=recipe.seed, tokenizer=words, where="finetune.model"
        )
        rows = data.encode("train", loaded, where="finetune.model")
        terms = make_terms(
            losses_of(recipe.finetune.losses), case.catalog, given=CLASSIFICATION_INPUTS, where="finetune.losses"
        )
        objective = Objective(terms, how.place(loaded.model), numerics=how)
        yield StepTrial("finetune", recipe.finetune, objective, _batch(rows, loaded.tokenizer, recipe, how.device))


def _task_distill(case: DoctorContext, step: Step) -> Iterator[StepTrial]:
    recipe, data, given = _plain(step.resolved.recipe), case.data(step), step.inputs
    with ExitStack() as stack:
        teacher = case.standing(given["teacher"], "classifier", where="teacher.model", task=data.task)
        taught_by = stack.enter_context(teacher)
        student = stack.enter_context(case.standing(given["student"], "encoder", where="student"))
        distiller = Distiller(recipe, case.catalog, [data], taught_by, student, {}, SILENT)
        loaded = distiller.load(recipe.seed)
        model = distiller.numerics.place(loaded.model)
        for phase in distiller.phases(loaded):
            torch.manual_seed(recipe.seed)
            objective = phase.objective(model).to(distiller.device)
            batch = _batch(phase.rows, loaded.tokenizer, recipe, distiller.device, pad_to=phase.pad_to)
            yield StepTrial(phase.name, phase.training, objective, batch)


TRIALS: dict[str, Callable[[DoctorContext, Step], Iterator[StepTrial]]] = {
    "pretrain": _pretrain,
    "finetune": _finetune,
    "general-distill": _general,
    "task-distill": _task_distill,
}


def _plain(recipe: Recipe) -> Recipe:
    """The recipe without what would leave a trace or take minutes: the teacher's cache, and compilation."""
    return recipe.model_copy(update={"cache": recipe.cache.model_copy(update={"teacher": "off"}), "compile": False})


def _numerics(recipe: Recipe) -> Precision:
    return choose_precision(pick_device(recipe.device), **_plain(recipe).numerics())


def _batch(
    rows: TokenizedExamples | MultitaskExamples, tokenizer: Any, recipe: Recipe, device: str, pad_to: int | None = None
) -> Batch:
    """The first rows that the seed draws."""
    indices = next(batches_of(rows, batch_size=min(ROWS, len(rows.lengths)), seed=recipe.seed))
    return _on(rows.batch(indices, pad_to=pad_to, pad_id=tokenizer.pad_token_id), device)


def _on(batch: Batch, device: str) -> Batch:
    return {name: value.to(device) for name, value in batch.items()}
