"""What stage one builds: the student, its losses, the objective, and batches of blocks."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from microbert_cli import distributed
from microbert_cli.data.corpus.blocks import Blocks
from microbert_cli.data.corpus.masking import Masking
from microbert_cli.distillation.initialise import initial_weights
from microbert_cli.distillation.layer_map import layer_map
from microbert_cli.distillation.pair_checks import check_pair
from microbert_cli.distillation.teacher import Teacher
from microbert_cli.errors import MbertError
from microbert_cli.models import factory
from microbert_cli.models.device import choose_precision, pick_device
from microbert_cli.models.load import LoadedModel
from microbert_cli.models.tokenizers import same_tokens
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.training.loss_terms import ENCODER_OUTPUTS, PAIR_INPUTS, TOKEN_INPUTS, LossTerm, check_depth, make_terms
from microbert_cli.training.objective import Batch, Objective
from microbert_cli.training.progressive import Progressive, check_layers


def make_pupil(
    recipe: Recipe, catalog: Catalog, taught: LoadedModel, student: str, initial: str | None = None, reporter: Reporter = SILENT
) -> LoadedModel:
    """The student at its start: a checkpoint, or a new one as `initialise` says."""
    said, new = recipe.initialise, factory.is_description(student, catalog)
    start = initial_weights(said.by, said.layers, taught, initial, reporter=reporter) if new else None
    head, _ = heads(recipe, catalog)
    pupil = factory.encoder(student, catalog, seed=recipe.seed, teacher=taught, where="student", start=start, head=head)
    if not recipe.general.dropout:
        _without_dropout(pupil.model)
    return pupil


def make_objective(recipe: Recipe, catalog: Catalog, teacher: Teacher, taught: LoadedModel, pupil: LoadedModel) -> Objective:
    """The general stage's losses over the layer map; checks that they can compare the two before anything is trained."""
    terms = terms_of(recipe, catalog)
    named = {f"general.losses.{term.name}": term for term in terms}
    theirs, ours = taught.model.config, pupil.model.config
    check_pair(named, taught, pupil, where="student")
    same_tokens(taught.tokenizer, pupil.tokenizer, where="student")
    check_depth(named, ours.num_hidden_layers)
    how = choose_precision(pick_device(recipe.device), **recipe.numerics())
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
    terms = make_terms(
        losses, catalog, given=ENCODER_OUTPUTS | TOKEN_INPUTS | PAIR_INPUTS | {"teacher"}, where="general.losses"
    )
    if (guessing := [term.name for term in terms if "token_labels" in term.needs]) and not recipe.general.masked:
        raise _nothing_hidden(guessing[0])
    return terms


def _progressive(recipe: Recipe, terms: Mapping[str, LossTerm], pupil: LoadedModel) -> Progressive | None:
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
    words = [term for term in terms if term.needs & TOKEN_INPUTS]
    named = {True: "masked-lm", False: "encoder"}
    return named[bool(words)], named[any("token_head" in term.needs and term.asks_teacher for term in words)]


def batch_maker(recipe: Recipe, tokenizer: Any, blocks: Blocks) -> Callable[[Blocks, Any, int], Batch]:
    """(blocks, rows, number of the batch) -> this process's rows, with words hidden where the recipe hides any."""
    spec, device = recipe.general, pick_device(recipe.device)
    pad_to = recipe.corpus.max_length if recipe.normalisation == "reference" else None
    masks = Masking(tokenizer, spec.masked, spec.smoothing, recipe.seed, blocks.tokens) if spec.masked else None

    def make(part: Blocks, rows: Any, number: int) -> Batch:
        if masks is None:
            batch = distributed.rank_batch(lambda own: part.batch(own, pad_to), rows)
        else:
            batch = masks.own(part.batch(rows, pad_to), number)
        return {name: value.to(device) for name, value in batch.items()}

    return make


def _nothing_hidden(loss: str) -> MbertError:
    return MbertError(
        "M091",
        "this loss is about words that were hidden from the model, and the recipe hides none",
        where=f"general.losses.{loss}",
        allowed="A share of words above 0 that are masked, 0.15 in BERT and DistilBERT.",
        fix=f"--set general.masked=0.15, or leave the loss out: --set general.losses.{loss}=0",
    )
