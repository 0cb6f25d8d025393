"""What an export costs: counted as run.py does the work."""

from microbert_cli.data.task_data import TaskData
from microbert_cli.evaluation.scoring import EVALUATION_BATCH
from microbert_cli.exporting.directory import PARITY_ROWS
from microbert_cli.models.exported.files import export_forms, export_parts
from microbert_cli.plan.expected_inputs import ExpectedInputs, ModelInfo
from microbert_cli.plan.phases import (
    ONNX,
    add_int8_copy,
    add_lengths,
    add_linear_model,
    add_race,
    add_rows,
    answer_job,
)
from microbert_cli.plan.stage_cost import Costs
from microbert_cli.plan.work import answering_load
from microbert_cli.runs.stage_inputs import Step


def plan(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
    """Adds the cost of an export."""
    recipe = step.resolved.recipe
    data = add_rows(costs, seen, recipe, step.stage.splits_of(recipe, seen.catalog))
    answering = seen.answering(step.inputs["model"], where="export.model")
    if len(answering) > 1:
        _plan_cascade(seen, costs, data, answering)
        seen.planned_cascades[str(step.out)] = answering
        seen.planned_models[str(step.out)] = answering[0][0]
        return
    model = seen.model(step.inputs["model"], where="export.model").classifying(data.task)
    dev = add_lengths(costs, seen, data, "dev", model)
    rows = [{"input_ids": [1] * int(length)} for length in dev[:PARITY_ROWS]]
    costs.open("model", model, "classifier")
    parts = export_parts(recipe.export)
    costs.export(model, rows, parts, recipe.export.embeddings)
    forms = export_forms(**parts)
    for factor in (1.0, *(ONNX[form][0] for form in forms)):
        costs.work("dev", answer_job(model), answering_load(dev, batch_size=EVALUATION_BATCH).times(factor))
    teachers = [name for name in (step.inputs["teacher"],) if name]
    entrants = [model] + [seen.model(name, where="teacher").classifying(data.task) for name in teachers]
    add_linear_model(costs, seen, recipe, data)
    for teacher in entrants[1:]:
        add_int8_copy(costs, teacher, dev)
    add_race(costs, entrants, model if forms else None, forms, dev, copies=entrants[1:])
    seen.planned_models[str(step.out)] = ModelInfo(model.config, model.tokenizer)


def _plan_cascade(seen: ExpectedInputs, costs: Costs, data: TaskData, answering: list[tuple[ModelInfo, float]]) -> None:
    """Adds the cost of shipping a cascade: its files are copied, and it answers dev before and after."""
    for info, share in answering:
        model = info.classifying(data.task)
        dev = add_lengths(costs, seen, data, "dev", model)
        costs.open("cascade", model, "classifier")
        costs.keep(model, "classifier")
        load = answering_load(dev, batch_size=EVALUATION_BATCH)
        costs.work("dev", answer_job(model), load.times(2 * share * ONNX["fp32"][0]))
        add_race(costs, [], model, ("fp32",), dev)
