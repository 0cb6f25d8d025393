"""What masked-LM training costs: counted as run.py does the work."""

from dataclasses import replace

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
        known = seen.described(name, tokenizer, like=None, where="pretrain.model")
    else:
        known = seen.model(name, where="pretrain.model", tokenizer=step.inputs["tokenizer"])
    cut = seen.blocks(recipe, source, known.tokenizer)
    add_corpus(costs, cut)
    costs.open("model", known, "masked-lm")
    spec = recipe.pretrain
    plan = make_plan("pretrain", spec, cut.lengths, seed=recipe.seed)
    load = drawn(cut.lengths, spec, plan.steps, recipe.seed)
    job = Job("train", known.config, spec.batch_size, "masked-lm", losses={"masked_lm": (1.0, {})}, predicted=spec.masked,
              optimizer=spec.optimizer, accumulate=spec.accumulate)  # fmt: skip
    costs.train("masked-LM", job, load, plan, scored=True, asked=None)
    held = answering_load(cut.held, batch_size=spec.batch_size)
    costs.work("held-out text", replace(job, kind="judge"), held.times(evaluations(plan)))
    costs.trained(plan.steps, load)
    costs.keep(known, "masked-lm")
    seen.made[str(step.out)] = ModelInfo(known.config, known.tokenizer)
