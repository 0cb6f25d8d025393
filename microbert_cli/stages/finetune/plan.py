"""What fine-tuning costs: counted as run.py does the work."""

from dataclasses import replace

from microbert_cli.data.task_data import TaskData
from microbert_cli.distillation.generation.text_task import texts_of_training
from microbert_cli.models.find import directory_writes
from microbert_cli.models.generation.vocabulary import vocabulary_of_texts
from microbert_cli.models.generation.writer import describes_writer
from microbert_cli.plan.expected_inputs import ExpectedInputs, ModelInfo
from microbert_cli.plan.generation.cost import (
    add_teacher_training,
    add_writer_training,
    described_writer,
    texts_of_teacher,
    texts_of_writer,
)
from microbert_cli.plan.phases import add_lengths, add_phase, add_rows, copies_of, losses_of, of_windows, stages_of
from microbert_cli.plan.stage_cost import Costs
from microbert_cli.plan.work import Job
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.training.loss_terms import make_terms


def plan(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
    """Adds the cost of fine-tuning."""
    recipe = step.resolved.recipe
    data = add_rows(costs, seen, recipe, step.stage.splits_of(recipe, seen.catalog))
    if data.task.kind.writes:
        _plan_texts(step, seen, costs, data)
        return
    model = seen.model(step.inputs["model"], where="finetune.model", tokenizer=step.inputs["tokenizer"])
    model = model.classifying(data.task)
    lengths, dev = (add_lengths(costs, seen, data, split, model) for split in ("train", "dev"))
    spec = of_windows(recipe.finetune, len(data.rows["train"]), len(lengths))
    losses = losses_of(spec.losses)
    job = Job(
        "train",
        model.config,
        spec.batch_size,
        losses=losses,
        optimizer=spec.optimizer,
        accumulate=spec.accumulate,
    )
    seeds = recipe.seeds or [recipe.seed]
    costs.open("model", model, "classifier", times=len(seeds))
    for number, seed in enumerate(seeds):
        for label, stage, _ in stages_of("labels", spec, lengths, model.config, table="finetune"):
            part = replace(job, freeze=tuple(stage.freeze))
            add_phase(costs, label, part, stage, lengths, dev, seed, first=number == 0, scored=True)
    costs.keep(model, "classifier", copies_of(seeds))
    seen.planned_models |= dict.fromkeys(step.outputs, ModelInfo(model.config, model.tokenizer))


def _plan_texts(step: Step, seen: ExpectedInputs, costs: Costs, data: TaskData) -> None:
    """Adds the cost of a teacher that learns to fill in targets, or of a student that learns to write them."""
    recipe, name = step.resolved.recipe, step.inputs["model"]
    seeds = recipe.seeds or [recipe.seed]
    if not (describes_writer(name, seen.catalog) or directory_writes(name)):
        teacher = seen.model(name, where="finetune.model", tokenizer=step.inputs["tokenizer"])
        add_teacher_training(costs, texts_of_teacher(data, teacher, where="finetune.model"), recipe, seeds)
        seen.planned_models |= dict.fromkeys(step.outputs, ModelInfo(teacher.config, teacher.tokenizer))
        return
    student = seen.model(name, where="finetune.model", tokenizer=step.inputs["tokenizer"])
    if student.directory is None and step.inputs["tokenizer"]:
        base = seen.model(step.inputs["tokenizer"], where="base")
        target = vocabulary_of_texts(base.tokenizer, base.config, texts_of_training(data), where="base")
        student = described_writer(name, seen.catalog, target)
    terms = make_terms(losses_of(recipe.finetune.losses), seen.catalog)
    add_writer_training(costs, texts_of_writer(data, student), student, {"finetune": (recipe.finetune, terms)}, seeds, recipe)
    seen.planned_models |= dict.fromkeys(step.outputs, ModelInfo(student.config, student.tokenizer))
