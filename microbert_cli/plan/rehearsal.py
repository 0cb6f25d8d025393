"""A few real steps of a job, timed: the architecture itself with random weights, the loop itself, made-up token ids.

Shapes take turns, A B C A B C, so that a change of the machine's speed meets all of them. The first rounds warm up, and
the median of the others counts.
"""

import copy
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from microbert_cli.data.corpus.masking import mask_batch
from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.distillation.teacher import Teacher
from microbert_cli.evaluation.scoring import logits_of
from microbert_cli.models.architectures import model_shape
from microbert_cli.models.capture import Batch, ModelOutputs, OutputRequest, show_scores
from microbert_cli.models.device import PLAIN, Precision
from microbert_cli.models.load import LoadedModel, class_of
from microbert_cli.models.words.head import name_class
from microbert_cli.plan.work import Job, Shape
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.task_kinds import LabelForm, answers_words, kind_of_model
from microbert_cli.training.loop import train
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.objective import Objective
from microbert_cli.training.plan import TrainingPlan

BUDGET = 1.0  # seconds of measured steps a job, after the warm-up
WARM = 2  # rounds; one is enough where it takes longer than the budget
FEWEST, MOST = 3, 30  # rounds that count
FIRST = 10  # token ids below are special ones
SPREAD = 10.0  # of a random masked-LM's output: trained ones answer with logits that far apart


class _Enough(Exception):
    """Ends the training loop when enough steps were timed."""


class _MadeUp:
    """The part of a tokenizer that masking reads."""

    all_special_ids = (0, 1, 2, 3, 4)
    mask_token_id = 4

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size


def rehearse(
    job: Job, shapes: Sequence[Shape], *, catalog: Catalog, device: str, budget: float = BUDGET, numerics: Precision = PLAIN
) -> dict[Shape, float]:
    """Returns the seconds of a batch (of a training job: a step) of every shape, (rows, padded length)."""
    torch.manual_seed(0)
    model = random_model(job.config, job.head).to(device)
    if job.kind == "train":
        return _steps(job, model, shapes, catalog, device, budget, numerics)
    return _calls(_call(job, model, catalog, device, numerics), job, shapes, device, budget)


def random_model(config: Any, head: str) -> Any:
    """Returns a model with random weights; the logits of a masked-LM are spread as widely as those of a trained one."""
    model = class_of(head, config).from_config(copy.deepcopy(config), dtype=torch.float32)
    name_class(model)
    show_scores(model)
    if head == "masked-lm" and (output := model.get_output_embeddings()) is not None:
        with torch.no_grad():
            output.weight *= SPREAD
    return model


def _steps(
    job: Job, model: Any, shapes: Sequence[Shape], catalog: Catalog, device: str, budget: float, numerics: Precision
) -> dict[Shape, float]:
    answers: dict[Shape, ModelOutputs] = {}
    objective = _objective(job, model, catalog, lambda batch, _: answers[tuple(batch["input_ids"].shape)], numerics).to(device)
    clock = _Clock(shapes, budget)

    def batches(skip: int) -> Iterator[Batch]:
        rows = {shape: _rows(shape, job.config) for shape in shapes}
        for shape in shapes if job.teacher is not None else ():
            answers[shape] = _answer(shape, objective.teacher_request, job.teacher, device)
        while True:
            shape = clock.next()
            for number in range(job.accumulate):
                yield _batch(job, rows[shape], number, device)

    plan = TrainingPlan("rehearsal", 10**9, 1e-5, optimizer=job.optimizer, accumulate=job.accumulate, checkpoint_seconds=1e9,
                        freeze=job.freeze)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(objective, batches, plan, directory=Path(folder), seed=0)
        except _Enough:
            return clock.medians()
    raise AssertionError("the loop came to an end before the clock did")


class _Clock:
    """Yields shapes in turn, and records how long it took until the next one was asked for."""

    def __init__(self, shapes: Sequence[Shape], budget: float):
        self.shapes, self.budget = list(shapes), budget
        self.seconds: dict[Shape, list[float]] = defaultdict(list)
        self.round, self.place, self.warm = 0, 0, WARM
        self.started, self.spent, self.counted = 0.0, 0.0, 0.0

    def next(self) -> Shape:
        """Returns the next shape; raises _Enough when the rounds wanted are done."""
        now = time.perf_counter()
        if self.place:
            self._note(now - self.started)
        if self.place == len(self.shapes):
            self.place, self.round = 0, self.round + 1
            self.warm = 1 if self.round == 1 and self.spent > self.budget else self.warm
            if self._done():
                raise _Enough
        self.place += 1
        self.started = time.perf_counter()
        return self.shapes[self.place - 1]

    def _note(self, seconds: float) -> None:
        self.spent += seconds
        if self.round >= self.warm:
            self.seconds[self.shapes[self.place - 1]].append(seconds)
            self.counted += seconds

    def _done(self) -> bool:
        rounds = self.round - self.warm
        return rounds >= MOST or (rounds >= FEWEST and self.counted >= self.budget)

    def medians(self) -> dict[Shape, float]:
        return {shape: statistics.median(seconds) for shape, seconds in self.seconds.items()}


