"""Fine-tunes any encoder on a task's labels: the teacher, or a student without a teacher."""

from pathlib import Path
from typing import Any

from microbert_cli import checkpoint, models, numerics, places
from microbert_cli.catalog import Catalog
from microbert_cli.objective import Objective
from microbert_cli.output import working
from microbert_cli.phases import Choices, Phase, over_seeds, run_phases
from microbert_cli.recipe import NUMERICS, Recipe
from microbert_cli.stage import StageResult, sign, up_to_date
from microbert_cli.task_rows import TaskRows, open_task
from microbert_cli.terms import ANSWERED, make_terms
from microbert_cli.tracking import SILENT, Talk

NAME = "finetune"
KEYS = ("task", "data", "finetune", "seed", "seeds", *NUMERICS)


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
    talk: Talk = SILENT,
) -> StageResult:
    """Trains on the task's labels and keeps the checkpoint that is best on dev.

    model      a directory, a Hub id, or a student of the catalogue, which then starts from random weights
    tokenizer  whose vocabulary a student of the catalogue gets
    metrics.json: dev scores, majority class, and with several seeds each seed's, their mean and spread.
    """
    data = open_task(recipe, catalog, splits=("train", "dev"), talk=talk)
    identity = {
        "recipe": recipe.identity(*KEYS),
        "own_files": catalog.own_files(),
        "model": places.identify(model, catalog),
        "tokenizer": places.identify(tokenizer, catalog),
        "data": data.fingerprints(),
    }
    with working(
        out, stage=NAME, identity=identity, force=force, resume=resume, renew=renew, reuse=recipe.reuse, talk=talk
    ) as work:
        if work.done:
            return up_to_date(NAME, out)
        seeds = recipe.seeds or [recipe.seed]
        trainer = _Trainer(recipe, catalog, data, model, tokenizer, talk)
        metrics = over_seeds(seeds, work.path, data.task.primary, trainer.train_one, trainer.choices, talk)
        metrics |= {"task": data.task.name, "primary": data.task.primary, "majority": data.majority("dev")}
        return sign(
            work,
            stage=NAME,
            recipe=recipe.keys(*KEYS),
            metrics=metrics,
            inputs={"model": identity["model"]},
            sources={"model": model},
            data=data.facts(),
            seeds=seeds,
        )


class _Trainer:
    """One seed after the other, with the learning rate that the first one chose."""

    def __init__(self, recipe: Recipe, catalog: Catalog, data: TaskRows, model: str, tokenizer: str | None, talk: Talk):
        self.recipe, self.catalog, self.data, self.talk = recipe, catalog, data, talk
        self.model, self.tokenizer = model, tokenizer
        self.choices = Choices()
        terms = {name: (term.weight, term.parameters) for name, term in recipe.finetune.losses.items()}
        self.terms = make_terms(terms, catalog, given=ANSWERED, where="finetune.losses")

    def train_one(self, seed: int, place: Path) -> dict[str, Any]:
        loaded = places.classifier(
            self.model, self.catalog, task=self.data.task, seed=seed, tokenizer=self.tokenizer, where="finetune.model"
        )
        rows = self.data.encode("train", loaded, where="finetune.model")
        device = places.device(self.recipe.device)
        how = numerics.choose(device, **self.recipe.numerics())
        model = how.place(loaded.model)
        phase = Phase(
            name=NAME,
            training=self.recipe.finetune,
            rows=rows,
            learning_rates=self.recipe.finetune.learning_rates,
            objective=lambda student: Objective(self.terms, student, numerics=how),
            scored=True,
        )
        results, _ = run_phases(
            model,
            [phase],
            directory=place,
            seed=seed,
            pad_id=loaded.tokenizer.pad_token_id,
            device=device,
            score=lambda: self.data.score("dev", model, loaded),
            primary=self.data.task.primary,
            choices=self.choices,
            talk=self.talk,
        )
        checkpoint.save_model(model, loaded.tokenizer, place)
        return {"dev": results[NAME]["dev"], "phases": results, "parameters": models.parameters(model)}
