"""What augmentation costs: counted as run.py does the work."""

from dataclasses import replace
from typing import Any

import numpy as np

from microbert_cli.models.capture import OutputRequest
from microbert_cli.plan.augment_sample import try_augmentation, untried
from microbert_cli.plan.expected_inputs import ExpectedInputs, standing_in
from microbert_cli.plan.phases import add_rows
from microbert_cli.plan.stage_cost import Costs
from microbert_cli.plan.work import Job, Workload, shape
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.runs.stage_result import read_metrics

PACKED = 0.5  # bytes of Parquet a character of augmented text


def plan(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
    """Adds the cost of augmentation."""
    from microbert_cli.augmentation.algorithm import settings_of

    recipe, vectors = step.resolved.recipe, step.inputs["vectors"]
    data = add_rows(costs, seen, recipe, step.stage.splits_of(recipe, seen.catalog))
    rows, dev = data.rows["train"], data.rows.get("dev")
    model = seen.model(step.inputs["masked_lm"], where="augment.masked_lm") if step.inputs["masked_lm"] else None
    if model:
        lengths, _ = seen.lengths(data, "train", model)
    else:  # rows are told apart by their words
        lengths = np.array([sum(len(text.split()) for text in texts) for texts in rows.texts])

    def measure() -> dict[str, Any]:
        if model is None:
            return try_augmentation(rows, lengths, model=None, vectors=vectors, settings=settings_of(recipe), dev=dev,
                                    catalog=seen.catalog, device=costs.here.device)  # fmt: skip
        with standing_in(model, "masked-lm") as directory:
            words = str(directory) if vectors == step.inputs["masked_lm"] else vectors
            return try_augmentation(rows, lengths, model=str(directory), vectors=words, settings=settings_of(recipe), dev=dev,
                                    catalog=seen.catalog, device=costs.here.device)  # fmt: skip

    of_model = (str(model.directory), shape(model.config)) if model else ("", "")
    prints = [split.fingerprint for split in (rows, dev) if split]
    key = [*prints, of_model[0], str(vectors), recipe.keys("augment", "vectors", "seed"), of_model[1]]
    facts = untried(len(rows), recipe.augment.copies) if costs.here.counts_only else costs.once("augment", key, measure)
    load = Workload({(rows, length): number for rows, length, number in facts["shapes"]}, facts["useful"])
    costs.host("model and vectors", facts["load_seconds"])
    if model:
        job = Job("ask", model.config, recipe.augment.batch_size, "masked-lm", want=OutputRequest(token_logits=True))
        costs.work("queries", replace(job, predicted=load.rows / max(1.0, load.useful)), load)
        if costs.machine is None:  # timed together with the work around it, in the batches that are really asked
            costs.plan.parts[-1] = replace(costs.plan.parts[-1], seconds=facts["model_seconds"])
    costs.host("words and copies", facts["other_seconds"])
    costs.plan.tokens, costs.plan.useful = round(load.tokens), round(load.useful)
    count = read_metrics(step.out)["rows_out"] if costs.plan.state == "done" else round(facts["rows_out"])
    characters = sum(len(text) for texts in rows.texts for text in texts) / len(rows)
    costs.plan.disk += round(count * characters * PACKED)
    costs.plan.notes.append(f"{count:,} rows out" + ("" if costs.plan.state == "done" else f", by {facts['rows_tried']} tried"))
    if recipe.augment.precision == "int8":
        costs.plan.notes.append("seconds are those of float32; with int8 it takes less")
    seen.augmented[str(step.out)] = count
