"""What trimming costs: counted as run.py does the work."""

import time

from microbert_cli.evaluation.scoring import EVALUATION_BATCH
from microbert_cli.models.vocabulary.tokenizer import cut_tokenizer
from microbert_cli.models.vocabulary.weights import cut_config
from microbert_cli.plan.expected_inputs import ExpectedInputs, ModelInfo
from microbert_cli.plan.phases import add_lengths, add_rows, answer_job
from microbert_cli.plan.stage_cost import Costs
from microbert_cli.plan.work import answering_load
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.stages.trim.choose import choose, count_tokens, texts_of


def plan(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
    """Adds the cost of trimming; what comes after it is planned with the smaller vocabulary, of a large corpus by a sample."""
    recipe, splits = step.resolved.recipe, step.stage.splits_of(step.resolved.recipe, seen.catalog)
    model = seen.model(step.inputs["model"], where="trim.model")
    data = add_rows(costs, seen, recipe, splits) if splits else None
    started = time.perf_counter()
    used = count_tokens(model.tokenizer, texts_of(data) if data else [])
    costs.host("counting tokens", 3 * (time.perf_counter() - started))  # counted, then split by both tokenizers
    common = None
    if source := step.inputs.get("source"):
        sample = seen.sample(recipe, source)
        started = time.perf_counter()
        common = count_tokens(model.tokenizer, (text for document in sample.documents for text in document))
        costs.host("corpus", (time.perf_counter() - started) * sample.scale + sample.read_seconds)
    choice = choose(model.tokenizer, model.config, recipe.vocabulary, used, common, where="trim.model")
    config = cut_config(model.config, choice.numbers)
    smaller = ModelInfo(config, cut_tokenizer(model.tokenizer, choice.rules, choice.numbers, config, where="trim.model"))
    head = "classifier" if data else "encoder"
    if data:
        model, smaller = model.classifying(data.task), smaller.classifying(data.task)
        dev = add_lengths(costs, seen, data, "dev", model)
        load = answering_load(dev, batch_size=EVALUATION_BATCH).times(2)
        costs.work("dev", answer_job(model), load)
    costs.open("model", model, head)
    costs.keep(smaller, head)
    costs.plan.notes.append(f"{len(choice.numbers):,} of {len(model.tokenizer):,} tokens stay")
    seen.planned_models[str(step.out)] = smaller
