"""Costs that several stages share: rows and their lengths, a phase of training, a speed comparison of models."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from microbert_cli.data.batching import evenly_spaced_chunks
from microbert_cli.data.load import load_augmented
from microbert_cli.data.multitask_batching import task_shares
from microbert_cli.data.task_data import TaskData
from microbert_cli.distillation.layer_map import layer_map
from microbert_cli.distillation.teacher_cache import CacheSettings, Layout, cache_budget
from microbert_cli.errors import MbertError
from microbert_cli.evaluation.benchmark import WARMUP_PASSES, WARMUP_ROUNDS
from microbert_cli.evaluation.compare_speed import BATCH_SIZE, PASSES, ROUNDS, ROWS
from microbert_cli.evaluation.linear.fit import linear_baseline
from microbert_cli.evaluation.scoring import EVALUATION_BATCH
from microbert_cli.models.architectures import model_shape
from microbert_cli.models.capture import OutputRequest
from microbert_cli.models.factory import meta_model
from microbert_cli.plan.expected_inputs import ExpectedInputs, ModelInfo
from microbert_cli.plan.stage_cost import SMALL, Costs, evaluations
from microbert_cli.plan.work import Job, Workload, answering_load, at_once, load_of_batches, training_load
from microbert_cli.recipe.phase_data import TRAIN, phase_split, trained_splits
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.values import PhaseSpec, Term, Training
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.training.freeze import parts_of, staged
from microbert_cli.training.loop import LOSS
from microbert_cli.training.loss_terms import LAYERWISE, make_terms, output_request
from microbert_cli.training.phases import make_plan, rows_processed
from microbert_cli.training.plan import shares_of_first_seed

# Of torch's time on batches and on single rows, docs/lab-notes.md; single rows by lower deciles, since torch's medians swayed.
ONNX = {
    "fp32": (0.47, 0.35), "int8": (0.20, 0.17), "fp32-optimized": (0.48, 0.35), "int8-optimized": (0.22, 0.16),
    "q4": (0.30, 0.26), "openvino": (0.40, 0.34),
}  # fmt: skip
BASELINE_ROWS = 4000
Losses = dict[str, tuple[float, dict[str, Any]]]
Spec = TypeVar("Spec", bound=Training)


def asked_once(
    costs: Costs, recipe: Recipe, name: str, spec: PhaseSpec, ask: Job, lengths: np.ndarray, *, in_place: bool = False
) -> bool:
    """Whether the teacher's outputs come from the cache, whose filling is then added once; True too where nothing is asked.

    in_place  they take the place of a chunk's before
    All rows are taken to be distinct.
    """
    if ask.want == OutputRequest():
        return True
    rows_asked = rows_processed(spec, lengths, recipe.seeds) * (2 if getattr(spec, "unfreeze", []) else 1)
    layers = ask.want.hidden | ask.want.scores | ask.want.vectors
    if recipe.cache.teacher == "off" or recipe.teacher.dropout or ask.want.qkv or rows_asked <= len(lengths):
        return False
    if ask.want.hidden | ask.want.scores and recipe.normalisation == "reference":
        return False
    layout = Layout.of_lengths(lengths, ask.want, ask.config, recipe.cache.precision)
    if layers and layout.bytes > cache_budget(CacheSettings(**recipe.cache.model_dump())):
        return False
    in_bfloat16 = costs.machine is None and costs.precision == "bf16"
    costs.work(f"{name}: teacher, once", ask, at_once(lengths, costs.here.device, in_bfloat16=in_bfloat16))
    costs.write(f"{name}: teacher's answers", layout.bytes)
    costs.plan.disk += 0 if in_place else layout.bytes
    return True


def stages_of(name: str, spec: Spec, lengths: np.ndarray, config: Any, *, table: str) -> Iterator[tuple[str, Spec, np.ndarray]]:
    """Yields name, numbers and lengths of rows of every stage of a phase, as `training/freeze.py` makes them."""
    chunks = evenly_spaced_chunks(len(lengths), getattr(spec, "chunk_rows", None))
    parts = parts_of(meta_model(config, "classifier")) if getattr(spec, "unfreeze", []) else []
    for stage, frozen, chunk in staged(name, spec, chunks, parts, where=f"{table}.unfreeze"):
        yield stage, spec.model_copy(update={"freeze": frozen}), lengths[chunk]


def add_phase(
    costs: Costs, name: str, job: Job, spec: Training, lengths: np.ndarray, dev: np.ndarray, seed: int, *,
    first: bool, scored: bool, ask: Job | None = None, pad_to: int | None = None,
) -> None:  # fmt: skip
    """Adds one phase of one seed; the first one tries every learning rate, for all steps or a share of them."""
    drop = pad_to is not None
    shares = shares_of_first_seed(spec) if first else [1.0]
    scorings = 0
    for share in shares:
        plan = make_plan(name, spec, lengths, drop_last=drop, seed=seed, share=share)
        load = drawn(lengths, spec, plan.steps, seed, drop_last=drop, pad_to=pad_to)
        asked = (ask, load) if ask is not None else None
        costs.train(name, job, load, plan, scored=scored, asked=asked, runs=len(shares))
        costs.trained(plan.steps, load)
        scorings += evaluations(plan)
    dev_load = answering_load(dev, batch_size=EVALUATION_BATCH).times(scorings)
    if scored:
        costs.work(f"{name}: dev", answer_job(ModelInfo(job.config, None)), dev_load)
    if getattr(spec, "best_by", "score") == LOSS:
        costs.work(f"{name}: loss on dev", replace(job, kind="judge", rows=EVALUATION_BATCH, freeze=()), dev_load)


def drawn(lengths: np.ndarray, spec: Training, steps: int, seed: int, **padding: Any) -> Workload:
    """Returns the batches that a phase of so many steps will draw."""
    batches, size = steps * spec.accumulate, spec.batch_size
    return training_load(lengths, batches=batches, batch_size=size, tokens=spec.batch_tokens, seed=seed, **padding)


def distil_jobs(
    recipe: Recipe, spec: PhaseSpec, catalog: Catalog, teacher: ModelInfo, student: ModelInfo, head: str
) -> tuple[Job, Job]:
    """Returns two jobs: the student's training steps, and the teacher's forward passes for them."""
    losses = losses_of(spec.losses)
    terms = make_terms(losses, catalog)
    teacher_layers, student_layers = model_shape(teacher.config).layers, model_shape(student.config).layers
    layered = head == "encoder" or any(term.reads_layers for term in terms)
    mapped = head == "encoder" or any(term.over in LAYERWISE for term in terms)
    layers = (
        tuple(layer_map(recipe.layer_map if mapped else "first", teacher_layers=teacher_layers, student_layers=student_layers))
        if layered
        else (0,)
    )
    asking = [term for term in terms if term.asks_teacher]
    want = output_request(asking, layers, range(1, teacher_layers + 1), of_teacher=True)
    logits = output_request(terms, layers).logits
    job = Job("train", student.config, spec.batch_size, head, logits=logits, losses=losses, layers=layers,
              teacher=teacher.config, normalisation=recipe.normalisation, optimizer=spec.optimizer,
              accumulate=spec.accumulate,
              freeze=tuple(spec.freeze))  # fmt: skip
    return job, Job("ask", teacher.config, spec.batch_size, head, logits=want.logits, want=want)


def answer_job(model: ModelInfo, rows: int = EVALUATION_BATCH) -> Job:
    """Returns the job of evaluating a classifier, by batches of `rows` rows."""
    return Job("answer", model.config, rows)


def with_own_steps(parts: Sequence[Step], whole: Step, seen: ExpectedInputs) -> list[Step]:
    """Returns the steps of one task each, with that task's share of each phase's steps; an ensemble's teachers share it.

    Augmented rows are shared as their originals are.
    """
    recipe = whole.resolved.recipe
    rows = [seen.task(part.resolved.recipe, trained_splits(recipe, seen.catalog))[0].rows for part in parts]
    tasks = [part.resolved.recipe.task for part in parts]  # an ensemble has a part for each of its teachers
    steps: list[dict[str, int]] = [{} for _ in parts]
    for name, spec in recipe.run_phases.items():
        sizes = {task: len(splits[phase_split(spec, seen.catalog, splits)]) for task, splits in zip(tasks, rows, strict=True)}
        total = make_plan(name, spec, np.ones(sum(sizes.values()), dtype=np.int64)).steps
        shares = task_shares(list(sizes.values()), recipe.sampling.by, cap=recipe.sampling.cap)
        by_task = dict(zip(sizes, shares, strict=True))
        for number, (task, task_steps) in enumerate(zip(tasks, steps, strict=True)):
            before, members, of_task = tasks[:number].count(task), tasks.count(task), round(total * by_task[task])
            task_steps[name] = max(1, of_task * (before + 1) // members - of_task * before // members)
    return [_for_steps(part, task_steps) for part, task_steps in zip(parts, steps, strict=True)]


def _for_steps(step: Step, steps: dict[str, int]) -> Step:
    recipe = step.resolved.recipe
    phases = {name: spec.model_copy(update={"steps": steps[name]}) for name, spec in recipe.run_phases.items()}
    sizes = [spec.batch_size for spec in phases.values()]
    finetune = recipe.finetune.model_copy(update={"steps": sum(steps.values()), "batch_size": max(sizes), "learning_rates": []})
    task_recipe = recipe.model_copy(update={"phases": phases, "finetune": finetune})
    return replace(step, resolved=replace(step.resolved, recipe=task_recipe))


def losses_of(terms: dict[str, Term]) -> Losses:
    """Returns weights and parameters of the losses whose weight is not 0."""
    return {name: (term.weight, term.parameters) for name, term in terms.items() if term.weight}


def copies_of(seeds: Sequence[int]) -> int:
    """Returns how many models are saved: every seed's, and with several seeds a copy of the best."""
    return len(seeds) + (len(seeds) > 1)


