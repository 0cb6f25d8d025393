"""What stages of a task of texts cost: a few real steps of their own rows, timed here with random weights, and scaled.

Seconds are those of this machine: of a machine on paper nobody can say them, and FLOPs are not counted.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from microbert_cli.data.batching import epoch_batches
from microbert_cli.data.generation.rows import Lengths
from microbert_cli.data.task_data import TaskData
from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.distillation.generation.teacher import Filler, FillingObjective, FillingTeacher
from microbert_cli.distillation.generation.text_task import TextTask, filler_of, is_filler, texts_of_training
from microbert_cli.distillation.generation.top_cache import TopLayout
from microbert_cli.distillation.generation.trainers import FILLING
from microbert_cli.evaluation.generation.writing import written_texts
from microbert_cli.models.architectures import model_shape
from microbert_cli.models.capture import Batch, ModelOutputs, OutputRequest
from microbert_cli.models.factory import config_parameters
from microbert_cli.models.generation.vocabulary import load_target_tokenizer, vocabulary_of_texts
from microbert_cli.models.generation.writer import student_config
from microbert_cli.plan.expected_inputs import ModelInfo
from microbert_cli.plan.phases import drawn
from microbert_cli.plan.stage_cost import Costs, Part, evaluations
from microbert_cli.plan.work import FLOAT, PROCESS, shape
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.student_shapes import read_student
from microbert_cli.recipe.values import Training
from microbert_cli.training.loss_terms import LossTerm, make_terms, output_request
from microbert_cli.training.objective import Objective
from microbert_cli.training.phases import make_plan
from microbert_cli.training.plan import shares_of_first_seed

TIMED, WARM = 3, 1  # steps
SAMPLE = 16  # rows that are written, or asked about, to see how long it takes
BYTES = 16  # a parameter in training: weight, gradient, two moments


@dataclass(frozen=True)
class PlannedTexts:
    """A task of texts before any weights are there: the teacher's configuration, and the rows of both."""

    filler: Filler
    task: TextTask
    teacher: ModelInfo


def texts_of_teacher(data: TaskData, teacher: ModelInfo, *, where: str) -> PlannedTexts:
    """Returns a teacher with random weights and its task, in the target vocabulary that it has or will have."""
    tokens, config = teacher.tokenizer, teacher.config
    if teacher.directory is not None and is_filler(teacher.directory):
        target = load_target_tokenizer(teacher.directory, where=where)
    else:
        target = vocabulary_of_texts(tokens, config, texts_of_training(data), where=where)
    with torch.random.fork_rng():
        model = AutoModelForMaskedLM.from_config(config)
    filler, task = filler_of(model, tokens, target, data, where=where)
    return PlannedTexts(filler, task, teacher)


def texts_of_writer(data: TaskData, model: ModelInfo) -> TextTask:
    """Returns the task of a student that reads in its own tokens."""
    return TextTask(data, model.tokenizer, Lengths.of(data, model.config, both=False, where="data.max_length"))


def described_writer(name: str, catalog: Catalog, tokenizer: Any, task: TextTask | None = None) -> ModelInfo:
    """Returns a student of the catalogue that writes, with this vocabulary."""
    positions = None if task is None else max(task.lengths.source, task.lengths.target)
    return ModelInfo(student_config(read_student(name, catalog), tokenizer, where="student", positions=positions), tokenizer)


def add_teacher_training(costs: Costs, texts: PlannedTexts, recipe: Recipe, seeds: list[int]) -> None:
    """Adds the fine-tuning of a teacher, and its scores on dev."""
    rows, spec = texts.task.filled("train", texts.filler), recipe.finetune
    terms = make_terms(FILLING, Catalog())

    def objective() -> Objective:
        return FillingObjective(terms, texts.filler, share=spec.masked, seed=0)

    _add_training(costs, "finetune", spec, rows, objective, texts.teacher.config, "masked-lm", seeds)
    dev = texts.task.filled("dev", texts.filler)
    per_token = _extraction_rate(costs, texts, OutputRequest(top_k=1, copies=7))
    scorings = _scorings("finetune", spec, rows, seeds) + len(seeds)
    _add(costs, "dev", per_token * float(dev.lengths.sum()) * scorings)
    costs.keep(texts.teacher, "masked-lm", len(seeds) + (len(seeds) > 1))


