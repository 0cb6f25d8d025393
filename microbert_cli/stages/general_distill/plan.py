"""What distillation on plain text costs: counted as run.py does the work."""

from dataclasses import replace

from microbert_cli.data.corpus.blocks import heldout_sample
from microbert_cli.distillation.dual.pair import joint_vocabulary
from microbert_cli.distillation.general import general_terms, required_heads
from microbert_cli.plan.dual import add_projection, add_teacher_steps, dual_terms, extended, student_of
from microbert_cli.plan.expected_inputs import ExpectedInputs, ModelInfo
from microbert_cli.plan.phases import add_corpus, distil_jobs, drawn
from microbert_cli.plan.stage_cost import SMALL, Costs, evaluations
from microbert_cli.plan.work import answering_load
from microbert_cli.recipe.values import Term
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.training.phases import make_plan

HEADS = 4 / 3  # the teacher's head, the student's and its two gradients, over all tokens: 4 forward passes' worth of 3


def plan(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
    """Adds the cost of distillation on plain text."""
    recipe, source = step.resolved.recipe, step.inputs["source"]
    costs.host("identity", SMALL + seen.identify(source))
    teacher = seen.model(step.inputs["teacher"], where="base")
    student = student_of(seen, costs, recipe, step.inputs, teacher)
    joint = joint_vocabulary(teacher.tokenizer, student.tokenizer, teacher.config) if recipe.general.dual.vocabulary else None
    head, head_of_teacher = required_heads(recipe, seen.catalog)
    costs.open("teacher", teacher, head_of_teacher)
    costs.open("student", student, head)
    blocks = seen.blocks(recipe, source, student.tokenizer, joint)
    add_corpus(costs, blocks)
    spec, reference = recipe.general, recipe.normalisation == "reference"
    pad = recipe.corpus.max_length if reference else None
    plan = make_plan("general-distill", spec, blocks.lengths, drop_last=reference, seed=recipe.seed)
    load = drawn(blocks.lengths, spec, plan.steps, recipe.seed, drop_last=reference, pad_to=pad)
    terms = general_terms(recipe, seen.catalog)
    dual = dual_terms(terms)
    # What two vocabularies add is counted by itself: the student's own step is that of the other losses.
    own_losses = {name: term for name, term in spec.losses.items() if name not in {term.name for term in dual.values()}}
    own_spec = spec.model_copy(update={"losses": own_losses or {"masked_lm": Term()}})
    job, ask = distil_jobs(recipe, own_spec, seen.catalog, teacher, student, "encoder")
    if head != "encoder":
        token_head_needs = [term.needs for term in terms if "token_head" in term.needs]
        head_passes = HEADS if any("token_labels" not in needs for needs in token_head_needs) else 0.0
        job = replace(job, head=head, logits=True, predicted=spec.masked, heads=head_passes)
    if spec.layer_by_layer:
        costs.plan.notes.append("layer by layer: counted as if every step went through all layers, which only the last ones do")
    costs.train("distillation", job, load, plan, scored=True, asked=None if joint else (ask, load))
    held_out = answering_load(blocks.held[heldout_sample(len(blocks.held))], batch_size=spec.batch_size).times(
        1 + evaluations(plan)
    )
    costs.work("held-out text", replace(job, kind="judge"), held_out)
    if joint is None:
        costs.work("held-out text: teacher", ask, held_out)
    if joint is not None:
        reading = extended(teacher, joint)
        if "teacher_token_labels" in dual:
            add_teacher_steps(costs, recipe, reading, load, held_out, plan)
        if "weights" in dual:
            add_projection(costs, dual["weights"], reading, student, joint, plan.steps)
    costs.trained(plan.steps, load)
    costs.keep(student, head)
    seen.planned_models[str(step.out)] = ModelInfo(student.config, student.tokenizer)
