"""What the report costs: counted as run.py does the work."""

from microbert_cli.models.onnx import onnx_forms
from microbert_cli.plan.expected_inputs import ExpectedInputs
from microbert_cli.plan.phases import add_lengths, add_race, add_rows, export_parts, linear_model
from microbert_cli.plan.stage_cost import Costs
from microbert_cli.runs.stage_inputs import Step


def plan(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
    """Adds the cost of the report."""
    recipe = step.resolved.recipe
    data = add_rows(costs, seen, recipe, step.stage.splits_of(recipe, seen.catalog))
    costs.host("linear model", linear_model(costs, data))
    entrants = [seen.model(path, where=name).classifying(data.task) for name, path in step.inputs["models"].items()]
    exported = seen.model(step.inputs["exported"], where="export") if step.inputs["exported"] else None
    dev = add_lengths(costs, seen, data, "dev", entrants[0])
    add_race(costs, entrants, exported and exported.classifying(data.task), onnx_forms(**export_parts(recipe)), dev)