def add_writer_training(
    costs: Costs,
    task: TextTask,
    student: ModelInfo,
    phases: Mapping[str, tuple[Training, list[LossTerm]]],
    seeds: list[int],
    recipe: Recipe,
    texts: PlannedTexts | None = None,
) -> None:
    """Adds the phases of a student that writes, its texts on dev, and the answers of a teacher that losses ask."""
    pairs, dev = task.pairs("train"), task.pairs("dev")
    with torch.random.fork_rng():
        model = AutoModelForSeq2SeqLM.from_config(student.config)
    scorings = float(len(seeds))
    for name, (spec, terms) in phases.items():
        request = output_request([term for term in terms if term.asks_teacher], (0,), of_teacher=True)
        if texts is not None and request.top_k:
            _add_answers(costs, name, texts, request, recipe)

        def objective(terms: list[LossTerm] = terms, k: int = request.top_k) -> Objective:
            return Objective(terms, model, ask_teacher=_random_answers(k, len(task.tokenizer)) if k else None)

        _add_training(costs, name, spec, pairs, objective, student.config, "seq2seq", seeds)
        scorings += _scorings(name, spec, pairs, seeds)
    _add(costs, "writing dev", _writing_rate(costs, model, task, student, beams=1) * len(dev) * scorings)
    costs.keep(student, "seq2seq", len(seeds) + (len(seeds) > 1))


def add_writing(costs: Costs, task: TextTask, student: ModelInfo, split: str, *, beams: int) -> None:
    """Adds the texts of a split, by beam search."""
    with torch.random.fork_rng():
        model = AutoModelForSeq2SeqLM.from_config(student.config)
    rows = task.pairs(split)
    _add(costs, f"writing {split}", _writing_rate(costs, model, task, student, beams=beams, split=split) * len(rows))


def _add(costs: Costs, what: str, seconds: float) -> None:
    costs.plan.parts.append(Part(what, seconds if costs.machine is None else None, None))


def _add_answers(costs: Costs, name: str, texts: PlannedTexts, request: OutputRequest, recipe: Recipe) -> None:
    """Adds the extraction of a teacher's answers: once, and their bytes on the disk, of which a note tells."""
    pairs, filled = texts.task.pairs("train"), texts.task.filled("train", texts.filler)
    _add(costs, f"{name}: teacher, once", _extraction_rate(costs, texts, request) * float(filled.lengths.sum()))
    layout = TopLayout.of_targets(pairs.target_lengths, request.top_k, recipe.cache.precision)
    if recipe.cache.teacher != "off":
        costs.write(f"{name}: teacher's answers", layout.bytes)
        costs.plan.disk += layout.bytes
    tokens = int(pairs.target_lengths.sum())
    costs.plan.notes.append(
        f"{name}: {tokens:,} target tokens, each hidden in one of up to {request.copies} copies; k = {request.top_k} of them: "
        f"{layout.bytes / 1e6:.1f} MB in the teacher's cache"
    )


