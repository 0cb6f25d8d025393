"""What an evaluation costs: counted as run.py does the work."""

from microbert_cli.plan.expected_inputs import ExpectedInputs
from microbert_cli.plan.generation.cost import add_writing, texts_of_writer
from microbert_cli.plan.phases import add_lengths, add_rows, answer_job
from microbert_cli.plan.stage_cost import Costs
from microbert_cli.plan.work import answering_load
from microbert_cli.runs.stage_inputs import Step


def plan(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
    """Adds the cost of an evaluation."""
    recipe = step.resolved.recipe
    splits = step.stage.splits_of(recipe, seen.catalog)
    data = add_rows(costs, seen, recipe, splits)
    if data.task.kind.writes:
        student = seen.model(step.inputs["model"], where="evaluate.model")
        for split in splits:
            add_writing(costs, texts_of_writer(data, student), student, split, beams=recipe.evaluate.beams)
        return
    for role in ("model", "teacher"):
        if not (name := step.inputs.get(role)):
            continue
        for answering, share in seen.answering(name, where=f"evaluate.{role}"):
            model = answering.classifying(data.task)
            costs.open(role, model, "classifier")
            for split in splits:
                lengths = add_lengths(costs, seen, data, split, model)
                size = recipe.evaluate.batch_size
                load = answering_load(lengths, batch_size=size)
                costs.work(f"{role} on {split}", answer_job(model, size), load if share == 1 else load.times(share))
