"""What a cascade costs: counted as run.py does the work."""

from microbert_cli.evaluation.scoring import EVALUATION_BATCH
from microbert_cli.exporting.directory import PARITY_ROWS
from microbert_cli.models.cascade.answers import PARTS
from microbert_cli.plan.expected_inputs import ExpectedInputs, ModelInfo
from microbert_cli.plan.phases import ONNX, add_lengths, add_race, add_rows, answer_job
from microbert_cli.plan.stage_cost import Costs
from microbert_cli.plan.work import answering_load
from microbert_cli.runs.stage_inputs import Step

SENT = 0.3  # share of rows that go to the big model: which one the wish leads to, is known only when both have answered


def plan(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
    """Adds the cost of a cascade: both files, and what both models and the whole answer on dev and in a race."""
    recipe = step.resolved.recipe
    data = add_rows(costs, seen, recipe, step.stage.splits_of(recipe, seen.catalog))
    form, answering = recipe.cascade.precision, []
    for part, share in zip(PARTS, (1.0, SENT), strict=True):
        model = seen.model(step.inputs[part], where=f"cascade.{part}").classifying(data.task)
        dev = add_lengths(costs, seen, data, "dev", model)
        costs.open(part, model, "classifier")
        rows = [{"input_ids": [1] * int(length)} for length in dev[:PARITY_ROWS]]
        costs.export(model, rows, {"onnx": True, "int8": form == "int8", "optimize": False}, "int8")
        load = answering_load(dev, batch_size=EVALUATION_BATCH)
        costs.work(f"{part} on dev", answer_job(model), load.times(ONNX[form][0] * (1 + share)))
        add_race(costs, [], model, (form,), dev)
        answering.append((ModelInfo(model.config, model.tokenizer), share))
    costs.plan.notes.append(f"taken: {SENT:.0%} of the rows go to the big model")
    seen.planned_cascades[str(step.out)] = answering
    seen.planned_models[str(step.out)] = answering[0][0]
