"""The training of one seed: of a teacher that fills in targets, and of a student that writes them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from microbert_cli import distributed
from microbert_cli.distillation.generation.teacher import TOKEN_ACCURACY, Filler, FillingObjective, score_teacher, untie
from microbert_cli.distillation.generation.text_task import TextTask
from microbert_cli.evaluation.generation.text_metrics import signatures
from microbert_cli.evaluation.generation.writing import commonest_text_score, score_writer
from microbert_cli.models.capture import TeacherFunction
from microbert_cli.models.device import choose_precision, pick_device
from microbert_cli.models.generation.vocabulary import FOLDER
from microbert_cli.models.generation.writer import is_lower_case, new_or_loaded
from microbert_cli.models.load import LoadedModel, count_all_parameters
from microbert_cli.models.save import save_model
from microbert_cli.recipe.loss_checks import missing_inputs
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.values import Training
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.training.budget import Budget
from microbert_cli.training.freeze import in_stages, parts_of
from microbert_cli.training.loss_terms import GENERATION_INPUTS, TOKEN_INPUTS, LossTerm, make_terms
from microbert_cli.training.objective import Objective
from microbert_cli.training.phases import ChosenLearningRates, Phase, run_phases

COPIES = 7  # of a dev row, when a teacher is scored
FILLING: dict[str, tuple[float, dict[str, Any]]] = {"masked_lm": (1.0, {})}  # what a teacher is trained by
Make = Callable[[int], LoadedModel]


@dataclass
class TeacherTrainer:
    """Trains a masked-LM to fill in targets, seed after seed, with the learning rate that the first one chose.

    begin   makes the model of a seed, before training
    task_of gives the model of a seed as a teacher, and its task;  target_tokenizer  whose tokens the targets are cut into
    """

    recipe: Recipe
    catalog: Catalog
    begin: Make
    task_of: Callable[[LoadedModel], tuple[Filler, TextTask]]
    target_tokenizer: Any
    reporter: Reporter = SILENT
    choices: ChosenLearningRates = field(default_factory=ChosenLearningRates)
    primary: str = TOKEN_ACCURACY

    def train_one(self, seed: int, directory: Path) -> dict[str, Any]:
        """Trains the model of one seed, saves it in `directory`, and returns its scores on dev."""
        loaded = self.begin(seed)
        untie(loaded.model)
        filler, task = self.task_of(loaded)
        device = pick_device(self.recipe.device)
        numerics = choose_precision(device, **self.recipe.numerics())
        model = numerics.place(loaded.model)
        phase = self.phase(filler, task, seed)
        score = partial(score_teacher, filler, task.filled("dev", filler), partial(task.labels, "dev"), COPIES)
        results, _ = run_phases(
            model,
            list(in_stages([phase], parts_of(model))),
            directory=directory,
            seed=seed,
            pad_id=loaded.tokenizer.pad_token_id,
            device=device,
            score=score,
            primary=self.primary,
            choices=self.choices,
            reporter=self.reporter,
        )
        save_model(model, loaded.tokenizer, directory)
        if distributed.is_main():
            self.target_tokenizer.save_pretrained(directory / FOLDER)
        return {"dev": list(results.values())[-1]["dev"], "phases": results, "parameters": count_all_parameters(model)}

    def phase(self, filler: Filler, task: TextTask, seed: int) -> Phase:
        """Returns the one phase of the teacher's training."""
        spec = self.recipe.finetune
        terms = make_terms(FILLING, self.catalog, available=TOKEN_INPUTS, where="finetune.losses")
        numerics = choose_precision(pick_device(self.recipe.device), **self.recipe.numerics())
        return Phase(
            name="finetune",
            table="finetune",
            training=spec.model_copy(update={"best_by": "score"}),
            rows=task.filled("train", filler),
            learning_rates=spec.learning_rates,
            objective=lambda _: FillingObjective(terms, filler, share=spec.masked, seed=seed, numerics=numerics),
            scored=True,
        )


