"""Stage one: a small student learns a pre-trained teacher's behaviour on plain text, before it hears of any task."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from microbert_cli import checkpoint, corpus, models, numerics, places, processes
from microbert_cli.batching import endless, in_order
from microbert_cli.blocks import Blocks, BlockSettings, make_blocks
from microbert_cli.catalog import Catalog
from microbert_cli.layer_map import layer_map
from microbert_cli.loop import train
from microbert_cli.matching import check_pair, one_cut
from microbert_cli.models import Loaded
from microbert_cli.objective import Batch, Objective
from microbert_cli.output import working
from microbert_cli.phases import make_plan
from microbert_cli.recipe import NUMERICS, Recipe
from microbert_cli.stage import StageResult, sign, up_to_date
from microbert_cli.teacher import Teacher
from microbert_cli.terms import SHOWN, make_terms
from microbert_cli.tracking import SILENT, Talk

NAME = "general-distill"
KEYS = ("corpus", "general", "normalisation", "layer_map", "seed", *NUMERICS)


def run(
    recipe: Recipe,
    out: Path,
    *,
    catalog: Catalog,
    teacher: str,
    student: str,
    source: str,
    force: bool = False,
    resume: bool = True,
    renew: bool = False,
    talk: Talk = SILENT,
) -> StageResult:
    """Distils `teacher` into `student` on the corpus `source`; losses on held-out text are in metrics.json.

    teacher  a pre-trained encoder, not fine-tuned: a directory or a Hub id
    student  a student of the catalogue, or an encoder to go on from
    The output is the bare encoder; the trained map to the teacher's width lies under resume/ for stage two.
    """
    identity = {
        "recipe": recipe.identity(*KEYS),
        "own_files": catalog.own_files(),
        "teacher": places.identify(teacher, catalog),
        "student": places.identify(student, catalog),
        "corpus": corpus.identify(source),
    }
    with working(out, stage=NAME, identity=identity, force=force, resume=resume, renew=renew, talk=talk) as work:
        if work.done:
            return up_to_date(NAME, out)
        taught = models.load(teacher, "encoder", where="base", new_head=True)
        pupil = places.encoder(student, catalog, seed=recipe.seed, teacher=taught, where="student")
        objective = make_objective(recipe, catalog, Teacher(taught), taught, pupil)
        models.check_length(recipe.corpus.max_length, pupil.model.config, where="corpus.max_length")
        models.check_length(recipe.corpus.max_length, taught.model.config, where="corpus.max_length")
        blocks, held = make_blocks(
            source,
            pupil.tokenizer,
            BlockSettings(**recipe.corpus.model_dump(exclude={"source"}), seed=recipe.seed),
            talk=talk,
        )
        metrics = _train(recipe, objective, blocks, held, work.path, talk)
        projection = objective.projection.state_dict() if objective.projection is not None else None
        checkpoint.save_model(pupil.model, pupil.tokenizer, work.path, projection=projection)
        checkpoint.drop_states(work.path)
        return sign(
            work,
            stage=NAME,
            recipe=recipe.keys(*KEYS),
            metrics=metrics | {"parameters": models.parameters(pupil.model)},
            inputs={"teacher": identity["teacher"], "student": identity["student"], "corpus": identity["corpus"]},
            sources={"teacher": teacher, "student": student, "corpus": source},
            data={"corpus": source, "blocks": len(blocks), "heldout_blocks": len(held)},
            seeds=[recipe.seed],
        )


def make_objective(recipe: Recipe, catalog: Catalog, teacher: Teacher, taught: Loaded, pupil: Loaded) -> Objective:
    """The general stage's losses over the layer map; checks that they can compare the two before anything is trained."""
    losses = {name: (term.weight, term.parameters) for name, term in recipe.general.losses.items()}
    terms = make_terms(losses, catalog, given=SHOWN | {"teacher"}, where="general.losses")
    theirs, ours = taught.model.config, pupil.model.config
    check_pair({f"general.losses.{term.name}": term for term in terms}, taught, pupil, where="student")
    one_cut(taught.tokenizer, pupil.tokenizer, where="student")
    how = numerics.choose(places.device(recipe.device), **recipe.numerics())
    torch.manual_seed(recipe.seed)
    objective = Objective(
        terms,
        pupil.model,
        ask_teacher=teacher.ask,
        map_layers=layer_map(recipe.layer_map, teacher_layers=theirs.num_hidden_layers, student_layers=ours.num_hidden_layers),
        student_width=ours.hidden_size,
        teacher_width=theirs.hidden_size,
        normalisation=recipe.normalisation,
        numerics=how,
    )
    if objective.projection is not None and pupil.projection is not None:
        objective.projection.load_state_dict(pupil.projection)
    for model in (teacher.model, pupil.model):
        how.place(model)
    return objective.to(how.device)


def _train(recipe: Recipe, objective: Objective, blocks: Blocks, held: Blocks, directory: Path, talk: Talk) -> dict[str, Any]:
    spec = recipe.general
    device = places.device(recipe.device)
    reference = recipe.normalisation == "reference"
    pad_to = recipe.corpus.max_length if reference else None

    def on_device(part: Blocks, rows: Any) -> Batch:
        batch = processes.own_batch(lambda own: part.batch(own, pad_to), rows)
        return {name: value.to(device) for name, value in batch.items()}

    def batches(skip: int) -> Iterator[Batch]:
        order = endless(
            blocks.lengths,
            batch_size=spec.batch_size,
            tokens=spec.batch_tokens,
            seed=recipe.seed,
            skip=skip,
            drop_last=reference,
        )
        for rows in order:
            yield on_device(blocks, rows)

    def heldout() -> dict[str, float]:
        groups = in_order(held.lengths, batch_size=spec.batch_size)
        return _losses(objective, [on_device(held, rows) for rows in groups])

    before = heldout()
    plan = make_plan(NAME, spec, blocks.lengths, drop_last=reference, seed=recipe.seed)
    trained = train(
        objective, batches, plan, directory=directory, seed=recipe.seed, score=heldout, primary="minus_loss", talk=talk
    )
    return {"heldout": trained.best, "heldout_before": before, "steps": trained.steps, "best_step": trained.best_step}


def _losses(objective: Objective, batches: list[Batch]) -> dict[str, float]:
    """Mean losses over batches, dropout off; `minus_loss` is the one to maximise."""
    training = objective.student.training
    objective.student.eval()
    sums: dict[str, float] = {"loss": 0.0}
    with torch.no_grad():
        for batch in batches:
            for group, loss, parts in objective.losses(batch):
                if group != "student":
                    continue
                for name, value in {"loss": loss, **parts}.items():
                    sums[name] = sums.get(name, 0.0) + float(value) / len(batches)
    objective.student.train(training)
    sums = processes.mean(sums)
    return {**sums, "minus_loss": -sums["loss"]}
