"""What task distillation costs: counted as run.py does the work."""

from collections.abc import Mapping

import numpy as np

from microbert_cli.data.task_data import TaskData
from microbert_cli.evaluation.scoring import EVALUATION_BATCH
from microbert_cli.models.exits.build import ExitSettings, exit_config, has_exits
from microbert_cli.models.exits.flops import exit_flops
from microbert_cli.models.factory import is_description
from microbert_cli.plan.expected_inputs import ExpectedInputs, ModelInfo
from microbert_cli.plan.generation.cost import add_writer_training, described_writer, texts_of_teacher
from microbert_cli.plan.phases import (
    add_lengths,
    add_phase,
    add_rows,
    answer_job,
    asked_once,
    augmented_lengths,
    copies_of,
    distil_jobs,
    losses_of,
    of_windows,
    stages_of,
    with_own_steps,
)
from microbert_cli.plan.pruning import parts_of, pruned_student
from microbert_cli.plan.stage_cost import Costs
from microbert_cli.plan.work import answering_load
from microbert_cli.recipe.multitask import untaught_note
from microbert_cli.recipe.phase_data import AUGMENTED, SELECTED_BY, TRAIN, TRANSFER, phase_split
from microbert_cli.recipe.schema import Recipe
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.stages.task_distill import split_tasks
from microbert_cli.text import seconds_of
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.phases import make_plan

NOTED_LENGTH = 128  # tokens of the row whose cost is noted


