"""What every stage of a recipe will cost, before it runs: each function here mirrors what its stage does.

Steps, rows, padded tokens and FLOPs are counted from the batches that the loop will draw; seconds are those of a calibration
of this machine, or of a machine on paper.
"""

import json
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from microbert_cli.distillation.general import general_terms, required_heads
from microbert_cli.errors import Exit, MbertError
from microbert_cli.models import factory
from microbert_cli.models.capture import OutputRequest
from microbert_cli.models.onnx import onnx_forms
from microbert_cli.plan.augment_sample import try_augmentation, untried
from microbert_cli.plan.calibration import Calibration
from microbert_cli.plan.expected_inputs import ExpectedInputs, ModelInfo, standing_in
from microbert_cli.plan.hardware import Hardware
from microbert_cli.plan.phases import (
    DEV_BATCH,
    ONNX,
    add_corpus,
    add_lengths,
    add_phase,
    add_race,
    add_rows,
    answer_job,
    asked_once,
    augmented_lengths,
    copies_of,
    distil_jobs,
    drawn,
    linear_model,
    losses_of,
    runs_of,
    with_own_steps,
)
from microbert_cli.plan.stage_cost import SMALL, Costs, StagePlan, evaluations
from microbert_cli.plan.work import Job, Workload, answering_load, shape
from microbert_cli.recipe.phase_data import AUGMENTED, SELECTED_BY, TRAIN, phase_split, trained_splits, unused_transfer_note
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs.manifest import FILE, partial_path
from microbert_cli.runs.reuse import matching_output
from microbert_cli.runs.stage_inputs import Step, split_by_task
from microbert_cli.runs.stage_result import read_metrics
from microbert_cli.training.phases import make_plan

HEADS = 4 / 3  # the teacher's head, the student's and its two gradients, over all tokens: 4 forward passes' worth of 3
PACKED = 0.5  # bytes of Parquet a character of augmented text


def plan_steps(
    steps: Sequence[Step],
    *,
    catalog: Catalog,
    here: Calibration,
    machine: Hardware | None = None,
    reporter: Reporter = SILENT,
) -> list[StagePlan]:
    """The plan of every stage, in order. A stage whose inputs are not at hand is listed with the reason.

    here     prices of this machine;  machine: one on paper, for everything an accelerator does
    Raises an input's error if nothing at all can be planned.
    """
    seen = ExpectedInputs(catalog, here, reporter)
    plans: list[StagePlan] = []
    missing: list[MbertError] = []
    anew: set[str] = set()
    for step in steps:
        plan = StagePlan(step.name, step.kind, state(step))
        if plan.state == "new" and (source := _copied_from(step, anew)):
            plan.state = "copied"
            plan.notes.append(f"copied from {source}, where it was made of the same inputs")
        if not plan.is_done:
            anew.add(str(step.out))
        try:
            PLANNERS[step.kind](step, seen, Costs(plan, here, machine))
            plan.parts = [part for part in plan.parts if part.flops or part.seconds is None or part.seconds > 0]
        except MbertError as error:
            if error.exit_code != Exit.INPUT:
                raise
            missing.append(error)
            plan.unknown = str(error)
        plans.append(plan)
    if missing and len(missing) == len(plans):
        raise missing[0]
    return plans


