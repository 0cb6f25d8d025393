"""What fine-tuning costs: counted as run.py does the work."""

from dataclasses import replace

from microbert_cli.plan.expected_inputs import ExpectedInputs, ModelInfo
from microbert_cli.plan.phases import add_lengths, add_phase, add_rows, copies_of, losses_of, stages_of
from microbert_cli.plan.stage_cost import Costs
from microbert_cli.plan.work import Job
from microbert_cli.runs.stage_inputs import Step


def plan(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
    """Adds the cost of fine-tuning."""
    recipe = step.resolved.recipe
    data = add_rows(costs, seen, recipe, step.stage.splits_of(recipe, seen.catalog))
    model = seen.model(step.inputs["model"], where="finetune.model", tokenizer=step.inputs["tokenizer"])
    model = model.classifying(data.task)
    lengths, dev = (add_lengths(costs, seen, data, split, model) for split in ("train", "dev"))
    spec = recipe.finetune
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
