"""What masked-LM training costs: counted as run.py does the work."""

from dataclasses import replace

from microbert_cli.data.corpus.blocks import heldout_sample
from microbert_cli.models import factory
from microbert_cli.plan.expected_inputs import ExpectedInputs, ModelInfo
from microbert_cli.plan.phases import add_corpus, drawn
from microbert_cli.plan.stage_cost import SMALL, Costs, evaluations
from microbert_cli.plan.work import Job, answering_load
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.training.phases import make_plan


def plan(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
    """Adds the cost of masked-LM training."""
    recipe, source, name = step.resolved.recipe, step.inputs["source"], step.inputs["model"]
    costs.host("identity", SMALL + seen.identify(source))
    if recipe.vocabulary.size and factory.is_description(name, seen.catalog):
        tokenizer, seconds = seen.vocabulary(recipe, source)
        costs.host("vocabulary", seconds)
        model = seen.described(name, tokenizer, like=None, where="pretrain.model")
    else:
        model = seen.model(name, where="pretrain.model", tokenizer=step.inputs["tokenizer"])
    blocks = seen.blocks(recipe, source, model.tokenizer)
    add_corpus(costs, blocks)
    costs.open("model", model, "masked-lm")
    spec = recipe.pretrain
    plan = make_plan("pretrain", spec, blocks.lengths, seed=recipe.seed)
    load = drawn(blocks.lengths, spec, plan.steps, recipe.seed)
    job = Job("train", model.config, spec.batch_size, "masked-lm", losses={"masked_lm": (1.0, {})}, predicted=spec.masked,
              optimizer=spec.optimizer, accumulate=spec.accumulate, freeze=tuple(spec.freeze))  # fmt: skip
    costs.train("masked-LM", job, load, plan, scored=True, asked=None)
    held_out = answering_load(blocks.held[heldout_sample(len(blocks.held))], batch_size=spec.batch_size)
    costs.work("held-out text", replace(job, kind="judge"), held_out.times(evaluations(plan)))
    costs.trained(plan.steps, load)
    costs.keep(model, "masked-lm")
    seen.planned_models[str(step.out)] = ModelInfo(model.config, model.tokenizer)
