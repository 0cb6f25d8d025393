"""What the report costs: counted as run.py does the work."""

from microbert_cli.models.exported.files import export_forms, export_parts
from microbert_cli.plan.expected_inputs import ExpectedInputs
from microbert_cli.plan.phases import add_int8_copy, add_lengths, add_race, add_rows, linear_model
from microbert_cli.plan.stage_cost import Costs
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.stages.report import split_tasks


def plan(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
    """Adds the cost of the report, task by task."""
    for part in split_tasks(step):
        _plan_task(part, seen, costs)


def _plan_task(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
    recipe = step.resolved.recipe
    data = add_rows(costs, seen, recipe, step.stage.splits_of(recipe, seen.catalog))
    costs.host("linear model", linear_model(costs, data))
    models, teacher = step.inputs["models"], step.inputs["teacher"]
    students = {name: seen.model(path, where=name).classifying(data.task) for name, path in models.items() if path != teacher}
    teachers = [seen.model(teacher, where="teacher.model").classifying(data.task)] if teacher else []
    entrants = [*students.values(), *teachers]
    exported = seen.model(step.inputs["exported"], where="export") if step.inputs["exported"] else None
    forms = export_forms(**export_parts(recipe.export))
    dev = add_lengths(costs, seen, data, "dev", entrants[0])
    judged = students.get("task-distill") or next(iter(students.values()), None)
    copies = teachers + ([judged] if judged and not (exported and "int8" in forms) else [])
    for model in copies:
        add_int8_copy(costs, model, dev)
    add_race(costs, entrants, exported and exported.classifying(data.task), forms, dev, copies=copies)
