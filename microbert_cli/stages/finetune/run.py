"""Fine-tunes any encoder on a task's labels: the teacher, or a student without a teacher."""

from pathlib import Path
from typing import Any

from microbert_cli.data.task_data import TaskData, load_task_data
from microbert_cli.evaluation.scoring import EVALUATION_BATCH, majority_of_split, score_split, settle_thresholds
from microbert_cli.models import factory
from microbert_cli.models.device import choose_precision, pick_device, settle_precision
from microbert_cli.models.load import count_all_parameters
from microbert_cli.models.save import save_model
from microbert_cli.models.windows.settings import POOLS, mark_windows
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs.output_dir import stage_output
from microbert_cli.runs.stage_result import StageResult, up_to_date, write_results
from microbert_cli.stages.finetune import STAGE
from microbert_cli.stages.finetune.generation import facts_of_texts, text_trainer
from microbert_cli.training.freeze import in_stages, parts_of
from microbert_cli.training.heads.bias import start_head_bias
from microbert_cli.training.heads.score_units import ScoreUnits
from microbert_cli.training.loss_terms import CLASSIFICATION_INPUTS, check_windows, make_terms
from microbert_cli.training.objective import Objective
from microbert_cli.training.phases import ChosenLearningRates, Phase, run_phases, train_over_seeds


def run(
    recipe: Recipe,
    out: Path,
    *,
    catalog: Catalog,
    model: str,
    tokenizer: str | None = None,
    force: bool = False,
    resume: bool = True,
    renew: bool = False,
    reporter: Reporter = SILENT,
) -> StageResult:
    """Trains on the task's labels and keeps the checkpoint that is best on dev.

    model      a directory, a Hub id, or a student of the catalogue, which then starts from random weights
    tokenizer  whose vocabulary a student of the catalogue gets
    metrics.json: dev scores, majority class, and with several seeds each seed's, their mean and spread.
    """
    data = load_task_data(recipe, catalog, splits=STAGE.splits_of(recipe, catalog), reporter=reporter)
    identity = {
        "recipe": recipe.identity(*STAGE.keys),
        "own_files": catalog.own_files(),
        "model": factory.identify(model, catalog),
        "tokenizer": factory.identify(tokenizer, catalog),
        "data": data.fingerprints(),
    }
    with stage_output(
        out, stage=STAGE.name, identity=identity, force=force, resume=resume, renew=renew, reuse=recipe.reuse, reporter=reporter
    ) as work:
        if work.done:
            return up_to_date(STAGE.name, out)
        seeds, settled = recipe.seeds or [recipe.seed], settle_precision(recipe, work, reporter)
        if data.task.kind.writes:
            writing = text_trainer(settled, catalog, data, model, tokenizer, work.path, reporter)
            train_one, choices, primary = writing.train_one, writing.choices, writing.primary
        else:
            trainer = _Trainer(settled, catalog, data, model, tokenizer, reporter)
            train_one, choices, primary = trainer.train_one, trainer.choices, data.task.primary
        metrics = train_over_seeds(seeds, work.path, primary, train_one, choices, reporter)
        metrics |= {"task": data.task.name, "primary": primary}
        metrics |= facts_of_texts(writing, data) if data.task.kind.writes else {"majority": majority_of_split(data, "dev")}
        return write_results(
            work,
            stage=STAGE.name,
            recipe=recipe.keys(*STAGE.keys),
            metrics=metrics,
            inputs={"model": identity["model"]},
            sources={"model": model},
            data=data.facts(),
            seeds=seeds,
        )


class _Trainer:
    """One seed after the other, with the learning rate that the first one chose."""

    def __init__(self, recipe: Recipe, catalog: Catalog, data: TaskData, model: str, tokenizer: str | None, reporter: Reporter):
        self.recipe, self.catalog, self.data, self.reporter = recipe, catalog, data, reporter
        self.model, self.tokenizer = model, tokenizer
        self.choices = ChosenLearningRates()
        terms = {name: (term.weight, term.parameters) for name, term in recipe.finetune.losses.items()}
        self.terms = make_terms(terms, catalog, available=CLASSIFICATION_INPUTS, where="finetune.losses")
        if data.windows.pool in POOLS:
            check_windows({f"finetune.losses.{term.name}": term for term in self.terms})

    def train_one(self, seed: int, directory: Path) -> dict[str, Any]:
        loaded = factory.classifier(
            self.model, self.catalog, task=self.data.task, seed=seed, tokenizer=self.tokenizer, where="finetune.model"
        )
        start_head_bias(loaded.model, self.data.head_bias)
        mark_windows(loaded.model.config, self.data.windows_for(loaded.model.config, where="finetune.model"))
        rows = self.data.encode("train", loaded, where="finetune.model")
        device = pick_device(self.recipe.device)
        precision = choose_precision(device, **self.recipe.numerics())
        model = precision.place(loaded.model)
        scale, form = self.data.standardisation, self.data.label_form
        units = ScoreUnits(model, {self.data.task.name: scale}, loaded.new)

        def score() -> dict[str, float]:
            with units.plain():
                return score_split(self.data, "dev", model, loaded)

        def dev_loss(objective: Objective) -> float:
            batches = self.data.encode("dev", loaded, where="finetune.model").all_batches(
                batch_size=EVALUATION_BATCH, pad_id=loaded.tokenizer.pad_token_id
            )
            return objective.mean_loss(batches, None)

        phase = Phase(
            name=STAGE.name,
            table="finetune",
            training=self.recipe.finetune,
            rows=rows,
            learning_rates=self.recipe.finetune.learning_rates,
            objective=lambda student: Objective(self.terms, student, standardise=[scale], forms=[form], numerics=precision),
            scored=True,
            dev_loss=dev_loss if self.recipe.finetune.best_by == "loss" else None,
        )
        results, _ = run_phases(
            model,
            list(in_stages([phase], parts_of(model))),
            directory=directory,
            seed=seed,
            pad_id=loaded.tokenizer.pad_token_id,
            device=device,
            score=score,
            primary=self.data.task.primary,
            choices=self.choices,
            reporter=self.reporter,
        )
        units.restore()
        settle_thresholds(self.data, model, loaded)
        save_model(model, loaded.tokenizer, directory)
        last = list(results.values())[-1]
        return {"dev": last["dev"], "phases": results, "parameters": count_all_parameters(model)}