def state(step: Step) -> str:
    """new, begun, done, or changed: done by a recipe that said something else."""
    if not (step.out / FILE).is_file():
        return "begun" if partial_path(step.out).is_dir() else "new"
    try:
        before = json.loads((step.out / FILE).read_text(encoding="utf-8"))["identity"]["recipe"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return "changed"
    return "done" if before == _recorded(step) else "changed"


def _copied_from(step: Step, anew: Container[str]) -> Path | None:
    """Where another run made the like (`reuse`); of `anew`, what this run has yet to make, nothing is copied."""
    if any(place in anew for place in step.places.values()):
        return None
    return matching_output(step.resolved.recipe.reuse, step.kind, _recorded(step))


def _recorded(step: Step) -> Any:
    """The recipe keys that decide a stage's output, as its manifest has them."""
    keys = import_module(f"microbert_cli.stages.{step.kind.replace('-', '_')}").KEYS
    return json.loads(json.dumps(step.resolved.recipe.identity(*keys)))


def _pretrain(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
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


def _general(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
    recipe, source = step.resolved.recipe, step.inputs["source"]
    costs.host("identity", SMALL + seen.identify(source))
    teacher = seen.model(step.inputs["teacher"], where="base")
    name = step.inputs["student"]
    student = seen.model(name, where="student", tokenizer=step.inputs["teacher"], like=teacher.config)
    head, head_of_teacher = required_heads(recipe, seen.catalog)
    costs.open("teacher", teacher, head_of_teacher)
    costs.open("student", student, head)
    cut = seen.blocks(recipe, source, student.tokenizer)
    add_corpus(costs, cut)
    spec, reference = recipe.general, recipe.normalisation == "reference"
    pad = recipe.corpus.max_length if reference else None
    plan = make_plan("general-distill", spec, cut.lengths, drop_last=reference, seed=recipe.seed)
    load = drawn(cut.lengths, spec, plan.steps, recipe.seed, drop_last=reference, pad_to=pad)
    job, ask = distil_jobs(recipe, spec, seen.catalog, teacher, student, "encoder")
    if head != "encoder":
        wordy = [term.needs for term in general_terms(recipe, seen.catalog) if "token_head" in term.needs]
        often = HEADS if any("token_labels" not in needs for needs in wordy) else 0.0
        job = replace(job, head=head, logits=True, predicted=spec.masked, heads=often)
    if spec.layer_by_layer:
        costs.plan.notes.append("layer by layer: counted as if every step went through all layers, which only the last ones do")
    costs.train("distillation", job, load, plan, scored=True, asked=(ask, load))
    held = answering_load(cut.held, batch_size=spec.batch_size).times(1 + evaluations(plan))
    costs.work("held-out text", replace(job, kind="judge"), held)
    costs.work("held-out text: teacher", ask, held)
    costs.trained(plan.steps, load)
    costs.keep(student, head)
    seen.made[str(step.out)] = ModelInfo(student.config, student.tokenizer)


def _finetune(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
    recipe = step.resolved.recipe
    data = add_rows(costs, seen, recipe, ("train", "dev"))
    known = seen.model(step.inputs["model"], where="finetune.model", tokenizer=step.inputs["tokenizer"])
    known = known.classifying(data.task)
    lengths, dev = (add_lengths(costs, seen, data, split, known) for split in ("train", "dev"))
    spec = recipe.finetune
    losses = losses_of(spec.losses)
    job = Job("train", known.config, spec.batch_size, losses=losses, optimizer=spec.optimizer, accumulate=spec.accumulate)
    seeds = recipe.seeds or [recipe.seed]
    costs.open("model", known, "classifier", times=len(seeds))
    for number, seed in enumerate(seeds):
        add_phase(costs, "labels", job, spec, lengths, dev, seed, runs=runs_of(spec.learning_rates, number), scored=True)
    costs.keep(known, "classifier", copies_of(seeds))
    seen.made[str(step.out)] = ModelInfo(known.config, known.tokenizer)


def _task_distill(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
    """Of several tasks or teachers: each task by itself, for the steps that are its share."""
    parts = split_by_task(step)
    if parts == [step]:
        _one_task(step, seen, costs)
        return
    for part in with_own_steps(parts, step, seen):
        _one_task(part, seen, costs) if part.kind == step.kind else _finetune(part, seen, costs)


def _one_task(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
    recipe = step.resolved.recipe
    data = add_rows(costs, seen, recipe, trained_splits(recipe, seen.catalog))
    costs.plan.notes += filter(None, [unused_transfer_note(recipe, seen.catalog)])
    source = step.inputs["teacher"]
    teacher = seen.model(source, where="teacher.model").classifying(data.task)
    student = seen.model(step.inputs["student"], where="student", tokenizer=source, like=teacher.config).classifying(data.task)
    found = {split: add_lengths(costs, seen, data, split, student) for split in data.rows}
    dev = found[SELECTED_BY]
    if (augmented := augmented_lengths(step, seen, costs, data, student, found[TRAIN])) is not None:
        found[AUGMENTED] = augmented
    seeds = recipe.seeds or [recipe.seed]
    costs.open("teacher", teacher, "classifier")
    costs.open("student", student, "classifier", times=1 + len(seeds))
    costs.work("examination of the teacher", answer_job(teacher), answering_load(dev, batch_size=DEV_BATCH))
    kept: dict[str, bool] = {}
    for number, seed in enumerate(seeds):
        for name, spec in recipe.run_phases.items():
            rows = found[phase_split(spec, seen.catalog, found)]
            job, ask = distil_jobs(recipe, spec, seen.catalog, teacher, student, "classifier")
            runs = runs_of(spec.learning_rates, number)
            if number == 0:
                kept[name] = asked_once(costs, recipe, name, spec, ask, rows)
            pad = data.max_length if recipe.normalisation == "reference" else None
            add_phase(costs, name, job, spec, rows, dev, seed, runs=runs, scored=job.logits, ask=None if kept[name] else ask,
                      pad_to=pad)  # fmt: skip
        costs.work("dev", answer_job(student), answering_load(dev, batch_size=DEV_BATCH))
    costs.keep(student, "classifier", copies_of(seeds))
    seen.made[str(step.out)] = ModelInfo(student.config, student.tokenizer)


def _augment(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
    from microbert_cli.augmentation.algorithm import settings_of

    recipe, vectors = step.resolved.recipe, step.inputs["vectors"]
    data = add_rows(costs, seen, recipe, ("train",))
    known = seen.model(step.inputs["masked_lm"], where="augment.masked_lm")
    rows = data.rows["train"]
    lengths, _ = seen.lengths(data, "train", known)

    def measure() -> dict[str, Any]:
        with standing_in(known, "masked-lm") as directory:
            words = str(directory) if vectors == step.inputs["masked_lm"] else vectors
            return try_augmentation(rows, lengths, model=str(directory), vectors=words, settings=settings_of(recipe),
                                    catalog=seen.catalog, device=costs.here.device)  # fmt: skip

    key = [rows.fingerprint, str(known.directory), str(vectors), recipe.keys("augment", "vectors", "seed"), shape(known.config)]
    found = untried(len(rows), recipe.augment.copies) if costs.here.counts_only else costs.once("augment", key, measure)
    load = Workload({(rows, length): number for rows, length, number in found["shapes"]}, found["useful"])
    job = Job("ask", known.config, recipe.augment.batch_size, "masked-lm", want=OutputRequest(token_logits=True))
    job = replace(job, predicted=load.rows / max(1.0, load.useful))
    costs.host("model and vectors", found["load_seconds"])
    costs.work("queries", job, load)
    if costs.machine is None:  # timed together with the work around it, in the batches that are really asked
        costs.plan.parts[-1] = replace(costs.plan.parts[-1], seconds=found["model_seconds"])
    costs.host("words and copies", found["other_seconds"])
    costs.plan.tokens, costs.plan.useful = round(load.tokens), round(load.useful)
    count = read_metrics(step.out)["rows_out"] if costs.plan.state == "done" else round(found["rows_out"])
    characters = sum(len(text) for texts in rows.texts for text in texts) / len(rows)
    costs.plan.disk += round(count * characters * PACKED)
    costs.plan.notes.append(f"{count:,} rows out" + ("" if costs.plan.state == "done" else f", by {found['rows_tried']} tried"))
    seen.augmented[str(step.out)] = count


def _evaluate(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
    from microbert_cli.data.load import default_splits
    from microbert_cli.data.task_data import find_task

    recipe = step.resolved.recipe
    splits = recipe.evaluate.splits or default_splits(find_task(recipe, seen.catalog))
    data = add_rows(costs, seen, recipe, tuple(splits))
    for role in ("model", "teacher"):
        if not (name := step.inputs.get(role)):
            continue
        known = seen.model(name, where=f"evaluate.{role}").classifying(data.task)
        costs.open(role, known, "classifier")
        for split in splits:
            lengths = add_lengths(costs, seen, data, split, known)
            size = recipe.evaluate.batch_size
            costs.work(f"{role} on {split}", answer_job(known, size), answering_load(lengths, batch_size=size))


def _export(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
    recipe = step.resolved.recipe
    data = add_rows(costs, seen, recipe, ("dev",))
    known = seen.model(step.inputs["model"], where="export.model").classifying(data.task)
    dev = add_lengths(costs, seen, data, "dev", known)
    rows = [{"input_ids": [1] * int(length)} for length in dev[:256]]
    costs.open("model", known, "classifier")
    parts = _export_parts(recipe)
    costs.export(known, rows, parts)
    made = onnx_forms(**parts)
    for factor in (1.0, *(ONNX[form][0] for form in made)):
        costs.work("dev", answer_job(known), answering_load(dev, batch_size=DEV_BATCH).times(factor))
    others = [name for name in (step.inputs["teacher"],) if name]
    entrants = [known] + [seen.model(name, where="teacher").classifying(data.task) for name in others]
    add_race(costs, entrants, known if made else None, made, dev)
    seen.made[str(step.out)] = ModelInfo(known.config, known.tokenizer)


def _report(step: Step, seen: ExpectedInputs, costs: Costs) -> None:
    recipe = step.resolved.recipe
    data = add_rows(costs, seen, recipe, ("train", "dev"))
    costs.host("linear model", linear_model(costs, data))
    entrants = [seen.model(path, where=name).classifying(data.task) for name, path in step.inputs["models"].items()]
    exported = seen.model(step.inputs["exported"], where="export") if step.inputs["exported"] else None
    dev = add_lengths(costs, seen, data, "dev", entrants[0])
    add_race(costs, entrants, exported and exported.classifying(data.task), onnx_forms(**_export_parts(recipe)), dev)


def _export_parts(recipe: Recipe) -> dict[str, bool]:
    return {"onnx": recipe.export.onnx, "int8": recipe.export.int8, "optimize": recipe.export.optimize}


PLANNERS: dict[str, Callable[[Step, ExpectedInputs, Costs], None]] = {
    "pretrain": _pretrain,
    "finetune": _finetune,
    "general-distill": _general,
    "augment": _augment,
    "task-distill": _task_distill,
    "evaluate": _evaluate,
    "export": _export,
    "report": _report,
}