def _calls(
    call: Callable[[TokenizedExamples], object], job: Job, shapes: Sequence[Shape], device: str, budget: float
) -> dict[Shape, float]:
    rows = {shape: _rows(shape, job.config) for shape in shapes}
    clock = _Clock(shapes, budget)
    try:
        while True:
            call(rows[clock.next()])
            if device.startswith("cuda"):
                torch.cuda.synchronize()
    except _Enough:
        return clock.medians()


def _call(job: Job, model: Any, catalog: Catalog, device: str, numerics: Precision) -> Callable[[TokenizedExamples], object]:
    if job.kind == "answer":
        return lambda rows: logits_of(model, rows, pad_id=0, batch_size=len(rows))
    if job.kind == "ask":
        teacher = Teacher(LoadedModel(model, None, "rehearsal", []))

        def ask(rows: TokenizedExamples) -> None:
            with numerics.forward():
                teacher.ask(_batch(job, rows, 0, device), job.want)

        return ask
    teacher_outputs: dict[tuple[int, ...], ModelOutputs] = {}

    def kept(batch: Batch, _: OutputRequest) -> ModelOutputs:
        return teacher_outputs[tuple(batch["input_ids"].shape)]

    objective = _objective(job, model, catalog, kept, numerics).to(device)
    model.eval()

    def judge(rows: TokenizedExamples) -> None:
        batch = _batch(job, rows, 0, device)
        shape = tuple(batch["input_ids"].shape)
        if job.teacher is not None and shape not in teacher_outputs:
            teacher_outputs[shape] = _answer((shape[0], shape[1]), objective.teacher_request, job.teacher, device)
        with torch.no_grad():
            for _, loss, _ in objective.losses(batch):
                loss.item()

    return judge


def _objective(job: Job, model: Any, catalog: Catalog, ask: Any, numerics: Precision) -> Objective:
    kind = kind_of_model(job.config)
    return Objective(
        make_terms(job.losses, catalog),
        model,
        ask_teacher=ask if job.teacher is not None else None,
        map_layers=job.layers,
        student_width=model_shape(job.config).width,
        teacher_width=model_shape(job.teacher).width if job.teacher is not None else 0,
        teacher_layers=model_shape(job.teacher).layers if job.teacher is not None else 0,
        classes=job.config.num_labels,
        forms=[LabelForm(kind.independent, kind.of_words)],
        normalisation=job.normalisation,
        numerics=numerics,
    )


def _rows(shape: Shape, config: Any) -> TokenizedExamples:
    """Returns random rows; every other one is a token short, so that there is padding to be masked."""
    count, length = shape
    generator = np.random.default_rng(0)
    lengths = np.array([max(1, length - number % 2) for number in range(count)])
    total, vocabulary = int(lengths.sum()), model_shape(config).vocabulary
    of_words = answers_words(config)  # each of whose tokens begins one here
    labels = kind_of_model(config).random_labels(generator, total if of_words else count)
    return TokenizedExamples(
        ids=generator.integers(min(FIRST, vocabulary - 1), vocabulary, size=total).astype(np.int32),
        types=np.zeros(total, np.int8),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        labels=labels,
        words=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]) if of_words else None,
        augmented=np.zeros(count, bool),
    )


def _batch(job: Job, rows: TokenizedExamples, number: int, device: str) -> Batch:
    batch: Mapping[str, torch.Tensor] = rows.batch(np.arange(len(rows)))
    if job.predicted:
        batch = mask_batch(dict(batch), _MadeUp(model_shape(job.config).vocabulary), share=job.predicted, seed=0, number=number)
    batch = {**batch, "unrelated": torch.zeros(len(rows), dtype=torch.long)}
    return {name: value.to(device) for name, value in batch.items()}


def _answer(shape: Shape, want: OutputRequest, config: Any, device: str) -> ModelOutputs:
    """Returns random outputs of a teacher, of the shapes that the losses ask for."""
    B, T = shape
    sizes = model_shape(config)
    A, d = sizes.heads or 1, sizes.width
    queries, keys, values = torch.randn(3, B, A, T, sizes.head_width, device=device)
    return ModelOutputs(
        logits=torch.randn(*((B, T) if answers_words(config) else (B,)), config.num_labels, device=device)
        if want.logits
        else None,
        hidden={
            layer: torch.randn(B, 1 if layer in want.vectors else T, d, device=device) for layer in want.hidden | want.vectors
        },
        scores={layer: torch.randn(B, A, T, T, device=device) for layer in want.scores},
        token_head=torch.nn.Linear(d, sizes.vocabulary, device=device) if want.token_head else None,
        qkv=dict.fromkeys(want.qkv, (queries, keys, values)),
    )
