"""Stage one: a small student learns a pre-trained teacher's behaviour on plain text, before it hears of any task."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from microbert_cli import checkpoint, corpus, initialising, models, numerics, places, processes
from microbert_cli.batching import endless, in_order
from microbert_cli.blocks import Blocks, BlockSettings, make_blocks
from microbert_cli.catalog import Catalog
from microbert_cli.errors import MbertError
from microbert_cli.layer_map import layer_map
from microbert_cli.loop import train
from microbert_cli.masking import Masks
from microbert_cli.matching import check_pair, one_cut
from microbert_cli.models import Loaded
from microbert_cli.objective import Batch, Objective
from microbert_cli.output import working
from microbert_cli.phases import make_plan
from microbert_cli.progressive import Progressive, check_layers, check_steps
from microbert_cli.recipe import NUMERICS, Recipe
from microbert_cli.stage import StageResult, sign, up_to_date
from microbert_cli.teacher import Teacher
from microbert_cli.terms import PAIRED, SHOWN, WORDED, LossTerm, check_depth, make_terms
from microbert_cli.tracking import SILENT, Talk

NAME = "general-distill"
KEYS = ("corpus", "general", "normalisation", "layer_map", "initialise", "seed", *NUMERICS)


def run(
    recipe: Recipe,
    out: Path,
    *,
    catalog: Catalog,
    teacher: str,
    student: str,
    source: str,
    initial: str | None = None,
    force: bool = False,
    resume: bool = True,
    renew: bool = False,
    talk: Talk = SILENT,
) -> StageResult:
    """Distils `teacher` into `student` on the corpus `source`; losses on held-out text are in metrics.json.

    teacher  a pre-trained encoder, not fine-tuned: a directory or a Hub id
    student  a student of the catalogue, or an encoder to go on from
    initial  whose weights a new student takes where the recipe says that it takes any; else the teacher's
    The output is the bare encoder, or where words are predicted a masked-LM; the trained map to the teacher's width lies
    under resume/ for stage two.
    """
    identity = {
        "recipe": recipe.identity(*KEYS),
        "own_files": catalog.own_files(),
        "teacher": places.identify(teacher, catalog),
        "student": places.identify(student, catalog),
        "corpus": corpus.identify(source),
        **({"initial": places.identify(initial, catalog)} if initial else {}),
    }
    with working(
        out, stage=NAME, identity=identity, force=force, resume=resume, renew=renew, reuse=recipe.reuse, talk=talk
    ) as work:
        if work.done:
            return up_to_date(NAME, out)
        _, head = heads(recipe, catalog)
        taught = models.load(teacher, head, where="base", new_head=head == "encoder")
        pupil = make_pupil(recipe, catalog, taught, student, initial, talk)
        objective = make_objective(recipe, catalog, Teacher(taught), taught, pupil)
        models.check_length(recipe.corpus.max_length, pupil.model.config, where="corpus.max_length")
        models.check_length(recipe.corpus.max_length, taught.model.config, where="corpus.max_length")
        blocks, held = make_blocks(
            source,
            pupil.tokenizer,
            BlockSettings(**recipe.corpus.model_dump(exclude={"source"}), seed=recipe.seed),
            talk=talk,
        )
        metrics = _train(recipe, objective, blocks, held, pupil.tokenizer, work.path, talk)
        projection = objective.projection.state_dict() if objective.projection is not None else None
        checkpoint.save_model(pupil.model, pupil.tokenizer, work.path, projection=projection)
        checkpoint.drop_states(work.path)
        return sign(
            work,
            stage=NAME,
            recipe=recipe.keys(*KEYS),
            metrics=metrics | {"parameters": models.parameters(pupil.model)},
            inputs={name: value for name, value in identity.items() if name not in ("recipe", "own_files")},
            sources={"teacher": teacher, "student": student, "corpus": source, **({"initial": initial} if initial else {})},
            data={"corpus": source, "blocks": len(blocks), "heldout_blocks": len(held)},
            seeds=[recipe.seed],
        )


def make_pupil(
    recipe: Recipe, catalog: Catalog, taught: Loaded, student: str, initial: str | None = None, talk: Talk = SILENT
) -> Loaded:
    """The student at its start: a checkpoint, or a new one as `initialise` says."""
    said, new = recipe.initialise, places.is_description(student, catalog)
    start = initialising.start(said.by, said.layers, taught, initial, talk=talk) if new else None
    head, _ = heads(recipe, catalog)
    pupil = places.encoder(student, catalog, seed=recipe.seed, teacher=taught, where="student", start=start, head=head)
    if not recipe.general.dropout:
        _without_dropout(pupil.model)
    return pupil


def make_objective(recipe: Recipe, catalog: Catalog, teacher: Teacher, taught: Loaded, pupil: Loaded) -> Objective:
    """The general stage's losses over the layer map; checks that they can compare the two before anything is trained."""
    terms = terms_of(recipe, catalog)
    named = {f"general.losses.{term.name}": term for term in terms}
    theirs, ours = taught.model.config, pupil.model.config
    check_pair(named, taught, pupil, where="student")
    one_cut(taught.tokenizer, pupil.tokenizer, where="student")
    check_depth(named, ours.num_hidden_layers)
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
        progressive=_progressive(recipe, named, pupil),
    )
    if objective.projection is not None and pupil.projection is not None:
        objective.projection.load_state_dict(pupil.projection)
    for model in (teacher.model, pupil.model):
        how.place(model)
    return objective.to(how.device)