def plan(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
    """Adds the cost of task distillation: of several tasks or teachers, of each one for its share of the steps."""
    parts = split_tasks(step)
    if parts == [step]:
        _one_task(step, seen, costs)
        return
    costs.plan.notes += filter(None, [untaught_note(step.resolved.recipe, seen.catalog)])
    for part in with_own_steps(parts, step, seen):
        _one_task(part, seen, costs) if part.kind == step.kind else part.stage.plan(part, seen, costs)


def _with_exits(student: ModelInfo, recipe: Recipe, costs: Costs) -> ModelInfo:
    """Returns the student with the recipe's exits, and notes between what and what a row of its answers will cost."""
    if recipe.early_exit.branch == "none" or has_exits(student.config):
        return student
    config = exit_config(student.config, ExitSettings(**recipe.early_exit.model_dump()))
    if by_layer := exit_flops(config, NOTED_LENGTH):
        low, high = (value / 1e6 for value in (min(by_layer.values()), max(by_layer.values())))
        costs.plan.notes.append(
            f"a row of {NOTED_LENGTH} tokens will cost {low:,.1f} to {high:,.1f} MFLOPs, by the exit where it leaves"
        )
    return ModelInfo(config, student.tokenizer)


def _one_task(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
    recipe = step.resolved.recipe
    data = add_rows(costs, seen, recipe, step.stage.splits_of(recipe, seen.catalog))
    if data.task.kind.writes:
        _plan_texts(step, seen, costs, data)
        return
    costs.plan.notes += filter(None, [step.stage.remark(recipe, seen.catalog)])
    taught_by_model, source = step.inputs["teacher"] is not None, str(step.vocabulary)
    # Where columns of a table teach, the base model stands for the teacher: it gives a student its shape, and is never asked.
    teacher = seen.model(source, where="teacher.model" if taught_by_model else "base").classifying(data.task)
    prunes, named = recipe.pruning_phase is not None, step.inputs["student"]
    student = (
        pruned_student(named, teacher, seen)
        if prunes
        else seen.model(named, where="student", tokenizer=source, like=teacher.config).classifying(data.task)
    )
    student = _with_exits(student, recipe, costs)
    lengths = {split: add_lengths(costs, seen, data, split, student) for split in data.rows}
    dev = lengths[SELECTED_BY]
    if (augmented := augmented_lengths(step, seen, costs, data, student, lengths[TRAIN])) is not None:
        lengths[AUGMENTED] = augmented
    recipe = _in_windows(recipe, data, student, lengths, seen)
    seeds = recipe.seeds or [recipe.seed]
    if taught_by_model:
        costs.open("teacher", teacher, "classifier")
    costs.open("student", teacher if prunes else student, "classifier", times=1 + len(seeds))
    if taught_by_model:
        costs.work("examination of the teacher", answer_job(teacher), answering_load(dev, batch_size=EVALUATION_BATCH))
    kept: dict[str, bool] = {}
    for number, seed in enumerate(seeds):
        before = costs.mark()
        for name, spec in recipe.run_phases.items():
            rows = lengths[phase_split(spec, seen.catalog, lengths)]
            pad = data.max_length if recipe.normalisation == "reference" else None
            steps = make_plan(name, spec, rows, drop_last=pad is not None, seed=seed).steps
            for part, label, numbers, model in parts_of(recipe, name, steps, teacher, student):
                stages = list(stages_of(label, numbers, rows, model.config, table=f"phases.{name}"))
                for place, (stage, stage_numbers, chunk) in enumerate(stages):
                    job, ask = distil_jobs(part, stage_numbers, seen.catalog, teacher, model, "classifier")
                    if name not in kept:
                        kept[name] = not taught_by_model or asked_once(costs, recipe, name, spec, ask, rows)
                    is_kept = kept[name] or (
                        len(chunk) < len(rows)
                        and asked_once(costs, recipe, stage, spec, ask, chunk, in_place=place + number > 0)
                    )
                    scored, asked = job.logits and label == name, None if is_kept else ask
                    add_phase(
                        costs,
                        stage,
                        job,
                        stage_numbers,
                        chunk,
                        dev,
                        seed,
                        first=number == 0,
                        scored=scored,
                        ask=asked,
                        pad_to=pad,
                    )
                if spec.patience and number == 0:
                    costs.plan.notes.append(
                        f"{name}: patience may end {'its stages' if len(stages) > 1 else 'it'} earlier than planned"
                    )
        if recipe.budget is not None:
            costs.shorten(before, seconds_of(recipe.budget))
        costs.work("dev", answer_job(student), answering_load(dev, batch_size=EVALUATION_BATCH))
    costs.keep(student, "classifier", copies_of(seeds))
    seen.planned_models |= dict.fromkeys(step.outputs, ModelInfo(student.config, student.tokenizer))


def _in_windows(
    recipe: Recipe, data: TaskData, student: ModelInfo, lengths: Mapping[str, np.ndarray], seen: ExpectedInputs
) -> Recipe:
    """Returns the recipe with phases whose batches have so many windows as they will have of the rows that it counts."""
    if data.windows_for(student.config, where="student") is None:
        return recipe
    phases = {}
    for name, spec in recipe.run_phases.items():
        split = phase_split(spec, seen.catalog, lengths)
        windows, rows = len(lengths[split]), len(data.rows.get(split, ()))
        if split == AUGMENTED:
            rows = round(windows * len(data.rows[TRAIN]) / len(lengths[TRAIN]))
        if split != TRANSFER or not data.has_window_rows(split, student.config, where="student"):
            spec = of_windows(spec, rows, windows)
        phases[name] = spec
    return recipe.model_copy(update={"phases": phases})


def _plan_texts(step: Step, seen: ExpectedInputs, costs: Costs, data: TaskData) -> None:
    """Adds the cost of a student that learns to write targets from a teacher that fills them in."""
    recipe, name = step.resolved.recipe, step.inputs["student"]
    texts = texts_of_teacher(data, seen.model(step.inputs["teacher"], where="teacher.model"), where="teacher.model")
    if is_description(name, seen.catalog):
        student = described_writer(name, seen.catalog, texts.task.tokenizer, texts.task)
    else:
        student = seen.model(name, where="student")
    phases = {phase: (spec, make_terms(losses_of(spec.losses), seen.catalog)) for phase, spec in recipe.run_phases.items()}
    before = costs.mark()
    add_writer_training(costs, texts.task, student, phases, recipe.seeds or [recipe.seed], recipe, texts)
    if recipe.budget is not None:
        costs.shorten(before, seconds_of(recipe.budget))
    seen.planned_models |= dict.fromkeys(step.outputs, ModelInfo(student.config, student.tokenizer))