def add_rows(costs: Costs, seen: ExpectedInputs, recipe: Recipe, splits: tuple[str, ...]) -> TaskData:
    """Adds reading the task's rows, and returns them."""
    data, seconds = seen.task(recipe, splits)
    costs.host("reading rows", SMALL + seconds)
    return data


def of_windows(spec: Spec, rows: int, windows: int) -> Spec:
    """Returns the numbers of a phase on rows as those of a phase on their windows: as many steps, of as many windows."""
    if rows == windows or spec.batch_tokens:
        return spec
    share, steps = windows / rows, make_plan("", spec, np.ones(rows, dtype=np.int64)).steps
    sizes = {"batch_size": max(1, round(share * spec.batch_size)), "steps": steps}
    if chunk := getattr(spec, "chunk_rows", None):
        sizes["chunk_rows"] = round(share * chunk)
    return spec.model_copy(update=sizes)


def add_lengths(costs: Costs, seen: ExpectedInputs, data: TaskData, split: str, model: ModelInfo) -> np.ndarray:
    """Adds encoding a split, and returns the lengths of its rows."""
    lengths, seconds = seen.lengths(data, split, model)
    costs.host(f"encoding {split}", seconds)
    return lengths


def add_corpus(costs: Costs, blocks: Any) -> None:
    """Adds making the blocks of a corpus."""
    costs.host("blocks", blocks.seconds)
    costs.plan.disk += blocks.bytes
    costs.plan.notes += [blocks.note] if blocks.note else []