def terms_of(recipe: Recipe, catalog: Catalog) -> list[LossTerm]:
    """The stage's losses; raises M091 where one asks for hidden words and no word is hidden."""
    losses = {name: (term.weight, term.parameters) for name, term in recipe.general.losses.items()}
    terms = make_terms(losses, catalog, given=SHOWN | WORDED | PAIRED | {"teacher"}, where="general.losses")
    if (guessing := [term.name for term in terms if "token_labels" in term.needs]) and not recipe.general.masked:
        raise _nothing_hidden(guessing[0])
    return terms


def _progressive(recipe: Recipe, terms: Mapping[str, LossTerm], pupil: Loaded) -> Progressive | None:
    """How the student is trained layer by layer, if so; `terms` by their keys in the recipe."""
    if not (rates := recipe.general.layer_by_layer):
        return None
    layers = pupil.model.config.num_hidden_layers
    check_layers(pupil.model, [(key, term.over) for key, term in terms.items()], layers=layers)
    return Progressive(layers, *rates)


def _without_dropout(model: nn.Module) -> None:
    """For as long as this model is in memory: what is saved of it has its configuration's dropout."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):  # ModernBERT's
            module.attention_dropout = 0.0


def heads(recipe: Recipe, catalog: Catalog) -> tuple[str, str]:
    """What the losses need the student and the teacher to be: "encoder", or "masked-lm" where they are to name words.

    Both are masked-LMs where the student begins as the teacher's ends, which is its head, too.
    """
    terms = terms_of(recipe, catalog)
    if recipe.initialise.by == "teacher-ends":
        return "masked-lm", "masked-lm"
    words = [term for term in terms if term.needs & WORDED]
    named = {True: "masked-lm", False: "encoder"}
    return named[bool(words)], named[any("token_head" in term.needs and term.asks_teacher for term in words)]


def batch_maker(recipe: Recipe, tokenizer: Any, blocks: Blocks) -> Callable[[Blocks, Any, int], Batch]:
    """(blocks, rows, number of the batch) -> this process's rows, with words hidden where the recipe hides any."""
    spec, device = recipe.general, places.device(recipe.device)
    pad_to = recipe.corpus.max_length if recipe.normalisation == "reference" else None
    masks = Masks(tokenizer, spec.masked, spec.smoothing, recipe.seed, blocks.tokens) if spec.masked else None

    def make(part: Blocks, rows: Any, number: int) -> Batch:
        if masks is None:
            batch = processes.own_batch(lambda own: part.batch(own, pad_to), rows)
        else:
            batch = masks.own(part.batch(rows, pad_to), number)
        return {name: value.to(device) for name, value in batch.items()}

    return make


def _train(
    recipe: Recipe, objective: Objective, blocks: Blocks, held: Blocks, tokenizer: Any, directory: Path, talk: Talk
) -> dict[str, Any]:
    spec = recipe.general
    reference = recipe.normalisation == "reference"
    make = batch_maker(recipe, tokenizer, blocks)

    def batches(skip: int) -> Iterator[Batch]:
        order = endless(
            blocks.lengths,
            batch_size=spec.batch_size,
            tokens=spec.batch_tokens,
            seed=recipe.seed,
            skip=skip,
            drop_last=reference,
        )
        for number, rows in enumerate(order, skip):
            yield make(blocks, rows, number)

    def heldout() -> dict[str, float]:
        groups = in_order(held.lengths, batch_size=spec.batch_size)
        return _losses(objective, [make(held, rows, -1 - i) for i, rows in enumerate(groups)])

    before = heldout()
    plan = make_plan(NAME, spec, blocks.lengths, drop_last=reference, seed=recipe.seed)
    if objective.progressive is not None:
        check_steps(plan.steps, objective.progressive.layers)
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
            _, loss, parts = next(objective.losses(batch))  # the student's; an adversary's comes after it
            for name, value in {"loss": loss, **parts}.items():
                sums[name] = sums.get(name, 0.0) + float(value) / len(batches)
    objective.student.train(training)
    sums = processes.mean(sums)
    return {**sums, "minus_loss": -sums["loss"]}


def _nothing_hidden(loss: str) -> MbertError:
    return MbertError(
        "M091",
        "this loss is about words that were hidden from the model, and the recipe hides none",
        where=f"general.losses.{loss}",
        allowed="A share of words above 0 that are masked, 0.15 in BERT and DistilBERT.",
        fix=f"--set general.masked=0.15, or leave the loss out: --set general.losses.{loss}=0",
    )