def _add_training(
    costs: Costs,
    name: str,
    spec: Training,
    rows: TokenizedExamples,
    objective: Callable[[], Objective],
    config: Any,
    head: str,
    seeds: list[int],
) -> None:
    def measure() -> dict[str, Any]:
        return {"seconds": _timed_steps(objective(), spec, rows)}

    key = [shape(config), head, spec.batch_size, [int(rows.lengths.sum()), len(rows)]]
    rate = costs.once("text steps", key, measure)["seconds"]
    for number, seed in enumerate(seeds):
        for share in shares_of_first_seed(spec) if number == 0 else [1.0]:
            plan = make_plan(name, spec, rows.lengths, seed=seed, share=share)
            load = drawn(rows.lengths, spec, plan.steps, seed)
            _add(costs, f"{name}: steps", rate * load.tokens)
            costs.trained(plan.steps, load)
    parameters = config_parameters(config, head)
    costs.plan.states[name] = (4 * FLOAT * parameters, 1)
    widest = int(rows.lengths.max(initial=1)) * spec.batch_size
    vocabulary = 3 * FLOAT * widest * model_shape(config).vocabulary
    costs.plan.memory = max(costs.plan.memory, PROCESS + 2 * BYTES * parameters + vocabulary)


def _timed_steps(objective: Objective, spec: Training, rows: TokenizedExamples) -> float:
    """Returns the seconds of a step for each token of its batch, padding included."""
    optimiser = torch.optim.AdamW(objective.student.parameters(), lr=1e-6)
    batches = epoch_batches(rows.lengths, batch_size=spec.batch_size, seed=0, epoch=0, tokens=spec.batch_tokens)
    seconds = tokens = 0.0
    objective.student.train()
    for number, indices in enumerate(batches[: WARM + TIMED]):
        begun = time.perf_counter()
        next(iter(objective.losses(rows.batch(indices))))[1].backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if number >= WARM or len(batches) <= WARM:
            seconds += time.perf_counter() - begun
            tokens += len(indices) * int(rows.lengths[indices].max())
    return seconds / max(1.0, tokens)


def _random_answers(k: int, vocabulary: int) -> Any:
    """Returns a teacher that answers at once, with random tokens."""

    def ask(batch: Batch, request: OutputRequest) -> ModelOutputs:
        shape_BTk = (*batch["labels"].shape, min(k, vocabulary))
        return ModelOutputs(top=(torch.zeros(shape_BTk), torch.randint(vocabulary, shape_BTk)))

    return ask


def _extraction_rate(costs: Costs, texts: PlannedTexts, request: OutputRequest) -> float:
    """Returns the seconds that a teacher takes for each token of its rows, all copies of it together."""
    rows = texts.task.filled("train", texts.filler)

    def measure() -> dict[str, Any]:
        teacher, sample = FillingTeacher(texts.filler, rows), np.arange(len(rows))[:: max(1, len(rows) // SAMPLE)][:SAMPLE]
        batch = rows.batch(sample)
        teacher.top(batch, request)
        begun = time.perf_counter()
        teacher.top(batch, request)
        return {"seconds": (time.perf_counter() - begun) / float(rows.lengths[sample].sum())}

    key = [shape(texts.teacher.config), request.copies, int(rows.lengths.sum()), len(rows)]
    result = costs.once("text extraction", key, measure)["seconds"]
    texts.filler.model.requires_grad_(True)
    return float(result)


def _writing_rate(costs: Costs, model: Any, task: TextTask, student: ModelInfo, *, beams: int, split: str = "dev") -> float:
    """Returns the seconds of a row that is written, as long as the longest target of the split."""
    pairs = task.pairs(split)
    most = int(pairs.target_lengths.max(initial=1))

    def measure() -> dict[str, Any]:
        sample = pairs.take(np.arange(len(pairs))[:: max(1, len(pairs) // SAMPLE)][:SAMPLE])
        begun = time.perf_counter()
        written_texts(model, task.tokenizer, sample, beams=beams, length_penalty=1.0, most=most)
        return {"seconds": (time.perf_counter() - begun) / max(1, len(sample))}

    return float(costs.once("text writing", [shape(student.config), beams, most, len(pairs)], measure)["seconds"])


def _scorings(name: str, spec: Training, rows: TokenizedExamples, seeds: list[int]) -> float:
    """Returns how often a phase is scored on dev, over all seeds."""
    return float(sum(evaluations(make_plan(name, spec, rows.lengths, seed=seed)) for seed in seeds))