@dataclass
class WriterTrainer:
    """Trains a student that writes, seed after seed, through phases.

    student   a checkpoint, or a student of the catalogue
    phases    numbers, losses and table of the recipe by name
    ask       makes the function that asks the teacher in a phase: of its name, its losses' objective and its number of rows
    positions of a new student
    """

    recipe: Recipe
    catalog: Catalog
    task: TextTask
    student: str
    phases: Mapping[str, tuple[Training, list[LossTerm], str]]
    ask: Callable[[str, Objective], TeacherFunction | None] = lambda name, objective: None
    reporter: Reporter = SILENT
    work: Path | None = None
    choices: ChosenLearningRates = field(default_factory=ChosenLearningRates)
    started: float = field(default_factory=time.monotonic)

    @property
    def primary(self) -> str:
        """The metric by which the best weights are chosen."""
        return self.task.data.task.primary

    def facts(self) -> dict[str, Any]:
        """Returns what scores of dev are read with: how they were computed, and what the commonest target scores."""
        data, tokenizer = self.task.data, self.task.tokenizer
        return {
            "majority": commonest_text_score(data.task, tokenizer, data.rows["dev"]),
            "signatures": signatures(data.task.metrics, lower=is_lower_case(tokenizer)),
        }

    def load(self, seed: int) -> LoadedModel:
        """Returns the student before training."""
        positions = max(self.task.lengths.source, self.task.lengths.target)
        return new_or_loaded(
            self.student, self.catalog, tokenizer=self.task.tokenizer, seed=seed, where="student", positions=positions
        )

    def train_one(self, seed: int, directory: Path) -> dict[str, Any]:
        """Trains the student of one seed, saves it in `directory`, and returns its scores on dev."""
        loaded, device = self.load(seed), pick_device(self.recipe.device)
        numerics = choose_precision(device, **self.recipe.numerics())
        model = numerics.place(loaded.model)
        task, data = self.task, self.task.data
        score = partial(
            score_writer, data.task, data.rows["dev"], model, task.tokenizer, task.pairs("dev"), most=task.most,
            reporter=self.reporter,
        )  # fmt: skip
        context: dict[str, Any] = {"seed": seed, "pad_id": task.tokenizer.pad_token_id, "device": device, "score": score}
        planned = [stage for name in self.phases for stage in in_stages([self.phase(name)], parts_of(model))]
        if self.recipe.budget is not None and self.work is not None:
            planned = Budget(self.recipe.budget, self.work, self.started, self.reporter).fit(planned, model, **context)
        results, _ = run_phases(
            model, planned, directory=directory, **context, primary=self.primary, choices=self.choices, reporter=self.reporter
        )
        save_model(model, task.tokenizer, directory)
        return {"dev": list(results.values())[-1]["dev"], "phases": results, "parameters": count_all_parameters(model)}

    def phase(self, name: str) -> Phase:
        """Returns a phase of the student's training."""
        spec, terms, table = self.phases[name]
        numerics = choose_precision(pick_device(self.recipe.device), **self.recipe.numerics())
        pairs = self.task.pairs("train")
        by_loss = getattr(spec, "best_by", "score") == "loss"

        def objective(model: Any) -> Objective:
            untaught = Objective(terms, model, numerics=numerics)
            return untaught.with_teacher(self.ask(name, untaught))

        return Phase(
            name=name,
            table=table,
            training=spec,
            rows=pairs,
            learning_rates=getattr(spec, "learning_rates", []),
            objective=objective,
            scored=True,
            dev_loss=self._dev_loss if by_loss else None,
        )

    def _dev_loss(self, objective: Objective) -> float:
        """Returns the loss on dev of what needs no teacher: its answers to dev rows are not kept."""
        pairs = self.task.pairs("dev")
        alone = Objective([term for term in objective.terms if not term.asks_teacher] or objective.terms, objective.student)
        batches = pairs.all_batches(batch_size=64, pad_id=self.task.tokenizer.pad_token_id)
        return alone.mean_loss(batches, None)


def writer_terms(
    losses: Mapping[str, tuple[float, Mapping[str, Any]]], catalog: Catalog, *, where: str, taught: bool
) -> list[LossTerm]:
    """Returns the losses of a student that writes; raises M008 for one that needs what such a student does not show."""
    available = GENERATION_INPUTS | ({"teacher"} if taught else set())
    terms = make_terms(losses, catalog, available=frozenset(available), where=where)
    for term in terms:
        if term.asks_teacher and "top_k" not in term.needs:  # which a teacher that fills in has of the likeliest tokens alone
            raise missing_inputs(f"{where}.{term.name}", ["the teacher's logits"], ", ".join(sorted(GENERATION_INPUTS)))
    return terms