def augmented_lengths(
    step: Step, seen: ExpectedInputs, costs: Costs, data: TaskData, student: ModelInfo, original: np.ndarray
) -> np.ndarray | None:
    """Returns the lengths of augmented rows: counted where they exist, else those of their originals, repeated."""
    directory = step.inputs["augmented"]
    if directory is None:
        return None
    if directory not in seen.augmented:
        rows = {"augmented": load_augmented(Path(directory), data.task)}
        augmented = TaskData(data.task, rows, data.max_length, length_is_given=data.length_is_given, windows=data.windows)
        return add_lengths(costs, seen, augmented, "augmented", student)
    count = round(seen.augmented[directory] * len(original) / len(data.rows[TRAIN]))  # windows of rows
    _, seconds = seen.lengths(data, "train", student)
    costs.host("encoding augmented", seconds * count / len(original))
    return np.resize(original, count)


def add_linear_model(costs: Costs, seen: ExpectedInputs, recipe: Recipe, data: TaskData) -> None:
    """Adds the linear model of a stage that reads no training rows else; nothing where there are none, it is then left out."""
    try:
        trained, seconds = seen.task(recipe, (TRAIN,))
    except MbertError:
        return
    costs.host("reading train", seconds)
    costs.host("linear model", linear_model(costs, TaskData(data.task, {**data.rows, **trained.rows}, data.max_length)))


def linear_model(costs: Costs, data: TaskData) -> float:
    """Returns the seconds of the linear baseline, on at most BASELINE_ROWS rows and scaled."""
    train, dev = data.rows["train"], data.rows["dev"]

    def measure() -> dict[str, Any]:
        sample = train.limit(BASELINE_ROWS)
        started = time.perf_counter()
        linear_baseline(data.task, sample, dev)
        return {"seconds": (time.perf_counter() - started) * len(train) / len(sample)}

    return float(costs.once("linear", [train.fingerprint, dev.fingerprint], measure)["seconds"])


def add_int8_copy(costs: Costs, model: ModelInfo, dev: np.ndarray) -> None:
    """Adds `int8_copy`: writing it, and its answers on dev. One that the cache has already costs less."""
    costs.open("int8 copy: model", model, "classifier")
    costs.int8_copy(model)
    costs.work("int8 copy: dev", answer_job(model), answering_load(dev, batch_size=EVALUATION_BATCH).times(ONNX["int8"][0]))


def add_race(
    costs: Costs,
    entrants: list[ModelInfo],
    exported: ModelInfo | None,
    forms: Sequence[str],
    dev: np.ndarray,
    *,
    copies: Sequence[ModelInfo] = (),
) -> None:
    """Adds `benchmark_models`: batches and single rows, every model in turn; `copies` are models that have an int8 copy."""
    sample = dev[:: max(1, len(dev) // ROWS)][:ROWS]
    batches = answering_load(sample, batch_size=BATCH_SIZE).times(PASSES + WARMUP_PASSES)
    singles = load_of_batches(np.array([length]) for length in sample[: ROUNDS + WARMUP_ROUNDS])
    timed = [(model, (1.0, 1.0)) for model in entrants] + [(model, ONNX["int8"]) for model in copies]
    for model, (batch_factor, single_factor) in timed + [(exported, ONNX[form]) for form in forms if exported is not None]:
        costs.open("race: models", model, "classifier")
        costs.work("race: batches", answer_job(model, BATCH_SIZE), batches.times(batch_factor))
        costs.work("race: single rows", answer_job(model, 1), singles.times(single_factor))
